"""How many CPUs the process may really use, and which of its threads go first."""

import contextlib
import ctypes
import math
import os
import platform
import struct
import sys
import threading
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
# The lowest: at 5 and 10 refusals under three times the load took about a millisecond longer. What
# it costs: on a busy machine a process that is killed takes 0.06 to 0.3 s to end where it took 0.02
# to 0.08, and until then its connections are open.
_NICENESS = 19
# The shortest slice that Linux's scheduler grants; its own choice is some milliseconds. A thread
# that is woken need not wait for the end of the slice of one with longer slices.
_SHORT_SLICE_NANOSECONDS = 100_000
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # the system call; glibc has it since 2.41 only
# Of linux/sched/types.h: size, policy, flags, nice, priority, slice (sched_runtime), and two more.
_SCHED_ATTR = struct.Struct("IIQiIQQQ")
_KEEP_POLICY = 0x08  # flags, from linux/sched.h


def usable_cpus(cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> int:
    """Count the CPUs this process may use, at least 1; a part of a CPU counts as one.

    They are those of its affinity, and no more than its cgroup's quota.
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


def use_short_time_slices() -> bool:
    """Have this thread, and those it starts, run in short slices, as soon as they are woken.

    Else the event loop waits for the model's threads at each step of a call where they keep all
    CPUs busy. False where the system refuses; before 6.12 Linux takes it and does nothing.
    """
    return _set_slice(_SHORT_SLICE_NANOSECONDS)


def lower_thread_priority() -> None:
    """Lower this thread's priority as far as it goes, so that the event loop answers at once.

    Within its container, service or session only: the system shares CPUs between these first.
    """
    if sys.platform == "linux":  # elsewhere it would be that of the whole process
        use_default_time_slices()
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # forbidden: then not
            os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)


def use_default_time_slices() -> None:
    """Give this thread slices of the system's choice, whatever it inherited."""
    _set_slice(0)


def _set_slice(nanoseconds: int) -> bool:
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    settings = _SCHED_ATTR.pack(
        *(_SCHED_ATTR.size, 0, _KEEP_POLICY, nice, 0),
        *(nanoseconds, 0, 0),
    )
    itself, flags = 0, 0
    return bool(ctypes.CDLL(None).syscall(number, itself, settings, flags) == 0)


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
