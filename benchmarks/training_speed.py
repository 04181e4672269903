"""How fast is our loop, beside PyTorch's `dcgan` example with the same networks and data?

    python benchmarks/training_speed.py [--rounds 3] [--steps 20] [--size 64] [--threads N]
                                        [--mnist DIR] [--record]

The example's step is written down here as its source has it: discriminator on reals, then on fakes,
then the generator, with a sigmoid at the end, BCELoss, Adam without fusing, the discriminator's
weight gradients computed in the generator's step too, and its `.item()` calls. Ours is an ordinary
`gantrain.training.train` of preset `dcgan-2015`. Both train the same networks on the same images in
memory, in batches of 64, turn by turn in one process; rates are images a second of wall time after
a few steps to warm up. bf16 runs only where the processor has it.

The floor: what one step of ours computes and moves, by what this machine does at best in a matrix
product and in a copy. The loop fed from one constant batch shows what loading costs. Peak memory is
that of processes which do nothing but train, beside one that only imports PyTorch.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from records import arguments_given, commit, cpu_information, processor, write_record
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gantrain.checkpoint import TrainState
from gantrain.config import TrainConfig
from gantrain.networks import create_networks
from gantrain.networks.shape import Shape
from gantrain.presets import resolve
from gantrain.reporting import read_metrics
from gantrain.run_directory import RunDirectory
from gantrain.steps import discriminator_step, generate_fakes, generator_step, update_ema
from gantrain.training import create_state, train

ROOT = Path(__file__).resolve().parents[1]
BATCH, LATENTS, WARM_UP = 64, 100, 4
NEVER = 10**9  # images
IMAGES = 512
IDENTICAL_BAR, BF16_BAR = 1.3, 2.0


def make_folder(folder: Path, size: int, count: int) -> Path:
    """A CIFAR-like folder of random colour images; what is in them does not change the speed."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index:04}.png", compress_level=1)
    return folder


class Example:
    """PyTorch's example: its networks, its optimizers, its step."""

    def __init__(self, size: int) -> None:
        shape = Shape(image_size=size, channels=3, latent_dim=LATENTS, filters=64, kernel_size=4)
        generator, discriminator = create_networks("dcgan-2015", "dcgan-2015", shape, seed=0)
        for layer in (*generator.modules(), *discriminator.modules()):
            for plain in (nn.Conv2d, nn.ConvTranspose2d):
                if isinstance(layer, plain):
                    layer.__class__ = plain  # as the example has it, without our products
        self.generator = generator
        self.discriminator = nn.Sequential(discriminator, nn.Sigmoid())
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
        reals = self.images[start : start + BATCH]
        labels = torch.full((BATCH,), 1.0)
        output = self.discriminator(reals)
        real_loss = self.criterion(output, labels)
        real_loss.backward()
        real_mean = output.mean().item()
        fakes = self.generator(torch.randn(BATCH, LATENTS))
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


def rate_of(step: Callable[[int], object], steps: int) -> float:
    """Images a second over some steps, after a few that do not count."""
    for index in range(WARM_UP):
        step(index)
    started = time.perf_counter()
    for index in range(steps):
        step(WARM_UP + index)
    return steps * BATCH / (time.perf_counter() - started)


def settings(data: Path, run_dir: Path, threads: int, steps: int, **more: object) -> TrainConfig:
    """`dcgan-2015` on images in memory, with nothing due before the end of the run."""
    values: dict[str, Any] = {
        "preset": "dcgan-2015",
        "data": str(data),
        "run_dir": run_dir,
        "threads": threads,
        "flip": "off",
        "total_images": (WARM_UP + steps) * BATCH,
        "log_every": WARM_UP * BATCH,
        "tensorboard": False,
        **dict.fromkeys(("sample_every", "diagnose_every", "checkpoint_every"), NEVER),
    }
    return resolve({**values, **more})


def rate_of_our_loop(config: TrainConfig) -> float:
    """Images a second of a run, from its own rows, without those of the first steps."""
    train(config)
    rows = read_metrics(RunDirectory(config.run_dir).metrics_file)
    images = rows[-1]["images_seen"] - rows[0]["images_seen"]
    return float(images / (rows[-1]["seconds"] - rows[0]["seconds"]))


class ConstantBatch:
    """Our steps, fed from one batch that never changes."""

    def __init__(self, config: TrainConfig, size: int) -> None:
        self.config = config.model_copy(
            update={"image_size": size, "channels": 3, "r1_weight": 0.0, "r2_weight": 0.0}
        )
        self.state: TrainState = create_state(self.config, torch.device("cpu"))
        self.noise = torch.Generator()
        reals = torch.rand(BATCH, 3, size, size) * 2 - 1
        self.reals: Tensor = reals.to(memory_format=torch.channels_last)

    def step(self, index: int) -> None:
        """What the loop does to a batch."""
        self.noise.manual_seed(index)
        fakes = generate_fakes(self.state, self.config, self.noise, with_gradient=True)
        discriminator_step(self.state, self.reals, fakes, self.config, self.noise)
        generator_step(self.state, self.reals, fakes, self.config, self.noise)
        self.state.images_seen += BATCH
        update_ema(self.state, self.config)


class BytesMoved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations read and write: the sizes of their tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an operation and count it, unless it only looks at a tensor in another way."""
        result = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            leaves = tree_leaves((args, kwargs, result))
            self.total += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        return result


def floor_seconds(constant: ConstantBatch) -> dict[str, float]:
    """What a step computes and moves, and how long this machine needs for that at best."""
    counter = FlopCounterMode(display=False)
    with counter:
        constant.step(0)
    with BytesMoved() as moved:
        constant.step(1)
    one, other = torch.rand(2048, 2048), torch.rand(2048, 2048)
    wide = torch.rand(64 * 2**20 // 4)
    target = torch.empty_like(wide)
    product = best_seconds(lambda: torch.mm(one, other))
    copy = best_seconds(lambda: target.copy_(wide))
    operations, bytes_moved = float(counter.get_total_flops()), float(moved.total)
    peak, bandwidth = 2 * 2048**3 / product, 2 * wide.nbytes / copy
    return {
        "operations a step": operations,
        "operations a second at best": peak,
        "seconds for them": operations / peak,
        "bytes a step": bytes_moved,
        "bytes a second at best": bandwidth,
        "seconds for those": bytes_moved / bandwidth,
    }


def best_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    """The shortest of several times."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def peak_memory(arguments: list[str]) -> float:
    """Peak resident size, MB, of a process that runs `gantrain`, or only imports PyTorch.

    From /proc, for `ru_maxrss` begins with the size of the process that started this one.
    """
    work = "import runpy; runpy.run_module('gantrain', run_name='__main__')"
    code = f"""
import pathlib, sys
sys.argv = {["gantrain", *arguments]!r}
try:
    {work if arguments else "import torch"}
except SystemExit as stop:
    assert not stop.code, stop.code
print(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    return int(output.splitlines()[-1]) / 1024


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measure(options: argparse.Namespace, folder: Path) -> list[str]:
    """Everything, as lines of a table."""
    torch.set_num_threads(options.threads)
    data = make_folder(folder / "images", options.size, IMAGES)
    example = Example(options.size)
    variants: dict[str, dict[str, Any]] = {"ours": {}}
    if has_bf16():
        variants["ours, bf16"] = {"precision": "bf16"}
    rates: dict[str, list[float]] = {}
    constant = ConstantBatch(
        settings(data, folder / "constant", options.threads, options.steps), options.size
    )
    for turn in range(options.rounds):
        rates.setdefault("example", []).append(rate_of(example.step, options.steps))
        for name, more in variants.items():
            run_dir = folder / f"{name}-{turn}"
            config = settings(data, run_dir, options.threads, options.steps, **more)
            rates.setdefault(name, []).append(rate_of_our_loop(config))
        rates.setdefault("ours, constant batch", []).append(rate_of(constant.step, options.steps))
        print({name: round(values[-1], 1) for name, values in rates.items()}, flush=True)
    lines = ["| what | images/s | over the example |", "|---|---|---|"]
    for name, values in rates.items():
        ratios = [mine / theirs for mine, theirs in zip(values, rates["example"], strict=True)]
        lines.append(f"| {name} | {spread(values)} | {spread(ratios, 2)} |")
    if not has_bf16():
        lines.append("| ours, bf16 | not run: the processor has no bf16 | |")
    loading = [
        mine / fed for mine, fed in zip(rates["ours"], rates["ours, constant batch"], strict=True)
    ]
    lines += ["", f"Real data over one constant batch: {spread(loading, 3)} of its rate.", ""]
    lines += floor_lines(floor_seconds(constant), BATCH / statistics.median(rates["ours"]))
    return lines


def floor_lines(floor: dict[str, float], step_seconds: float) -> list[str]:
    """The floor as text, beside a step's seconds."""
    lines = ["| a step of ours | |", "|---|---|"]
    lines += [f"| {name} | {value:.3g} |" for name, value in floor.items()]
    lowest = max(floor["seconds for them"], floor["seconds for those"])
    lines.append(
        f"| seconds measured | {step_seconds:.3g}: {step_seconds / lowest:.2f} of the floor |"
    )
    return lines


def has_bf16() -> bool:
    """Whether this processor multiplies in bfloat16 by itself."""
    return "avx512_bf16" in cpu_information()


def memory_lines(mnist: str | None, folder: Path) -> list[str]:
    """Peak memory of training on MNIST beside PyTorch alone."""
    if mnist is None:
        return ["Peak memory: not measured, for --mnist was not given.", ""]
    bare = peak_memory([])
    arguments = ["train", f"--data={mnist}", f"--run-dir={folder / 'memory'}"]
    full = peak_memory([*arguments, "--total-images=2048"])
    return [
        f"Peak memory, preset `dcgan` on MNIST: {full:.0f} MB, PyTorch alone {bare:.0f} MB.",
        "",
    ]


def main() -> int:
    """Measure, print, and record where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--mnist", help="folder of MNIST, for the peak memory")
    parser.add_argument("--record", action="store_true", help="write into benchmarks/results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(options, Path(folder))
        lines += ["", *memory_lines(options.mnist, Path(folder))]
    command = f"python benchmarks/{Path(__file__).name} {arguments_given()}"
    today = datetime.now(UTC).date()
    machine = f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"
    heading = [
        "# Training speed beside PyTorch's example",
        "",
        (
            f"`{command}`, commit {commit()}, {today}, {options.threads} threads, "
            f"{machine}, PyTorch {torch.__version__}. Medians and ranges over rounds."
        ),
        "",
    ]
    text = "\n".join(heading + lines)
    print(text)
    if options.record:
        print(f"written: {write_record('training-speed', text)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
