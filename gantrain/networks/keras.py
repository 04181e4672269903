"""Keras' layers in PyTorch: its paddings, crops, normalization, slopes and first weights.

The reference is Keras on TensorFlow. Not carried over: TensorFlow's moving variance of a dense
layer's BatchNorm takes the batch's variance over n, PyTorch's over n - 1.
"""

from torch import Tensor, nn

_EPS = 1e-3  # added to the variance by BatchNorm; PyTorch's default is 1e-5
MOMENTUM = 0.99  # the share of a moving statistic that a step keeps
SLOPE = 0.3  # of LeakyReLU below zero; PyTorch's default is 0.01


def convolution(
    inputs: int, outputs: int, kernel_size: int, *, size: int, stride: int = 1
) -> list[nn.Module]:
    """A convolution with padding "same" of maps of `size` pixels, which need not be even.

    The output has `ceil(size / stride)` pixels. The padding is what the last step of the kernel
    lacks; where that is odd, the extra pixel is at the bottom and right: a kernel of 5 with stride
    2 pads an even size by 1 and 2, an odd one by 2 and 2.
    """
    steps = -(-size // stride)
    total = max((steps - 1) * stride + kernel_size - size, 0)
    before, after = total // 2, total - total // 2
    if before == after:
        return [nn.Conv2d(inputs, outputs, kernel_size, stride, padding=before)]
    return [
        nn.ZeroPad2d((before, after, before, after)),
        nn.Conv2d(inputs, outputs, kernel_size, stride),
    ]


class TransposedConvolution(nn.ConvTranspose2d):
    """A transposed convolution with padding "same": maps of n pixels become 2 n pixels wide.

    It is the gradient of the "same" convolution with stride 2 of 2 n pixels, so it crops what that
    one pads: the whole output has 2 (n - 1) + kernel pixels, and where an odd number of them is too
    many, the extra one goes at the bottom and right.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        too_many = kernel_size - 2
        assert too_many >= 0
        super().__init__(inputs, outputs, kernel_size, stride=2, padding=too_many // 2)

    def forward(self, maps: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Maps [batch, inputs, n, n] -> [batch, outputs, 2 n, 2 n]."""
        assert output_size is None
        height, width = maps.shape[-2:]
        return super().forward(maps)[..., : 2 * height, : 2 * width]


def batch_norm(features: int, momentum: float = MOMENTUM) -> nn.BatchNorm1d:
    """BatchNorm after a dense layer; `momentum` is Keras', which PyTorch calls 1 - momentum."""
    return nn.BatchNorm1d(features, eps=_EPS, momentum=1 - momentum)


def batch_norm_2d(channels: int) -> nn.BatchNorm2d:
    """BatchNorm after a convolution, with Keras' default momentum."""
    return nn.BatchNorm2d(channels, eps=_EPS, momentum=1 - MOMENTUM)


def initialize(network: nn.Module) -> nn.Module:
    """Keras' first weights: uniform within Glorot and Bengio's bound (2010), zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network
