"""Does the server last? Memory after a million calls, swaps, loads beside calls, stress.

python benchmarks/endurance.py --parts memory,swaps,loading,stress --record

Each part starts servers and clients of its own, one after the other. Prints a page with a table of
bars; exit code 1 where one is missed. Whole, it takes about an hour on two CPUs; where there are
more, all keep to two, for which the bars are meant.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from endurance_bars import Findings, render_page
from endurance_loading import measure_loading
from endurance_memory import measure_memory
from endurance_stress import measure_stress
from endurance_swaps import measure_swaps
from records import write_record
from serving import CPUS

PARTS = {
    "memory": measure_memory,
    "swaps": measure_swaps,
    "loading": measure_loading,
    "stress": measure_stress,
}


def main() -> int:
    """Run the parts that are asked for, print the page; --record keeps it."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or servers would outlive this
    if hasattr(os, "sched_setaffinity"):  # children inherit it; pools grow with the CPUs
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
    found: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.parts.split(","):
            began = time.monotonic()
            found[name] = PARTS[name](arguments, Path(folder) / name)
            found[name].seconds = time.monotonic() - began
    page = render_page(found)
    print(page)
    if arguments.json:
        bars = {name: [asdict(bar) for bar in part.bars] for name, part in found.items()}
        arguments.json.write_text(json.dumps(bars))
    if arguments.record:
        print(write_record("endurance", page))
    return 0 if all(bar.met for part in found.values() for bar in part.bars) else 1


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    parser.add_argument("--json", type=Path, help="write the bars to this file")
    memory = parser.add_argument_group("memory")
    memory.add_argument("--calls", type=int, default=1_000_000)
    memory.add_argument("--warm-up", type=int, default=50_000, help="calls")
    memory.add_argument("--leak-bytes", type=int, default=100, help="of each call, to see a leak")
    memory.add_argument(
        "--control-share", type=float, default=0.15, help="of the calls, with the leak"
    )
    swaps = parser.add_argument_group("swaps")
    swaps.add_argument("--swap-seconds", type=int, default=120, help="with a new version each")
    loading = parser.add_argument_group("loading")
    loading.add_argument("--rounds", type=int, default=15, help="of loading and unloading")
    loading.add_argument("--large-models", type=int, default=8, help="loaded in each round")
    stress = parser.add_argument_group("stress")
    stress.add_argument("--minutes", type=float, default=10.0, help="of stress")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
