"""One gateway and many clients, each a `jvpn client` in a namespace of its own behind a link of its own."""

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jvpn.config.keys import format_key
from jvpn.lab.faults import DirectLink
from jvpn.lab.links import SERVICE_IP, direct_links
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.lab.running import GATEWAY_INNER, START_TIMEOUT_S, Node, wait_for
from jvpn.protocol.suites import x25519_public

#: The gateway's links are in one namespace, where an interface index is taken once.
_CLIENT_INDEX, _GATEWAY_INDEX = 1000, 3000
_SYSCTLS: dict[str, str | int] = {
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv4.tcp_rmem": "4096 262144 67108864",
    "net.ipv4.tcp_wmem": "4096 262144 67108864",
}
#: Of the working folders, whose names the gateways' pins have too; the process id follows.
FOLDER = "jvpn-scaling-"
PINS = Path("/sys/fs/bpf/jvpn")


def sweep() -> None:
    """Remove what runs left that did not live to clean up."""
    for parent in (Path(tempfile.gettempdir()), PINS):
        for left in parent.glob(f"{FOLDER}*-*"):
            if not Path("/proc", left.name.removeprefix(FOLDER).split("-")[0]).exists():
                shutil.rmtree(left, ignore_errors=True)


class Crowd:
    """A context manager. `grow` adds clients to those that run; `work` is a folder of its own, whose name begins with
    FOLDER and the process id. Raises LabError."""

    def __init__(self, work: Path, *, workers: int, most: int) -> None:
        self._stack = ExitStack()
        self._work = work
        self._workers = workers
        self._private = [os.urandom(32) for _ in range(most + 1)]
        self._links: list[DirectLink] = []
        self._nodes: list[Node] = []
        self._node_id = work.name

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._lab = undo.enter_context(Lab("scaling"))
            network = direct_links(self._lab, native_xdp=True)
            self.gateway = network.gateway
            self._links = [network["A"]]
            # As many links as there will be clients: the gateway steers on those that it finds at its start.
            for number in range(2, len(self._private)):
                self._links.append(self._add_link(number))
            self._write_gateway()
            undo.callback(shutil.rmtree, PINS / self._node_id, ignore_errors=True)
            undo.callback(self._stop)
            gateway = self._start("server", self.gateway, "gateway")
            wait_for("the gateway", gateway.running, START_TIMEOUT_S)
            self._stack = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def clients(self) -> list[Namespace]:
        """Namespaces of the clients that run; each reaches the gateway at GATEWAY_INNER."""
        return [link.client for link in self._links[: len(self._nodes) - 1]]

    def grow(self, number: int) -> None:
        """Start clients until there are `number`, and wait for their sessions."""
        fresh = []
        for index in range(len(self._nodes), number + 1):
            link = self._links[index - 1]
            self._write_client(index, link.client_device)
            fresh.append(self._start("client", link.client, f"client{index}"))
        limit = START_TIMEOUT_S + 3 * len(fresh)
        for node in fresh:
            wait_for("a client", node.running, limit)
        for node in fresh:
            wait_for("a session", lambda node=node: node.status()["state"] == "ATTACHED", limit)  # type: ignore[misc]

    def sessions_by_worker(self) -> list[int]:
        status: dict[str, Any] = self._nodes[0].status()
        return [int(worker["sessions"]) for worker in status["workers"]]

    def gateway_pids(self) -> list[int]:
        """The gateway's processes; to be asked while nothing else runs in its namespace."""
        return self.gateway.pids()

    def _add_link(self, number: int) -> DirectLink:
        client = self._lab.namespace(f"client{number}")
        client.sysctl(_SYSCTLS)
        near, far = f"up{number}", f"net{number}"
        client.ip(
            f"link add {near} index {_CLIENT_INDEX + number} type veth "
            f"peer name {far} index {_GATEWAY_INDEX + number} netns {self.gateway.name}"
        )
        link = DirectLink(str(number), number, client, self.gateway, far, self.gateway)
        link.address()
        # As jvpn.lab.links says of native XDP on a veth.
        client.run(["ethtool", "-K", near, "tx", "off"])
        client.run(["tc", "qdisc", "replace", "dev", near, "root", "pfifo", "limit", "20000"])
        self.gateway.run(["ethtool", "-K", far, "gro", "on"])
        return link

    def _start(self, command: str, namespace: Namespace, name: str) -> Node:
        folder = self._work / name
        node = Node(namespace, command, self._work / f"{name}.yaml", folder, folder / "events.jsonl")
        self._nodes.append(node)
        return node

    def _write_gateway(self) -> None:
        work = self._work
        self._write_key("gateway", 0)
        peers = "".join(
            f"  - name: client{index}\n"
            f"    public_key: {format_key(x25519_public(self._private[index]))}\n"
            f"    addresses: [10.8.{index >> 8}.{(index & 255) + 1}/32]\n"
            for index in range(1, len(self._private))
        )
        (work / "gateway.yaml").write_text(
            f'node_id: {self._node_id}\nlisten: ["[::]:51820"]\nxdp: native\nworkers: {self._workers}\n'
            f"tun: {{addresses: [{GATEWAY_INNER}/16]}}\nprivate_key_file: gateway.key\n"
            f"store: {work}/gateway/sessions.db\nrun_dir: {work}/gateway\nevents: {work}/gateway/events.jsonl\n"
            f"peers:\n{peers}"
        )

    def _write_client(self, index: int, device: str) -> None:
        work, name = self._work, f"client{index}"
        self._write_key(name, index)
        (work / f"{name}.yaml").write_text(
            f"private_key_file: {name}.key\ngateway:\n"
            f"  public_key: {format_key(x25519_public(self._private[0]))}\n"
            f'  endpoints: ["{SERVICE_IP}:51820"]\n'
            f"uplinks:\n  - {{device: {device}, preference: 100}}\n"
            f"state_dir: {work}/{name}\nrun_dir: {work}/{name}\nevents: {work}/{name}/events.jsonl\n"
        )

    def _write_key(self, name: str, index: int) -> None:
        file = self._work / f"{name}.key"
        file.touch(mode=0o600)
        file.write_text(format_key(self._private[index]) + "\n")

    def _stop(self) -> None:
        """All at once, the gateway last; the lab kills what does not end."""
        for node in reversed(self._nodes):
            if node.process.poll() is None:
                node.process.terminate()
        for node in self._nodes:
            try:
                node.process.wait(20)
            except subprocess.TimeoutExpired:
                continue
