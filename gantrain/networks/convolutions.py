"""Hides how convolutions that halve or double maps are worked out while networks train on a CPU.

A convolution, its transpose and the gradient of their weights are three faces of one trilinear
form: a small map, a large one and a kernel, each pair of which makes the third. Each has a second
way here beside oneDNN's, taken where `product_limits` says that it is quicker; gradients are again
made of the three, and cannot be differentiated further. Outside training, and on all other devices,
the layers are PyTorch's own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gantrain.networks.product_limits import Way, is_product_quicker, was_measured

# oneDNN fills vectors with output channels, so a transposed convolution to an image leaves most
# of them empty; as a convolution of windows it has four times the channels.
_FEWEST_FOR_ONEDNN = 4


class Convolution(nn.Conv2d):
    """`nn.Conv2d` with a kernel of 4, stride 2 and padding 1: maps of half the size."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel_size=4, stride=2, padding=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - named as PyTorch's
        """Maps [batch, inputs, n, n] -> [batch, outputs, n // 2, n // 2]."""
        if not _is_ours(self, input):
            return super().forward(input)
        maps, weight = map(in_asked_precision, (input, self.weight))
        return _convolve(maps, weight, _bias_of(self))


class TransposedConvolution(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with a kernel of 4, stride 2 and padding 1: maps of twice the size."""

    def __init__(
        self, inputs: int, outputs: int, *, output_padding: int = 0, bias: bool = True
    ) -> None:
        sizes: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1}
        super().__init__(inputs, outputs, **sizes, output_padding=output_padding, bias=bias)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        """Maps [batch, inputs, n, n] -> [batch, outputs, 2 n, 2 n], padded at the far edges."""
        if output_size is not None or not _is_ours(self, input):
            return super().forward(input, output_size)
        maps, weight = map(in_asked_precision, (input, self.weight))
        size = 2 * input.shape[-1] + int(self.output_padding[0])
        return _transpose(maps, weight, _bias_of(self), size)


class PixelToMap(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of a single pixel, without a bias: a map as large as the kernel.

    It is one matrix product, which takes a fifth of oneDNN's time for the convolution.
    """

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size, bias=False)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        """Pixels [batch, inputs, 1, 1] -> maps [batch, outputs, size, size]."""
        if output_size is not None or not _is_ours(self, input):
            return super().forward(input, output_size)
        pixels, weight = map(in_asked_precision, (input, self.weight))
        inputs, outputs, *size = weight.shape
        flat = pixels.flatten(1) @ weight.permute(0, 2, 3, 1).reshape(inputs, -1)
        return flat.view(-1, *size, outputs).permute(0, 3, 1, 2)  # the channels innermost


class MapToPixel(nn.Conv2d):
    """`nn.Conv2d` with a kernel as large as the map, without a bias: a single pixel.

    One matrix product, as in `PixelToMap`.
    """

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - named as PyTorch's
        """Maps [batch, inputs, size, size] -> pixels [batch, outputs, 1, 1]."""
        if not _is_ours(self, input):
            return super().forward(input)
        maps, weight = map(in_asked_precision, (input, self.weight))
        flat = maps.permute(0, 2, 3, 1).flatten(1)
        return (flat @ weight.permute(0, 2, 3, 1).flatten(1).T)[:, :, None, None]


def _is_ours(layer: nn.Module, maps: Tensor) -> bool:
    """Whether a layer is worked out here: in training, in a precision that was measured."""
    return (
        layer.training
        and maps.device.type == "cpu"
        and was_measured(maps.dtype)
        and (
            not torch.is_autocast_enabled("cpu")
            or torch.get_autocast_dtype("cpu") == torch.bfloat16
        )
    )


def in_asked_precision(values: Tensor) -> Tensor:
    """In the dtype that automatic casting asks for, where it is on."""
    device = values.device.type
    if not torch.is_autocast_enabled(device):
        return values
    return values.to(torch.get_autocast_dtype(device))


def _bias_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor | None:
    return None if layer.bias is None else in_asked_precision(layer.bias)


def halve_maps(maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Maps [batch, l, n, n] and weights [s, l, 4, 4] -> [batch, s, n // 2, n // 2]."""
    if _by_product("halve", maps, maps.shape[-1] // 2, weight.numel()):
        return _halve_by_product(maps, weight, bias)
    return functional.conv2d(maps, weight, bias, stride=2, padding=1)


def double_maps(maps: Tensor, weight: Tensor, bias: Tensor | None, size: int) -> Tensor:
    """Maps [batch, s, n, n] and weights [s, l, 4, 4] -> [batch, l, size, size].

    `size` is 2 n or one more: the transpose of a convolution that rounded down.
    """
    few = weight.shape[1] < _FEWEST_FOR_ONEDNN
    if few and size == 2 * maps.shape[-1] and maps.device.type == "cpu":
        return _double_by_windows(maps, weight, bias)
    if _by_product("double", maps, maps.shape[-1], weight.numel()):
        return _double_by_products(maps, weight, bias, size)
    extra = size - 2 * maps.shape[-1]
    return functional.conv_transpose2d(
        maps, weight, bias, stride=2, padding=1, output_padding=extra
    )


def weight_gradient(small: Tensor, large: Tensor) -> Tensor:
    """Of maps [batch, s, n, n] and [batch, l, 2 n, 2 n], in two roles: [s, l, 4, 4].

    The large maps may be a pixel larger. A convolution makes small maps of large ones, a transposed
    one large maps of small ones; in both a weight is multiplied with a pixel of the one and goes to
    a pixel of the other.
    """
    weights = 16 * small.shape[1] * large.shape[1]
    if _by_product("learn", small, small.shape[-1], weights):
        return _weight_gradient_by_product(small, large)
    weight = large.new_empty(small.shape[1], 4, 4, large.shape[1]).permute(0, 3, 1, 2)
    _, gradient, _ = torch.ops.aten.convolution_backward(
        *(small, large, weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
        [False, True, False],
    )
    return gradient  # type: ignore[no-any-return]


def _by_product(way: Way, maps: Tensor, side: int, weights: int) -> bool:
    """Whether to take the second way to what is made of maps of so many pixels a side."""
    return maps.device.type == "cpu" and is_product_quicker(way, side, weights, maps.dtype)


def _halve_by_product(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    small = _empty_maps(maps, len(weight), maps.shape[-1] // 2)
    pixels = small.permute(0, 2, 3, 1).view(-1, len(weight))
    kernels = weight.permute(0, 2, 3, 1).flatten(1).T
    _multiply(_unfold(maps), kernels, bias, pixels)
    return small


def _double_by_products(maps: Tensor, weight: Tensor, bias: Tensor | None, size: int) -> Tensor:
    """A transposed convolution as a product for each of the four phases of the large map.

    An output row sees two rows of the maps and two of the kernel's: 3 and 1 if it is even, 2 and 0
    if it is odd; columns alike.
    """
    inputs, outputs = weight.shape[:2]
    padded = functional.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(1, 2, 1).unfold(2, 2, 1)  # [batch, n + 1, n + 1, inputs, 2, 2]
    windows = windows.permute(0, 1, 2, 4, 5, 3)
    # A kernel's row is twice its place in a window and the phase's: for each, from the last one.
    taps = weight.reshape(inputs, outputs, 2, 2, 2, 2).permute(3, 5, 2, 4, 0, 1).flip(0, 1, 2, 3)
    kernels = taps.reshape(2, 2, 4 * inputs, outputs)
    large = _empty_maps(maps, outputs, size)
    for row in (0, 1):
        for column in (0, 1):
            phase = large.permute(0, 2, 3, 1)[:, row::2, column::2]
            height, width = phase.shape[1:3]
            seen = windows[:, row : row + height, column : column + width]
            pixels = maps.new_empty(phase.numel() // outputs, outputs)
            _multiply(seen.reshape(-1, 4 * inputs), kernels[row, column], bias, pixels)
            phase.copy_(pixels.view(phase.shape))
    return large


def _empty_maps(like: Tensor, channels: int, size: int) -> Tensor:
    """Maps to be filled, the channels innermost; not a view, so a ReLU may work in place."""
    shape = (len(like), channels, size, size)
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _multiply(rows: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """The bias is added to sums that are not rounded yet."""
    if bias is None:
        torch.mm(rows, matrix, out=out)
    else:
        torch.addmm(bias, rows, matrix, out=out)


def _unfold(large: Tensor) -> Tensor:
    """What each pixel of small maps sees of large ones: [batch * n * n, 16 * channels].

    A convolution is then one product: Chellapilla et al., "High performance convolutional neural
    networks for document processing", 2006.
    """
    patches = functional.pad(large.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    patches = patches.unfold(1, 4, 2).unfold(2, 4, 2)  # [batch, n, n, channels, 4, 4]
    return patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, 16 * large.shape[1])


def _double_by_windows(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A transposed convolution as one convolution of windows of 2x2 pixels.

    An output pixel sees 2x2 of the maps' pixels and a quarter of the kernel: which, depends on
    whether its row and its column are even. So four kernels make four maps, which are interleaved.
    """
    batch, inputs, height, width = maps.shape
    outputs = weight.shape[1]
    # Kernel rows 3, 1 meet an even output row and rows 2, 0 an odd one; columns alike.
    parts = weight.reshape(inputs, outputs, 2, 2, 2, 2).flip(2, 3, 4, 5)
    kernels = parts.permute(3, 5, 1, 0, 2, 4).reshape(4 * outputs, inputs, 2, 2)
    kernels = kernels.contiguous(memory_format=torch.channels_last)
    windows = functional.conv2d(maps, kernels, padding=1).permute(0, 2, 3, 1)
    windows = windows.reshape(batch, height + 1, width + 1, 2, 2, outputs)
    images = maps.new_empty(batch, 2 * height, 2 * width, outputs)
    for row in (0, 1):
        for column in (0, 1):
            images[:, row::2, column::2] = windows[
                :, row : row + height, column : column + width, row, column
            ]
    if bias is not None:
        images += bias
    return images.permute(0, 3, 1, 2)


def _weight_gradient_by_product(small: Tensor, large: Tensor) -> Tensor:
    channels = large.shape[1]
    pixels = small.permute(0, 2, 3, 1).reshape(-1, small.shape[1])
    return (pixels.T @ _unfold(large)).reshape(-1, 4, 4, channels).permute(0, 3, 1, 2)


# Two of the faces once more, as functions that can be differentiated once.


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(maps, weight)
        return halve_maps(maps, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        maps, weight = ctx.saved_tensors
        of_maps = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_maps = double_maps(gradient, weight, None, maps.shape[-1])
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(gradient, maps)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_maps, of_weight, of_bias


class _TransposedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        maps: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        size: int,
    ) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return double_maps(maps, weight, bias, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        maps, weight = ctx.saved_tensors
        of_maps = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_maps = halve_maps(gradient, weight)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(maps, gradient)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_maps, of_weight, of_bias, None


def _convolve(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = _Convolution.apply(maps, weight, bias)  # type: ignore[no-untyped-call]
    return output


def _transpose(maps: Tensor, weight: Tensor, bias: Tensor | None, size: int) -> Tensor:
    output: Tensor = _TransposedConvolution.apply(  # type: ignore[no-untyped-call]
        maps, weight, bias, size
    )
    return output
