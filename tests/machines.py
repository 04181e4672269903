"""Two hosts on one computer: network namespaces with a cable between them."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# A host's name and hosts file are the first two arguments, then comes its program.
_ON_ITS_OWN = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


@dataclass(frozen=True)
class Machine:
    """A host called `node0` or `node1`, whose interface `lan0` leads to the other one."""

    number: int
    namespace: str
    address: str

    def start(
        self, hosts: Path, *command: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program there, which finds the text of `hosts` as /etc/hosts."""
        inside = ("ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount")
        on_its_own = ("bash", "-c", _ON_ITS_OWN, "bash", f"node{self.number}", str(hosts))
        return subprocess.Popen(
            [*inside, *on_its_own, *command],
            env={**os.environ, **(variables or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def vanish(self) -> None:
        """From now on it neither hears nor answers, and nobody is told.

        To pull the cable would unplug the other too, and Linux does not count what it cannot send.
        """
        _ip("-n", self.namespace, "address", "flush", "dev", "lan0").check_returncode()


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Make them; the test is skipped, with the reason, where that is not possible."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs iproute2 and util-linux to make two hosts, and they are not installed")
    first, second = pair = (
        Machine(0, f"node0-{os.getpid()}", "10.77.0.1"),
        Machine(1, f"node1-{os.getpid()}", "10.77.0.2"),
    )
    try:
        for machine in pair:
            made = _ip("netns", "add", machine.namespace)
            if made.returncode:
                pytest.skip(f"needs the right to make network namespaces: {made.stderr.strip()}")
        here, there = (("lan0", "netns", machine.namespace) for machine in pair)
        _ip("link", "add", *here, "type", "veth", "peer", "name", *there).check_returncode()
        for machine in pair:
            inside = ("-n", machine.namespace)
            address = f"{machine.address}/24"
            _ip(*inside, "address", "add", address, "dev", "lan0").check_returncode()
            for interface in ("lo", "lan0"):
                _ip(*inside, "link", "set", interface, "up").check_returncode()
        yield first, second
    finally:
        for machine in pair:
            _ip("netns", "delete", machine.namespace)


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
