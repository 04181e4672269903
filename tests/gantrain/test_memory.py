import platform
import subprocess
import sys
from pathlib import Path

import pytest

# Faults of the pages of feature maps that are made and dropped in each step; all are more than
# the 2 GiB that an ordinary threshold of glibc ends at.
COUNT_FAULTS = """
import resource, sys
import numpy as np
from gantrain.memory import keep_buffers
if sys.argv[1] == "kept":
    assert keep_buffers()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step = lambda: [np.full(25_000_000, 1, np.uint8) for _ in range(90)]
step()
before = faults()
step()
print(faults() - before)
"""


def free_memory() -> float:
    """In GiB, as the system has it."""
    (line,) = [
        line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line
    ]
    return int(line.split()[1]) / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_buffers_of_one_step_serve_the_next():
    if (free := free_memory()) < 3:
        pytest.skip(f"touches 2.3 GB, and {free:.1f} GiB are free")
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, how]))
        for how in ("kept", "given back")
    }
    assert faults["kept"] < faults["given back"] / 5
