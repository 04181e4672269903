"""A DCGAN-class generator and its mirror-image discriminator for any square size from 8 to 128.

Both can be conditional: they then take a label, an index of a class, with each latent or image.
"""

from itertools import pairwise

from torch import Tensor, nn

from gantrain.networks.convolutions import (
    Convolution,
    TransposedConvolution,
    in_asked_precision,
)
from gantrain.networks.image_gradients import judge_with_linear_head
from gantrain.networks.shape import Shape

_LEAK = 0.2
_MAX_WIDENING = 8  # the widest layer has this many times the channels of the one next to the image


def pyramid(image_size: int) -> list[int]:
    """Sizes from the image down to the smallest feature map, which is 2 or 3 pixels wide.

    Each is half of the one before, rounded down, as a stride-2 convolution rounds:
    28 -> [28, 14, 7, 3], 32 -> [32, 16, 8, 4, 2], 100 -> [100, 50, 25, 12, 6, 3]. Going down this
    far gives small images deep networks too, at little cost: the lowest maps are the cheapest.
    """
    sizes = [image_size]
    while sizes[-1] >= 4:
        sizes.append(sizes[-1] // 2)
    return sizes


def widths(image_size: int, filters: int) -> list[int]:
    """Channels of each feature map below the image, from the largest map to the smallest."""
    return [filters * min(2**depth, _MAX_WIDENING) for depth in range(len(pyramid(image_size)) - 1)]


class Generator(nn.Module):
    """latents [batch, latent_dim] -> images [batch, channels, size, size] in [-1, 1].

    A dense layer makes the smallest map; each stride-2 transposed convolution (kernel 4) doubles
    it; BatchNorm and ReLU between them, tanh at the end (Radford et al. 2015). Where a size of the
    pyramid is odd, output padding restores the pixel that halving dropped.

    With `classes`, labels [batch] come with the latents, and each class adds a map of its own to
    the smallest one. That is a first layer that takes latents and one-hot labels side by side, as
    in Mirza and Osindero, "Conditional generative adversarial nets", 2014.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels, image_size, _ = shape.image
        sizes = pyramid(image_size)[::-1]
        maps = [*widths(image_size, shape.filters)[::-1], channels]
        self.smallest = (maps[0], sizes[0], sizes[0])
        self.project = nn.Linear(shape.latent_dim, maps[0] * sizes[0] ** 2, bias=False)
        layers: list[nn.Module] = []
        for depth, (size, next_size) in enumerate(pairwise(sizes)):
            last = depth == len(sizes) - 2
            layers += [nn.BatchNorm2d(maps[depth]), nn.ReLU(inplace=True)]
            layers.append(
                TransposedConvolution(
                    *(maps[depth], maps[depth + 1]),
                    output_padding=next_size - 2 * size,
                    bias=last,  # BatchNorm brings its own everywhere else
                )
            )
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(_initialize)
        if shape.classes:
            self.embed = nn.Embedding(shape.classes, self.project.out_features)
            # As large as what the latents bring, so that neither drowns the other at first.
            nn.init.normal_(self.embed.weight, std=nn.init.calculate_gain("leaky_relu", _LEAK))

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        features = self.project(latents)
        if labels is not None:
            features = features + self.embed(labels)
        images: Tensor = self.layers(features.unflatten(1, self.smallest))
        return images


class Discriminator(nn.Module):
    """images [batch, channels, size, size] -> logits [batch]; no normalization of any kind.

    A penalty on the gradient of each image needs logits that depend on that image alone, which
    BatchNorm would break.

    With `classes`, labels [batch] come with the images, and the logit grows by the inner product of
    the last feature map with a vector of the class: Miyato and Koyama, "cGANs with projection
    discriminator", 2018, here without pooling the map, as the plain logit is made of all of it too.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels, size, _ = shape.image
        maps = [channels, *widths(size, shape.filters)]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(maps):
            layers.append(Convolution(inputs, outputs))
            layers.append(nn.LeakyReLU(_LEAK, inplace=True))
        self.layers = nn.Sequential(*layers)
        self.judge = nn.Linear(maps[-1] * pyramid(size)[-1] ** 2, 1)
        self.apply(_initialize)
        if shape.classes:
            self.embed = nn.Embedding(shape.classes, self.judge.in_features)
            nn.init.kaiming_normal_(self.embed.weight, a=_LEAK)  # as the weights of `judge`

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        features = self.layers(images).flatten(1)
        logits: Tensor = self.judge(features).squeeze(1)
        return logits if labels is None else logits + (self.embed(labels) * features).sum(1)

    def judge_with_gradients(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits [batch], and the gradient of each by its image, like the images; both float32.

        Both can be differentiated by the weights, not by the images.
        """
        heads = self.judge.weight if labels is None else self.judge.weight + self.embed(labels)
        layers = [layer for layer in self.layers if isinstance(layer, Convolution)]
        weights = [in_asked_precision(layer.weight) for layer in layers]
        biases = [in_asked_precision(layer.bias) for layer in layers if layer.bias is not None]
        logits, gradients = judge_with_linear_head(
            in_asked_precision(images), heads, weights, biases, _LEAK
        )
        return logits + self.judge.bias, gradients


def _initialize(module: nn.Module) -> None:
    """Weights that keep the signal's size (He et al. 2015) and zero biases."""
    if isinstance(module, nn.ConvTranspose2d):
        # Each output pixel of a stride-2 transposed convolution sees a quarter of the kernel. What
        # comes in has passed BatchNorm and ReLU; its mean square is kept, not raised to 1 again.
        fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1] / 4
        nn.init.normal_(module.weight, std=(1 / fan_in) ** 0.5)
    elif isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=_LEAK)
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)
