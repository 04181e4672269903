import math
import os

import pytest

from gantrain.cpus import cgroup_quota, maker_and_family, usable_cpus

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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            *("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n", ("GenuineIntel", 6)),
            id="intel",
        ),
        pytest.param(
            *("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t: 17\n", ("AuthenticAMD", 25)),
            id="amd",
        ),
        pytest.param("CPU implementer\t: 0x41\n", ("", 0), id="arm"),
        pytest.param(None, ("", 0), id="another-system"),
    ],
)
def test_what_the_processors_are(tmp_path, text, expected):
    if text is not None:
        write(tmp_path / "cpuinfo", text)
    assert maker_and_family(tmp_path / "cpuinfo") == expected
