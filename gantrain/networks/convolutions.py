"""Hides that convolutions with small maps are matrix products, and learn as such.

Between a map and a single pixel the whole layer is one product, which takes a fifth of oneDNN's
time. In others the gradient of the weights is one, over unfolded maps (Chellapilla et al., "High
performance convolutional neural networks for document processing", 2006): where maps have few
pixels and many channels, oneDNN takes about twice as long for it as for that of the images.
Everywhere else, and on all devices but the CPU, these layers are PyTorch's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Measured with 64 images of 4x4 pixels on two cores; with 8x8 oneDNN is quicker.
_LARGEST_SMALL_MAP = 4

_weights_are_wanted = True


@contextmanager
def gradients_of_inputs_alone() -> Iterator[None]:
    """Leave the weights' gradients out, where a penalty asks for those of the images.

    PyTorch leaves out what nobody asks for in its own layers, but does not tell others.
    """
    global _weights_are_wanted  # a backward pass has no other way to know
    before, _weights_are_wanted = _weights_are_wanted, False
    try:
        yield
    finally:
        _weights_are_wanted = before


class Convolution(nn.Conv2d):
    """`nn.Conv2d` with a kernel of 4, stride 2 and padding 1: maps of half the size."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel_size=4, stride=2, padding=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - named as PyTorch's
        """Maps [batch, inputs, n, n] -> [batch, outputs, n // 2, n // 2]."""
        if not _is_worth_it(input, self.weight, input.shape[-1] // 2) or input.shape[-1] % 2:
            return super().forward(input)
        output: Tensor = _Convolution.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias[:, None, None]


class TransposedConvolution(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with a kernel of 4, stride 2 and padding 1: maps of twice the size."""

    def __init__(
        self, inputs: int, outputs: int, *, output_padding: int = 0, bias: bool = True
    ) -> None:
        sizes: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1}
        super().__init__(inputs, outputs, **sizes, output_padding=output_padding, bias=bias)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        """Maps [batch, inputs, n, n] -> [batch, outputs, 2 n, 2 n], padded at the far edges."""
        plain = output_size is not None or any(self.output_padding)
        if plain or not _is_worth_it(input, self.weight, input.shape[-1]):
            return super().forward(input, output_size)
        output: Tensor = _TransposedConvolution.apply(  # type: ignore[no-untyped-call]
            input, self.weight
        )
        return output if self.bias is None else output + self.bias[:, None, None]


class PixelToMap(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of a single pixel, without a bias: a map as large as the kernel."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size, bias=False)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        """Pixels [batch, inputs, 1, 1] -> maps [batch, outputs, size, size]."""
        if output_size is not None or not _is_worth_it(input, self.weight, 1):
            return super().forward(input, output_size)
        inputs, outputs, *size = self.weight.shape
        flat = input.flatten(1) @ self.weight.permute(0, 2, 3, 1).reshape(inputs, -1)
        return flat.view(-1, *size, outputs).permute(0, 3, 1, 2)  # the channels innermost


class MapToPixel(nn.Conv2d):
    """`nn.Conv2d` with a kernel as large as the map, without a bias: a single pixel."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - named as PyTorch's
        """Maps [batch, inputs, size, size] -> pixels [batch, outputs, 1, 1]."""
        if not _is_worth_it(input, self.weight, 1):
            return super().forward(input)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return (input.permute(0, 2, 3, 1).flatten(1) @ weight.T)[:, :, None, None]


def _is_worth_it(maps: Tensor, weight: Tensor, smaller_size: int) -> bool:
    return (
        maps.device.type == "cpu"
        and maps.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.is_grad_enabled()
        and weight.requires_grad
        and smaller_size <= _LARGEST_SMALL_MAP
    )


class _Convolution(torch.autograd.Function):
    """Maps [batch, i, 2 n, 2 n] and weights [o, i, 4, 4] -> [batch, o, n, n]."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(maps, weight)
        return functional.conv2d(maps, weight, stride=2, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN401
        maps, weight = ctx.saved_tensors
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = _transpose(gradient, weight)
        if _weights_are_wanted and ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(gradient, maps)
        return of_maps, of_weight


class _TransposedConvolution(torch.autograd.Function):
    """Maps [batch, i, n, n] and weights [i, o, 4, 4] -> [batch, o, 2 n, 2 n]."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(maps, weight)
        return functional.conv_transpose2d(maps, weight, stride=2, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN401
        maps, weight = ctx.saved_tensors
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = _convolve(gradient, weight)
        if _weights_are_wanted and ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(maps, gradient)
        return of_maps, of_weight


def _convolve(maps: Tensor, weight: Tensor) -> Tensor:
    output: Tensor = _Convolution.apply(maps, weight)  # type: ignore[no-untyped-call]
    return output


def _transpose(maps: Tensor, weight: Tensor) -> Tensor:
    output: Tensor = _TransposedConvolution.apply(maps, weight)  # type: ignore[no-untyped-call]
    return output


def _weight_gradient(small: Tensor, large: Tensor) -> Tensor:
    """Of maps [batch, s, n, n] and [batch, l, 2 n, 2 n], in two roles: [s, l, 4, 4].

    A convolution makes small maps of large ones, a transposed one large maps of small ones; in
    both a weight is multiplied with a pixel of the one and goes to a pixel of the other.
    """
    channels = large.shape[1]
    patches = functional.pad(large.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    patches = patches.unfold(1, 4, 2).unfold(2, 4, 2)  # [batch, n, n, l, 4, 4]
    unfolded = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, 16 * channels)
    pixels = small.permute(0, 2, 3, 1).reshape(-1, small.shape[1])
    return (pixels.T @ unfolded).reshape(-1, 4, 4, channels).permute(0, 3, 1, 2)
