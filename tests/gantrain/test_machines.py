"""Ranks on two machines find each other."""

import sys
from pathlib import Path

import pytest

from gantrain.network_interfaces import address_towards, interface_towards
from tests.machines import Machine

# Its rank is in the environment, as torchrun sets it.
MEET_THE_OTHER = """
import torch
from gantrain.ranks import average_row, join_ranks

with join_ranks(torch.device("cpu")) as ranks:
    print(average_row({"rank": ranks.rank}))
"""


@pytest.mark.parametrize(
    ("own_name", "first_machine"),
    [
        pytest.param("127.0.1.1 node{number}", "node0", id="as-debian-writes-the-hosts-file"),
        pytest.param("", "10.77.0.1", id="unknown-to-itself"),
    ],
)
def test_machines_meet_whatever_their_own_name_stands_for(
    machines: tuple[Machine, Machine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_name: str,
    first_machine: str,
):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    running = []
    for machine in machines:
        hosts = tmp_path / f"hosts-{machine.number}"
        own = own_name.format(number=machine.number)
        known = f"{machines[0].address} node0" if machine.number else ""
        hosts.write_text("\n".join(["127.0.0.1 localhost", own, known, ""]))
        variables = {
            "RANK": str(machine.number),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": first_machine,
            "MASTER_PORT": "29500",
        }
        program = (sys.executable, "-c", MEET_THE_OTHER)
        running.append(machine.start(hosts, *program, variables=variables))
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
