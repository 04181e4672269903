"""Hides how the gradient of each logit by its image is had, and learned from, at little cost.

Penalties such as R1 and R2 are functions of these gradients. Differentiated by autograd they take
a backward pass that can be differentiated, which then takes two more passes, and the loss itself
another two. But between convolutions the discriminator is piecewise linear, and each logit depends
on its own image alone. So what the loss sends back through the layers is what the gradient of the
logit was made of, times one number for each image; and what a change of the gradient asks of the
weights is had by sending that change forward through the layers. Both reach a layer's weights
beside the same factor, and are learned in a single product. In all there are four passes (images
forward, gradients back, changes forward, weights) where autograd takes six.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import leaky_relu

from gantrain.networks.convolutions import double_maps, halve_maps, weight_gradient


def gradients_by_examples(logits: Tensor, examples: Tensor) -> Tensor:
    """The gradient of each logit by its example, which autograd can differentiate again.

    `logits` [batch] must come from `examples` [batch, ...], which require grad, one by one.
    """
    return torch.autograd.grad(logits.sum(), examples, create_graph=True)[0]


def judge_with_linear_head(
    images: Tensor,
    heads: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    leak: float,
) -> tuple[Tensor, Tensor]:
    """Logits [batch] of convolutions that halve maps, and their gradients by the images.

    Each convolution is followed by a leaky ReLU; the logit of an image is the inner product of the
    last map, flattened, with a head. Both results can be differentiated by heads, weights and
    biases; by the images they cannot.

    Args:
        images: [batch, channels, size, size].
        heads: [batch, features], or [1, features] for all images; float32.
        weights: of each convolution, [outputs, inputs, 4, 4], in the images' dtype.
        biases: of each, [outputs].
        leak: slope of the leaky ReLUs below zero, above 0.

    Returns:
        Logits [batch] and gradients [batch, channels, size, size], both float32.
    """
    logits, gradients = _JudgeWithGradients.apply(  # type: ignore[no-untyped-call]
        images.detach(), heads, leak, *weights, *biases
    )
    return logits, gradients


class _JudgeWithGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        images: Tensor,
        heads: Tensor,
        leak: float,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        maps = [images]
        for weight, bias in zip(weights, biases, strict=True):
            maps.append(leaky_relu(halve_maps(maps[-1], weight, bias), leak, inplace=True))
        logits = (maps[-1].flatten(1) * heads).sum(1)
        gradient = heads.to(images.dtype).view(-1, *maps[-1].shape[1:]).expand_as(maps[-1])
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        slopes: list[Tensor] = []  # gradients by what each convolution made, the first one's first
        for weight, below, above in zip(weights[::-1], maps[-2::-1], maps[:0:-1], strict=True):
            slopes.insert(0, _through_leak(gradient, above, leak))
            gradient = double_maps(slopes[0], weight, None, below.shape[-1])
        ctx.leak = leak
        ctx.save_for_backward(heads, *weights, *maps, *slopes)
        return logits.to(heads.dtype), gradient.to(heads.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logits: Tensor, of_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        heads, *saved = ctx.saved_tensors
        count = len(saved) // 3
        weights, maps, slopes = saved[:count], saved[count:-count], saved[-count:]
        dtype = maps[0].dtype
        shares = of_logits.to(dtype)[:, None, None, None]
        change = of_gradients.to(dtype)
        of_weights, of_biases = [], []
        for weight, below, above, slope in zip(weights, maps, maps[1:], slopes, strict=False):
            of_weights.append(weight_gradient(slope, torch.addcmul(change, below, shares)))
            of_biases.append((slope * shares).sum((0, 2, 3)))
            change = _through_leak(halve_maps(change, weight), above, ctx.leak)
        features = maps[-1].flatten(1)
        of_heads = torch.addcmul(change.flatten(1).to(heads.dtype), features, of_logits[:, None])
        if len(heads) == 1:
            of_heads = of_heads.sum(0, keepdim=True)
        return None, of_heads, None, *of_weights, *of_biases


def _through_leak(values: Tensor, above: Tensor, leak: float) -> Tensor:
    """Values times the slope of the leaky ReLU that made `above`."""
    return torch.ops.aten.leaky_relu_backward(values, above, leak, True)  # type: ignore[no-any-return]
