"""Hides what CPUs there are: how many the process may really use, and what they are."""

import math
import os
import re
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_INFORMATION = Path("/proc/cpuinfo")


def usable_cpus(cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> int:
    """Count the CPUs this process may use, at least 1; a part of a CPU counts as one.

    A container that is limited to a few CPUs still sees all of its machine's. With a thread for
    each of them the kernel would stop the process for most of the time.
    """
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, math.ceil(min(allowed, cgroup_quota(cgroups, own_cgroup))))


def cgroup_quota(cgroups: Path, own_cgroup: Path) -> float:
    """Read the CPUs that the process's cgroup and all above it leave; infinity for no limit."""
    quotas = [math.inf]
    for line in _read(own_cgroup).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            quotas += [_quota_v2(folder) for folder in _with_parents(cgroups, path)]
        elif "cpu" in controllers.split(","):
            for mount in (cgroups / controllers, cgroups / "cpu"):
                quotas += [_quota_v1(folder) for folder in _with_parents(mount, path)]
    return min(quotas)


def maker_and_family(information: Path = _INFORMATION) -> tuple[str, int]:
    """Who made the processors, as these spell it, and their family; "" and 0 where Linux is silent.

    Such as ("GenuineIntel", 6) and, for AMD's Zen 3 and 4, ("AuthenticAMD", 25).
    """
    text = _read(information)
    maker = re.search(r"^vendor_id\s*:\s*(\S+)", text, re.MULTILINE)
    family = re.search(r"^cpu family\s*:\s*(\d+)", text, re.MULTILINE)
    return maker[1] if maker else "", int(family[1]) if family else 0


def _with_parents(mount: Path, path: str) -> list[Path]:
    """The cgroup's folder and all above it; within a container only some of them are visible."""
    folder = mount / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount))]


def _quota_v2(folder: Path) -> float:
    """`cpu.max` holds the quota, or `max`, and the period, in microseconds."""
    fields = _read(folder / "cpu.max").split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0] != "max" else math.inf


def _quota_v1(folder: Path) -> float:
    """`cpu.cfs_quota_us` is -1 where there is no limit."""
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else math.inf


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # other systems, other versions, or not visible from within a container
        return ""
