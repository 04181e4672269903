import math

import pytest
import torch
from torch import nn

from gantrain.losses import (
    LOSSES,
    create_loss,
    gradient_penalties,
    interpolate,
    interpolation_penalty,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)
from gantrain.networks import judge_with_gradients
from gantrain.networks.image_gradients import gradients_by_examples

REAL, FAKE = [2.0, -0.5], [1.0, -3.0]


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def log_d(logits: list[float]) -> float:
    return mean([math.log(sigmoid(logit)) for logit in logits])


def log_not_d(logits: list[float]) -> float:
    return mean([math.log(1 - sigmoid(logit)) for logit in logits])


# name -> the discriminator's and the generator's loss of REAL and FAKE
BY_HAND = {
    "relativistic": (
        mean([math.log1p(math.exp(1.0 - 2.0)), math.log1p(math.exp(-3.0 + 0.5))]),
        mean([math.log1p(math.exp(2.0 - 1.0)), math.log1p(math.exp(-0.5 + 3.0))]),
    ),
    "bce": (-log_d(REAL) - log_not_d(FAKE), -log_d(FAKE)),
    "saturating": (-log_d(REAL) - log_not_d(FAKE), log_not_d(FAKE)),
    "least-squares": (
        (1.0**2 + 1.5**2) / 2 / 2 + (1.0**2 + 3.0**2) / 2 / 2,
        (0.0**2 + 4.0**2) / 2 / 2,
    ),
    "hinge": ((0.0 + 1.5) / 2 + (2.0 + 0.0) / 2, -(1.0 - 3.0) / 2),
    "wasserstein": ((1.0 - 3.0) / 2 - (2.0 - 0.5) / 2, -(1.0 - 3.0) / 2),
}


def test_the_flagships_loss_comes_first_and_all_have_values_by_hand():
    assert LOSSES[0] == "relativistic"
    assert set(LOSSES) == set(BY_HAND)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_against_values_by_hand(name: str):
    loss, real, fake = create_loss(name), torch.tensor(REAL), torch.tensor(FAKE)
    found = (float(loss.discriminator(real, fake)), float(loss.generator(real, fake)))
    assert found == pytest.approx(BY_HAND[name], rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_an_unpaired_loss_is_the_sum_of_its_halves_and_its_generator_ignores_reals(name: str):
    loss, real, fake = create_loss(name), torch.tensor(REAL), torch.tensor(FAKE)
    other = torch.tensor([5.0, 7.0])
    if name == "relativistic":
        assert loss.on_real is None
        assert loss.on_fake is None
        assert not torch.equal(loss.generator(real, fake), loss.generator(other, fake))
        return
    assert torch.equal(loss.discriminator(real, fake), loss.on_real(real) + loss.on_fake(fake))
    assert torch.equal(loss.generator(real, fake), loss.generator(other, fake))


@pytest.mark.parametrize("name", ["bce", "saturating", "least-squares"])
def test_smoothing_moves_the_target_of_reals_alone(name: str):
    plain, smooth = create_loss(name), create_loss(name, label_smoothing=0.1)
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    if name == "least-squares":
        on_real = (1.1**2 + 1.4**2) / 2 / 2
    else:
        on_real = -0.9 * log_d(REAL) - 0.1 * log_not_d(REAL)
    assert float(smooth.on_real(real)) == pytest.approx(on_real, rel=1e-6)
    assert torch.equal(smooth.on_fake(fake), plain.on_fake(fake))
    assert torch.equal(smooth.generator(real, fake), plain.generator(real, fake))
    assert torch.equal(
        smooth.discriminator(real, fake), smooth.on_real(real) + smooth.on_fake(fake)
    )


def test_a_smoothed_discriminator_is_content_at_its_target():
    logits = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)  # D = 0.9
    create_loss("bce", label_smoothing=0.1).on_real(logits).backward()
    assert float(logits.grad) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_both_networks_pull_fakes_in_opposite_directions(name: str):
    loss = create_loss(name)
    real = torch.tensor([0.3, -0.2])
    pulls = []
    for term in (loss.discriminator, loss.generator):
        fake = torch.tensor([0.1, -0.4], requires_grad=True)
        term(real, fake).backward()
        pulls.append(fake.grad)
    if name == "least-squares":  # its targets are 0 and 1: between them the two disagree
        fake = torch.tensor([0.4, 0.6], requires_grad=True)
        loss.discriminator(real, fake).backward()
        assert (fake.grad > 0).all()
    else:
        assert (pulls[0] > 0).all()
    assert (pulls[1] < 0).all()


def test_the_saturating_generator_learns_nothing_from_fakes_seen_through_and_the_other_most():
    sizes = {}
    for name in ("bce", "saturating"):
        seen_through = torch.tensor([-10.0], requires_grad=True)
        create_loss(name).generator(torch.zeros(1), seen_through).backward()
        sizes[name] = float(seen_through.grad)
    # d/dx -log D = D - 1 and d/dx log(1 - D) = -D
    assert sizes["bce"] == pytest.approx(sigmoid(-10) - 1, rel=1e-5)
    assert sizes["saturating"] == pytest.approx(-sigmoid(-10), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_extreme_logits_stay_finite(name: str):
    loss = create_loss(name)
    for sign in (1, -1):
        real = torch.full((2,), sign * 1e4, requires_grad=True)
        fake = torch.full((2,), -sign * 1e4, requires_grad=True)
        for term in (loss.discriminator, loss.generator):
            value = term(real, fake)
            assert value.isfinite()
            (gradient,) = torch.autograd.grad(value, fake)
            assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("name", "smoothing", "complaint"),
    [
        pytest.param("bse", 0.0, "loss: expected one of relativistic, bce", id="unknown"),
        pytest.param("hinge", 0.1, "hinge has no labels to smooth", id="hinge"),
        pytest.param("relativistic", 0.1, "no labels to smooth", id="relativistic"),
        pytest.param("bce", -0.1, "expected 0 to less than 0.5", id="negative"),
        pytest.param("bce", 0.5, "expected 0 to less than 0.5", id="half"),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused(name: str, smoothing: float, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        create_loss(name, smoothing)


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
    penalties = gradient_penalties(gradients_by_examples(logits, images))
    torch.testing.assert_close(penalties, expected)


def test_points_are_penalised_as_images_are():
    points = torch.randn(5, 2, requires_grad=True)
    logits = points @ torch.tensor([3.0, 4.0])
    penalties = gradient_penalties(gradients_by_examples(logits, points))
    torch.testing.assert_close(penalties, torch.full((5,), 25.0))


def test_penalty_can_be_differentiated_by_the_weights():
    # D(x) = a/2 |x|^2 has the gradient a x, the penalty a^2 |x|^2 and its derivative 2 a |x|^2.
    scale = torch.tensor(3.0, requires_grad=True)
    images = torch.randn(4, 1, 2, 2, requires_grad=True)
    squares = images.detach().square().flatten(1).sum(1)
    logits = scale / 2 * images.square().flatten(1).sum(1)
    penalties = gradient_penalties(gradients_by_examples(logits, images))
    torch.testing.assert_close(penalties, 9 * squares)
    penalties.sum().backward()
    torch.testing.assert_close(scale.grad, 6 * squares.sum())


def penalize_between(
    discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor, mix: torch.Tensor
) -> torch.Tensor:
    _, gradients = judge_with_gradients(discriminator, interpolate(real, fake, mix))
    return interpolation_penalty(gradients)


class Linear(nn.Module):
    """The logit is the product with fixed weights."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images * self.weights).flatten(1).sum(1)


@pytest.mark.parametrize("shape", [(2,), (3, 2, 2)], ids=["points", "images"])
def test_interpolation_penalty_of_a_linear_discriminator_is_its_distance_from_norm_one(shape):
    weights = torch.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    discriminator = Linear(weights)
    real, fake, mix = torch.randn(5, *shape), torch.randn(5, *shape), torch.rand(5)
    penalty = penalize_between(discriminator, real, fake, mix)
    norm = float(weights.square().sum()) ** 0.5
    assert penalty.shape == ()
    assert float(penalty.detach()) == pytest.approx((norm - 1) ** 2, rel=1e-5)
    penalty.backward()  # d/dw (|w| - 1)^2 = 2 (|w| - 1) w / |w|
    torch.testing.assert_close(discriminator.weights.grad, 2 * (norm - 1) * weights / norm)


def test_the_interpolation_penalty_looks_between_each_real_and_its_fake():
    seen = []

    class Square(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.detach())
            return images.square().flatten(1).sum(1) / 2  # its gradient is the image itself

    real = torch.tensor([[[[8.0]]], [[[4.0]]]])
    fake = torch.tensor([[[[4.0]]], [[[2.0]]]], requires_grad=True)
    penalty = penalize_between(Square(), real, fake, torch.tensor([0.25, 1.0]))
    assert seen[0].flatten().tolist() == [5.0, 4.0]
    assert float(penalty.detach()) == pytest.approx(((5 - 1) ** 2 + (4 - 1) ** 2) / 2)
    penalty.backward()
    assert fake.grad is None  # the generator learns nothing from it


def test_the_interpolation_penalty_survives_a_gradient_of_zero():
    discriminator = Linear(torch.zeros(2))
    images = torch.ones(3, 2)
    penalty = penalize_between(discriminator, images, images, torch.zeros(3))
    penalty.backward()
    assert float(penalty.detach()) == 1
    assert discriminator.weights.grad.isfinite().all()
