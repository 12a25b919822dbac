"""Three members of a real etcd: on loopback or in a lab's namespaces, with data of their own.

Members die with the process that started them, however it ends (`setpriv --pdeathsig`).
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jvpn.lab.running import wait_for
from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdAccess, EtcdClient

#: Runs a command where the member lives.
Start = Callable[..., "subprocess.Popen[bytes]"]


@dataclass
class Member:
    name: str
    address: str
    client_port: int
    peer_port: int
    start_in: Start = subprocess.Popen
    scheme: str = "http"
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://{self.address}:{self.peer_port}"


def member_command(
    member: Member, members: Sequence[Member], folder: Path, token: str, state: str
) -> list[str]:
    """The command line of one of *members*, data in *folder*; *state*: "new", or "existing" once all have begun."""
    peers = ",".join(f"{one.name}={one.peer_url}" for one in members)
    return [
        "etcd", "--name", member.name, "--data-dir", str(folder / member.name),
        "--listen-client-urls", member.url, "--advertise-client-urls", member.url,
        "--listen-peer-urls", member.peer_url, "--initial-advertise-peer-urls", member.peer_url,
        "--initial-cluster", peers, "--initial-cluster-token", token, "--initial-cluster-state", state,
        "--heartbeat-interval", "100", "--election-timeout", "1000", "--log-level", "error",
    ]  # fmt: skip


class Cluster:
    """`access()` of all members; `kill`, `start`, `freeze`, `thaw` of one; `leader`. `close` ends all of them.

    `options`: more of etcd's, for all.
    """

    def __init__(self, folder: Path, members: Sequence[Member]) -> None:
        self.folder = folder
        self.members = list(members)
        self.options: list[str] = []
        self._token = secrets.token_hex(8)
        self._new = "new"

    def start_all(self, answers: Callable[[], bool] | None = None) -> None:
        """`answers`: asks from where the members can be reached, and as they want to be."""
        for member in self.members:
            self.start(member)
        self._new = "existing"
        wait_for("a majority", answers or self.answers, 60)

    def start(self, member: Member) -> None:
        command = member_command(member, self.members, self.folder, self._token, self._new)
        command += self.options
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
        with (self.folder / f"{member.name}.log").open("ab") as log:
            member.process = member.start_in(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def kill(self, member: Member) -> None:
        assert member.process is not None
        member.process.kill()
        member.process.wait()

    def freeze(self, member: Member) -> None:
        assert member.process is not None
        member.process.send_signal(signal.SIGSTOP)
        # Until the last of its threads has stopped it may still answer.
        tasks = Path(f"/proc/{member.process.pid}/task")
        wait_for("a member to stop", lambda: all(_state(task) == "T" for task in tasks.iterdir()))

    def thaw(self, member: Member) -> None:
        assert member.process is not None
        member.process.send_signal(signal.SIGCONT)

    def access(self, timeout_s: float = 5.0, **more: Any) -> EtcdAccess:
        return EtcdAccess([member.url for member in self.members], timeout_s, **more)

    def answers(self, **more: Any) -> bool:
        """Whether a majority does."""
        return answers(self.access(2, **more))

    def leader(self) -> Member:
        """Raises LabError when there is none for long."""
        leader = wait_for("a leader", self._leader)
        assert leader is not None
        return leader

    def _leader(self) -> Member | None:
        for member in self.members:
            client = EtcdClient(EtcdAccess([member.url], 2))
            try:
                status = client.read("/v3/maintenance/status", {})
            except StoreError:
                continue
            finally:
                client.close()
            if status.get("leader") == status["header"]["member_id"]:
                return member
        return None

    def close(self) -> None:
        for member in self.members:
            if member.process is not None:
                member.process.kill()
                member.process.wait()

    def log(self) -> str:
        return json.dumps({m.name: (self.folder / f"{m.name}.log").read_text()[-500:] for m in self.members})


def answers(access: EtcdAccess) -> bool:
    """Whether a majority of its members does."""
    client = EtcdClient(access)
    try:
        client.read("/v3/kv/range", {"key": "YQ=="})
    except StoreError:
        return False
    finally:
        client.close()
    return True


def _state(task: Path) -> str:
    """Of a thread, as proc(5) has it."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def installed() -> bool:
    return shutil.which("etcd") is not None


def on_loopback(folder: Path, members: int = 3) -> Cluster:
    """A cluster that answers. Raises LabError."""
    cluster = prepared(folder, members)
    try:
        cluster.start_all()
    except BaseException:
        cluster.close()
        raise
    return cluster


def prepared(folder: Path, members: int, scheme: str = "http") -> Cluster:
    """On loopback, not started.

    At an address of its own: at 127.0.0.1 a port that was free may be taken by any connection that begins meanwhile.
    """
    address = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
    ports = _free_ports(address, 2 * members)
    made = [
        Member(f"m{n}", address, ports[2 * n], ports[2 * n + 1], subprocess.Popen, scheme)
        for n in range(members)
    ]
    return Cluster(folder, made)


def _free_ports(address: str, count: int) -> list[int]:
    held = []
    for _ in range(count):
        one = socket.socket()
        one.bind((address, 0))
        held.append(one)
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def fleet_key(folder: Path, key: bytes = b"k" * 32) -> Path:
    path = folder / "fleet.key"
    path.touch(0o600)
    path.write_bytes(key)
    return path


if __name__ == "__main__":
    sys.exit(0 if answers(EtcdAccess(sys.argv[1:], 2)) else 1)
