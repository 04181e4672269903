"""Every kind of network: its parameters to the last one, its layers, its sizes and ranges."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gantrain.networks import (
    DISCRIMINATORS,
    GENERATORS,
    Shape,
    count_parameters,
    create_networks,
)

GREY_28 = Shape(image_size=28, channels=1, latent_dim=100, filters=64, kernel_size=5)
POINTS = Shape(image_size=None, channels=None, latent_dim=2, filters=64, kernel_size=5)

# Keras' counts, with moving statistics in the total; those of the DCGAN of 2015 are
# 4 * 4 weights a kernel: G 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3),
# D 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512), with BatchNorm's 2 * 960 and 2 * 896.
COUNTS = [
    pytest.param(
        *("keras-mlp", "keras-mlp", GREY_28),
        *((1_493_520, 1_489_936), (533_505, 533_505)),
        id="keras-mlp",
    ),
    pytest.param(
        *("keras-mlp", "keras-mlp-conv", GREY_28),
        *((1_493_520, 1_489_936), (1_606_697, 1_606_697)),
        id="keras-mlp-conv",
    ),
    pytest.param(
        *("keras-conv", "keras-conv", Shape(64, 3, 100, filters=16, kernel_size=5)),
        *((492_083, 487_731), (816_529, 815_569)),
        id="keras-conv",
    ),
    pytest.param(
        *("selu-dense", "selu-dense", replace(GREY_28, latent_dim=30)),
        *((136_634, 136_634), (132_951, 132_951)),
        id="selu-dense",
    ),
    pytest.param("sine", "sine", POINTS, (658, 658), (41_985, 41_985), id="sine"),
    pytest.param(
        *("torch-mlp", "torch-mlp", GREY_28),
        *((1_486_352, 1_486_352), (1_460_225, 1_460_225)),
        id="torch-mlp",
    ),
    pytest.param(
        *("faces", "faces", Shape(128, 3, 32, filters=64, kernel_size=5)),
        *((14_953_987, 14_953_987), (2_040_065, 2_040_065)),
        id="faces",
    ),
    pytest.param(
        *("dcgan-2015", "dcgan-2015", Shape(64, 3, 100, filters=64, kernel_size=5)),
        *((3_574_784 + 4 * 960, 3_574_784 + 2 * 960), (2_763_776 + 4 * 896, 2_763_776 + 2 * 896)),
        id="dcgan-2015",
    ),
    pytest.param(
        *("points", "points", POINTS),
        # 5 * 256 + 2 * 257 * 256 + 257 * 2, and 259 * 256 + 2 * 257 * 256 + 257 with 256 constants
        *((133_378, 133_378), (198_401, 198_145)),
        id="points",
    ),
]


@pytest.mark.parametrize(("generator", "discriminator", "shape", "made", "judging"), COUNTS)
def test_parameters_are_those_of_the_source(generator, discriminator, shape, made, judging):
    networks = create_networks(generator, discriminator, shape, seed=0)
    counts = [count_parameters(network) for network in networks]
    assert [(count["total"], count["trainable"]) for count in counts] == [made, judging]


_CONV_BLOCK = ["Conv2d", "BatchNorm2d", "ZeroPad2d", "Conv2d", "BatchNorm2d", "LeakyReLU"]
_DECODER_BLOCK = ["TransposedConvolution", "BatchNorm2d", "LeakyReLU"]
_DCGAN_UP, _DCGAN_DOWN = (
    ["BatchNorm2d", "ReLU", "TransposedConvolution"],
    ["Convolution", "BatchNorm2d", "LeakyReLU"],
)
_DROPPING = ["Linear", "ReLU", "Dropout"]
# Orders that counts cannot tell apart: LeakyReLU before BatchNorm or after, what has no activation.
GENERATOR_LAYERS = {
    "keras-mlp": ["Linear", "LeakyReLU", "BatchNorm1d"] * 3 + ["Linear", "Tanh", "Unflatten"],
    "keras-conv": ["Linear", "BatchNorm1d", "Unflatten", *_DECODER_BLOCK * 4, "Conv2d", "Tanh"],
    "selu-dense": ["Linear", "SELU"] * 2 + ["Linear", "Sigmoid", "Unflatten"],
    "torch-mlp": ["Linear", "ReLU"] * 3 + ["Linear", "Tanh", "Unflatten"],
    "faces": [
        *["Linear", "LeakyReLU", "Unflatten", "Conv2d", "LeakyReLU"],
        *["TransposedConvolution", "LeakyReLU"] * 3,
        *["Conv2d", "LeakyReLU"] * 2,
        *["Conv2d", "Tanh"],
    ],
    "sine": ["Linear", "ReLU"] * 2 + ["Linear"],
    "points": ["Linear", "LeakyReLU"] * 3 + ["Linear"],
    "dcgan-2015": ["PixelToMap", *_DCGAN_UP * 4, "Tanh"],
}
DISCRIMINATOR_LAYERS = {
    "keras-mlp": ["Flatten", *["Linear", "LeakyReLU"] * 2, "Linear", "Flatten"],
    "keras-mlp-conv": [
        *["Conv2d", "LeakyReLU", "Flatten", "Linear", "LeakyReLU", "Linear", "Flatten"],
    ],
    "keras-conv": [*_CONV_BLOCK * 4, "AdaptiveAvgPool2d", "Flatten", "Linear", "Flatten"],
    "selu-dense": ["Flatten", *["Linear", "SELU"] * 2, "Linear", "Flatten"],
    "torch-mlp": ["Flatten", *_DROPPING * 3, "Linear", "Flatten"],
    "faces": [*["Conv2d", "LeakyReLU"] * 2, "Flatten", "Dropout", "Linear", "Flatten"],
    "sine": ["Flatten", *_DROPPING * 3, "Linear", "Flatten"],
    "points": ["Flatten", *["Linear", "LeakyReLU"] * 3, "Linear", "Flatten"],
    "dcgan-2015": ["Convolution", "LeakyReLU", *_DCGAN_DOWN * 3, "MapToPixel"],
}


def shape_for(kind) -> Shape:
    return POINTS if kind.points else Shape(64, 3, latent_dim=5, filters=2, kernel_size=5)


def layers_of(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if not list(module.children())]


@pytest.mark.parametrize("name", GENERATOR_LAYERS)
def test_a_generator_has_its_sources_layers_in_their_order(name: str):
    network = GENERATORS[name].build(shape_for(GENERATORS[name]))
    assert [type(layer).__name__ for layer in layers_of(network)] == GENERATOR_LAYERS[name]


@pytest.mark.parametrize("name", DISCRIMINATOR_LAYERS)
def test_a_discriminator_has_its_sources_layers_in_their_order(name: str):
    network = DISCRIMINATORS[name].build(shape_for(DISCRIMINATORS[name]))
    assert [type(layer).__name__ for layer in layers_of(network)] == DISCRIMINATOR_LAYERS[name]


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("dcgan", 0.2),
        ("dcgan-2015", 0.2),
        ("keras-mlp", 0.2),
        ("keras-mlp-conv", 0.2),
        ("keras-conv", 0.3),  # Keras' default
        ("faces", 0.3),  # the same
        ("points", 0.2),
    ],
)
def test_leaks_have_the_sources_slope(name: str, slope: float):
    kinds = [table[name] for table in (GENERATORS, DISCRIMINATORS) if name in table]
    leaks = [
        layer
        for kind in kinds
        for layer in layers_of(kind.build(shape_for(kind)))
        if isinstance(layer, nn.LeakyReLU)
    ]
    assert leaks
    for leak in leaks:
        assert float(leak(torch.tensor(-1.0))) == pytest.approx(-slope)


@pytest.mark.parametrize(
    ("name", "share"), [("sine", 0.3), ("torch-mlp", 0.3), ("faces", 0.4)], ids=str
)
def test_dropout_drops_the_sources_share(name: str, share: float):
    kind = DISCRIMINATORS[name]
    dropouts = [
        layer for layer in layers_of(kind.build(shape_for(kind))) if isinstance(layer, nn.Dropout)
    ]
    assert dropouts
    assert all(dropout.p == share for dropout in dropouts)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_logit_is_what_the_last_layer_says_without_a_sigmoid(name: str):
    kind = DISCRIMINATORS[name]
    discriminator = kind.build(shape_for(kind))
    last = [
        layer for layer in layers_of(discriminator) if isinstance(layer, nn.Linear | nn.Conv2d)
    ][-1]
    said = []
    last.register_forward_hook(lambda _module, _inputs, output: said.append(output))
    logits = discriminator(torch.randn(3, *((2,) if kind.points else (3, 64, 64))))
    assert logits.shape == (3,)
    assert torch.equal(logits, said[0].flatten())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("name", [name for name in GENERATORS if not GENERATORS[name].points])
def test_images_have_the_size_and_range_asked_for_or_are_refused(name, size, channels):
    shape = Shape(size, channels, latent_dim=5, filters=2, kernel_size=5)
    kind = GENERATORS[name]
    if kind.check(shape):
        assert (name, size) in {
            *(("keras-conv", 8), ("keras-conv", 28), ("faces", 28)),
        }
        return
    generator = kind.build(shape)
    with torch.no_grad():
        images = generator(100 * torch.randn(64, 5))
        assert images.shape == (64, channels, size, size)
        assert kind.lowest <= float(images.min())
        assert float(images.max()) <= 1
        for critic in {name, "keras-mlp-conv"}:
            assert DISCRIMINATORS[critic].build(shape)(images).shape == (64,)


@pytest.mark.parametrize("name", [name for name in GENERATORS if not GENERATORS[name].points])
def test_the_whole_range_can_be_reached(name: str):
    kind = GENERATORS[name]
    generator = kind.build(Shape(32, 1, latent_dim=5, filters=4, kernel_size=5))
    last = [
        layer
        for layer in layers_of(generator)
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ][-1]
    with torch.no_grad():
        last.weight.mul_(1e4)
        images = generator(torch.randn(16, 5))
    assert float(images.min()) == pytest.approx(kind.lowest, abs=1e-3)
    assert float(images.max()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["sine", "points"])
def test_points_are_made_and_judged(name: str):
    generator, discriminator = create_networks(name, name, POINTS, seed=0)
    torch.manual_seed(0)
    points = generator(torch.randn(64, 2))
    assert points.shape == (64, 2)
    assert points.min() < 0  # the last layer is linear
    assert discriminator(points).shape == (64,)


def seen_by_the_first_layer(network: nn.Module, inputs: Tensor) -> Tensor:
    """What the first dense layer of a network is given."""
    first = next(layer for layer in layers_of(network) if isinstance(layer, nn.Linear))
    seen: list[Tensor] = []
    first.register_forward_hook(lambda _module, given, _output: seen.append(given[0]))
    with torch.no_grad():
        network(inputs)
    return seen[0]


def test_the_generator_of_points_sees_signs_that_jump_and_a_small_smooth_rest():
    generator, _ = create_networks("points", "points", POINTS, seed=0)
    seen = seen_by_the_first_layer(generator, torch.tensor([[0.5, -2.0], [-0.125, 4.0]]))
    assert seen.tolist() == [[1, -1, 0.0625, -0.25], [-1, 1, -0.015625, 0.5]]


def test_the_discriminator_of_points_sees_waves_over_the_plane():
    _, discriminator = create_networks("points", "points", replace(POINTS, filters=3), seed=0)
    point = (0.25, -0.75)
    seen = seen_by_the_first_layer(discriminator, torch.tensor([point]))
    expected = list(point)
    # Six of 0.1 to 60 radians a unit, each 600 ** 0.2 times the one before and 111.2 degrees on.
    phases = [
        0.1 * 600 ** (wave / 5) * (math.cos(angle) * point[0] + math.sin(angle) * point[1])
        for wave, angle in enumerate(math.radians(111.24611797) * wave for wave in range(6))
    ]
    for of in (math.sin, math.cos):
        expected += [math.sqrt(2) * of(phase) for phase in phases]
    torch.testing.assert_close(seen, torch.tensor([expected]), rtol=0, atol=1e-4)


def test_the_waves_are_the_same_for_every_seed_and_learned_by_none():
    discriminators = [
        create_networks("points", "points", POINTS, seed=seed, spectral_norm=normalized)[1]
        for seed, normalized in ((0, False), (1, False), (1, True))
    ]
    for discriminator in discriminators:
        constants = dict(discriminator.named_buffers())["frequencies"]
        assert torch.equal(constants, dict(discriminators[0].named_buffers())["frequencies"])
        assert all(values.shape != constants.shape for values in discriminator.parameters())
        before = constants.clone()
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.1)
        discriminator(torch.randn(8, 2)).sum().backward()
        optimizer.step()
        assert torch.equal(constants, before)


@pytest.mark.parametrize(
    ("name", "size", "complaint"),
    [
        ("keras-conv", 28, "image_size: expected a multiple of 16, got 28"),
        ("faces", 28, "image_size: expected a multiple of 8, got 28"),
        (
            "dcgan-2015",
            36,
            "image_size: expected 4, 5, 6 or 7 times a power of two, such as 28, 32 or 64, got 36",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_named(name: str, size: int, complaint: str):
    shape = Shape(size, 3, latent_dim=5, filters=2, kernel_size=5)
    assert GENERATORS[name].check(shape) == complaint
    assert DISCRIMINATORS[name].check(shape) == complaint


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_images_and_points_are_not_taken_for_each_other(name: str):
    points = DISCRIMINATORS[name].points
    image = Shape(32, 3, latent_dim=2, filters=2, kernel_size=5)
    for table in (GENERATORS, DISCRIMINATORS):
        if name in table:
            assert bool(table[name].check(image)) == points
            assert bool(table[name].check(POINTS)) == (not points)


@pytest.mark.parametrize("setting", ["filters", "kernel_size"])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_the_settings_a_network_leaves_open_are_those_that_change_it(name: str, setting: str):
    for table in (GENERATORS, DISCRIMINATORS):
        if name not in table:
            continue
        shape = shape_for(table[name])
        other = replace(shape, **{setting: getattr(shape, setting) + 2})
        counts = [count_parameters(table[name].build(each)) for each in (shape, other)]
        assert (counts[0] != counts[1]) == (setting in table[name].leaves_open)


@pytest.mark.parametrize(
    ("size", "smallest", "kernels"),
    [(16, 4, 1), (28, 7, 1), (32, 4, 2), (64, 4, 3), (128, 4, 4)],
)
def test_the_dcgan_of_2015_starts_from_one_pixel_of_latents(size, smallest, kernels):
    shape = Shape(size, 3, latent_dim=6, filters=2, kernel_size=5)
    generator, discriminator = create_networks("dcgan-2015", "dcgan-2015", shape, seed=0)
    first, *others = [m for m in generator.main if isinstance(m, nn.ConvTranspose2d)]
    assert first.weight.shape == (6, 2 * 2**kernels, smallest, smallest)
    assert [layer.kernel_size for layer in others] == [(4, 4)] * (kernels + 1)
    *_, last = [m for m in discriminator.main if isinstance(m, nn.Conv2d)]
    assert last.weight.shape == (1, 2 * 2**kernels, smallest, smallest)
    biased = [
        layer
        for network in (generator, discriminator)
        for layer in layers_of(network)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None
    ]
    assert biased == []


def test_weights_saved_by_the_example_of_2015_find_their_places():
    shape = Shape(64, 3, latent_dim=100, filters=2, kernel_size=5)
    generator, discriminator = create_networks("dcgan-2015", "dcgan-2015", shape, seed=0)
    convolutions = [
        [name for name, value in network.named_parameters() if value.ndim == 4]
        for network in (generator, discriminator)
    ]
    assert convolutions == [
        [f"main.{index}.weight" for index in (0, 3, 6, 9, 12)],
        [f"main.{index}.weight" for index in (0, 2, 5, 8, 11)],
    ]
