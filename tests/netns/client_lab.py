"""A gateway and a client as their users run them (YAML files, `jvpn` commands), but for what a test wants otherwise."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jvpn.lab.links import Network
from jvpn.lab.namespaces import Namespace, module_environment
from jvpn.lab.running import GATEWAY_INNER, GATEWAY_INNER6, JVPN, START_TIMEOUT_S, Node, keygen, wait_for
from jvpn.observability.admin import AdminError

PORT = 51820
#: Addresses on the gateway that a client reaches only through the tunnel's far end.
BEYOND, BEYOND6 = "198.51.100.7", "2001:db8:99::7"


class ClientLab:
    """Use as a context manager; nothing runs before `start_gateway` and `start_client` or `jvpn`."""

    def __init__(self, network: Network[Any], work: Path) -> None:
        self.network = network
        self.work = work
        self.node_id = f"gw-{os.getpid()}-{work.name[-20:]}"
        self.resolv_conf = work / "resolv.conf"
        self.gateway_key, self.client_key = keygen(work / "gateway.key"), keygen(work / "client.key")
        self._gateway: Node | None = None
        self._client: Node | None = None

    def __enter__(self) -> "ClientLab":
        return self

    def __exit__(self, *_: object) -> None:
        for node in (self._client, self._gateway):
            if node is not None and node.process.poll() is None:
                try:
                    node.stop()
                except subprocess.TimeoutExpired:
                    os.killpg(node.process.pid, signal.SIGKILL)
        shutil.rmtree(f"/sys/fs/bpf/jvpn/{self.node_id}", ignore_errors=True)

    # Configuration

    def write_gateway(self, policy: Mapping[str, object] | None = None, **changes: object) -> Path:
        work = self.work
        config: dict[str, object] = {
            "node_id": self.node_id,
            "listen": [f"[::]:{PORT}"],
            "xdp": "off",
            "workers": 1,
            "tun": {"addresses": [f"{GATEWAY_INNER}/24", f"{GATEWAY_INNER6}/64"]},
            "private_key_file": "gateway.key",
            "store": str(work / "gateway" / "sessions.db"),
            "run_dir": str(work / "gateway"),
            "events": str(work / "gateway" / "events.jsonl"),
            "peers": [
                {
                    "name": "laptop",
                    "public_key": self.client_key,
                    "addresses": ["10.8.0.2/32", "fd00:8::2/128"],
                }
            ],
        }
        if policy is not None:
            (work / "policies").mkdir(exist_ok=True)
            (work / "policies" / "default.yaml").write_text(yaml.safe_dump(dict(policy)))
            config["policy_dir"] = str(work / "policies")
        return self._write("gateway.yaml", config | changes)

    def write_client(self, endpoints: list[str] | None = None, **changes: object) -> Path:
        work = self.work
        config: dict[str, object] = {
            "private_key_file": "client.key",
            "gateway": {
                "public_key": self.gateway_key,
                "endpoints": endpoints or [f"{self.network.service_ip}:{PORT}"],
            },
            "uplinks": [
                {"device": link.client_device, "preference": 100 - link.number} for link in self.network
            ],
            "dns": {"mode": "file", "resolv_conf": str(self.resolv_conf)},
            "state_dir": str(work / "client-state"),
            "run_dir": str(work / "client"),
            "events": str(work / "client" / "events.jsonl"),
        }
        return self._write("client.yaml", config | changes)

    def _write(self, name: str, config: dict[str, object]) -> Path:
        path = self.work / name
        path.write_text(yaml.safe_dump(config))
        return path

    # Running

    @property
    def gateway(self) -> Node:
        assert self._gateway is not None
        return self._gateway

    @property
    def client(self) -> Node:
        assert self._client is not None
        return self._client

    def start_gateway(self, *options: str) -> None:
        folder = self.work / "gateway"
        self._gateway = Node(
            self.network.gateway,
            "server",
            self.work / "gateway.yaml",
            folder,
            folder / "events.jsonl",
            *options,
        )
        wait_for("the gateway", self._gateway.running, START_TIMEOUT_S)

    def start_client(self, *options: str) -> None:
        """Returns when it answers; whether it has a session is another question (`attached`)."""
        folder = self.work / "client"
        self._client = Node(
            self.network.client,
            "client",
            self.work / "client.yaml",
            folder,
            folder / "events.jsonl",
            *options,
        )
        wait_for("the client", self._client.running, START_TIMEOUT_S)

    def start(self) -> None:
        self.start_gateway()
        self.start_client()
        wait_for("a session", self.attached)

    def jvpn(self, *arguments: str, where: Namespace | None = None) -> subprocess.CompletedProcess[str]:
        """A command in the client's namespace, with what it said."""
        namespace = where or self.network.client
        return subprocess.run(
            namespace.argv([*JVPN, *arguments]),
            capture_output=True,
            text=True,
            check=False,
            env=module_environment(),
            timeout=60,
        )

    # What is seen from outside

    def status(self) -> dict[str, Any]:
        """The client's; empty when it does not answer."""
        try:
            return self.client.status()
        except AdminError:
            return {}

    def attached(self) -> bool:
        """In state ATTACHED, and the TUN configured."""
        try:
            return self.status().get("state") == "ATTACHED" and bool(
                self.client.ask("switching")["configured"]
            )
        except AdminError:
            return False

    def validated(self, *devices: str) -> bool:
        paths = self.status().get("paths", [])
        good = {p["device"] for p in paths if p["validated"] and p["state"] in ("active", "candidate")}
        return set(devices) <= good

    def path(self, device: str) -> dict[str, Any]:
        """The device's path; of several the first one that answers."""
        of_device = [p for p in self.status()["paths"] if p["device"] == device]
        found: dict[str, Any] = max(of_device, key=lambda path: path["validated"])
        return found

    def ping(self, address: str, count: int = 3) -> bool:
        argv = ["ping", "-c", str(count), "-i", "0.05", "-W", "2", address]
        return self.network.client.run(argv, check=False).returncode == 0

    def network_state(self) -> dict[str, Any]:
        """Everything that a client could leave behind in its namespace."""
        found: dict[str, Any] = {}
        for family in ("-4", "-6"):
            for what in (("addr",), ("route", "show", "table", "all"), ("rule",)):
                out = self.network.client.run(["ip", "-j", family, *what]).stdout
                found[f"{family} {what[0]}"] = sorted(
                    json.dumps(_lasting(entry), sort_keys=True) for entry in json.loads(out or "[]")
                )
        found["links"] = self.network.client.run(["ls", "/sys/class/net"]).stdout.split()
        found["resolv.conf"] = self.resolv_conf.read_text() if self.resolv_conf.exists() else None
        return found


def _lasting(entry: Any) -> Any:
    """Without counters of seconds, and without the clones that path MTU makes."""
    if isinstance(entry, dict):
        passing = ("valid_life_time", "preferred_life_time", "expires", "cache", "used", "users")
        return {key: _lasting(value) for key, value in entry.items() if key not in passing}
    return [_lasting(value) for value in entry] if isinstance(entry, list) else entry
