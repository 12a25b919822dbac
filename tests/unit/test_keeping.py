"""A turn of the gateway's supervisor and its store: one batch, and nothing is done before it is durable."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from core_pair import CorePair, every_pair_is_sound

from jvpn.observability.events import OwnershipEvent, StateChange
from jvpn.session.machine import Reason, State
from jvpn.store.memory import MemoryStore
from jvpn.supervisor.effects import Effect, RemovePrefix, SaveSession
from jvpn.supervisor.keeping import MOST_WRITES, Keeping

__all__ = ["every_pair_is_sound"]


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    @contextmanager
    def batch(self) -> Iterator[None]:
        self.batches += 1
        with super().batch():
            yield


@pytest.fixture
def pair() -> CorePair:
    return CorePair().attach()


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def keeping(pair: CorePair, store: CountingStore) -> Keeping:
    return Keeping(store, pair.gateway, pair.told.append)


def save(pair: CorePair, number: int) -> SaveSession:
    """What the handshake of client `number` asks for."""
    (record,) = pair.store.sessions()
    unique = number.to_bytes(4, "big")
    return SaveSession(replace(record, session_id=unique * 4, client_public=unique * 8), number + 1)


def prefix(number: int) -> Effect:
    return RemovePrefix(f"10.9.0.{number}/32")


def test_what_needs_no_store_waits_for_nothing(
    pair: CorePair, keeping: Keeping, store: CountingStore
) -> None:
    effects = [prefix(1), prefix(2)]
    assert keeping.held(effects, pair.now_ms) == effects
    assert not keeping.holds
    assert keeping.due(pair.now_ms) == []
    assert store.batches == 0


def test_what_a_turn_saves_is_one_batch_and_the_rest_follows_in_its_order(
    pair: CorePair, keeping: Keeping, store: CountingStore
) -> None:
    assert keeping.held([save(pair, 1), prefix(1)], pair.now_ms) == []
    assert keeping.held([prefix(2)], pair.now_ms) == []
    assert keeping.held([prefix(3), save(pair, 2), prefix(4)], pair.now_ms) == []
    assert store.sessions() == []
    assert keeping.holds
    assert keeping.due(pair.now_ms) == [prefix(1), prefix(2), prefix(3), prefix(4)]
    assert len(store.sessions()) == 2
    assert store.batches == 1
    assert not keeping.holds


def test_a_storm_of_handshakes_does_not_hold_a_turn_up(
    pair: CorePair, keeping: Keeping, store: CountingStore
) -> None:
    for number in range(1, MOST_WRITES):
        assert keeping.held([save(pair, number), prefix(1)], pair.now_ms) == []
    assert len(keeping.held([save(pair, MOST_WRITES), prefix(1)], pair.now_ms)) == MOST_WRITES
    assert len(store.sessions()) == MOST_WRITES
    assert not keeping.holds


def test_a_session_that_is_saved_and_ends_in_one_turn_is_not_kept(pair: CorePair) -> None:
    live = pair.live
    pair.gateway.context.touched.add(live)
    live.dirty_ms = 0
    pair.gateway.handle_timer(pair.now_ms)
    pair.gateway.terminate(live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    mark = len(pair.done)
    pair.settle()
    kept = [type(effect).__name__ for effect in pair.done[mark:] if "Session" in type(effect).__name__]
    assert kept == ["SaveSession", "ForgetSession"]
    assert pair.store.sessions() == []


def test_a_session_that_its_clients_next_replaces_ends_once(pair: CorePair) -> None:
    """It lived here and in the store: its end is told, and what the store forgets of it is not told again."""
    older = pair.live
    pair.client = pair.new_client()
    pair.client_worker.table.remove(0)
    pair.wait_for(lambda: older.machine.terminated and pair.attached)
    ends = [e.session_id for e in pair.events(StateChange) if e.to is State.TERMINATED]
    assert ends == [older.hex_id]
    assert [event.action for event in pair.events(OwnershipEvent)] == ["acquired", "acquired"]
    assert [record.session_id for record in pair.store.sessions()] == [pair.live.session_id]
