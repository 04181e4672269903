import ctypes
import math
import os
import platform
import struct
import sys
import threading

import pytest

from ganserve.cpus import cgroup_quota, lower_thread_priority, usable_cpus, use_short_time_slices

ALLOWED = len(os.sched_getaffinity(0))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def v2(tmp_path, own="/", **quotas):
    write(tmp_path / "self", f"0::{own}\n")
    for folder, quota in quotas.items():
        write(tmp_path / "cgroups" / folder.replace("_", "/") / "cpu.max", quota)
    return tmp_path / "cgroups", tmp_path / "self"


def test_without_cgroups_there_is_no_quota(tmp_path):
    assert cgroup_quota(tmp_path / "none", tmp_path / "self") == math.inf
    assert usable_cpus(tmp_path / "none", tmp_path / "self") == ALLOWED


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        pytest.param("max 100000\n", math.inf, id="unlimited"),
        pytest.param("150000 100000\n", 1.5, id="one and a half"),
        pytest.param("50000 100000\n", 0.5, id="half"),
    ],
)
def test_version_2_quotas_are_read(tmp_path, text, quota):
    write(tmp_path / "cgroups/cpu.max", text)
    write(tmp_path / "self", "0::/\n")
    assert cgroup_quota(tmp_path / "cgroups", tmp_path / "self") == quota


def test_the_tightest_of_a_cgroup_and_its_parents_counts(tmp_path):
    places = v2(tmp_path, "/a/b", a="200000 100000\n", a_b="max 100000\n")
    assert cgroup_quota(*places) == 2


def test_a_cgroup_that_is_not_visible_from_within_a_container_is_passed_over(tmp_path):
    write(tmp_path / "cgroups/cpu.max", "300000 100000\n")
    write(tmp_path / "self", "0::/not/visible/here\n")
    assert cgroup_quota(tmp_path / "cgroups", tmp_path / "self") == 3


@pytest.mark.parametrize(
    ("quota", "expected"),
    [pytest.param("-1\n", math.inf, id="unlimited"), pytest.param("250000\n", 2.5, id="limited")],
)
def test_version_1_quotas_are_read(tmp_path, quota, expected):
    write(tmp_path / "self", "12:memory:/x\n4:cpu,cpuacct:/pod\n")
    write(tmp_path / "cgroups/cpu,cpuacct/pod/cpu.cfs_quota_us", quota)
    write(tmp_path / "cgroups/cpu,cpuacct/pod/cpu.cfs_period_us", "100000\n")
    assert cgroup_quota(tmp_path / "cgroups", tmp_path / "self") == expected


def test_a_part_of_a_cpu_counts_as_one(tmp_path):
    assert usable_cpus(*v2(tmp_path, "/a", a="10000 100000\n")) == 1


def test_a_quota_above_the_affinity_changes_nothing(tmp_path):
    assert usable_cpus(*v2(tmp_path, "/a", a="99900000 100000\n")) == ALLOWED


_SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}


def slice_and_nice():
    """Of the calling thread, as the kernel tells them: nanoseconds, niceness."""
    attributes = ctypes.create_string_buffer(56)
    number = _SCHED_GETATTR[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, 0, attributes, 56, 0) == 0
    _, _, _, nice, _, nanoseconds = struct.unpack("=IIQiIQ", attributes.raw[:32])
    return nanoseconds, nice


def in_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in _SCHED_GETATTR, reason="needs Linux"
)
def test_who_answers_has_short_slices_and_who_works_has_the_systems():
    def answer():
        usual = slice_and_nice()
        if not use_short_time_slices() or slice_and_nice() == usual:
            return None
        return usual, slice_and_nice(), in_thread(slice_and_nice), in_thread(work)

    def work():
        lower_thread_priority()
        return slice_and_nice()

    found = in_thread(answer)  # not in this one, whose slices would stay short
    if found is None:
        pytest.skip("needs a kernel whose slices can be chosen (6.12)")
    (usual, nice), answering, started_by_it, working = found
    assert answering == started_by_it == (100_000, nice)
    assert working == (usual, 19)
