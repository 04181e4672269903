"""A server's machine vanishes: no connection is closed, and nothing is answered any more."""

import subprocess
import sys
from pathlib import Path

from tests.machines import Machine

# Its servers are the arguments. It calls both, then waits for a line, then calls both again.
CALL_BOTH_TWICE = """
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
with Client("ipv4:" + ",".join(sys.argv[1:]), round_robin=True, timeout_seconds=30) as client:
    for seed in range(8):
        client.generate(seeds=[seed])
    print("both called", flush=True)
    input()
    for seed in range(4):
        print(client.generate(seeds=[seed]).shape)
"""


def test_calls_leave_a_server_whose_machine_has_vanished(
    machines: tuple[Machine, Machine], repository: Path, tmp_path: Path
):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
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
        client = machines[1].start(hosts, sys.executable, "-c", CALL_BOTH_TWICE, *addresses)
        running.append(client)
        assert client.stdout is not None
        assert client.stdout.readline() == "both called\n", end(client)
        machines[0].pull_cable()
        output, errors = client.communicate("\n", timeout=60)
        assert client.returncode == 0, errors
        assert output == "(1, 4, 4, 3)\n" * 4
    finally:
        for process in running:
            end(process)


def end(process: subprocess.Popen[str]) -> str:
    process.kill()
    return process.communicate()[1]
