"""A gateway and its clients, running as processes in the lab's namespaces, for tests that judge from outside.

Run as a program it is one of those processes: `running.py gateway FOLDER` or `running.py client FOLDER NUMBER`, with
FOLDER/setup.json saying how. Everything of a run lies in one folder and one pin folder with unique names.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jvpn.agent.handshaking import Identity
from jvpn.agent.plan import ClientPlan, UplinkPlan
from jvpn.agent.process import connect
from jvpn.lab.faults import Uplink
from jvpn.lab.links import SERVICE_IP, Network
from jvpn.lab.namespaces import Namespace, module_environment
from jvpn.observability import events as ev
from jvpn.observability.admin import AdminError, ask
from jvpn.observability.verify import audit_file
from jvpn.policy.model import Policy
from jvpn.protocol.suites import suite, x25519_public
from jvpn.session.machine import State
from jvpn.supervisor.peers import Peer
from jvpn.supervisor.plan import GatewayPlan
from jvpn.supervisor.process import serve

GATEWAY_KEY = b"\x11" * 32
PORT = 51820
PINS = Path("/sys/fs/bpf/jvpn")
PATIENCE_S = 90.0


def client_key(number: int) -> bytes:
    return bytes([0x22 + number]) * 32


@dataclass(frozen=True)
class Setup:
    """What a test may want otherwise. `policy` are changes to the default one."""

    xdp: str = "auto"
    workers: int = 2
    listen: tuple[tuple[str, int], ...] = (("::", PORT),)
    devices: tuple[str, ...] = ("upA", "upB")
    interfaces: tuple[str, ...] | None = None
    #: The gateway as the clients know it, each the next one.
    endpoints: tuple[tuple[str, int], ...] = ((SERVICE_IP, PORT),)
    peers: int = 2
    policy: dict[str, Any] = field(default_factory=dict)
    pins: str = ""
    #: Whether clients write a key log, `clientN.keys` in the folder.
    keylog: bool = False


def wait_for(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first true value of `condition`, asked again and again. AssertionError, naming `what`, after `patience_s`."""
    until = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(AdminError):
            value = condition()
            if value:
                return value
        assert time.monotonic() < until, f"not within {patience_s:g} s: {what}"
        time.sleep(0.01)


class Process:
    """One of the programs, with what it said."""

    def __init__(self, namespace: Namespace, folder: Path, argv: list[str], prefix: list[str]) -> None:
        self._out = folder / f"{'-'.join(argv)}.out"
        with self._out.open("ab") as out:
            command = [
                *prefix,
                sys.executable,
                str(Path(__file__).resolve()),
                argv[0],
                str(folder),
                *argv[1:],
            ]
            self.popen: subprocess.Popen[bytes] = namespace.popen(
                command, stdout=out, stderr=out, env=module_environment()
            )

    @property
    def said(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Exit status. AssertionError when it does not end."""
        wait_for(lambda: not self.running, f"the end of a process that said: {self.said}", patience_s)
        return self.popen.returncode

    def stop(self) -> int:
        if self.running:
            self.popen.terminate()
        return self.wait()


class Running:
    """A gateway with its clients 0, 1, …; made by `running`."""

    def __init__(self, net: Network[Any], folder: Path, setup: Setup) -> None:
        self.net = net
        self.folder = folder
        self.setup = setup
        self.gateway: Process
        self.clients: list[Process] = []

    # Starting

    def start_gateway(self, *prefix: str, name: str = "gateway") -> Process:
        """`prefix`: a command that runs the gateway with less. Returns at once."""
        self.gateway = Process(self.net.gateway, self.folder, [name], list(prefix))
        return self.gateway

    def gateway_up(self) -> None:
        """Wait until the gateway answers. AssertionError with what it said when it ended instead."""

        def up() -> bool:
            assert self.gateway.running, self.gateway.said
            return bool(self.status())

        wait_for(up, "an answer of the gateway")

    def start_client(self, number: int = 0) -> Process:
        client = Process(self.net.client, self.folder, ["client", str(number)], [])
        self.clients.append(client)
        return client

    def attached(self, number: int = 0) -> dict[str, Any]:
        """Wait until a client's session stands and both ends agree on it; its row of `sessions`."""

        def standing() -> dict[str, Any] | None:
            assert self.gateway.running, self.gateway.said
            theirs = self.client(number)
            rows = [row for row in self.sessions() if row["session_id"] == theirs["session"]]
            agreed = rows and theirs["active"] and rows[0]["state_version"] == theirs["state_version"]
            return rows[0] if agreed and rows[0]["state"] == theirs["state"] == "ATTACHED" else None

        row: dict[str, Any] = wait_for(standing, f"client {number} attached")
        return row

    def tunnelled(self, number: int = 0) -> None:
        """Wait until a client has its inner addresses and routes."""
        wait_for(lambda: "session up" in self.clients[number].said, "a configured tunnel")

    def warm(self, number: int = 0) -> None:
        """Wait until every path of a client has proven itself."""
        wait_for(lambda: all(path["validated"] for path in self.client(number)["paths"]), "warm candidates")

    # Asking

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = ask(self.folder / "gateway", {"command": "status"})
        return answer

    def sessions(self) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = ask(self.folder / "gateway", {"command": "sessions"})
        return answer

    def client(self, number: int = 0) -> dict[str, Any]:
        answer: dict[str, Any] = ask(self.folder / f"client{number}", {"command": "status"})
        return answer

    def order(self, number: int = 0, **request: object) -> Any:
        return ask(self.folder / f"client{number}", request)

    def active(self, number: int = 0) -> Uplink:
        """The link that carries a client's session now."""
        name: str = wait_for(lambda: self.client(number)["active"], "an active path")
        link: Uplink = self.net[name.removeprefix("up")]
        return link

    def other(self, link: Uplink) -> Uplink:
        found: Uplink = next(each for each in self.net if each is not link)
        return found

    def moved_from(self, link: Uplink, number: int = 0) -> dict[str, Any]:
        """Wait until the session is attached over another link than this."""
        wait_for(lambda: self.client(number)["active"] not in (None, link.client_device), "another path")
        return self.attached(number)

    def worker_of(self, session: dict[str, Any]) -> dict[str, Any]:
        """The worker whose slot has this session: the only one with its peer's traffic, found by its inner prefix."""
        found: dict[str, Any] = self.status()["workers"][self._slot(session)]
        return found

    def _slot(self, session: dict[str, Any]) -> int:
        # Least-loaded slots in the order of the handshakes: the tests attach client 0 first.
        return int(session["peer"].removeprefix("client"))

    # Events

    def events(self, who: str = "gateway", kind: type[Any] = ev.StateChange) -> list[Any]:
        lines = (self.folder / f"{who}.jsonl").read_bytes().splitlines()
        return [event for event in map(ev.decode, lines) if isinstance(event, kind)]

    def told(self, reason: str, who: str = "gateway") -> Any:
        """Wait for a STATE_CHANGE with this reason."""
        return wait_for(lambda: next((e for e in self.events(who) if e.reason_code == reason), None), reason)

    def audited(self) -> None:
        """The auditor finds nothing in the gateway's stream; call when nothing is under way."""
        assert [str(finding) for finding in audit_file(self.folder / "gateway.jsonl")] == []

    def handshakes(self) -> int:
        return int(self.status()["counters"]["handshakes"])

    def close(self) -> None:
        for process in (*self.clients, self.gateway):
            if process.running:
                process.popen.terminate()
        for process in (*self.clients, self.gateway):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGKILL)


@contextlib.contextmanager
def prepared(net: Network[Any], setup: Setup | None = None) -> Iterator[Running]:
    """Folders for a gateway and clients in this network; whatever is started ends with the block."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"jvpn-test-{os.getpid()}-"))
    pins = PINS / folder.name
    setup = replace(setup or Setup(), pins=str(pins))
    (folder / "setup.json").write_text(json.dumps(asdict(setup)))
    running = Running(net, folder, setup)
    try:
        yield running
    finally:
        if hasattr(running, "gateway"):
            running.close()
        shutil.rmtree(pins, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(net: Network[Any], setup: Setup | None = None, clients: int = 1) -> Iterator[Running]:
    """A gateway and `clients` clients, attached in their order."""
    with prepared(net, setup) as made:
        made.start_gateway()
        made.gateway_up()
        for number in range(clients):
            made.start_client(number)
            made.attached(number)
            made.tunnelled(number)
            made.warm(number)
        yield made


def _sweep() -> None:
    """Remove what runs left that could not clean up."""
    for place in (PINS, Path(tempfile.gettempdir())):
        for left in place.glob("jvpn-test-*"):
            pid = left.name.split("-")[2]
            if pid.isdigit() and not Path("/proc", pid).exists():
                shutil.rmtree(left, ignore_errors=True)


# The programs


def gateway_plan(folder: Path, setup: dict[str, Any], name: str) -> GatewayPlan:
    policy = replace(Policy.default(), **setup["policy"])
    peers = [
        Peer(
            f"client{number}",
            x25519_public(client_key(number)),
            (f"10.8.{number}.2/32", f"fd00:8:0:{number}::2/128"),
            policy,
        )
        for number in range(setup["peers"])
    ]
    return GatewayPlan(
        node_id="gw",
        listen=[(address, port) for address, port in setup["listen"]],
        interfaces=setup["interfaces"],
        xdp=setup["xdp"],
        workers=setup["workers"],
        tun_name="jvpn0" if name == "gateway" else "jvpn1",
        addresses=[f"10.8.{n}.1/24" for n in range(2)] + [f"fd00:8:0:{n}::1/64" for n in range(2)],
        routes=("10.8.0.0/24", "fd00:8::/64"),
        private_key=GATEWAY_KEY,
        peers=peers,
        default_policy=policy,
        suites=frozenset({1, 2}),
        store_path=folder / f"{name}.db",
        run_dir=folder / name,
        events_path=folder / f"{name}.jsonl",
        pin_dir=Path(setup["pins"]),
        capacity=64,
    )


def client_plan(folder: Path, setup: dict[str, Any], number: int) -> ClientPlan:
    key = client_key(number)
    return ClientPlan(
        node_id=f"client{number}",
        identity=Identity(suite(1), key, x25519_public(GATEWAY_KEY), bytes(32), "default"),
        endpoints=(tuple(setup["endpoints"][number % len(setup["endpoints"])]),),
        uplinks=tuple(UplinkPlan(device, 100) for device in setup["devices"]),
        policy=replace(Policy.default(), **setup["policy"]),
        tun_name=f"jvpn{number}",
        routes=(f"10.8.{number}.0/24", f"fd00:8:0:{number}::/64"),
        run_dir=folder / f"client{number}",
        state_dir=folder / f"client{number}-state",
        events_path=folder / f"client{number}.jsonl",
        keylog=folder / f"client{number}.keys" if setup["keylog"] else None,
    )


def main(role: str, folder: Path, number: str = "") -> int:
    setup = json.loads((folder / "setup.json").read_text())

    def say(text: str) -> None:
        print(text, flush=True)

    if role == "client":
        return connect(client_plan(folder, setup, int(number)), say)
    return serve(gateway_plan(folder, setup, role), say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))


__all__ = ["Running", "Setup", "State", "prepared", "running", "wait_for"]
