import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from gantrain.networks import convolutions
from gantrain.networks.convolutions import (
    Convolution,
    MapToPixel,
    PixelToMap,
    TransposedConvolution,
    _Convolution,
    _TransposedConvolution,
    gradients_of_inputs_alone,
)


def random(*shape, dtype=torch.float32, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return values.requires_grad_()


def plain(layer):
    """PyTorch's own layer with the same weights."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    more = {"output_padding": layer.output_padding} if transposed else {}
    same = kind(layer.in_channels, layer.out_channels, 4, 2, 1, bias=layer.bias is not None, **more)
    same.load_state_dict(layer.state_dict())
    return same


def learn(layer, maps, wanted):
    """The layer's output, and the gradients of maps and parameters for a gradient of the output."""
    maps = maps.detach().clone().requires_grad_()
    output = layer(maps)
    return [output, *torch.autograd.grad(output, [maps, *layer.parameters()], wanted(output))]


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 9, 16])
def test_a_convolution_learns_as_pytorchs(size, channels_last, bias):
    layer = Convolution(5, 6, bias=bias)
    maps = random(3, 5, size, size)
    if channels_last:
        layer.to(memory_format=torch.channels_last)
        maps = maps.detach().to(memory_format=torch.channels_last)
    found = learn(layer, maps, lambda output: torch.ones_like(output) * output.detach())
    expected = learn(plain(layer), maps, lambda output: torch.ones_like(output) * output.detach())
    assert_alike(found, expected)


@pytest.mark.parametrize("output_padding", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_a_transposed_convolution_learns_as_pytorchs(size, output_padding):
    layer = TransposedConvolution(5, 6, output_padding=output_padding)
    maps = random(3, 5, size, size)
    found = learn(layer, maps, lambda output: output.detach())
    assert_alike(found, learn(plain(layer), maps, lambda output: output.detach()))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize(
    ("kind", "own", "side"), [(PixelToMap, nn.ConvTranspose2d, 1), (MapToPixel, nn.Conv2d, None)]
)
def test_a_layer_between_a_map_and_a_pixel_is_pytorchs(kind, own, side, size, channels_last):
    layer = kind(5, 6, size)
    same = own(5, 6, size, bias=False)
    same.load_state_dict(layer.state_dict())
    maps = random(3, 5, side or size, side or size)
    if channels_last:
        layer.to(memory_format=torch.channels_last)
        maps = maps.detach().to(memory_format=torch.channels_last)
    assert_alike(*(learn(each, maps, lambda output: output.detach()) for each in (layer, same)))
    with torch.no_grad():
        assert torch.equal(layer(maps), same.to(memory_format=torch.channels_last)(maps))


@pytest.mark.parametrize(
    ("function", "maps", "weight"),
    [
        (_Convolution, (2, 3, 4, 4), (2, 3, 4, 4)),
        (_TransposedConvolution, (2, 3, 2, 2), (3, 2, 4, 4)),
    ],
)
def test_the_gradients_and_theirs_are_right(function, maps, weight):
    inputs = random(*maps, dtype=torch.float64), random(*weight, dtype=torch.float64, seed=1)
    assert gradcheck(function.apply, inputs)
    assert gradgradcheck(function.apply, inputs)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_penalty_on_the_gradient_reaches_the_weights(channels_last):
    """As R1 does: the weights' gradient of the squared gradient of the images."""
    layers = nn.Sequential(Convolution(3, 4), nn.Tanh(), Convolution(4, 5), nn.Tanh())
    if channels_last:
        layers.to(memory_format=torch.channels_last)
    own = nn.Sequential(*(plain(x) if isinstance(x, nn.Conv2d) else x for x in layers))
    found = []
    for network in (layers, own):
        images = random(2, 3, 8, 8)
        with gradients_of_inputs_alone():
            (gradient,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
        penalty = gradient.square().sum()
        found.append(torch.autograd.grad(penalty, [*network.parameters()], allow_unused=True))
    for one, other in zip(*found, strict=True):
        if other is not None and other.any():
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert any(gradient is not None and gradient.any() for gradient in found[0])


def count_products(monkeypatch):
    calls, real = [], convolutions._weight_gradient
    monkeypatch.setattr(
        convolutions, "_weight_gradient", lambda *maps: (calls.append(1), real(*maps))[1]
    )
    return calls


def test_weights_gradients_are_left_out_where_only_inputs_are_asked_for(monkeypatch):
    calls, layer, maps = count_products(monkeypatch), Convolution(2, 3), random(2, 2, 4, 4)
    with gradients_of_inputs_alone():
        torch.autograd.grad(layer(maps).sum(), maps, create_graph=True)
    assert not calls
    torch.autograd.grad(layer(maps).sum(), [maps, *layer.parameters()])
    assert calls


@pytest.mark.parametrize(
    ("size", "frozen", "dtype", "small"),
    [
        (8, False, torch.float32, True),
        (10, False, torch.float32, False),
        (8, True, torch.float32, False),
        (8, False, torch.float64, False),
    ],
)
def test_only_small_maps_whose_weights_learn_are_treated_so(
    size, frozen, dtype, small, monkeypatch
):
    calls = count_products(monkeypatch)
    layer, maps = Convolution(2, 3).to(dtype), random(2, 2, size, size, dtype=dtype)
    layer.requires_grad_(not frozen)
    layer(maps).sum().backward()
    assert bool(calls) == small


def test_in_bfloat16_the_layers_are_pytorchs_own(monkeypatch):
    calls, layer, maps = count_products(monkeypatch), Convolution(2, 3), random(2, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(maps)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert not calls


def test_what_is_saved_is_what_pytorchs_layers_save():
    for layer in (Convolution(2, 3), TransposedConvolution(2, 3)):
        assert layer.state_dict().keys() == plain(copy.deepcopy(layer)).state_dict().keys()
