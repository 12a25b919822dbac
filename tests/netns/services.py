"""A gateway as two services, data plane and supervisor, with one client: what the units in systemd/ run, by hand."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network
from jvpn.lab.running import JVPN, START_TIMEOUT_S, Node, Tunnel, wait_for


class Services(Tunnel):
    """`dataplane` is what jvpn-dataplane.service starts, `gateway` what jvpn.service starts."""

    dataplane: Node

    def __enter__(self) -> "Services":
        self.start_dataplane()
        super().__enter__()
        return self

    def start_dataplane(self) -> None:
        """Returns when it has told its service manager that it serves."""
        path = self.work / "notify.sock"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
            pytest.MonkeyPatch.context() as patch,
        ):
            path.unlink(missing_ok=True)
            manager.bind(str(path))
            manager.settimeout(START_TIMEOUT_S)
            patch.setenv("NOTIFY_SOCKET", str(path))
            self.dataplane = self._node("dataplane")
            assert manager.recv(100) == b"READY=1", self.dataplane.log.read_text()

    def _start_gateway(self) -> Node:
        return self._node("server", "--keep-dataplane")

    def _node(self, command: str, *options: str) -> Node:
        work, run_dir = self.work, self.work / "gateway"
        gateway = self.network.gateway
        return Node(gateway, command, work / "gateway.yaml", run_dir, run_dir / "events.jsonl", *options)

    def restart_supervisor(self) -> None:
        """As `systemctl restart jvpn` does."""
        assert self.gateway.stop() == 0
        self.gateway = self._start_gateway()
        wait_for("the gateway again", self.gateway.running, START_TIMEOUT_S)

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of the gateway's operator."""
        config = str(self.work / "gateway.yaml")
        return self.network.gateway.run([*JVPN, *arguments, "-c", config], check=False)

    def __exit__(self, *of: object) -> None:
        super().__exit__(*of)
        try:
            self.dataplane.stop()
        except subprocess.TimeoutExpired:
            self.dataplane.process.kill()
        self.command("doctor", "--clean")


@contextmanager
def services(network: Network[EmulatedLink], folder: Path) -> Iterator[Services]:
    """Both services and a client that is attached. Patient, so that a busy machine's pauses pass for no dead path."""
    with Services(network, folder, policy="probe_interval_ms: 300\n") as opened:
        yield opened
