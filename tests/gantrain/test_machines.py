"""Ranks on two machines, which are network namespaces with a cable between them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gantrain.network_interfaces import address_towards, interface_towards

ADDRESSES = ("10.77.0.1", "10.77.0.2")
# Its rank is in the environment, as torchrun sets it.
MEET_THE_OTHER = """
import torch
from gantrain.ranks import average_row, join_ranks

with join_ranks(torch.device("cpu")) as ranks:
    print(average_row({"rank": ranks.rank}))
"""
# A host of its own, whose hosts file is the second argument and whose program follows.
ON_ITS_OWN = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


@dataclass(frozen=True)
class Machine:
    """A host with an interface `lan0` that leads to the other one."""

    number: int
    namespace: str

    def start(self, hosts: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
        names = {"RANK": str(self.number), "WORLD_SIZE": "2", "MASTER_PORT": "29500"}
        clean = {name: value for name, value in os.environ.items() if "SOCKET_IFNAME" not in name}
        inside = ("ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount")
        on_its_own = ("bash", "-c", ON_ITS_OWN, "bash", f"node{self.number}", str(hosts))
        return subprocess.Popen(
            [*inside, *on_its_own, *command],
            env={**clean, **names, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("makes two hosts of iproute2's and util-linux's, which are not installed")
    first, second = pair = tuple(Machine(n, f"gantrain-{os.getpid()}-{n}") for n in range(2))
    try:
        for machine in pair:
            made = ip("netns", "add", machine.namespace)
            if made.returncode:
                pytest.skip(f"may not make network namespaces: {made.stderr.strip()}")
        ends = [["lan0", "netns", machine.namespace] for machine in pair]
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]).check_returncode()
        for machine, address in zip(pair, ADDRESSES, strict=True):
            inside = ("-n", machine.namespace)
            ip(*inside, "address", "add", f"{address}/24", "dev", "lan0").check_returncode()
            for interface in ("lo", "lan0"):
                ip(*inside, "link", "set", interface, "up").check_returncode()
        yield first, second
    finally:
        for machine in pair:
            ip("netns", "delete", machine.namespace)


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("own_name", "first_machine"),
    [
        pytest.param("127.0.1.1 node{number}", "node0", id="as-debian-writes-the-hosts-file"),
        pytest.param("", ADDRESSES[0], id="unknown-to-itself"),
    ],
)
def test_machines_meet_whatever_their_own_name_stands_for(
    machines: tuple[Machine, Machine], tmp_path: Path, own_name: str, first_machine: str
):
    running = []
    for machine in machines:
        hosts = tmp_path / f"hosts-{machine.number}"
        known = f"{ADDRESSES[0]} node0" if machine.number else ""
        own = own_name.format(number=machine.number)
        hosts.write_text("\n".join(["127.0.0.1 localhost", own, known, ""]))
        program = (sys.executable, "-c", MEET_THE_OTHER)
        running.append(machine.start(hosts, *program, MASTER_ADDR=first_machine))
    try:
        ends = [process.communicate(timeout=60) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    for process, (output, errors) in zip(running, ends, strict=True):
        assert process.returncode == 0, errors
        assert output.strip() == "{'rank': 0.5}"


def test_the_way_to_this_machine_is_its_loopback_interface():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_towards("127.0.0.1") == "lo"
