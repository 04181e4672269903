"""A server's machine vanishes: no connection is closed, and nothing is answered any more."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machines import Machine

ROOT = Path(__file__).resolve().parents[2]
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")

# The servers are the arguments of all clients.
WAIT_FOR_SERVERS = """
import sys
import time

from ganserve.client import CallError, Client

for address in sys.argv[1:]:
    with Client(address, timeout_seconds=5) as client:
        for attempt in range(20):
            try:
                client.generate(seeds=[0])
                break
            except CallError:
                time.sleep(0.5)
"""
# Calls both, then waits for a line, then calls both again.
CALL_TWICE = """
with client:
    for seed in range(8):
        client.generate(seeds=[seed])
    print("both called", flush=True)
    input()
    for seed in range(4):
        print(client.generate(seeds=[seed]).shape)
"""
BY_ITSELF = """
client = Client("ipv4:" + ",".join(sys.argv[1:]), round_robin=True, timeout_seconds=30)
"""
THROUGH_BALANCER = """
client = Client("127.0.0.1:50050", timeout_seconds=40)
"""


def test_calls_leave_a_server_whose_machine_has_vanished(
    machines: tuple[Machine, Machine], repository: Path, tmp_path: Path
):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    output = lose_one(machines, repository, hosts, BY_ITSELF)
    assert output == "(1, 4, 4, 3)\n" * 4


def test_calls_leave_a_server_that_hangs(
    machines: tuple[Machine, Machine], repository: Path, tmp_path: Path
):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    # Its system goes on answering, as that of a vanished machine does not.
    output = lose_one(machines, repository, hosts, BY_ITSELF, hangs=True)
    assert output == "(1, 4, 4, 3)\n" * 4


def test_calls_through_haproxy_leave_a_server_whose_machine_has_vanished(
    machines: tuple[Machine, Machine], repository: Path, tmp_path: Path
):
    if HAPROXY is None:
        pytest.skip("needs haproxy")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    variables = {"BIND": "127.0.0.1", "PORT": "50050"}
    for number, machine in enumerate(machines, 1):
        variables |= {f"REPLICA_{number}": machine.address}
        variables |= {f"PORT_{number}": "50051", f"METRICS_{number}": "9090"}
    command = (HAPROXY, "-db", "-q", "-f", str(ROOT / "examples" / "haproxy.cfg"))
    balancer = machines[1].start(hosts, *command, variables=variables)
    try:
        output = lose_one(machines, repository, hosts, THROUGH_BALANCER)
    finally:
        end(balancer)
    assert output == "(1, 4, 4, 3)\n" * 4


def lose_one(
    machines: tuple[Machine, Machine],
    repository: Path,
    hosts: Path,
    make_client: str,
    *,
    hangs: bool = False,
) -> str:
    """Serve on both machines; what a client on the second prints once the first is lost.

    It vanishes, or its server hangs.
    """
    serve = (
        sys.executable,
        "-m",
        "ganserve",
        "serve",
        f"--models={repository}",
        "--log-level=error",
    )
    running = [machine.start(hosts, *serve, f"--host={machine.address}") for machine in machines]
    addresses = [f"{machine.address}:50051" for machine in machines]
    try:
        program = WAIT_FOR_SERVERS + make_client + CALL_TWICE
        client = machines[1].start(hosts, sys.executable, "-c", program, *addresses)
        running.append(client)
        assert client.stdout is not None
        assert client.stdout.readline() == "both called\n", end(client)
        if hangs:
            running[0].send_signal(signal.SIGSTOP)
        else:
            machines[0].vanish()
        output, errors = client.communicate("\n", timeout=60)
        assert client.returncode == 0, errors
        return output
    finally:
        for process in running:
            end(process)


def end(process: subprocess.Popen[str]) -> str:
    process.kill()
    return process.communicate()[1]
