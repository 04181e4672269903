"""Generators and discriminators, as mirror images."""

import torch
from torch import nn

from gantrain.networks.dcgan import Discriminator, Generator


def create_networks(
    *, image_size: int, channels: int, latent_dim: int, filters: int, seed: int
) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator on the CPU; their first weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(image_size, channels, latent_dim, filters)
        discriminator = Discriminator(image_size, channels, filters)
    return generator, discriminator


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Keras' way of counting: moving statistics are in the total, not among the trainable."""
    trainable = sum(values.numel() for values in network.parameters())
    statistics = sum(
        values.numel()
        for name, values in network.named_buffers()
        if not name.endswith("num_batches_tracked")
    )
    return {"total": trainable + statistics, "trainable": trainable}
