"""Trains the presets for some steps in float64, on the ranks there are, and saves their weights.

A program of its own, for all of a process computes in float64 then: what the package would bring
to float32 stays as it is. Rounding is 5e8 times smaller there, so what it moves lies far below what
a mistake would.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from gantrain.checkpoint import TrainState
from gantrain.config import TrainConfig
from gantrain.data.datasets import Dataset, load_source
from gantrain.networks import GENERATORS
from gantrain.optimizers import set_rates, update_ema
from gantrain.presets import resolve
from gantrain.ranks import Ranks, join_ranks
from gantrain.training.batches import DataOrder, stream_seed
from gantrain.training.loop import create_step
from gantrain.training.run_setup import create_state, describe_data, load_labels, settle_config
from gantrain.training.steps import Feed

STEPS, BATCH = 20, 8
DEVICE = torch.device("cpu")

# Every preset, as small as it allows, and the flagship's other networks.
CASES: dict[str, dict[str, object]] = {
    "the-flagship": {"filters": 8, "image_size": 32},
    "the-flagship-conditional": {"filters": 4, "image_size": 16, "conditional": True},
    "the-flagship-spectral": {"filters": 4, "image_size": 16, "spectral_norm": True},
    "dcgan-2015": {"filters": 4, "image_size": 16},
    "keras-conv64": {"filters": 1},
    "keras-mlp": {},
    "keras-mlp-conv-critic": {},
    "selu-dense": {},
    "torch-mlp": {},
    "faces-rmsprop": {"filters": 1, "image_size": 16},
    # At its own rates 20 steps amplify even these last bits to 0.1, as they do on one rank where a
    # bit of the first weights is changed.
    "points": {"filters": 8, "data": "grid25", "lr": 1e-4, "discriminator_lr": 1e-4},
    "sine": {"data": "sine"},
}


def settings(case: str) -> dict[str, object]:
    preset = "dcgan" if case.startswith("the-flagship") else case
    common = {"preset": preset, "data": "digits", "run_dir": "none", "latent_dim": 8}
    return {**common, "batch_size": BATCH, **CASES[case]}


def train_in_float64(config: TrainConfig, ranks: Ranks) -> TrainState:
    """The state after some steps."""
    data = load_source(config.data, image_size=config.image_size, channels=config.channels)
    config = settle_config(config, data)
    state = create_state(config, DEVICE, len(describe_data(data).class_names))
    for network in (state.generator, state.discriminator):
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # is drawn by each rank
    lowest = GENERATORS[config.generator or ""].lowest
    if isinstance(data, Dataset):  # ready for the networks, as batches of images are in float32
        examples = torch.from_numpy(data.images).double() / (255 / (1 - lowest)) + lowest
    else:
        examples = torch.from_numpy(data.points).double()
    labels = load_labels(data, config, DEVICE)
    feed = Feed(examples, labels, lowest, ranks.share(config.batch_size))
    step = create_step(state, feed, config, ranks)
    order = DataOrder(len(examples), config.batch_size, config.seed)
    for _ in range(STEPS):
        start, length = state.images_seen, config.images_per_step
        positions = range(start, start + length, config.batch_size)
        set_rates(state, config)
        step(stream_seed(order.seed, start), torch.stack([order.indices(p) for p in positions]))
        state.images_seen += length
        update_ema(state, config)
    return state


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    with join_ranks(DEVICE) as ranks:
        for case in CASES:
            state = train_in_float64(resolve(settings(case)), ranks)
            values = {
                f"{part}.{name}": value
                for part in ("generator", "generator_ema", "discriminator")
                for name, value in getattr(state, part).state_dict().items()
            }
            if ranks.first:
                torch.save(values, folder / f"{case}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
