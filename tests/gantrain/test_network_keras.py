"""What goes wrong when Keras is carried over to PyTorch, against references worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gantrain.networks import DISCRIMINATORS, GENERATORS, Shape, create_networks, keras

IMAGE = Shape(image_size=32, channels=3, latent_dim=40, filters=8, kernel_size=5)
KERAS_GENERATORS = ["keras-mlp", "keras-conv", "selu-dense", "faces"]
KERAS_DISCRIMINATORS = [*KERAS_GENERATORS, "keras-mlp-conv"]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's rule for padding "same", as its documentation states it: before, after."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def same_convolution(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: int) -> np.ndarray:
    """x [inputs, n, n], w [outputs, inputs, k, k], b [outputs] -> [outputs, m, m]."""
    size, kernel = x.shape[-1], w.shape[-1]
    padding = same_padding(size, kernel, stride)
    x = np.pad(x, ((0, 0), padding, padding))
    count = math.ceil(size / stride)
    y = np.empty((len(w), count, count))
    for row in range(count):
        for column in range(count):
            top, left = row * stride, column * stride
            patch = x[:, top : top + kernel, left : left + kernel]
            y[:, row, column] = (w * patch).sum((1, 2, 3)) + b
    return y


def same_transposed(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x [inputs, n, n], w [inputs, outputs, k, k] -> [outputs, 2 n, 2 n].

    Each input pixel puts the kernel where the convolution of stride 2 from 2 n pixels to n read it;
    what falls on the padding is lost.
    """
    size, kernel = x.shape[-1], w.shape[-1]
    before, after = same_padding(2 * size, kernel, 2)
    whole = np.zeros((w.shape[1], before + 2 * size + after, before + 2 * size + after))
    for row in range(size):
        for column in range(size):
            stamp = np.tensordot(x[:, row, column], w, axes=1)
            whole[:, 2 * row : 2 * row + kernel, 2 * column : 2 * column + kernel] += stamp
    return whole[:, before : before + 2 * size, before : before + 2 * size] + b[:, None, None]


def fill(layer: nn.Conv2d | nn.ConvTranspose2d, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for values in (layer.weight, layer.bias):
            values.copy_(torch.from_numpy(rng.normal(size=values.shape)))
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


@pytest.mark.parametrize("kernel", range(1, 10))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 5, 7, 8, 14])
def test_convolutions_pad_as_tensorflow_does(size: int, stride: int, kernel: int):
    layers = nn.Sequential(*keras.convolution(2, 3, kernel, size=size, stride=stride))
    weights, biases = fill(layers[-1], seed=kernel)
    maps = np.random.default_rng(size).normal(size=(2, size, size))
    found = layers(torch.from_numpy(maps).float()[None])[0].detach().numpy()
    expected = same_convolution(maps, weights, biases, stride)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", range(2, 10))
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_transposed_convolutions_crop_as_tensorflow_does(size: int, kernel: int):
    layer = keras.TransposedConvolution(2, 3, kernel)
    weights, biases = fill(layer, seed=kernel)
    maps = np.random.default_rng(size).normal(size=(2, size, size))
    found = layer(torch.from_numpy(maps).float()[None])[0].detach().numpy()
    np.testing.assert_allclose(found, same_transposed(maps, weights, biases), rtol=1e-4, atol=1e-4)


def test_a_kernel_of_five_with_stride_two_pads_an_even_size_by_one_and_two():
    # On [0 | 1 2 3 4 | 0 0] the kernel's two places start at the padding and at 2.
    layers = nn.Sequential(*keras.convolution(1, 1, kernel_size=5, size=4, stride=2))
    with torch.no_grad():
        layers[-1].weight.zero_()
        layers[-1].weight[0, 0, 1] = torch.tensor([10_000.0, 1000.0, 100.0, 10.0, 1.0])
        layers[-1].bias.zero_()
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(4, 4)[None, None]
    assert layers(rows)[0, 0].tolist() == [[1234.0, 23_400.0]] * 2


def test_a_transposed_kernel_of_five_loses_one_pixel_before_and_two_after():
    layer = keras.TransposedConvolution(1, 1, kernel_size=5)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
        layer.bias.zero_()
    # 1 2 3 4 5 0 0 and, two further right, a hundred times as much; then the crop.
    image = layer(torch.tensor([[1.0, 100.0], [0.0, 0.0]])[None, None])
    assert image[0, 0, 0].tolist() == [2.0, 103.0, 204.0, 305.0]
    assert image[0, 0, 1:].abs().sum() == 0  # the kernel's second row is the image's first


def weighted_layers(network: nn.Module) -> list[nn.Module]:
    """The layers with weights, for looking at these without gradients."""
    network.requires_grad_(False)
    kinds = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    return [module for module in network.modules() if isinstance(module, kinds)]


def keras_networks() -> list:
    return [
        *(pytest.param(GENERATORS[name], id=f"generator-{name}") for name in KERAS_GENERATORS),
        *(pytest.param(DISCRIMINATORS[name], id=name) for name in KERAS_DISCRIMINATORS),
    ]


@pytest.mark.parametrize("kind", keras_networks())
def test_keras_weights_start_uniform_within_glorots_bound_and_biases_at_zero(kind):
    torch.manual_seed(0)
    for layer in weighted_layers(kind.build(IMAGE)):
        weights, biases = layer.weight, layer.bias
        field = math.prod(weights.shape[2:])  # a dense layer's is one
        bound = math.sqrt(6 / (field * (weights.shape[0] + weights.shape[1])))
        count = weights.numel()
        assert float(weights.abs().max()) <= bound
        assert float(weights.abs().max()) > bound * (1 - 12 / count)
        # The sampling error of a uniform variance is sqrt(0.8 / count) of it.
        variance = bound**2 / 3
        assert float(weights.square().mean()) == pytest.approx(
            variance, rel=5 * math.sqrt(0.8 / count)
        )
        assert not biases.any()


@pytest.mark.parametrize("table", [GENERATORS, DISCRIMINATORS], ids=["generator", "discriminator"])
@pytest.mark.parametrize("name", ["torch-mlp", "sine"])
def test_weights_of_pytorchs_tutorials_start_as_pytorch_starts_them(table, name: str):
    shape = IMAGE if name == "torch-mlp" else Shape(None, None, 2, 8, 5)
    torch.manual_seed(0)
    for layer in weighted_layers(table[name].build(shape)):
        bound = 1 / math.sqrt(layer.in_features)
        for values in (layer.weight, layer.bias):
            assert 0 < float(values.abs().max()) <= bound
        count = layer.weight.numel()
        assert float(layer.weight.square().mean()) == pytest.approx(
            bound**2 / 3, rel=5 * math.sqrt(0.8 / count)
        )


def test_weights_of_the_dcgan_of_2015_start_small_and_normal():
    shape = Shape(32, 3, latent_dim=40, filters=32, kernel_size=5)
    for network in create_networks("dcgan-2015", "dcgan-2015", shape, seed=0):
        for layer in weighted_layers(network):
            error = 5 / math.sqrt(layer.weight.numel())
            assert float(layer.weight.mean()) == pytest.approx(0, abs=0.02 * error)
            assert float(layer.weight.std()) == pytest.approx(0.02, rel=error)
            assert float(layer.weight.abs().max()) > 0.05  # a normal's tail
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        scales = torch.cat([norm.weight for norm in norms])
        assert float(scales.mean()) == pytest.approx(1, abs=0.1 / math.sqrt(len(scales)))
        assert float(scales.std()) == pytest.approx(0.02, rel=4 / math.sqrt(len(scales)))
        assert not any(norm.bias.any() for norm in norms)
        # PyTorch's own BatchNorm, not Keras'.
        assert all((norm.eps, norm.momentum) == (1e-5, 0.1) for norm in norms)


def test_the_flagship_starts_with_weights_that_keep_the_signals_variance():
    shape = Shape(32, 3, latent_dim=64, filters=16, kernel_size=5, classes=40)
    generator, discriminator = create_networks("dcgan", "dcgan", shape, seed=0)
    he = math.sqrt(2 / (1 + 0.2**2))
    expected = {generator.embed: he, discriminator.embed: he / math.sqrt(128 * 2 * 2)}
    for layer in (*weighted_layers(generator), *weighted_layers(discriminator)):
        if isinstance(layer, nn.ConvTranspose2d):  # a pixel sees a quarter of the kernel
            expected[layer] = 1 / math.sqrt(layer.in_channels * 4)
        else:
            expected[layer] = he / math.sqrt(layer.weight[0].numel())
    for layer, deviation in expected.items():
        error = 5 / math.sqrt(layer.weight.numel())
        assert float(layer.weight.square().mean()) ** 0.5 == pytest.approx(deviation, rel=error)


def test_the_flagship_for_points_starts_with_he_weights():
    shape = Shape(None, None, latent_dim=2, filters=64, kernel_size=5)
    for network in create_networks("points", "points", shape, seed=0):
        for layer in weighted_layers(network):
            deviation = math.sqrt(2 / (1 + 0.2**2) / layer.in_features)
            error = 5 / math.sqrt(layer.weight.numel())
            assert float(layer.weight.square().mean()) ** 0.5 == pytest.approx(deviation, rel=error)
            assert not layer.bias.any()


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        pytest.param(GENERATORS["keras-mlp"], 0.8, id="keras-mlp"),
        pytest.param(GENERATORS["keras-conv"], 0.99, id="keras-conv"),  # Keras' default
        pytest.param(DISCRIMINATORS["keras-conv"], 0.99, id="keras-conv-discriminator"),
    ],
)
def test_moving_statistics_keep_keras_share(kind, kept: float):
    network = kind.build(IMAGE)
    batch_norms = nn.BatchNorm1d | nn.BatchNorm2d
    norms = [module for module in network.modules() if isinstance(module, batch_norms)]
    means = []
    for norm in norms:
        norm.register_forward_pre_hook(
            lambda _module, inputs: means.append(inputs[0].transpose(0, 1).flatten(1).mean(1))
        )
    generator = kind is GENERATORS["keras-mlp"] or kind is GENERATORS["keras-conv"]
    network(torch.randn(8, 40) if generator else torch.randn(8, 3, 32, 32))
    assert len(means) == len(norms) > 2
    for norm, mean in zip(norms, means, strict=True):
        torch.testing.assert_close(norm.running_mean, (1 - kept) * mean, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["keras-mlp", "keras-conv"])
def test_batch_norm_adds_keras_thousandth_to_the_variance(name: str):
    network = GENERATORS[name].build(IMAGE)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
        maps = torch.ones(
            1, norm.num_features, *([1, 1] if isinstance(norm, nn.BatchNorm2d) else [])
        )
        norm.running_var.zero_()
        torch.testing.assert_close(norm(maps), maps / math.sqrt(1e-3))
