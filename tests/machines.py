"""Two hosts on one computer: network namespaces with a cable between them."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
        _ip("-n", self.namespace, "address", "flush", "dev", "lan0")


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
        _connect(*pair)
        yield first, second
    finally:
        for machine in pair:
            with suppress(subprocess.CalledProcessError):  # where not even that was made
                _ip("netns", "delete", machine.namespace)


def _connect(first: Machine, second: Machine) -> None:
    pair = (first, second)
    try:
        for machine in pair:
            _ip("netns", "add", machine.namespace)
        here, there = (("lan0", "netns", machine.namespace) for machine in pair)
        _ip("link", "add", *here, "type", "veth", "peer", "name", *there)
        for machine in pair:
            inside = ("-n", machine.namespace)
            _ip(*inside, "address", "add", f"{machine.address}/24", "dev", "lan0")
            for interface in ("lo", "lan0"):
                _ip(*inside, "link", "set", interface, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot make two hosts here: {error.stderr.strip()}")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
