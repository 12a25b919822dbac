"""Inner addresses of a fleet: nodes that want the same ones at the same time."""

import random
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import etcd_cluster
import pytest
from etcd_cluster import Cluster
from test_store_addresses import SMALL, born_of, end, give, key_of

from jvpn.session.pool import InnerPool
from jvpn.store.base import OwnershipStore
from jvpn.store.etcd import EtcdStore

Open = Callable[[], EtcdStore]


@pytest.fixture
def node(etcd: Cluster, tmp_path: Path) -> Iterator[Open]:
    """Opens the store of one fleet for another of its nodes."""
    opened, prefix = list[EtcdStore](), f"/test-{secrets.token_hex(6)}"

    def another() -> EtcdStore:
        opened.append(EtcdStore(etcd.access(), etcd_cluster.fleet_key(tmp_path), prefix))
        return opened[-1]

    yield another
    for store in opened:
        store.close()


def check_apart(store: OwnershipStore) -> int:
    """At one moment no two clients have sessions with one address; how many sessions there are."""
    records = store.sessions()
    users = {(record.inner_v4, record.client_public) for record in records}
    assert len({address for address, _client in users}) == len(users)
    return len(records)


class Node:
    """Births and ends of random clients' sessions, until it is told to stop."""

    def __init__(self, store: EtcdStore, number: int) -> None:
        self.store = store
        self.born = self.refused = 0
        self.works = True
        self._number = number
        self._draw = random.Random(number)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stopping = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self.works

    def _run(self) -> None:
        try:
            self._live()
        except BaseException:
            self.works = False
            raise

    def _live(self) -> None:
        mine: list[tuple[int, int]] = []
        session = self._number << 32
        while not self._stopping.is_set():
            session += 1
            wanted = [(self._draw.randrange(12), session * 4 + n) for n in range(self._draw.randrange(1, 4))]
            with self.store.batch():
                births = [(one, self.store.bear(born_of(*one), 1, SMALL)) for one in wanted]
                while len(mine) > 2:
                    end(self.store, *mine.pop(self._draw.randrange(len(mine))))
            mine += [one for one, birth in births if birth.record is not None]
            self.born += sum(birth.record is not None for _one, birth in births)
            self.refused += sum(birth.record is None for _one, birth in births)


def test_nodes_that_race_never_give_two_clients_one_address(node: Open) -> None:
    """Twelve clients, six addresses, three nodes: they are taken from idle clients all the time."""
    nodes = [Node(node(), number) for number in range(3)]
    looking = node()
    for one in nodes:
        one.start()
    try:
        seen = 0
        while all(one.works for one in nodes) and (
            min(one.born for one in nodes) < 150 or min(one.refused for one in nodes) < 3
        ):
            seen = max(seen, check_apart(looking))
    finally:
        for one in nodes:
            one.stop()
    check_apart(looking)
    assert seen > 2
    assert len(looking.inner_addresses()) <= 6


def test_two_nodes_give_one_client_one_address(node: Open) -> None:
    one, other = node(), node()
    first = give(one, 1)
    assert give(other, 1, 1) == first
    end(one, 1)
    assert not other.release_addresses(key_of(1))
    assert give(one, 1, 2) == first


def test_who_loses_its_address_before_its_birth_is_not_born(
    node: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a client's address and its session another node takes it away, for one that begins there."""
    one, other = node(), node()
    for client in range(1, 7):
        give(one, client)
    end(one, 3)
    addresses = one._addresses
    lease = addresses.lease

    def overtaken(pools: Mapping[bytes, InnerPool]) -> dict[bytes, Mapping[int, int]]:
        held = lease(pools)
        assert give(other, 9) is not None
        return held

    monkeypatch.setattr(addresses, "lease", overtaken)
    assert one.bear(born_of(3, 1), 100, SMALL).record is None
    assert one.load(born_of(3, 1).session_id) is None
    assert check_apart(one) == 6


def test_an_address_that_another_node_took_meanwhile_is_not_given(
    node: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was free, or idle, when it was looked for."""
    one, other = node(), node()
    for client in range(1, 6):
        give(one, client)
    addresses = one._addresses
    look, clients = addresses._held, iter((8, 9))

    def slow(asking: Sequence[bytes]) -> list[dict[int, int]]:
        found = look(asking)
        take = addresses._take

        def late(*asked: object) -> bool:
            monkeypatch.setattr(addresses, "_take", take)
            give(other, next(clients))
            return take(*asked)  # type: ignore[arg-type]

        monkeypatch.setattr(addresses, "_take", late)
        monkeypatch.setattr(addresses, "_held", look)
        return found

    monkeypatch.setattr(addresses, "_held", slow)
    assert give(one, 7) is None
    end(one, 8)
    end(one, 2)
    monkeypatch.setattr(addresses, "_held", slow)
    assert give(one, 7) is not None
    assert check_apart(one) == 6
