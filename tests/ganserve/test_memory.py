import platform
import subprocess
import sys

import pytest

# Faults of the pages of a buffer that is made and dropped again and again.
COUNT_FAULTS = """
import resource, sys
from ganserve.memory import keep_large_buffers
if sys.argv[1] == "kept":
    assert keep_large_buffers()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = [bytearray(20_000_000) for _ in range(3)] and faults()
for _ in range(20):
    bytearray(20_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_buffers_are_used_again():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, how]))
        for how in ("kept", "given back")
    }
    assert faults["kept"] < faults["given back"] / 5
