import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional

from gantrain.networks import convolutions
from gantrain.networks.convolutions import (
    Convolution,
    MapToPixel,
    PixelToMap,
    TransposedConvolution,
    _Convolution,
    _double_by_products,
    _double_by_windows,
    _halve_by_product,
    _TransposedConvolution,
    _weight_gradient_by_product,
    weight_gradient,
)

BFLOAT16 = torch.bfloat16
LAYERS = [
    pytest.param(Convolution, (5, 6), (5, 16), id="convolution"),
    pytest.param(Convolution, (5, 6), (5, 7), id="convolution-odd"),
    pytest.param(TransposedConvolution, (5, 6), (5, 4), id="transposed"),
    pytest.param(TransposedConvolution, (5, 3), (5, 8), id="transposed-to-colours"),
    pytest.param(PixelToMap, (5, 6, 4), (5, 1), id="pixel-to-map"),
    pytest.param(MapToPixel, (5, 6, 4), (5, 4), id="map-to-pixel"),
]

SMALL_LAYERS = [
    pytest.param(Convolution, (5, 6), (5, 8), id="convolution"),
    pytest.param(Convolution, (5, 6), (5, 5), id="convolution-odd"),
    pytest.param(TransposedConvolution, (5, 6), (5, 2), id="transposed"),
    pytest.param(TransposedConvolution, (5, 3), (5, 2), id="transposed-to-colours"),
]


@pytest.fixture(params=[True, False], ids=["products", "onednn"])
def way(request, monkeypatch):
    """Both ways to each layer, of which a machine takes the quicker one."""
    monkeypatch.setattr(convolutions, "is_product_quicker", lambda *_: request.param)


def random(*shape, dtype=torch.float32, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return values.requires_grad_()


def plain(layer):
    """PyTorch's own layer with the same weights."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    more = {"output_padding": layer.output_padding} if transposed else {}
    sizes = layer.kernel_size, layer.stride, layer.padding
    same = kind(layer.in_channels, layer.out_channels, *sizes, bias=layer.bias is not None, **more)
    same.load_state_dict(layer.state_dict())
    return same


def learn(layer, maps, wanted=torch.Tensor.detach):
    """The layer's output, and the gradients of maps and parameters for a gradient of the output."""
    maps = maps.detach().clone().requires_grad_()
    output = layer(maps)
    return [output, *torch.autograd.grad(output, [maps, *layer.parameters()], wanted(output))]


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 9, 16, 20])
@pytest.mark.usefixtures("way")
def test_a_convolution_learns_as_pytorchs(size, channels_last, bias):
    layer = Convolution(5, 6, bias=bias)
    maps = random(3, 5, size, size)
    if channels_last:
        layer.to(memory_format=torch.channels_last)
        maps = maps.detach().to(memory_format=torch.channels_last)
    assert_alike(learn(layer, maps), learn(plain(layer), maps))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 3, 6])
@pytest.mark.parametrize("output_padding", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
@pytest.mark.usefixtures("way")
def test_a_transposed_convolution_learns_as_pytorchs(size, output_padding, outputs, bias):
    layer = TransposedConvolution(5, outputs, output_padding=output_padding, bias=bias)
    maps = random(3, 5, size, size)
    assert_alike(learn(layer, maps), learn(plain(layer), maps))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize(("kind", "side"), [(PixelToMap, 1), (MapToPixel, None)])
def test_a_layer_between_a_map_and_a_pixel_learns_as_pytorchs(kind, side, size, channels_last):
    layer = kind(5, 6, size)
    maps = random(3, 5, side or size, side or size)
    if channels_last:
        layer.to(memory_format=torch.channels_last)
        maps = maps.detach().to(memory_format=torch.channels_last)
    assert_alike(learn(layer, maps), learn(plain(layer), maps))


@pytest.mark.parametrize(("kind", "sizes", "maps"), LAYERS)
def test_in_bfloat16_layers_learn_as_pytorchs(kind, sizes, maps):
    layer, images = kind(*sizes), random(3, *maps, maps[1])
    with torch.autocast("cpu", BFLOAT16):
        found, expected = learn(layer, images), learn(plain(layer), images)
    assert found[0].dtype == BFLOAT16
    assert found[2].dtype == torch.float32, "weights stay what they are"
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).float().norm() < 0.03 * other.float().norm()


@pytest.mark.parametrize(("kind", "sizes", "maps"), LAYERS)
def test_outside_training_the_layers_are_pytorchs_own(kind, sizes, maps):
    """So that what is sampled and exported does not depend on how it was trained."""
    layer, images = kind(*sizes).eval(), random(3, *maps, maps[1])
    found, expected = learn(layer, images), learn(plain(layer), images)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("function", "shapes", "more"),
    [
        pytest.param(_Convolution, [(2, 3, 4, 4), (2, 3, 4, 4), (2,)], (), id="convolution"),
        pytest.param(_Convolution, [(2, 3, 5, 5), (2, 3, 4, 4), (2,)], (), id="convolution-odd"),
        pytest.param(
            _TransposedConvolution, [(2, 3, 2, 2), (3, 4, 4, 4), (4,)], (4,), id="transposed"
        ),
        pytest.param(
            _TransposedConvolution, [(2, 3, 2, 2), (3, 2, 4, 4), (2,)], (4,), id="transposed-few"
        ),
        pytest.param(
            _TransposedConvolution, [(2, 3, 2, 2), (3, 2, 4, 4), (2,)], (5,), id="transposed-odd"
        ),
    ],
)
@pytest.mark.usefixtures("way")
def test_the_gradients_are_right(function, shapes, more):
    inputs = [random(*s, dtype=torch.float64, seed=seed) for seed, s in enumerate(shapes)]
    assert gradcheck(function.apply, (*inputs, *more))


@pytest.mark.parametrize("size", [2, 4, 5, 9, 16])
def test_both_ways_to_the_gradient_of_weights_agree(size, monkeypatch):
    small, large = random(3, 5, size // 2, size // 2), random(3, 4, size, size, seed=1)
    product = _weight_gradient_by_product(small, large)
    monkeypatch.setattr(convolutions, "is_product_quicker", lambda *_: False)
    torch.testing.assert_close(weight_gradient(small, large), product, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_windows_make_what_a_transposed_convolution_makes(size):
    maps, weight, bias = random(2, 5, size, size + 1), random(5, 3, 4, 4), random(3)
    expected = functional.conv_transpose2d(maps, weight, bias, stride=2, padding=1)
    torch.testing.assert_close(
        _double_by_windows(maps, weight, bias), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("channels_last", [True, False])
@torch.no_grad()
def test_a_product_makes_what_a_convolution_makes(size, channels_last):
    maps, weight, bias = random(3, 5, size, size), random(4, 5, 4, 4), random(4)
    expected = functional.conv2d(maps, weight, bias, stride=2, padding=1)
    if channels_last:
        maps, weight = (x.to(memory_format=torch.channels_last) for x in (maps, weight))
    torch.testing.assert_close(
        _halve_by_product(maps, weight, bias), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("channels_last", [True, False])
@torch.no_grad()
def test_products_make_what_a_transposed_convolution_makes(size, channels_last):
    side = size // 2
    maps, weight, bias = random(3, 5, side, side), random(5, 4, 4, 4), random(4)
    expected = functional.conv_transpose2d(
        *(maps, weight, bias), stride=2, padding=1, output_padding=size % 2
    )
    if channels_last:
        maps, weight = (x.to(memory_format=torch.channels_last) for x in (maps, weight))
    torch.testing.assert_close(
        _double_by_products(maps, weight, bias, size), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("kind", "sizes", "maps"), SMALL_LAYERS)
def test_products_in_bfloat16_lose_no_more_than_onednn(kind, sizes, maps, monkeypatch):
    """Both round each sum once."""
    layer, images = kind(*sizes), random(3, *maps, maps[1])
    exact = learn(layer, images)
    monkeypatch.setattr(convolutions, "is_product_quicker", lambda *_: True)
    with torch.autocast("cpu", BFLOAT16):
        found = learn(layer, images, lambda _: exact[0].detach().to(BFLOAT16))
        monkeypatch.setattr(convolutions, "is_product_quicker", lambda way, *_: way == "learn")
        usual = learn(layer, images, lambda _: exact[0].detach().to(BFLOAT16))
    for one, other, truth in zip(found, usual, exact, strict=True):
        assert not torch.equal(one, torch.zeros_like(one))
        assert (one - truth).norm() < 1.1 * (other - truth).norm() + 1e-6


@pytest.mark.parametrize("kind", [Convolution, TransposedConvolution])
def test_a_second_derivative_is_refused(kind):
    """A penalty on gradients that autograd made would otherwise be learned from in part."""
    layers, maps = nn.Sequential(kind(2, 3), nn.Tanh(), kind(3, 2)), random(2, 2, 8, 8)
    output = layers(maps).square().sum()
    (gradient,) = torch.autograd.grad(output, maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (output + gradient.square().sum()).backward()


def count_weight_gradients(monkeypatch):
    calls, real = [], convolutions.weight_gradient
    monkeypatch.setattr(
        convolutions, "weight_gradient", lambda *maps: (calls.append(1), real(*maps))[1]
    )
    return calls


def test_frozen_weights_have_no_gradient_worked_out(monkeypatch):
    calls, layer, maps = count_weight_gradients(monkeypatch), Convolution(2, 3), random(2, 2, 4, 4)
    layer.requires_grad_(False)
    layer(maps).sum().backward()
    assert maps.grad is not None
    assert not calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_what_was_not_measured_is_left_to_pytorch(dtype, monkeypatch):
    calls = count_weight_gradients(monkeypatch)
    layer = Convolution(2, 3).to(dtype)
    layer(random(2, 2, 8, 8, dtype=dtype)).sum().backward()
    assert layer.weight.grad is not None
    assert not calls


def test_what_is_saved_is_what_pytorchs_layers_save():
    for layer in (Convolution(2, 3), TransposedConvolution(2, 3)):
        assert layer.state_dict().keys() == plain(copy.deepcopy(layer)).state_dict().keys()
