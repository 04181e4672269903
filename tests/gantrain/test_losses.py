import math

import torch

from gantrain.losses import (
    gradient_penalties,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)


def test_relativistic_losses_against_values_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])
    discriminator = (math.log1p(math.exp(-1)) + math.log1p(math.exp(3))) / 2
    generator = (math.log1p(math.exp(1)) + math.log1p(math.exp(-3))) / 2
    assert math.isclose(relativistic_discriminator_loss(real, fake), discriminator, rel_tol=1e-6)
    assert math.isclose(relativistic_generator_loss(real, fake), generator, rel_tol=1e-6)


def test_penalty_of_a_linear_discriminator_is_its_squared_weights():
    weights = torch.arange(12.0).reshape(1, 3, 2, 2)
    images = torch.randn(5, 3, 2, 2, requires_grad=True)
    logits = (images * weights).flatten(1).sum(1)
    expected = torch.full((5,), float((weights**2).sum()))
    torch.testing.assert_close(gradient_penalties(logits, images), expected)


def test_penalty_can_be_differentiated_by_the_weights():
    # D(x) = a/2 |x|^2 has the gradient a x, the penalty a^2 |x|^2 and its derivative 2 a |x|^2.
    scale = torch.tensor(3.0, requires_grad=True)
    images = torch.randn(4, 1, 2, 2, requires_grad=True)
    squares = images.detach().square().flatten(1).sum(1)
    penalties = gradient_penalties(scale / 2 * images.square().flatten(1).sum(1), images)
    torch.testing.assert_close(penalties, 9 * squares)
    penalties.sum().backward()
    torch.testing.assert_close(scale.grad, 6 * squares.sum())
