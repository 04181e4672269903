"""Generators and discriminators by name, for images and for points, none with a final sigmoid."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from gantrain.networks import dcgan, dcgan_2015, faces, keras_conv, mlp
from gantrain.networks.image_gradients import gradients_by_examples
from gantrain.networks.shape import Shape, no_images, no_points

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "DiscriminatorKind",
    "GeneratorKind",
    "Shape",
    "count_parameters",
    "create_networks",
    "judge_with_gradients",
    "most_inputs",
    "run_network",
]


@dataclass(frozen=True)
class GeneratorKind:
    """How to build a generator, latents [batch, latent_dim] -> images or points."""

    build: Callable[[Shape], nn.Module]
    check: Callable[[Shape], str | None] = no_images  # why a shape does not fit
    lowest: float = -1.0  # of the values it makes, -1 for a tanh, 0 for a sigmoid; highest is 1
    points: bool = False  # it makes [batch, 2], in no bounds
    leaves_open: frozenset[str] = frozenset()  # which of `filters`, `kernel_size` change it
    takes_labels: bool = False  # of a shape with classes


@dataclass(frozen=True)
class DiscriminatorKind:
    """How to build a discriminator, images or points -> logits [batch]."""

    build: Callable[[Shape], nn.Module]
    check: Callable[[Shape], str | None] = no_images  # why a shape does not fit
    batch_norm: bool = False  # a logit depends on the whole batch
    points: bool = False  # it judges [batch, 2]
    leaves_open: frozenset[str] = frozenset()  # which of `filters`, `kernel_size` change it
    takes_labels: bool = False  # of a shape with classes


class _SpectralNorm(parametrizations._SpectralNorm):  # noqa: SLF001 - what `spectral_norm` puts in
    """In the weights' own precision: on a GPU, autocast would iterate in bfloat16."""

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return super().forward(weight)


_Kind = TypeVar("_Kind")

_WIDTH = frozenset({"filters"})
_WIDTH_AND_KERNEL = frozenset({"filters", "kernel_size"})

GENERATORS: dict[str, GeneratorKind] = {
    "dcgan": GeneratorKind(dcgan.Generator, leaves_open=_WIDTH, takes_labels=True),
    "dcgan-2015": GeneratorKind(dcgan_2015.Generator, dcgan_2015.misfit, leaves_open=_WIDTH),
    "keras-mlp": GeneratorKind(mlp.keras_mlp_generator),
    "keras-conv": GeneratorKind(
        keras_conv.build_generator, keras_conv.misfit, leaves_open=_WIDTH_AND_KERNEL
    ),
    "selu-dense": GeneratorKind(mlp.selu_dense_generator, lowest=0.0),
    "torch-mlp": GeneratorKind(mlp.torch_mlp_generator),
    "faces": GeneratorKind(faces.build_generator, faces.misfit, leaves_open=_WIDTH),
    "sine": GeneratorKind(mlp.sine_generator, no_points, points=True),
    "points": GeneratorKind(mlp.points_generator, no_points, points=True, leaves_open=_WIDTH),
}

DISCRIMINATORS: dict[str, DiscriminatorKind] = {
    "dcgan": DiscriminatorKind(dcgan.Discriminator, leaves_open=_WIDTH, takes_labels=True),
    "dcgan-2015": DiscriminatorKind(
        dcgan_2015.Discriminator, dcgan_2015.misfit, batch_norm=True, leaves_open=_WIDTH
    ),
    "keras-mlp": DiscriminatorKind(mlp.keras_mlp_discriminator),
    "keras-mlp-conv": DiscriminatorKind(mlp.keras_mlp_conv_discriminator),
    "keras-conv": DiscriminatorKind(
        keras_conv.build_discriminator,
        keras_conv.misfit,
        batch_norm=True,
        leaves_open=_WIDTH_AND_KERNEL,
    ),
    "selu-dense": DiscriminatorKind(mlp.selu_dense_discriminator),
    "torch-mlp": DiscriminatorKind(mlp.torch_mlp_discriminator),
    "faces": DiscriminatorKind(faces.build_discriminator, faces.misfit, leaves_open=_WIDTH),
    "sine": DiscriminatorKind(mlp.sine_discriminator, no_points, points=True),
    "points": DiscriminatorKind(
        mlp.points_discriminator, no_points, points=True, leaves_open=_WIDTH
    ),
}


def create_networks(
    generator: str,
    discriminator: str,
    shape: Shape,
    *,
    seed: int,
    spectral_norm: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator on the CPU; their first weights are a function of the seed.

    The generator's do not depend on which discriminator is chosen. With `spectral_norm` each
    weight of the discriminator is divided by its largest singular value, which power iteration
    follows in training mode (Miyato et al., "Spectral normalization for generative adversarial
    networks", 2018). Where the shape has classes, both take labels: see `run_network`.

    Raises:
        ValueError: there is no such network, or it does not fit the shape.
    """
    generator_kind = _find(GENERATORS, "generator", generator)
    discriminator_kind = _find(DISCRIMINATORS, "discriminator", discriminator)
    of_discriminator = shape.for_discriminator()
    problem = generator_kind.check(shape) or discriminator_kind.check(of_discriminator)
    if shape.classes and not (generator_kind.takes_labels and discriminator_kind.takes_labels):
        problem = f"classes: expected 0, as one of them takes no labels, got {shape.classes}"
    if problem:
        raise ValueError(f"networks {generator} and {discriminator}: {problem}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = generator_kind.build(shape), discriminator_kind.build(of_discriminator)
        if spectral_norm:
            _normalize_weights(networks[1])
    return networks


def run_network(network: Callable[..., Tensor], inputs: Tensor, labels: Tensor | None) -> Tensor:
    """What a network makes of latents, images or points, and of labels [batch] if it takes them."""
    return network(inputs) if labels is None else network(inputs, labels)


def judge_with_gradients(
    discriminator: nn.Module, examples: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The logits [batch] of images or points, and the gradient of each by its example; float32.

    Both can be differentiated by the discriminator's weights, and not by the examples. Each logit
    must depend on its own example alone.
    """
    if isinstance(discriminator, dcgan.Discriminator):
        return discriminator.judge_with_gradients(examples, labels)
    examples = examples.detach().requires_grad_()
    logits = run_network(discriminator, examples, labels).float()
    with torch.autocast(examples.device.type, enabled=False):  # each pass back is as it came
        return logits, gradients_by_examples(logits, examples)


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Keras' way of counting: moving statistics are in the total, not among the trainable."""
    trainable = sum(values.numel() for values in network.parameters())
    statistics = sum(
        values.numel()
        for name, values in network.named_buffers()
        if not name.endswith("num_batches_tracked")
    )
    return {"total": trainable + statistics, "trainable": trainable}


def most_inputs(discriminator: str, shape: Shape) -> int:
    """How many values the widest layer sees for each that it makes, the last layer excepted."""
    with torch.device("meta"):
        network = DISCRIMINATORS[discriminator].build(shape.for_discriminator())
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return max(layer.weight[0].numel() for layer in layers[:-1])


def _normalize_weights(discriminator: nn.Module) -> None:
    for module in list(discriminator.modules()):  # a list, for the change adds modules
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            norm = _SpectralNorm(module.weight)
            parametrize.register_parametrization(module, "weight", norm)


def _find(kinds: Mapping[str, _Kind], setting: str, name: str) -> _Kind:
    if name not in kinds:
        raise ValueError(f"{setting}: expected one of {', '.join(kinds)}, got {name!r}")
    return kinds[name]
