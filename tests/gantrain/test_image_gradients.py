"""The gradients of logits by images, and what is learned from them, against autograd's."""

import pytest
import torch
from torch.nn.functional import softplus

from gantrain.networks import Shape, create_networks, judge_with_gradients, run_network
from gantrain.networks.image_gradients import gradients_by_examples
from gantrain.training.augment import augment

BATCH = 6
KINDS = [
    pytest.param({"image_size": 16, "channels": 3}, id="colours"),
    pytest.param({"image_size": 28, "channels": 1, "classes": 4}, id="conditional-odd-maps"),
    pytest.param({"image_size": 15, "channels": 1}, id="odd"),
]


def make(image_size, channels, classes=0, dtype=torch.float64, **more):
    shape = Shape(image_size, channels, latent_dim=4, filters=4, kernel_size=5, classes=classes)
    _, discriminator = create_networks("dcgan", "dcgan", shape, seed=0, **more)
    random = torch.Generator().manual_seed(1)
    images = torch.rand(BATCH, channels, image_size, image_size, generator=random) * 2 - 1
    labels = torch.randint(classes, (BATCH,), generator=random) if classes else None
    return discriminator.to(dtype), images.to(dtype), labels


def by_autograd(discriminator, images, labels):
    images = images.clone().requires_grad_()
    logits = run_network(discriminator, images, labels)
    return logits, gradients_by_examples(logits, images)


def learn(discriminator, logits, gradients):
    """The weights' gradients of a loss of logits that compares pairs, and of uneven penalties."""
    discriminator.zero_grad()
    half = BATCH // 2
    shares = torch.linspace(0.1, 1, BATCH, dtype=gradients.dtype)
    penalty = (shares * gradients.square().flatten(1).sum(1)).mean()
    (softplus(logits[:half] - logits[half:]).mean() + penalty).backward()
    return {name: values.grad.clone() for name, values in discriminator.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_gradients_and_all_that_is_learned_are_autograds(kind):
    discriminator, images, labels = make(**kind)
    expected = by_autograd(discriminator, images, labels)
    learned = learn(discriminator, *expected)
    found = judge_with_gradients(discriminator, images, labels)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for name, gradient in learn(discriminator, *found).items():
        torch.testing.assert_close(gradient, learned[name], rtol=1e-9, atol=1e-12, msg=name)


def test_normalized_weights_learn_too():
    discriminator, images, labels = make(16, 3, spectral_norm=True)
    discriminator.eval()  # or the norms would be followed between the two
    expected = learn(discriminator, *by_autograd(discriminator, images, labels))
    found = learn(discriminator, *judge_with_gradients(discriminator, images, labels))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_penalties_before_augmentation_learn_too():
    """The gradient goes on through what augmentation does, and is learned from through it."""
    discriminator, images, _ = make(16, 3)
    found = []
    for judge in (by_autograd, judge_with_gradients):
        plain = images.clone().requires_grad_()
        noise = torch.Generator().manual_seed(5)
        augmented = augment(plain, ("color", "translation", "cutout"), noise)
        logits, gradients = judge(discriminator, augmented.detach(), None)
        (gradients,) = torch.autograd.grad(augmented, plain, gradients, create_graph=True)
        found.append([gradients, *learn(discriminator, logits, gradients).values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_in_bfloat16_the_results_are_those_of_float32_but_for_rounding():
    discriminator, images, labels = make(16, 3, classes=3, dtype=torch.float32)
    expected = judge_with_gradients(discriminator, images, labels)
    learned = learn(discriminator, *expected)
    with torch.autocast("cpu", torch.bfloat16):
        found = judge_with_gradients(discriminator, images, labels)
    assert {values.dtype for values in found} == {torch.float32}
    for name, gradient in learn(discriminator, *found).items():
        expected_gradient = learned[name]
        if name == "judge.bias":
            continue  # it cancels in each pair
        assert (gradient - expected_gradient).norm() < 0.1 * expected_gradient.norm(), name


def test_what_only_logits_or_only_gradients_teach_is_learned_alone():
    discriminator, images, _ = make(16, 1)
    for choose in (0, 1):
        learned = []
        for judge in (by_autograd, judge_with_gradients):
            discriminator.zero_grad()
            judge(discriminator, images, None)[choose].square().sum().backward()
            learned.append([values.grad for values in discriminator.parameters()])
        for one, other in zip(*learned, strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_network_without_a_way_of_its_own_is_differentiated_by_autograd():
    shape = Shape(28, 1, latent_dim=4, filters=4, kernel_size=5)
    _, discriminator = create_networks("torch-mlp", "torch-mlp", shape, seed=0)
    images = torch.rand(BATCH, 1, 28, 28)
    logits, gradients = judge_with_gradients(discriminator.eval(), images)
    expected = by_autograd(discriminator, images, None)
    torch.testing.assert_close(logits, expected[0])
    torch.testing.assert_close(gradients, expected[1])
