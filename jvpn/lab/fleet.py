"""A fleet in a lab: gateways, a client and a host behind them, with a real etcd.

    client ──up0, up1── internet ── gw1, gw2, … ── lan: etcd's three members, a host

The host answers on an address that clients reach through any gateway, and sends what it answers to the first of them.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jvpn.lab.etcd_cluster import Cluster, Member, fleet_key
from jvpn.lab.namespaces import Lab, LabError, Namespace
from jvpn.lab.running import START_TIMEOUT_S, Node, keygen, stop_all, wait_for

HOST = "192.0.2.100"
CLIENT_INNER = "10.8.0.2"
PORT = 51820


def outer(number: int) -> str:
    """Where clients reach gateway `number`."""
    return f"198.51.{number}.2"


class FleetLab:
    """`with FleetLab(lab, folder) as fleet`: nobody runs yet but etcd. Nodes are called gw1, gw2, …"""

    def __init__(self, lab: Lab, folder: Path, nodes: int = 2, uplinks: int = 1) -> None:
        self.folder = folder
        self.lab = lab
        self.names = [f"gw{n}" for n in range(1, nodes + 1)]
        self.internet, self.lan = lab.namespace("internet"), lab.namespace("lan")
        for router in (self.internet, self.lan):
            router.sysctl({"net.ipv4.ip_forward": 1})
        self.lan.ip("link add br0 type bridge", "link set br0 up")
        self.spaces = {name: self._gateway(lab, n) for n, name in enumerate(self.names, 1)}
        self.client_space = self._client(lab, uplinks)
        self.store = self._on_lan(lab.namespace("store"), 20)
        for number in (21, 22):
            self.store.ip(f"addr add 192.0.2.{number}/24 dev lan")
        self.host = self._on_lan(lab.namespace("host"), 100)
        self.return_through("gw1")
        members = [Member(f"m{n}", f"192.0.2.{20 + n}", 2379, 2380, self.store.popen) for n in range(3)]
        self.cluster = Cluster(folder, members)
        self.key = keygen(folder / "gateway.key")
        self.client_key = keygen(folder / "client.key")
        fleet_key(folder)
        self.gateways: dict[str, Node] = {}
        #: Where the client has its inner address from, if not out of a pool, and the lines that name a pool.
        self.fixed = f"    addresses: [{CLIENT_INNER}/32]\n"
        self.pool = ""
        self.client: Node | None = None
        self.uplinks = [f"up{n}" for n in range(uplinks)]

    # The network

    def _gateway(self, lab: Lab, number: int) -> Namespace:
        space = lab.namespace(f"gw{number}")
        self.internet.ip(f"link add g{number} type veth peer name outer netns {space.name}")
        self.internet.ip(f"addr add 198.51.{number}.1/24 dev g{number}", f"link set g{number} up")
        space.ip(f"addr add {outer(number)}/24 dev outer", "link set outer up")
        space.ip(f"route add default via 198.51.{number}.1")
        space.sysctl({"net.ipv4.ip_forward": 1, "net.ipv4.conf.all.send_redirects": 0})
        return self._on_lan(space, 10 + number)

    def _on_lan(self, space: Namespace, number: int) -> Namespace:
        self.lan.ip(f"link add p{number} type veth peer name lan netns {space.name}")
        self.lan.ip(f"link set p{number} master br0", f"link set p{number} up")
        space.ip(f"addr add 192.0.2.{number}/24 dev lan", "link set lan up", "link set lo up")
        space.sysctl({"net.ipv4.conf.lan.send_redirects": 0})
        return space

    def _client(self, lab: Lab, uplinks: int) -> Namespace:
        space = lab.namespace("client")
        for n in range(uplinks):
            self.internet.ip(f"link add c{n} type veth peer name up{n} netns {space.name}")
            self.internet.ip(f"addr add 10.201.{n}.1/24 dev c{n}", f"link set c{n} up")
            space.ip(f"addr add 10.201.{n}.2/24 dev up{n}", f"link set up{n} up", "link set lo up")
            space.ip(f"route add default via 10.201.{n}.1 metric {100 + n}")
        return space

    def return_through(self, name: str) -> None:
        """What the host sends to clients goes to this gateway first, whoever owns their sessions."""
        number = self.names.index(name) + 1
        self.host.ip(f"route replace 10.8.0.0/24 via 192.0.2.{10 + number}")

    def cut_off(self, name: str) -> None:
        """From etcd, and from everything else behind the gateways."""
        self.lan.ip(f"link set p{10 + self.names.index(name) + 1} down")

    def heal(self, name: str) -> None:
        self.lan.ip(f"link set p{10 + self.names.index(name) + 1} up")

    def hide(self, name: str) -> None:
        """From clients: what goes there is lost without a word."""
        self.internet.ip(f"route add blackhole {outer(self.names.index(name) + 1)}/32")

    def show(self, name: str) -> None:
        self.internet.ip(f"route del blackhole {outer(self.names.index(name) + 1)}/32")

    # Who runs

    def __enter__(self) -> "FleetLab":
        try:
            self.cluster.start_all(lambda: self.store.call(self.cluster.answers))
        except BaseException:
            self.cluster.close()
            raise
        return self

    def start(self, *names: str) -> None:
        for name in names:
            self.gateways[name] = self._start_gateway(name)
        for name in names:
            wait_for(name, self.gateways[name].running, START_TIMEOUT_S)

    def _start_gateway(self, name: str) -> Node:
        number, work = self.names.index(name) + 1, self.folder
        members = ", ".join(f'"{member.url}"' for member in self.cluster.members)
        config = work / f"{name}.yaml"
        config.write_text(
            f"node_id: {name}\n"
            f'listen: ["{outer(number)}:{PORT}"]\n'
            f"workers: 1\n"
            "tun: {addresses: [10.8.0.1/24]}\n"
            "private_key_file: gateway.key\n"
            f"run_dir: {work}/{name}\nevents: {work}/{name}/events.jsonl\n"
            f"fleet: {{etcd: [{members}], key_file: fleet.key, return_addresses: [192.0.2.{10 + number}]}}\n"
            "peers:\n"
            "  - name: laptop\n"
            f"    public_key: {self.client_key}\n"
            f"{self.fixed}{self.pool}"
        )
        return Node(self.spaces[name], "server", config, work / name, work / name / "events.jsonl")

    def start_client(self, *names: str) -> Node:
        """With these gateways as its endpoints, in that order; it has a session then."""
        client = self.start_client_unattached(*names)
        wait_for("a session", self.attached)
        return client

    def start_client_unattached(self, *names: str) -> Node:
        work = self.folder
        endpoints = ", ".join(f'"{outer(self.names.index(name) + 1)}:{PORT}"' for name in names)
        uplinks = "".join(f"  - {{device: {name}}}\n" for name in self.uplinks)
        (work / "client.yaml").write_text(
            "private_key_file: client.key\n"
            "gateway:\n"
            f"  public_key: {self.key}\n"
            f"  endpoints: [{endpoints}]\n"
            "routes: [10.8.0.0/24, 192.0.2.100/32]\n"
            f"uplinks:\n{uplinks}"
            f"state_dir: {work}/client\nrun_dir: {work}/client\nevents: {work}/client/events.jsonl\n"
        )
        self.client = Node(
            self.client_space,
            "client",
            work / "client.yaml",
            work / "client",
            work / "client" / "events.jsonl",
        )
        wait_for("the client", self.client.running, START_TIMEOUT_S)
        return self.client

    def attached(self) -> bool:
        return self.client is not None and self.client.status()["state"] == "ATTACHED"

    def sessions(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.gateways[name].ask("sessions")
        return found

    def refusals(self) -> int:
        """Writes that gateways could not have kept."""
        return sum(node.status()["counters"].get("store_errors", 0) for node in self.gateways.values())

    def owner(self) -> str | None:
        """The one node that the client's session lives at. Raises LabError when there are two."""
        owners = [
            name
            for name, node in self.gateways.items()
            if node.process.poll() is None and self.sessions(name)
        ]
        if len(owners) > 1:
            raise LabError(f"the session lives at {owners}")
        return owners[0] if owners else None

    def crash(self, name: str) -> None:
        """Every process of the node dies at once, as when its host does."""
        for pid in self.spaces[name].pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.gateways[name].process.wait()
        del self.gateways[name]

    def logs(self) -> str:
        names: Sequence[str] = [*self.names, "client"]
        paths = [self.folder / f"{name}.log" for name in names]
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in paths if path.exists())

    def __exit__(self, *_: object) -> None:
        stop_all(self.client, *self.gateways.values())
        self.cluster.close()
        for name in self.names:
            shutil.rmtree(f"/sys/fs/bpf/jvpn/{name}", ignore_errors=True)
