import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gantrain.networks import (
    DISCRIMINATORS,
    GENERATORS,
    Shape,
    count_parameters,
    create_networks,
    judge_with_gradients,
    run_network,
)
from gantrain.networks.dcgan import Discriminator, Generator, pyramid, widths

SMALL_IMAGE = Shape(image_size=16, channels=3, latent_dim=5, filters=4, kernel_size=5)
WITH_CLASSES = Shape(image_size=16, channels=3, latent_dim=5, filters=4, kernel_size=5, classes=7)
POINTS = Shape(image_size=None, channels=None, latent_dim=2, filters=4, kernel_size=5)


def small_shape(points: bool) -> Shape:
    return POINTS if points else SMALL_IMAGE


def mirror_of(discriminator: str) -> str:
    return "keras-mlp" if discriminator == "keras-mlp-conv" else discriminator


def small_networks(discriminator: str, seed: int = 0, **settings):
    shape = small_shape(DISCRIMINATORS[discriminator].points)
    return create_networks(mirror_of(discriminator), discriminator, shape, seed=seed, **settings)


def same_values(one: nn.Module, other: nn.Module) -> bool:
    values, others = one.state_dict(), other.state_dict()
    return values.keys() == others.keys() and all(
        torch.equal(values[name], others[name]) for name in values
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", range(8, 129, 4))
def test_every_multiple_of_four_has_networks_of_its_size(size: int, channels: int):
    shape = Shape(image_size=size, channels=channels, latent_dim=5, filters=2, kernel_size=5)
    generator = Generator(shape)
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    assert Discriminator(shape)(images).shape == (3,)


@pytest.mark.parametrize("size", [8, 28, 32, 100, 124, 128])
def test_the_discriminator_mirrors_the_generators_maps(size: int):
    maps = {"generator": [], "discriminator": []}

    def record(network: str):
        return lambda _module, _inputs, output: maps[network].append(tuple(output.shape[1:]))

    shape = replace(SMALL_IMAGE, image_size=size, channels=1)
    generator, discriminator = Generator(shape), Discriminator(shape)
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(record("generator"))
    for module in discriminator.modules():
        if isinstance(module, nn.LeakyReLU):
            module.register_forward_hook(record("discriminator"))
    discriminator(generator(torch.randn(2, 5)))
    assert maps["generator"] == maps["discriminator"][::-1]
    assert [side for _, _, side in maps["discriminator"]] == pyramid(size)[1:]


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_logit_depends_on_its_own_image_alone_unless_the_kind_says_otherwise(name: str):
    _, discriminator = small_networks(name)
    for module in discriminator.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    examples = torch.randn(6, *((2,) if DISCRIMINATORS[name].points else (3, 16, 16)))
    together = discriminator(examples)
    # A lone image has no statistics: two copies stand for it.
    alone = torch.cat([discriminator(torch.stack([one, one]))[:1] for one in examples])
    independent = torch.allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert independent == (not DISCRIMINATORS[name].batch_norm)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_first_signals_neither_vanish_nor_explode_at_the_largest_size(network: str):
    shape = Shape(image_size=128, channels=3, latent_dim=64, filters=8, kernel_size=5)
    generator, discriminator = create_networks("dcgan", "dcgan", shape, seed=0)
    images = generator(torch.randn(16, 64))
    values = images if network == "generator" else discriminator(torch.randn(16, 3, 128, 128))
    assert 0.05 < values.std() < 5


def test_first_signals_of_the_networks_for_points_keep_their_size():
    shape = Shape(image_size=None, channels=None, latent_dim=2, filters=64, kernel_size=5)
    generator, discriminator = create_networks("points", "points", shape, seed=0)
    points = generator(torch.randn(512, 2))
    assert 0.5 < points.std() < 3
    assert 0.3 < discriminator(torch.randn(512, 2)).std() < 3


def test_widths_double_down_to_eight_times():
    assert widths(128, 16) == [16, 32, 64, 128, 128, 128]
    assert widths(28, 64) == [64, 128, 256]


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_first_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(name: str):
    before = torch.random.get_rng_state()
    one, again, other = (small_networks(name, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for index in (0, 1):
        assert same_values(one[index], again[index])
        assert not same_values(one[index], other[index])


@pytest.mark.parametrize(
    "settings", [{"discriminator": "keras-mlp-conv"}, {"spectral_norm": True}], ids=str
)
def test_the_first_generator_does_not_depend_on_its_opponent(settings: dict):
    plain, _ = create_networks("keras-mlp", "keras-mlp", SMALL_IMAGE, seed=3)
    arguments = {"discriminator": "keras-mlp", **settings}
    other, _ = create_networks("keras-mlp", shape=SMALL_IMAGE, seed=3, **arguments)
    assert same_values(plain, other)


def test_the_discriminator_may_have_a_capacity_of_its_own():
    half = replace(SMALL_IMAGE, discriminator_filters=2)
    generator, discriminator = create_networks("dcgan", "dcgan", half, seed=7)
    same, _ = create_networks("dcgan", "dcgan", SMALL_IMAGE, seed=7)
    _, narrow = create_networks("dcgan", "dcgan", replace(SMALL_IMAGE, filters=2), seed=7)
    assert same_values(generator, same)
    assert count_parameters(discriminator) == count_parameters(narrow)


def test_the_flagship_draws_its_weights_as_it_always_did():
    torch.manual_seed(7)
    expected = Generator(SMALL_IMAGE), Discriminator(SMALL_IMAGE)
    for network, same in zip(
        create_networks("dcgan", "dcgan", SMALL_IMAGE, seed=7), expected, strict=True
    ):
        assert same_values(network, same)


@pytest.mark.parametrize(
    ("generator", "discriminator", "shape", "complaint"),
    [
        pytest.param("gan", "dcgan", SMALL_IMAGE, "generator: expected one of", id="generator"),
        pytest.param("dcgan", "gan", SMALL_IMAGE, "discriminator: expected", id="discriminator"),
        pytest.param("points", "dcgan", SMALL_IMAGE, "expected points", id="points-of-images"),
        pytest.param("dcgan", "points", SMALL_IMAGE, "expected points", id="points-judged"),
        pytest.param("keras-mlp", "sine", POINTS, "expected the size of images", id="no-images"),
        pytest.param("dcgan-2015", "dcgan", WITH_CLASSES, "takes no labels, got 7", id="labels"),
        pytest.param("dcgan", "dcgan-2015", WITH_CLASSES, "takes no labels, got 7", id="judged"),
    ],
)
def test_networks_that_do_not_fit_are_refused(generator, discriminator, shape, complaint):
    with pytest.raises(ValueError, match=complaint):
        create_networks(generator, discriminator, shape, seed=0)


def test_parameters_are_counted_as_keras_counts_them():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert count_parameters(network) == {"total": 16 + 8 + 8, "trainable": 16 + 8}


def largest_singular_values(network: nn.Module) -> list[float]:
    return [
        float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), ord=2))
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding)
    ]


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_spectral_norm_makes_every_largest_singular_value_one(name: str):
    _, plain = small_networks(name)
    _, discriminator = small_networks(name, spectral_norm=True)
    examples = torch.randn(2, *((2,) if DISCRIMINATORS[name].points else (3, 16, 16)))
    with torch.no_grad():
        for _ in range(100):  # each pass is one power iteration
            discriminator(examples)
    values = largest_singular_values(discriminator.eval())
    assert len(values) == len(largest_singular_values(plain))
    assert values == pytest.approx([1.0] * len(values), abs=0.02)
    assert largest_singular_values(plain) != pytest.approx([1.0] * len(values), abs=0.02)


class Products(TorchFunctionMode):
    """Whether autocast is on where a weight's largest singular value is sought."""

    def __init__(self) -> None:
        super().__init__()
        self.cast: list[bool] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.mv:  # a GPU's autocast has it on its list, a CPU's has not
            self.cast.append(torch.is_autocast_enabled("cpu"))
        return func(*args, **(kwargs or {}))


def test_spectral_norm_is_found_in_full_precision_beside_bfloat16():
    _, discriminator = small_networks("dcgan", spectral_norm=True)
    images = torch.zeros(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        logits = discriminator(images)
        assert logits.dtype == torch.bfloat16
    assert products.cast
    assert not any(products.cast)


def test_spectral_norm_covers_the_vectors_of_the_classes():
    _, discriminator = create_networks("dcgan", "dcgan", WITH_CLASSES, seed=0, spectral_norm=True)
    with torch.no_grad():
        for _ in range(100):
            discriminator(torch.randn(2, 3, 16, 16), torch.tensor([0, 6]))
    values = largest_singular_values(discriminator.eval())
    assert len(values) == 3 + 1 + 1, "convolutions, plain logit, classes"
    assert values == pytest.approx([1.0] * len(values), abs=0.02)


def test_spectral_norm_leaves_the_generator_alone():
    plain, _ = small_networks("dcgan")
    generator, _ = small_networks("dcgan", spectral_norm=True)
    assert same_values(plain, generator)


def test_a_discriminator_with_spectral_norm_is_saved_restored_and_copied_whole():
    _, trained = small_networks("dcgan", seed=1, spectral_norm=True)
    _, restored = small_networks("dcgan", seed=2, spectral_norm=True)
    images = torch.randn(4, 3, 16, 16)
    trained(images).sum().backward()
    restored.load_state_dict(trained.state_dict())
    assert same_values(trained, restored)
    # In training mode the next power iteration goes on from the restored vectors.
    copied = copy.deepcopy(restored)
    assert torch.equal(trained(images), restored(images))
    assert torch.equal(restored(images), (copied(images), copied(images))[1])


@pytest.mark.parametrize("name", ["dcgan", "points"])
def test_a_gradient_penalty_reaches_weights_under_spectral_norm(name: str):
    _, discriminator = small_networks(name, spectral_norm=True)
    shape = (2,) if DISCRIMINATORS[name].points else (3, 16, 16)
    _, gradients = judge_with_gradients(discriminator, torch.randn(4, *shape))
    gradients.square().sum().backward()
    weights = [parameter for parameter in discriminator.parameters() if parameter.ndim > 1]
    assert all(weight.grad.abs().sum() > 0 for weight in weights)


def test_every_generator_has_its_mirror():
    assert set(DISCRIMINATORS) - {"keras-mlp-conv"} == set(GENERATORS)
    assert all(GENERATORS[name].points == DISCRIMINATORS[name].points for name in GENERATORS)


def test_classes_change_nothing_but_what_they_add():
    # The generator is built first, so that what it draws for classes comes last of its own.
    plain, _ = create_networks("dcgan", "dcgan", SMALL_IMAGE, seed=5)
    generator, discriminator = create_networks("dcgan", "dcgan", WITH_CLASSES, seed=5)
    added = {name: values.shape for name, values in generator.named_parameters()}
    for name, values in plain.named_parameters():
        assert torch.equal(values, generator.get_parameter(name))
        del added[name]
    assert added == {"embed.weight": (7, generator.project.out_features)}
    assert discriminator.embed.weight.shape == (7, discriminator.judge.in_features)


def test_a_class_adds_a_map_to_the_first_layer_as_a_one_hot_label_beside_the_latents_does():
    generator, _ = create_networks("dcgan", "dcgan", WITH_CLASSES, seed=0)
    latents, labels = torch.randn(6, 5), torch.tensor([0, 6, 6, 1, 2, 3])
    weights = torch.cat([generator.project.weight, generator.embed.weight.T], dim=1)
    side_by_side = torch.cat([latents, nn.functional.one_hot(labels, 7).float()], dim=1)
    first_maps = (side_by_side @ weights.T).unflatten(1, generator.smallest)
    expected = generator.layers(first_maps)
    torch.testing.assert_close(run_network(generator, latents, labels), expected)


def test_the_logit_of_a_class_is_the_plain_one_and_a_projection_on_its_vector():
    _, discriminator = create_networks("dcgan", "dcgan", WITH_CLASSES, seed=0)
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([5, 0, 0, 6])
    features = discriminator.layers(images).flatten(1)
    expected = [
        discriminator.judge(row)[0] + discriminator.embed.weight[label] @ row
        for row, label in zip(features, labels, strict=True)
    ]
    torch.testing.assert_close(run_network(discriminator, images, labels), torch.stack(expected))


def test_only_some_networks_take_labels_and_say_so():
    assert [name for name, kind in GENERATORS.items() if kind.takes_labels] == ["dcgan"]
    assert [name for name, kind in DISCRIMINATORS.items() if kind.takes_labels] == ["dcgan"]
