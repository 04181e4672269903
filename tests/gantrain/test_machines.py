"""Ranks on two machines find each other, and notice when one is gone."""

import subprocess
import sys
from pathlib import Path

import pytest

from gantrain.other_machines import address_towards, interface_towards
from tests.machines import Machine

# Its rank is in the environment, as torchrun sets it.
MEET_THE_OTHER = """
import torch
from gantrain.ranks import average_row, join_ranks

with join_ranks(torch.device("cpu")) as ranks:
    print(average_row({"rank": ranks.rank}))
"""


# It notices after six seconds what a run notices after more.
MISS_THE_OTHER = """
import time

import torch
from gantrain import ranks
from gantrain.errors import RunError

ranks._SILENCE_SECONDS = 6
with ranks.join_ranks(torch.device("cpu")):
    print("met", flush=True)
    try:
        while not ranks.agree(False):
            time.sleep(0.1)
    except RunError as error:
        print(error)
"""


def start_ranks(
    machines: tuple[Machine, Machine],
    folder: Path,
    program: str,
    *,
    own_name: str = "",
    first_machine: str = "10.77.0.1",
) -> list[subprocess.Popen[str]]:
    running = []
    for machine in machines:
        hosts = folder / f"hosts-{machine.number}"
        own = own_name.format(number=machine.number)
        known = f"{machines[0].address} node0" if machine.number else ""
        hosts.write_text("\n".join(["127.0.0.1 localhost", own, known, ""]))
        variables = {
            "RANK": str(machine.number),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": first_machine,
            "MASTER_PORT": "29500",
        }
        running.append(machine.start(hosts, sys.executable, "-c", program, variables=variables))
    return running


def end(running: list[subprocess.Popen[str]]) -> None:
    for process in running:
        process.kill()
        process.communicate()


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
    running = start_ranks(
        machines, tmp_path, MEET_THE_OTHER, own_name=own_name, first_machine=first_machine
    )
    try:
        ends = [process.communicate(timeout=60) for process in running]
    finally:
        end(running)
    for process, (output, errors) in zip(running, ends, strict=True):
        assert process.returncode == 0, errors
        assert output.strip() == "{'rank': 0.5}"


def test_a_machine_that_vanishes_is_noticed(machines: tuple[Machine, Machine], tmp_path: Path):
    running = start_ranks(machines, tmp_path, MISS_THE_OTHER)
    _, stays = running
    assert stays.stdout is not None
    try:
        met = stays.stdout.readline()
        machines[0].vanish()
        output, errors = stays.communicate(timeout=40)
    finally:
        end(running)
    assert met == "met\n", errors
    assert output.startswith("another rank has ended or cannot be reached"), errors


def test_the_way_to_this_machine_is_its_loopback_interface():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_towards("127.0.0.1") == "lo"
