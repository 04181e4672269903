import pytest
import torch
from torch import nn

from gantrain.config import AugmentationName, TrainConfig
from gantrain.presets import resolve
from gantrain.training.augment import AUGMENTATIONS, augment
from gantrain.training.run_setup import create_state
from gantrain.training.steps import (
    discriminator_step,
    generate_fakes,
    generator_step,
    judge_with_input_gradients,
)

ALL = tuple(AUGMENTATIONS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_images(count=64, channels=3, size=16):
    return torch.rand(count, channels, size, size, generator=seeded(9)) * 2 - 1


def test_settings_and_functions_have_the_same_names():
    assert set(AUGMENTATIONS) == set(AugmentationName.__args__)


def test_translation_moves_by_at_most_an_eighth_and_fills_with_zero():
    images = torch.zeros(512, 1, 16, 16)
    images[:, :, 8, 8] = 1.0
    moved = augment(images, ["translation"], seeded())
    assert (moved.sum((1, 2, 3)) == 1).all()
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    shifts = {(row, column) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)}
    assert shifts == {(row, column) for row in range(6, 11) for column in range(6, 11)}
    corner = torch.ones(1, 1, 16, 16)
    moved = [augment(corner, ["translation"], seeded(seed)) for seed in range(40)]
    assert {int(image.sum()) for image in moved} <= {
        (16 - down) * (16 - right) for down in range(3) for right in range(3)
    }
    assert any((image[0, 0, 0] == 0).all() for image in moved), "what comes in is 0"


@pytest.mark.parametrize(
    ("size", "largest"), [(8, 1), (12, 2), (16, 2), (20, 3), (28, 4), (32, 4), (36, 5), (64, 8)]
)
def test_all_shifts_are_equally_likely_up_to_the_authors_largest(size: int, largest: int):
    """`rand_translation` of Zhao et al.: `int(size * 0.125 + 0.5)`, each whole number as likely."""
    images = torch.zeros(4000, 1, size, size)
    images[:, :, size // 2, size // 2] = 1.0
    _, _, *places = augment(images, ["translation"], seeded()).nonzero(as_tuple=True)
    for place in places:
        counts = torch.bincount(place - size // 2 + largest, minlength=2 * largest + 1)
        assert len(counts) == 2 * largest + 1
        expected = 4000 / len(counts)
        assert (counts - expected).abs().max() < 4 * expected**0.5


def test_translated_pixels_keep_their_bits_and_their_order():
    images = some_images(1)
    moved = augment(images, ["translation"], seeded(3))
    down, right = next(
        (down, right)
        for down in range(-2, 3)
        for right in range(-2, 3)
        if torch.equal(
            moved[..., max(down, 0) : 16 + min(down, 0), max(right, 0) : 16 + min(right, 0)],
            images[..., max(-down, 0) : 16 - max(down, 0), max(-right, 0) : 16 - max(right, 0)],
        )
    )
    assert (down, right) != (0, 0)


def test_cutout_clears_a_square_of_half_the_side_that_may_lie_partly_outside():
    images = torch.ones(512, 3, 16, 16)
    holes = (augment(images, ["cutout"], seeded()) == 0).all(1)  # [batch, size, size]
    heights = holes.any(2).sum(1)
    widths = holes.any(1).sum(1)
    assert (holes.sum((1, 2)) == heights * widths).all(), "each hole is a rectangle"
    assert set(heights.tolist()) == set(widths.tolist()) == set(range(4, 9))
    assert holes.any(0).all(), "every pixel is cleared sometimes"
    smallest = holes[heights == 4]
    assert smallest[:, 0].any(), "it reaches as far out at the top"
    assert smallest[:, -1].any(), "as at the bottom"


def test_color_changes_brightness_saturation_and_contrast_of_each_image_by_itself():
    images = some_images(2000)
    changed = augment(images, ["color"], seeded())
    means = changed.mean((1, 2, 3)) - images.mean((1, 2, 3))
    assert -0.5 <= means.min() < -0.45
    assert 0.45 < means.max() <= 0.5

    def saturation(batch):
        return (batch - batch.mean(1, keepdim=True)).std((1, 2, 3))

    ratios = saturation(changed) / saturation(images)
    assert ratios.min() < 0.05
    assert 2.5 < ratios.max() <= 3
    assert ratios.std() > 0.3


@pytest.mark.parametrize("channels", [1, 3])
def test_color_is_what_the_authors_code_makes_of_the_same_numbers(channels: int):
    """`rand_brightness`, `rand_saturation` and `rand_contrast` of Zhao et al.'s DiffAugment."""
    images = some_images(16, channels)
    noise = seeded(2)
    expected = images + (torch.rand(16, 1, 1, 1, generator=noise) - 0.5)
    if channels > 1:  # of grey images theirs changes nothing
        mean = expected.mean(1, keepdim=True)
        expected = (expected - mean) * (torch.rand(16, 1, 1, 1, generator=noise) * 2) + mean
    mean = expected.mean((1, 2, 3), keepdim=True)
    expected = (expected - mean) * (torch.rand(16, 1, 1, 1, generator=noise) + 0.5) + mean
    torch.testing.assert_close(augment(images, ["color"], seeded(2)), expected)


def test_grey_images_have_no_saturation_to_change():
    images = some_images(2000, channels=1)
    changed = augment(images, ["color"], seeded())
    ratios = changed.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.5 <= ratios.min() < 0.52
    assert 1.48 < ratios.max() <= 1.5


@pytest.mark.parametrize("names", [pytest.param((name,), id=name) for name in ALL] + [ALL])
def test_gradients_pass_twice_as_penalties_need(names):
    images = some_images(3, size=8).double().requires_grad_()

    def cubed(batch):
        return augment(batch, names, seeded(1)).pow(3)

    assert torch.autograd.gradcheck(cubed, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(cubed, images, fast_mode=True)


def test_the_same_noise_gives_the_same_images():
    images = some_images()
    first, second = (augment(images, ALL, seeded(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(images, ALL, seeded(5)))


def test_nothing_is_changed_where_nothing_is_named():
    images = some_images()
    assert augment(images, (), seeded()) is images


class Watcher(nn.Module):
    """Judges by the mean and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach().clone())
        return images.mean((1, 2, 3)) * self.weight


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="flagship"),
        pytest.param({"discriminator_step": "separate", "loss": "bce"}, id="separate"),
        pytest.param({"discriminator_step": "two-steps", "loss": "hinge"}, id="two-steps"),
        pytest.param({"loss": "wasserstein", "gradient_penalty_weight": 10.0}, id="wgan-gp"),
    ],
)
def test_the_discriminator_sees_nothing_but_augmented_images_in_both_steps(settings):
    """Images of one value have holes exactly where they were augmented."""
    config = resolve(
        {
            "data": "digits",
            "run_dir": "unused",
            "image_size": 8,
            "channels": 3,
            "filters": 4,
            "r1_weight": 1.0,
            "r2_weight": 1.0,
            "augment": "cutout",
            **settings,
        }
    )
    state = create_state(config, torch.device("cpu"), class_count=0)
    state.discriminator = watcher = Watcher()
    state.discriminator_optimizer = torch.optim.SGD(watcher.parameters(), lr=1e-3)
    reals = torch.ones(config.batch_size, 3, 8, 8)
    noise = seeded()
    fakes = generate_fakes(state, config, noise, with_gradient=True)
    discriminator_step(state, reals, fakes, config, noise)
    shown_to_discriminator = len(watcher.seen)
    generator_step(state, reals, fakes, config, noise)
    assert 0 < shown_to_discriminator < len(watcher.seen)
    for images in watcher.seen:
        assert ((images == 0).all(1).sum((1, 2)) >= 4).all()


def test_penalties_are_on_the_gradient_by_the_image_before_it_was_changed():
    config = resolve(
        {"data": "digits", "run_dir": "", "image_size": 8, "channels": 3, "filters": 4}
        | {"augment": ",".join(ALL)}
    )
    state = create_state(config, torch.device("cpu"), class_count=0)
    images = some_images(6, size=8)
    found, gradients = judge_with_input_gradients(state, images, config, seeded(3))
    plain = images.clone().requires_grad_()
    state.discriminator.eval()  # of PyTorch's own layers, which can be differentiated twice
    logits = state.discriminator(augment(plain, ALL, seeded(3)))
    (expected,) = torch.autograd.grad(logits.sum(), plain, create_graph=True)
    torch.testing.assert_close(found, logits)
    torch.testing.assert_close(gradients, expected)
    weights = dict(state.discriminator.named_parameters())
    del weights["judge.bias"]  # no gradient depends on it
    of_penalties = [
        torch.autograd.grad(slopes.square().sum(), weights.values())
        for slopes in (gradients, expected)
    ]
    torch.testing.assert_close(*of_penalties)


@pytest.mark.parametrize(
    "text", ["", "colour", "color,color", "color,off", "color;cutout"], ids=lambda text: text or "-"
)
def test_unknown_or_repeated_names_are_refused(text):
    with pytest.raises(ValueError, match=r"expected off, or each at most once out of color, trans"):
        TrainConfig(data="digits", run_dir="unused", augment=text)


def test_spaces_do_not_matter():
    config = TrainConfig(data="digits", run_dir="unused", augment="color, cutout")
    assert config.augmentations == ("color", "cutout")
