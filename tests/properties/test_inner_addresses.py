"""Random histories of handshakes at two nodes that share a store: what is true of inner addresses at any time."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvpn.session.machine import State, pack_version
from jvpn.session.pool import AddressPool, InnerPool, number_of, ranges_of, text_of
from jvpn.session.record import SessionRecord
from jvpn.store.base import OwnershipStore
from jvpn.store.memory import MemoryStore
from jvpn.store.sqlite import SqliteStore
from jvpn.supervisor.effects import BearSession, ForgetOthers, ForgetSession, StoreWrite
from jvpn.supervisor.store_desk import Batch, serve

#: Four addresses: .2, .3, .5 and .6.
NETWORK = ip_network("10.8.0.0/29")
HOLES = [ip_network("10.8.0.1/32"), ip_network("10.8.0.4/32")]
POOL = InnerPool((AddressPool(4, ranges_of(NETWORK, HOLES)),))
ADDRESSES = {"10.8.0.2", "10.8.0.3", "10.8.0.5", "10.8.0.6"}
CLIENTS = 7

#: (node, what each client does in one batch: it shakes hands, or its sessions there end), or an operator's release.
HANDSHAKE, END, RELEASE, RESTART = "handshake", "end", "release", "restart"
STEP = st.one_of(
    st.tuples(
        st.integers(0, 1),
        st.lists(
            st.tuples(st.sampled_from([HANDSHAKE, HANDSHAKE, END]), st.integers(0, CLIENTS - 1)), max_size=5
        ),
    ),
    st.tuples(st.just(0), st.lists(st.tuples(st.just(RELEASE), st.integers(0, CLIENTS - 1)), max_size=1)),
    st.just((0, [(RESTART, 0)])),
)
HISTORY = st.lists(STEP, min_size=8, max_size=40)


def key_of(client: int) -> bytes:
    return client.to_bytes(32, "big")


def record_of(client: int, number: int, node: int) -> SessionRecord:
    return SessionRecord(
        session_id=number.to_bytes(16, "big"),
        client_public=key_of(client),
        policy_name="default",
        policy_version="00000000",
        owner_node=f"gw{node}",
        state=State.ATTACHED,
        state_version=pack_version(1, 1),
        secrets=b"",
        inner_v4=None,
        inner_v6=None,
        created_wall_ms=1,
        expires_wall_ms=2,
        expires_boot_ms=2,
        boot_id="boot",
        stored_wall_ms=1,
    )


@dataclass
class Fleet:
    """What its nodes know, and what must be true of what they share."""

    open: Callable[[], OwnershipStore]
    store: OwnershipStore = field(init=False)
    #: Sessions at each node, with their clients.
    live: list[dict[bytes, int]] = field(default_factory=lambda: [{}, {}])
    births: int = 0

    def __post_init__(self) -> None:
        self.store = self.open()

    def step(self, node: int, acts: Sequence[tuple[str, int]]) -> None:
        before, busy = self.store.inner_addresses(), self.busy()
        released = set()
        writes: list[StoreWrite] = []
        answers: list[tuple[SessionRecord, SessionRecord | None]] = []
        for act, client in acts:
            if act == RESTART:
                self.store.close()
                self.store = self.open()
            elif act == RELEASE:
                free = key_of(client) not in busy
                assert self.store.release_addresses(key_of(client)) is free
                released |= {key_of(client)} if free else set()
            elif act == END:
                ended = [i for i, of in self.live[node].items() if of == client]
                writes += [ForgetSession(i, pack_version(1, 9)) for i in ended]
            else:
                self.births += 1
                born = record_of(client, self.births, node)
                writes.append(BearSession(born, self.births, POOL, lambda _kept, _now_ms: None))
                writes.append(ForgetOthers(key_of(client), born.session_id))
        self.carry_out(writes, answers)
        self.follow(node, writes, answers)
        idle = {key_of(client) for act, client in acts if act == END}
        self.check(before, busy, released, idle, answers)

    def carry_out(
        self, writes: list[StoreWrite], answers: list[tuple[SessionRecord, SessionRecord | None]]
    ) -> None:
        said = serve(self.store, Batch(writes=writes)).written
        assert isinstance(said, list)
        for write, word in zip(writes, said, strict=False):
            if isinstance(write, BearSession):
                assert word is None or isinstance(word, SessionRecord)
                answers.append((write.record, word))

    def follow(
        self,
        node: int,
        writes: list[StoreWrite],
        answers: list[tuple[SessionRecord, SessionRecord | None]],
    ) -> None:
        """The nodes have the sessions that the store has."""
        kept = {record.session_id for record in self.store.sessions()}
        for born, word in answers:
            if word is not None:
                self.live[node][born.session_id] = int.from_bytes(born.client_public, "big")
        for sessions in self.live:
            for session_id in sessions.keys() - kept:
                del sessions[session_id]

    def busy(self) -> set[bytes]:
        return {record.client_public for record in self.store.sessions()}

    def check(
        self,
        before: dict[bytes, tuple[str, ...]],
        busy: set[bytes],
        released: set[bytes],
        idle: set[bytes],
        answers: list[tuple[SessionRecord, SessionRecord | None]],
    ) -> None:
        after = self.store.inner_addresses()
        given_now = [address for addresses in after.values() for address in addresses]
        assert len(given_now) == len(set(given_now))
        assert set(given_now) <= ADDRESSES
        for record in self.store.sessions():
            assert (record.inner_v4,) == after[record.client_public]
        full = len(given_now) == len(ADDRESSES)
        for client, addresses in before.items():
            if after.get(client) == addresses or client in released:
                continue
            # It was taken away: there was no other, and its client had no session at that moment.
            assert full
            assert client not in busy or client in idle
        assert full or all(word is not None for _born, word in answers)


def play(
    history: Sequence[tuple[int, Sequence[tuple[str, int]]]], opened: Callable[[], OwnershipStore]
) -> None:
    fleet = Fleet(opened)
    try:
        for node, acts in history:
            fleet.step(node, acts)
    finally:
        fleet.store.close()


@settings(max_examples=300, deadline=None)
@given(HISTORY)
def test_no_two_clients_have_one_address_and_each_keeps_its_own(history: Sequence) -> None:  # type: ignore[type-arg]
    store = MemoryStore()
    play(history, lambda: store)


@settings(max_examples=60, deadline=None)
@given(HISTORY)
def test_nor_in_the_embedded_store_over_restarts(history: Sequence) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as folder:
        play(history, lambda: SqliteStore(Path(folder) / "sessions.db"))


PREFIXES = st.sampled_from(
    ["10.8.0.0/28", "10.8.0.0/31", "10.8.0.7/32", "fd00::/124", "fd00::/64", "0.0.0.0/0"]
)


@settings(max_examples=300, deadline=None)
@given(
    PREFIXES,
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=8),
    st.one_of(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 15), min_size=11)),
    st.binary(min_size=32, max_size=32),
)
def test_the_free_address_is_the_next_one(
    prefix: str, holes: list[tuple[int, int]], used: set[int], client: bytes
) -> None:
    """Against a list of all addresses, where there are few enough."""
    network = ip_network(prefix)
    base, longest = int(network.network_address), network.max_prefixlen
    without = [
        ip_network(f"{text_of(network.version, base + at)}/{longest - bits}", strict=False)
        for at, bits in holes
    ]
    ranges = ranges_of(network, without)
    if not ranges:
        assert network.num_addresses <= 16
        return
    pool = AddressPool(network.version, ranges)
    taken = sorted(base + number for number in used)
    start = pool.preferred(client)
    assert start in pool
    assert pool.preferred(client) == start
    found = pool.first_free(start, lambda _v, first, last: [a for a in taken if first <= a <= last])
    if network.num_addresses > 16:
        assert found is not None
        assert found in pool
        assert found not in taken
        return
    every = [int(a) for a in (network if longest - network.prefixlen < 2 else list(network.hosts()))]
    if network.version == 6:
        every = list(range(base + 1, base + network.num_addresses))
    free = [a for a in every if a not in taken and not any(_in(a, hole) for hole in without)]
    assert pool.size == len([a for a in every if not any(_in(a, hole) for hole in without)])
    expected = next((a for a in free if a >= start), min(free, default=None))
    assert found == expected
    assert found is None or number_of(text_of(network.version, found)) == (network.version, found)


def _in(address: int, network: object) -> bool:
    first, last = int(network.network_address), int(network.broadcast_address)  # type: ignore[attr-defined]
    return first <= address <= last


def test_nodes_look_in_the_same_place_first_and_clients_apart() -> None:
    wide = AddressPool(6, ranges_of(ip_network("fd00::/64"), []))
    assert len({wide.preferred(key_of(client)) for client in range(1_000)}) == 1_000
    same = AddressPool(6, ranges_of(ip_network("fd00::/64"), []))
    assert [wide.preferred(key_of(n)) for n in range(9)] == [same.preferred(key_of(n)) for n in range(9)]
    with pytest.raises(ValueError, match="address"):
        number_of("10.8.0.0/24")
