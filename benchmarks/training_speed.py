"""How fast is our loop, beside PyTorch's `dcgan` example with the same networks and data?

    python benchmarks/training_speed.py [--rounds 3] [--steps 20] [--size 64] [--threads N]
                                        [--mnist DIR] [--device cuda] [--record]

The example's step is written down here as its source has it: discriminator on reals, then on fakes,
then the generator, with a sigmoid at the end, BCELoss, Adam without fusing, the discriminator's
weight gradients computed in the generator's step too, and its `.item()` calls. Ours is an ordinary
`gantrain.training.loop.train` of preset `dcgan-2015`. Both train the same networks on the same
images in memory, in batches of 64, turn by turn, each time in a process of its own; rates are
images a second of wall time after a few steps to warm up. bf16 runs only where the device has it.
The flagship is measured beside itself with PyTorch's layers and with the second derivatives of its
penalties left to autograd.

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

import numpy as np
import torch
from PIL import Image
from records import (
    arguments_given,
    commit,
    cpu_information,
    processor,
    stolen_seconds,
    write_record,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from training_speed_kinds import BATCH, IMAGES, KINDS, ConstantBatch, settings, wait_for
from turns import in_order

ROOT = Path(__file__).resolve().parents[1]
# What each kind is compared with; the others with the example.
BASELINES = dict.fromkeys(
    ("flagship", "flagship, bf16", "flagship, constant batch"), "flagship, autograd"
)
CPU_BARS, GPU_BARS = (1.3, 2.0), (5.0, 5.0)  # over the example: identical mathematics, bf16
LOADING_BAR = 0.97
MEMORY_BAR = 1.5  # GB beside PyTorch's own


def make_folder(folder: Path, size: int, count: int) -> Path:
    """A CIFAR-like folder of random colour images; what is in them does not change the speed."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index:04}.png", compress_level=1)
    return folder


def rate_of(kind: str, data: Path, options: argparse.Namespace) -> float:
    """Images a second of one kind, in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "training_speed_kinds.py"), kind]
    command += [f"--size={options.size}", f"--steps={options.steps}", f"--data={data}"]
    command += [f"--threads={options.threads}", f"--device={options.device}"]
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    return float(output.split()[-1])


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


def floor_seconds(constant: ConstantBatch, device: torch.device) -> dict[str, float]:
    """What a step computes and moves, and how long this device needs for that at best."""
    counter = FlopCounterMode(display=False)
    with counter:
        constant.step(0)
    with BytesMoved() as moved:
        constant.step(1)
    side = 8192 if device.type == "cuda" else 2048
    one, other = torch.rand(2, side, side, device=device)
    wide = torch.rand(64 * 2**20 // 4, device=device)
    target = torch.empty_like(wide)
    product = best_seconds(lambda: torch.mm(one, other), device)
    copy = best_seconds(lambda: target.copy_(wide), device)
    operations, bytes_moved = float(counter.get_total_flops()), float(moved.total)
    peak, bandwidth = 2 * side**3 / product, 2 * wide.nbytes / copy
    return {
        "operations a step": operations,
        "operations a second at best": peak,
        "seconds for them": operations / peak,
        "bytes a step": bytes_moved,
        "bytes a second at best": bandwidth,
        "seconds for those": bytes_moved / bandwidth,
    }


def best_seconds(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """The shortest of several times."""
    times = []
    for _ in range(repeats):
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - started)
    return min(times)


def peak_memory(arguments: list[str]) -> float:
    """Peak resident size, MiB, of a process that runs `gantrain`, or only imports PyTorch.

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
    """Everything, as lines of Markdown."""
    data = make_folder(folder / "images", options.size, IMAGES)
    device = torch.device(options.device)
    kinds = [kind for kind in KINDS if has_bf16(device) or "bf16" not in kind]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(options.rounds):
        for kind in in_order(rates, turn):
            rates[kind].append(rate_of(kind, data, options))
        print({name: round(values[-1], 1) for name, values in rates.items()}, flush=True)
    lines = bar_lines(rates, GPU_BARS if device.type == "cuda" else CPU_BARS)
    lines += ["", "| what | images/s | over what | ratio |", "|---|---|---|---|"]
    for name, values in rates.items():
        baseline = BASELINES.get(name, "example")
        lines.append(
            f"| {name} | {spread(values)} | {baseline} | {spread(ratios(rates, name), 2)} |"
        )
    torch.set_num_threads(options.threads)
    floor = "dcgan-2015", data, folder / "floor", options.threads, options.steps
    constant = ConstantBatch(settings(*floor, device=options.device))
    step_seconds = BATCH / statistics.median(rates["ours"])
    return [*lines, "", *floor_lines(floor_seconds(constant, device), step_seconds)]


def bar_lines(rates: dict[str, list[float]], bars_over_example: tuple[float, float]) -> list[str]:
    """The bars as a table, by the medians over rounds."""
    identical_bar, bf16_bar = bars_over_example
    fed = zip(rates["ours"], rates["ours, constant batch"], strict=True)
    bars = [
        ("identical mathematics over the example", identical_bar, ratios(rates, "ours")),
        ("real data over one constant batch", LOADING_BAR, [mine / one for mine, one in fed]),
    ]
    if "ours, bf16" in rates:
        bars.insert(1, ("bf16 over the example", bf16_bar, ratios(rates, "ours, bf16")))
    lines = ["| bar | value | measured | met |", "|---|---|---|---|"]
    for what, bar, values in bars:
        met = "yes" if statistics.median(values) >= bar else "no"
        lines.append(f"| {what} | at least {bar} | {spread(values, 3)} | {met} |")
    if "ours, bf16" not in rates:
        lines.append(f"| bf16 | at least {bf16_bar} | not run: the device has no bf16 | - |")
    return lines


def ratios(rates: dict[str, list[float]], name: str) -> list[float]:
    """A kind's rates over those of what it is compared with, round by round."""
    baseline = rates[BASELINES.get(name, "example")]
    return [mine / theirs for mine, theirs in zip(rates[name], baseline, strict=True)]


def floor_lines(floor: dict[str, float], step_seconds: float) -> list[str]:
    """The floor as text, beside a step's seconds."""
    lines = ["| a step of ours | |", "|---|---|"]
    lines += [f"| {name} | {value:.3g} |" for name, value in floor.items()]
    lowest = max(floor["seconds for them"], floor["seconds for those"])
    lines.append(
        f"| seconds measured | {step_seconds:.3g}: {step_seconds / lowest:.2f} of the floor |"
    )
    return lines


def has_bf16(device: torch.device) -> bool:
    """Whether this device multiplies in bfloat16 by itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return "avx512_bf16" in cpu_information()


def existing_folder(name: str) -> Path:
    """The folder of that name, which processes that run elsewhere find, too."""
    folder = Path(name).resolve()
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{name} is no folder")
    return folder


def memory_lines(mnist: Path | None, folder: Path) -> list[str]:
    """Peak memory of training on MNIST beside PyTorch alone."""
    if mnist is None:
        return ["Peak memory: not measured, for --mnist was not given.", ""]
    bare = peak_memory([])
    arguments = ["train", f"--data={mnist}", f"--run-dir={folder / 'memory'}"]
    full = peak_memory([*arguments, "--total-images=2048"])
    beside = (full - bare) * 2**20 / 1e9
    met = "yes" if beside <= MEMORY_BAR else "no"
    return [
        f"Peak memory, preset `dcgan` on MNIST: {full:.0f} MiB, PyTorch alone {bare:.0f} MiB.",
        "",
        *("| bar | value | measured | met |", "|---|---|---|---|"),
        f"| peak memory beside PyTorch's own, GB | at most {MEMORY_BAR} | {beside:.2f} | {met} |",
        "",
    ]


def main() -> int:
    """Measure, print, and record where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--mnist", type=existing_folder, help="of MNIST, for the peak memory")
    parser.add_argument("--record", action="store_true", help="write into benchmarks/results/")
    options = parser.parse_args()
    began, stolen = time.monotonic(), stolen_seconds()
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(options, Path(folder))
        taken = (stolen_seconds() - stolen) / (time.monotonic() - began) / (os.cpu_count() or 1)
        lines += ["", *memory_lines(options.mnist, Path(folder))]
    command = f"python benchmarks/{Path(__file__).name} {arguments_given()}"
    today = datetime.now(UTC).date()
    machine = f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"
    if options.device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    heading = [
        "# Training speed beside PyTorch's example",
        "",
        (
            f"`{command}`, commit {commit()}, {today}, {options.threads} threads, "
            f"{machine}, PyTorch {torch.__version__}. Medians and ranges over rounds. "
            f"The host's other machines took {taken:.1%} of CPU time."
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
