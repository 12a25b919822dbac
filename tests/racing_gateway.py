"""One of several gateways of a fleet to which a client's REQUEST comes at the same instant. No sockets: real core, real
store, and whatever it would send is written down.

    racing_gateway.py KEY_FILE NODE URL...

Prints `ready`. For each line, a REQUEST in hex and the nodes whose lease goes on, the node comes up knowing nothing of
sessions, judges it, and prints one JSON line:
`claims` and `reads` for the history, `answers` in hex, `data` as [send key, generation] of what its worker may send
under, `control` as [steering id, epoch, counter] of each CONTROL that it has sealed.
"""

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from jvpn.observability.sink import MemorySink
from jvpn.policy.model import Policy
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import HEADER_SIZE, PacketType
from jvpn.protocol.suites import x25519_public
from jvpn.protocol.wire import Header
from jvpn.session.record import SessionRecord
from jvpn.sim.owner_history import Claim, Read
from jvpn.sim.worker import make_page
from jvpn.store.base import Claimed, StoreError
from jvpn.store.etcd import EtcdStore
from jvpn.store.etcd_client import EtcdAccess
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.context import GatewayContext, GatewayFacts
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.effects import Effect, SendDatagram, TellWorker, WriteRow
from jvpn.supervisor.fleet import Fleet
from jvpn.supervisor.keeping import Keeping
from jvpn.supervisor.narrator import Narrator
from jvpn.supervisor.peers import Peer, PeerTable
from jvpn.supervisor.store_desk import DirectDesk
from workers import commands
from workers.commands import Endpoint

CLIENT_KEY, GATEWAY_KEY, CHALLENGE_KEY = b"\x22" * 32, b"\x11" * 32, b"\x33" * 32
GATEWAY, CLIENT = Endpoint(to_bytes("203.0.113.1"), 51820), Endpoint(to_bytes("192.0.2.7"), 4500)
NOW_MS = 1_000_000


class NotedStore(EtcdStore):
    """Notes what it was asked, for the history of a session; one claim between `begin` and `end`."""

    def begin(self) -> None:
        self.reads: list[dict[str, object]] = []
        self._made: tuple[SessionRecord, tuple[int, str], Claimed, float] | None = None

    def load(self, session_id: bytes) -> SessionRecord | None:
        began = time.monotonic()
        record = super().load(session_id)
        if record is not None:
            found = (record.state_version, record.owner_node)
            self.reads.append(asdict(Read(found, began, time.monotonic())))
        return record

    def claim(
        self, record: SessionRecord, seen_version: int, seen_owner: str, *, owner_gone: bool = False
    ) -> Claimed:
        began = time.monotonic()
        answer = super().claim(record, seen_version, seen_owner, owner_gone=owner_gone)
        self._made = record, (seen_version, seen_owner), answer, began
        return answer

    def end(self) -> list[dict[str, object]]:
        """The claim, as its batch has come out."""
        if self._made is None:
            return []
        record, seen, answer, began = self._made
        try:
            granted: bool | None = bool(answer)
        except StoreError:
            granted = None
        wrote = (record.state_version, record.owner_node)
        return [asdict(Claim(seen, wrote, granted, began, time.monotonic()))]


class Node:
    def __init__(self, store: NotedStore, node_id: str) -> None:
        self.store, self.node_id = store, node_id
        self.page = make_page(4, CHALLENGE_KEY)

    def judge(self, request: bytes, alive: list[str]) -> dict[str, object]:
        self.store.begin()
        policy = Policy.default()
        facts = GatewayFacts(
            node_id=self.node_id,
            boot_id="boot",
            private_key=GATEWAY_KEY,
            public_key=x25519_public(GATEWAY_KEY),
            fleet_key=self.store.fleet_key,
            suites=frozenset({1, 2}),
            challenge_key=CHALLENGE_KEY,
            generation=1,
            slots=(0,),
            capacity=4,
            mtu=1400,
            routes=(),
            default_policy=policy,
        )
        peer = Peer("laptop", x25519_public(CLIENT_KEY), ("10.8.0.2/32",), policy)
        fleet = Fleet(self.node_id)
        fleet.nodes = {node: NodeAbout() for node in alive}
        self.context = GatewayContext(
            facts,
            PeerTable({peer.public_key: peer}),
            Narrator(MemorySink(), self.node_id, lambda: NOW_MS),
            os.urandom,
            lambda: NOW_MS,
            self.page,
            fleet=fleet,
        )
        self.core = GatewayCore(self.context)
        self.told: list[commands.Command] = []
        self.sent: list[bytes] = []
        keeping = Keeping(DirectDesk(self.store), self.core, lambda _text: None)
        self.core.receive_datagram(request, Arrival(0, GATEWAY, CLIENT), NOW_MS)
        keeping.settle(self._do, NOW_MS)
        for command in list(self.told):
            self.core.worker_report(0, commands.Done(command.seq), NOW_MS)
            keeping.settle(self._do, NOW_MS)
        return self._found()

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendDatagram(_listener, _local, _remote, data):
                    self.sent.append(data)
                case TellWorker(_slot, command):
                    self.told.append(command)
                case WriteRow(record, row):
                    self.page.write_row(record, row)

    def _found(self) -> dict[str, object]:
        adds = [command for command in self.told if isinstance(command, commands.AddSession)]
        epochs = {session.epoch for session in self.context.sessions.values()}
        control = [
            [data[4:12].hex(), *epochs, int.from_bytes(data[HEADER_SIZE - 8 : HEADER_SIZE], "big")]
            for data in self.sent
            if Header.decode(data).type is PacketType.CONTROL
        ]
        return {
            "claims": self.store.end(),
            "reads": self.store.reads,
            "answers": [data.hex() for data in self.sent],
            "data": [[phase.send_key.hex(), add.generation] for add in adds for phase in add.phases],
            "control": control,
            "counters": dict(self.context.counters),
        }


def main() -> None:
    key_file, node_id, *urls = sys.argv[1:]
    node = Node(NotedStore(EtcdAccess(urls, 5), Path(key_file)), node_id)
    print("ready", flush=True)
    for line in sys.stdin:
        request, *alive = line.split()
        print(json.dumps(node.judge(bytes.fromhex(request), alive)), flush=True)


if __name__ == "__main__":
    main()
