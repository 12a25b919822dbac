"""A client whose node is gone asks three others at the same instant, a thousand times: one owner, no nonce twice."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import etcd_cluster
import msgspec
from etcd_cluster import Cluster
from racers import Racer, line_of, racers, tell
from racing_gateway import CHALLENGE_KEY, CLIENT, CLIENT_KEY, GATEWAY, NOW_MS

from jvpn.policy.model import Policy
from jvpn.protocol import paths, reattach, tickets
from jvpn.protocol.constants import PacketType, Transport
from jvpn.protocol.keys import SessionSecrets, steering_id
from jvpn.protocol.reattach import Cause, Request, Result
from jvpn.protocol.suites import suite, x25519_public
from jvpn.protocol.wire import Header
from jvpn.session import machine
from jvpn.session.record import SessionRecord
from jvpn.session.version import pack_version, split_version
from jvpn.sim.owner_history import Claim, Read, State, check
from jvpn.store.etcd import EtcdStore
from jvpn.store.etcd_lease import LeaseKeeper
from jvpn.supervisor.remembered import Remembered

NODES, SESSIONS, ROUNDS = 4, 10, 100
FIRST: State = (pack_version(1, 1), "gone")


class ClientEnd:
    """A session of a client, as it was stored by a node that is gone."""

    def __init__(self, number: int, fleet_key: bytes) -> None:
        self.session_id = bytes([number]) * 16
        self.secrets = SessionSecrets(suite(1), bytes([number]) * 32, bytes([number + 100]) * 32, 1)
        self.version = FIRST[0]
        self._fleet_key = fleet_key
        self._attempt = 0

    def record(self) -> SessionRecord:
        policy = Policy.default()
        phases = [(1, self.secrets.phase)]
        memory = Remembered(1, self.secrets.session, phases, None, policy.to_wire())
        return SessionRecord(
            session_id=self.session_id,
            client_public=x25519_public(CLIENT_KEY),
            policy_name=policy.name,
            policy_version=policy.version,
            owner_node=FIRST[1],
            state=machine.State.ATTACHED,
            state_version=self.version,
            secrets=msgspec.msgpack.encode(memory),
            inner_v4="10.8.0.2",
            inner_v6=None,
            created_wall_ms=NOW_MS - 10,
            expires_wall_ms=NOW_MS + 100_000,
            expires_boot_ms=NOW_MS + 100_000,
            boot_id="boot",
            stored_wall_ms=NOW_MS - 10,
        )

    def request(self) -> bytes:
        """Of the next attempt, by its ticket, with a challenge that every node takes."""
        self._attempt += 1
        index = self._attempt
        steering = steering_id(self.secrets, index)
        slot = paths.challenge_slot(NOW_MS * 1_000_000)
        ends = (CLIENT.address, CLIENT.port, GATEWAY.address, GATEWAY.port)
        challenge = paths.challenge(CHALLENGE_KEY, self.session_id, *ends, Transport.UDP, slot)
        asked = Request(self._attempt, index, self.version, Cause.TRANSPORT_DEAD, Transport.UDP, 0, challenge)
        ticket = tickets.seal_ticket(self._fleet_key, steering, self.session_id, os.urandom(12))
        return reattach.seal_request(self.secrets, steering, self._attempt, asked, ticket)

    def bound_at(self, answers: list[str]) -> int | None:
        """The version of an ACK(BOUND) among them."""
        for answer in map(bytes.fromhex, answers):
            if Header.decode(answer).type is PacketType.REATTACH_ACK:
                ack = reattach.open_ack(self.secrets, answer)
                if ack.result is Result.BOUND:
                    return ack.state_version
        return None


class Leases:
    """Of all nodes but those that are gone."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._keepers: dict[str, LeaseKeeper] = {}

    def keep(self, node: str) -> None:
        granted = threading.Event()
        keeper = LeaseKeeper(self._cluster.access(), node, lambda _fence_ms: granted.set())
        keeper.start()
        assert granted.wait(20)
        self._keepers[node] = keeper

    def end(self, node: str) -> None:
        self._keepers.pop(node).stop()

    def close(self) -> None:
        for node in list(self._keepers):
            self.end(node)


def race(racing: list[Racer], pool: ThreadPoolExecutor, line: str) -> list[Any]:
    tell(racing, line)
    return [json.loads(answer) for answer in pool.map(line_of, racing)]


def test_one_of_those_who_are_asked_takes_a_session(frail_etcd: Cluster, tmp_path: Path) -> None:
    key_file = etcd_cluster.fleet_key(tmp_path)
    store = EtcdStore(frail_etcd.access(), key_file)
    clients = [ClientEnd(number, store.fleet_key) for number in range(SESSIONS)]
    for client in clients:
        store.save(client.record(), 1)
    claims: dict[bytes, list[Claim]] = {client.session_id: [] for client in clients}
    reads: dict[bytes, list[Read]] = {client.session_id: [] for client in clients}
    used: set[tuple[object, ...]] = set()
    owners_now: dict[bytes, str] = {}
    winners = set()
    nodes = [f"gw{number}" for number in range(NODES)]
    leases = Leases(frail_etcd)
    for node in nodes:
        leases.keep(node)
    with (
        closing(leases),
        racers("racing_gateway.py", frail_etcd, [[str(key_file), node] for node in nodes]) as running,
        ThreadPoolExecutor(NODES) as pool,
    ):
        for number in range(SESSIONS * ROUNDS):
            client = clients[number % SESSIONS]
            # Its owner dies, the others race, and a fresh one is there under the old name for the next.
            gone = owners_now.get(client.session_id)
            if gone is not None:
                leases.end(gone)
            alive = [node for node in nodes if node != gone]
            racing = [process for node, process in zip(nodes, running, strict=True) if node != gone]
            found = race(racing, pool, " ".join([client.request().hex(), *alive]))
            if gone is not None:
                leases.keep(gone)
            bound = [version for one in found if (version := client.bound_at(one["answers"])) is not None]
            assert len(bound) == 1, [one["counters"] for one in found]
            # Each takeover is the next epoch, and its bind that epoch's first count.
            assert split_version(bound[0]) == split_version(client.version + (1 << 40))
            client.version = bound[0]
            for node, one in zip(alive, found, strict=True):
                claims[client.session_id] += [_claim(made) for made in one["claims"]]
                reads[client.session_id] += [Read(**{**r, "found": tuple(r["found"])}) for r in one["reads"]]
                if client.bound_at(one["answers"]) is not None:
                    winners.add(node)
                    owners_now[client.session_id] = node
                for nonce in (*one["data"], *one["control"]):
                    key = (client.session_id, *nonce)
                    assert key not in used
                    used.add(key)
    assert winners == set(nodes)
    assert len(used) >= 2 * SESSIONS * ROUNDS
    for client in clients:
        owners = check(FIRST, claims[client.session_id], reads[client.session_id])
        assert [version >> 40 for version, _ in owners] == list(range(1, ROUNDS + 2))
    refused = [c for of_one in claims.values() for c in of_one if c.granted is False]
    assert refused, "nobody raced"
    store.close()


def _claim(made: dict[str, Any]) -> Claim:
    return Claim(**{**made, "seen": tuple(made["seen"]), "wrote": tuple(made["wrote"])})
