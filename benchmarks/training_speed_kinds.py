"""Kinds of training whose speed is compared, each run in a process of its own.

    python benchmarks/training_speed_kinds.py KIND --size 64 --steps 20 --threads 2 --data DIR
                                              [--device cuda]

Prints images a second of wall time after a few steps to warm up. Kinds: `example` is PyTorch's own;
`ours` and `ours, bf16` are `gantrain train` with preset `dcgan-2015`, `flagship` and `flagship,
bf16` with preset `dcgan`; `..., constant batch` are the same steps fed from one batch that never
changes; `flagship, autograd` is that too, with PyTorch's layers and autograd's second derivatives.
On a GPU our steps are replayed as graphs, but for `flagship, autograd`, and all kinds compute in
float32 in full where they do not in bf16, the example too.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gantrain.checkpoint import TrainState
from gantrain.config import TrainConfig
from gantrain.data.datasets import Dataset, load_source
from gantrain.memory import keep_buffers
from gantrain.networks import create_networks
from gantrain.networks import dcgan as flagship_networks
from gantrain.networks.shape import Shape
from gantrain.optimizers import set_rates, update_ema
from gantrain.presets import resolve
from gantrain.run_directory import RunDirectory
from gantrain.run_log import read_metrics
from gantrain.training.determinism import full_float32, repeatable
from gantrain.training.loop import train
from gantrain.training.recorded_steps import CudaRecorder, RecordedStep
from gantrain.training.run_setup import create_state, settle_config
from gantrain.training.steps import StepResults, discriminator_step, generate_fakes, generator_step

BATCH, LATENTS = 64, 100
WARM_UP = 8  # steps; on a GPU the seventh is the first that is a replay and nothing else
IMAGES = 512
KINDS = (
    *("example", "ours", "ours, bf16", "ours, constant batch"),
    *("flagship", "flagship, bf16", "flagship, constant batch", "flagship, autograd"),
)
_NEVER = 10**9  # images


class Example:
    """PyTorch's example: its networks, its optimizers, its step."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.device = device
        torch.backends.cudnn.benchmark = True
        shape = Shape(image_size=size, channels=3, latent_dim=LATENTS, filters=64, kernel_size=4)
        generator, discriminator = create_networks("dcgan-2015", "dcgan-2015", shape, seed=0)
        make_plain(generator, discriminator)
        self.generator = generator.to(device)
        self.discriminator = nn.Sequential(discriminator, nn.Sigmoid()).to(device)
        self.images = torch.rand(IMAGES, 3, size, size) * 2 - 1
        self.criterion = nn.BCELoss()
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for network in (self.discriminator, self.generator)
        ]

    def step(self, index: int) -> tuple[float, ...]:
        """One iteration; the numbers are those that the example prints."""
        discriminator_optimizer, generator_optimizer = self.optimizers
        start = index * BATCH % len(self.images)
        self.discriminator.zero_grad()
        reals = self.images[start : start + BATCH].to(self.device)
        labels = torch.full((BATCH,), 1.0, device=self.device)
        output = self.discriminator(reals)
        real_loss = self.criterion(output, labels)
        real_loss.backward()
        real_mean = output.mean().item()
        fakes = self.generator(torch.randn(BATCH, LATENTS, device=self.device))
        labels.fill_(0.0)
        output = self.discriminator(fakes.detach())
        fake_loss = self.criterion(output, labels)
        fake_loss.backward()
        fake_mean = output.mean().item()
        discriminator_optimizer.step()
        self.generator.zero_grad()
        labels.fill_(1.0)
        output = self.discriminator(fakes)
        generator_loss = self.criterion(output, labels)
        generator_loss.backward()
        after = output.mean().item()
        generator_optimizer.step()
        total = (real_loss + fake_loss).item()
        return total, generator_loss.item(), real_mean, fake_mean, after


class ConstantBatch:
    """Our steps, fed from one batch that never changes."""

    def __init__(self, config: TrainConfig) -> None:
        data = load_source(config.data)
        assert isinstance(data, Dataset)
        self.config = settle_config(config, data)
        size, device = data.images.shape[-1], torch.device(config.device)
        self.state: TrainState = create_state(self.config, device, class_count=0)
        self.noise = torch.Generator(device)
        reals = torch.rand(BATCH, 3, size, size, device=device) * 2 - 1
        self.reals: Tensor = reals.to(memory_format=torch.channels_last)
        self.indices = torch.zeros(1, BATCH, dtype=torch.int64, device=device)  # looked at by none
        self.recorded: RecordedStep | None = None
        if device.type == "cuda" and config.cuda_graph:
            recorder = CudaRecorder(device, [self.noise])
            self.recorded = RecordedStep(self.take, self.state, self.seed_noise, recorder)

    def step(self, index: int) -> None:
        """What the loop does to a batch."""
        set_rates(self.state, self.config)
        if self.recorded:
            self.recorded(index, self.indices)
        else:
            self.seed_noise(index)
            self.take(self.indices)
        self.state.images_seen += BATCH
        update_ema(self.state, self.config)

    def seed_noise(self, seed: int) -> None:
        """Begin the noise of a step."""
        self.noise.manual_seed(seed)

    def take(self, _indices: Tensor) -> list[StepResults]:
        """One step of each network."""
        reuse = self.config.reuse_fakes
        fakes = generate_fakes(self.state, self.config, self.noise, with_gradient=reuse)
        judged = discriminator_step(self.state, self.reals, fakes, self.config, self.noise)
        if not reuse:
            fakes = generate_fakes(self.state, self.config, self.noise, with_gradient=True)
        return [judged, generator_step(self.state, self.reals, fakes, self.config, self.noise)]


def make_plain(*networks: nn.Module) -> None:
    """Give networks PyTorch's own layers where they have ours."""
    for layer in nn.ModuleList(networks).modules():
        for plain in (nn.Conv2d, nn.ConvTranspose2d):
            if isinstance(layer, plain):
                layer.__class__ = plain


class PlainDiscriminator(nn.Module):
    """The flagship's, so that nothing here knows more of it than autograd does."""

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.layers, self.judge = discriminator.layers, discriminator.judge

    forward = flagship_networks.Discriminator.forward


def settings(
    preset: str, data: Path, run_dir: Path, threads: int, steps: int, **more: object
) -> TrainConfig:
    """A preset on images in memory, with nothing due before the end of the run."""
    values: dict[str, Any] = {
        "preset": preset,
        "data": str(data),
        "run_dir": run_dir,
        "threads": threads,
        "flip": "off",
        "total_images": (WARM_UP + steps) * BATCH,
        "log_every": WARM_UP * BATCH,
        "tensorboard": False,
        **dict.fromkeys(("sample_every", "diagnose_every", "checkpoint_every"), _NEVER),
    }
    return resolve({**values, **more})


def wait_for(device: torch.device) -> None:
    """Return when the device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate_of(step: Callable[[int], object], steps: int, device: torch.device) -> float:
    """Images a second over some steps, after a few that do not count."""
    for index in range(WARM_UP):
        step(index)
    wait_for(device)
    started = time.perf_counter()
    for index in range(steps):
        step(WARM_UP + index)
    wait_for(device)
    return steps * BATCH / (time.perf_counter() - started)


def rate_of_run(folder: Path) -> float:
    """Images a second of a run, from its own rows, without those of the first steps."""
    rows = read_metrics(RunDirectory(folder).metrics_file)
    images = rows[-1]["images_seen"] - rows[0]["images_seen"]
    return float(images / (rows[-1]["seconds"] - rows[0]["seconds"]))


def main() -> None:
    """Run one kind, print its rate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    whose, _, how = options.kind.partition(", ")
    # What `train` chooses for itself is chosen for the others, or they would not be compared.
    with full_float32(), repeatable(False):
        measure(options, device, whose, how)


def measure(options: argparse.Namespace, device: torch.device, whose: str, how: str) -> None:
    """Run a kind, which is somebody's loop in some way, and print its rate."""
    if whose == "example":  # whose users have the C library as it is
        print(rate_of(Example(options.size, device).step, options.steps, device))
        return
    keep_buffers()
    preset = "dcgan" if whose == "flagship" else "dcgan-2015"
    with tempfile.TemporaryDirectory() as folder:
        place = options.data, Path(folder) / "run", options.threads, options.steps
        if how in ("", "bf16"):
            run = settings(preset, *place, precision=how or "fp32", device=options.device)
            train(run)
            print(rate_of_run(run.run_dir))
            return
        graphed = how != "autograd"
        constant = ConstantBatch(
            settings(preset, *place, device=options.device, cuda_graph=graphed)
        )
        if how == "autograd":
            make_plain(constant.state.generator, constant.state.discriminator)
            constant.state.discriminator = PlainDiscriminator(constant.state.discriminator)
        print(rate_of(constant.step, options.steps, device))


if __name__ == "__main__":
    main()
