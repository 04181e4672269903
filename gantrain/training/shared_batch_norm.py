"""Hides how BatchNorm normalizes by a batch that lies in parts on several ranks.

PyTorch's own `SyncBatchNorm` knows GPUs only.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gantrain.ranks import add_up, rank_count


def share_batch_norm(network: nn.Module) -> None:
    """Let BatchNorm in training mode normalize by the whole batch, not by a rank's part of it.

    Weights, buffers and their names stay as they are.
    """
    if rank_count() == 1:
        return
    for module in network.modules():
        for plain, shared in _SHARED.items():
            if type(module) is plain:
                module.__class__ = shared


class _SharedBatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - has no public name
    """BatchNorm over the parts of all ranks, which are of one size."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is PyTorch's
        """Inputs [batch, features, ...] -> the same shape."""
        if not self.training:
            return super().forward(input)
        values = input.float()  # automatic casting must not round the statistics
        normal, mean, variance = _Normalize.apply(  # type: ignore[no-untyped-call]
            values, self.weight, self.bias, self.eps
        )
        self._follow(mean, variance, rank_count() * values.numel() // values.shape[1])
        return normal.to(input.dtype)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, size: int) -> None:
        """Move the moving statistics, whose variance is unbiased, of `size` values a feature."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (size / (size - 1)), self.momentum)


class _SharedBatchNorm1d(_SharedBatchNorm, nn.BatchNorm1d):
    """After a dense layer."""


class _SharedBatchNorm2d(_SharedBatchNorm, nn.BatchNorm2d):
    """After a convolution."""


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _SharedBatchNorm1d,
    nn.BatchNorm2d: _SharedBatchNorm2d,
}


class _Normalize(torch.autograd.Function):
    """The layer with PyTorch's kernels for one process, and one exchange in each direction.

    Written out in tensor operations it takes five times as long on a CPU. Its gradient cannot be
    differentiated again: penalties on gradients are refused with BatchNorm in the discriminator.
    """

    @staticmethod
    def forward(
        context: Any,  # noqa: ANN401 - PyTorch's
        values: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs [batch, features, ...] -> the same shape, whole batch's mean and variance."""
        mean, variance = _of_whole_batch(*torch.batch_norm_update_stats(values, None, None, 0.0))
        context.eps = eps
        context.save_for_backward(values, weight, mean, variance)
        context.mark_non_differentiable(mean, variance)
        normal = functional.batch_norm(values, mean, variance, weight, bias, eps=eps)
        return normal, mean, variance

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor, *_statistics: Tensor) -> Any:  # noqa: ANN401
        """Gradients by values, weight and bias; those of the latter two are of this rank's part."""
        values, weight, mean, variance = context.saved_tensors
        inverse = (variance + context.eps).rsqrt()
        # As if the statistics were constants, and then what they pass on to all values. They are
        # given twice: some of CUDA's kernels read those of the batch even where these are constant.
        by_values, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            *(gradient, values, weight, mean, variance, mean, inverse),
            *(False, context.eps, [True, True, True]),
        )
        sums = torch.stack([by_weight, by_bias])
        add_up(sums)
        sums /= rank_count() * values.numel() // values.shape[1]
        slope = -weight * inverse.square() * sums[0]
        offset = -weight * inverse * sums[1] - slope * mean
        shape = [1, -1, *[1] * (values.dim() - 2)]
        by_values.addcmul_(values, slope.view(shape)).add_(offset.view(shape))
        return by_values, by_weight, by_bias, None


def _of_whole_batch(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over all ranks, from those of each.

    Each rank's go to all, which is one exchange and loses no digits to the difference of two
    large sums.
    """
    parts = mean.new_zeros(rank_count(), 2, *mean.shape)
    parts[distributed.get_rank()] = torch.stack([mean, variance])
    add_up(parts)
    means, variances = parts.unbind(1)
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)
