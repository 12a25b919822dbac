"""A gateway and a client in a lab, run as a user runs them: key files, YAML files, `jvpn server` and `jvpn client`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jvpn.lab.links import Network
from jvpn.lab.namespaces import LabError, Namespace
from jvpn.observability.admin import AdminError, ask

JVPN = [sys.executable, "-m", "jvpn.cli"]
START_TIMEOUT_S = 60.0
GATEWAY_INNER = "10.8.0.1"
GATEWAY_INNER6 = "fd00:8::1"
T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], timeout_s: float = 20.0) -> T:
    """The first true value of `condition`. Raises LabError naming what was waited for."""
    until = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise LabError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.02)


def keygen(path: Path) -> str:
    """A new private key file; returns the public key."""
    done = subprocess.run(
        [*JVPN, "keygen", "--out", str(path), "--json"], capture_output=True, text=True, check=True
    )
    public: str = json.loads(done.stdout)["public_key"]
    return public


class Node:
    """A running `jvpn server`, `jvpn dataplane` or `jvpn client`; its output is kept in `log`."""

    def __init__(
        self, namespace: Namespace, command: str, config: Path, run_dir: Path, events: Path, *options: str
    ) -> None:
        self.namespace = namespace
        self.run_dir = run_dir
        self.events = events
        self.log = config.with_name(
            f"{config.stem}-{command}.log" if command == "dataplane" else f"{config.stem}.log"
        )
        with self.log.open("w") as log:
            self.process: subprocess.Popen[bytes] = namespace.popen(
                [*JVPN, command, *options, "-c", str(config)], stdout=log, stderr=subprocess.STDOUT
            )

    def ask(self, command: str, **more: object) -> Any:
        return ask(self.run_dir, {"command": command, **more})

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("status")
        return answer

    def running(self) -> bool:
        """Raises LabError when the process ended; False while it does not answer yet."""
        if self.process.poll() is not None:
            raise LabError(f"it ended with status {self.process.returncode}: {self.log.read_text()[-2000:]}")
        try:
            self.status()
        except AdminError:
            return False
        return True

    def stop(self) -> int:
        """SIGTERM, then wait; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def event_lines(self) -> list[bytes]:
        return self.events.read_bytes().splitlines() if self.events.exists() else []


def stop_all(*nodes: Node | None) -> None:
    """Those that run, one after the other; who does not end is killed with all that it has started."""
    for node in nodes:
        if node is None:
            continue
        try:
            node.stop()
        except subprocess.TimeoutExpired:
            os.killpg(node.process.pid, signal.SIGKILL)


class Tunnel:
    """A gateway and one client over all uplinks of a lab network. Use as a context manager; `work` is its folder."""

    def __init__(
        self,
        network: Network[Any],
        work: Path,
        *,
        workers: int = 2,
        xdp: str = "auto",
        policy: str = "",
        preferences: dict[str, int] | None = None,
        suite: int = 1,
    ) -> None:
        self.network = network
        self.work = work
        self._node_id = f"gw-{work.name[-24:]}"
        self._gateway_key = keygen(work / "gateway.key")
        self._client_key = keygen(work / "client.key")
        self._write_gateway(workers, xdp, policy)
        self._write_client(preferences or {}, suite)

    def _write_gateway(self, workers: int, xdp: str, policy: str) -> None:
        work, lines = self.work, ""
        if policy:
            policies = work / "policies"
            policies.mkdir()
            (policies / "default.yaml").write_text(policy)
            lines = f"policy_dir: {policies}\n"
        (work / "gateway.yaml").write_text(
            f"node_id: {self._node_id}\n"
            'listen: ["[::]:51820"]\n'
            f"xdp: {xdp}\n"
            f"workers: {workers}\n"
            f'tun: {{addresses: [{GATEWAY_INNER}/24, "{GATEWAY_INNER6}/64"]}}\n'
            "private_key_file: gateway.key\n"
            f"store: {work}/gateway/sessions.db\nrun_dir: {work}/gateway\nevents: {work}/gateway/events.jsonl\n"
            f"{lines}"
            "peers:\n"
            "  - name: laptop\n"
            f"    public_key: {self._client_key}\n"
            '    addresses: [10.8.0.2/32, "fd00:8::2/128"]\n'
        )

    def _write_client(self, preferences: dict[str, int], suite: int) -> None:
        work = self.work
        uplinks = "".join(
            f"  - {{device: {link.client_device}, preference: {preferences.get(link.name, 100)}}}\n"
            for link in self.network
        )
        (work / "client.yaml").write_text(
            f"private_key_file: client.key\nsuite: {suite}\n"
            "gateway:\n"
            f"  public_key: {self._gateway_key}\n"
            f'  endpoints: ["{self.network.service_ip}:51820"]\n'
            f"uplinks:\n{uplinks}"
            f"state_dir: {work}/client\nrun_dir: {work}/client\nevents: {work}/client/events.jsonl\n"
        )

    def __enter__(self) -> "Tunnel":
        self.gateway = self._start_gateway()
        wait_for("the gateway", self.gateway.running, START_TIMEOUT_S)
        self.client = self._start_client()
        wait_for("the client", self.client.running, START_TIMEOUT_S)
        wait_for("a session", lambda: self.client.status()["state"] == "ATTACHED")
        return self

    def _start_gateway(self) -> Node:
        work = self.work
        return Node(
            self.network.gateway,
            "server",
            work / "gateway.yaml",
            work / "gateway",
            work / "gateway" / "events.jsonl",
        )

    def _start_client(self) -> Node:
        work = self.work
        return Node(
            self.network.client,
            "client",
            work / "client.yaml",
            work / "client",
            work / "client" / "events.jsonl",
        )

    def __exit__(self, *_: object) -> None:
        stop_all(getattr(self, "client", None), getattr(self, "gateway", None))
        shutil.rmtree(f"/sys/fs/bpf/jvpn/{self._node_id}", ignore_errors=True)

    # What a test or the demo asks

    def session(self) -> dict[str, Any]:
        """The gateway's one session. Raises LabError when there is another number of them."""
        found: list[dict[str, Any]] = self.gateway.ask("sessions")
        if len(found) != 1:
            raise LabError(f"the gateway has {len(found)} sessions, not one")
        return found[0]

    def validated(self, *links: str) -> bool:
        """Whether the client's paths over these links answer and hold a challenge."""
        good = {
            path["device"]
            for path in self.client.status()["paths"]
            if path["validated"] and path["state"] in ("active", "candidate")
        }
        return {self.network[name].client_device for name in links} <= good

    def active_link(self) -> str:
        """Name of the link that the client's active path goes over; "" without one."""
        device = self.client.status()["active"]
        return next((link.name for link in self.network if link.client_device == device), "")
