"""What the gateway asks of its store: one batch after another, and nothing but what depends on it waits for it."""

import select
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from core_pair import CorePair, every_pair_is_sound

from jvpn.observability.events import OwnershipEvent, StateChange
from jvpn.session.machine import Reason, State
from jvpn.session.record import SessionRecord
from jvpn.store.base import StoreError
from jvpn.store.memory import MemoryStore
from jvpn.supervisor.arrival import endpoint
from jvpn.supervisor.context import STORE_RETRY_MS
from jvpn.supervisor.effects import Effect, ForgetSession, LoadSession, RemovePrefix, SaveSession, StoreEffect
from jvpn.supervisor.keeping import MOST_AT_ONCE, STORE_PATIENCE_MS, Keeping
from jvpn.supervisor.store_desk import Answers, Batch, ThreadDesk, serve

__all__ = ["every_pair_is_sound"]


class SlowDesk:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.asked: list[Batch] = []
        self._answers: Answers | None = None

    def ask(self, batch: Batch) -> None:
        self.asked.append(batch)

    def answer(self) -> None:
        self._answers = serve(self.store, self.asked[-1])

    def answers(self) -> Answers | None:
        answers, self._answers = self._answers, None
        return answers


class Scene:
    """A gateway core whose store is slow. `say(effects…)` is what its core asks for in one turn."""

    def __init__(self) -> None:
        self.pair = CorePair().attach()
        self.desk = SlowDesk()
        self.keeping = Keeping(self.desk, self.pair.gateway, self.pair.told.append)
        self.done: list[Effect] = []
        self.said: list[tuple[int, object]] = []

    def say(self, *effects: Effect) -> None:
        self.pair.context.effects += effects
        self.settle()

    def settle(self, later_ms: int = 0) -> None:
        self.pair.now_ns += later_ms * 1_000_000
        self.keeping.settle(self._do, self.pair.now_ms)

    def answer(self) -> None:
        self.desk.answer()
        self.settle()

    def _do(self, effects: Iterable[Effect]) -> None:
        done = list(effects)
        assert not any(isinstance(effect, StoreEffect) for effect in done)
        self.done += done

    def record(self, number: int) -> SessionRecord:
        (record,) = self.pair.store.sessions()
        unique = number.to_bytes(4, "big")
        return replace(record, session_id=unique * 4, client_public=unique * 8)

    def save(self, number: int) -> SaveSession:
        """What the handshake of client `number` asks for."""
        return SaveSession(self.record(number), number + 1, self.hear(number))

    def hear(self, number: int) -> Callable[[object, int], None]:
        return lambda answer, _now_ms: self.said.append((number, answer))


@pytest.fixture
def scene() -> Scene:
    return Scene()


def prefix(number: int) -> Effect:
    return RemovePrefix(f"10.9.0.{number}/32")


def test_nothing_else_waits_for_the_store(scene: Scene) -> None:
    scene.say(prefix(1), scene.save(1), prefix(2))
    scene.say(prefix(3))
    assert scene.done == [prefix(1), prefix(2), prefix(3)]
    assert scene.said == []
    scene.answer()
    assert scene.said == [(1, True)]
    assert len(scene.desk.store.sessions()) == 1


def test_what_comes_while_the_store_is_busy_is_one_batch(scene: Scene) -> None:
    scene.say(scene.save(1))
    scene.say(scene.save(2), scene.save(3))
    scene.say(scene.save(4))
    assert len(scene.desk.asked) == 1
    scene.answer()
    assert len(scene.desk.asked) == 2
    assert scene.said == [(1, True)]
    scene.answer()
    assert scene.said == [(1, True), (2, True), (3, True), (4, True)]
    assert len(scene.desk.asked) == 2


def test_a_storm_comes_in_parts(scene: Scene) -> None:
    scene.say(*(scene.save(number) for number in range(MOST_AT_ONCE + 3)))
    assert [len(batch.writes) for batch in scene.desk.asked] == [MOST_AT_ONCE]
    scene.answer()
    assert [len(batch.writes) for batch in scene.desk.asked] == [MOST_AT_ONCE, 3]
    scene.answer()
    assert [number for number, _kept in scene.said] == list(range(MOST_AT_ONCE + 3))


def test_what_is_read_is_what_was_kept(scene: Scene) -> None:
    scene.say(scene.save(1))
    scene.answer()
    known, unknown = scene.record(1), scene.record(2)
    scene.say(LoadSession(known.session_id, scene.hear(10)), LoadSession(unknown.session_id, scene.hear(20)))
    scene.answer()
    assert scene.said[1:] == [(10, known), (20, None)]


def test_what_the_store_cannot_keep_is_told_and_said_once(scene: Scene) -> None:
    scene.desk.store.broken = True
    scene.say(scene.save(1))
    scene.answer()
    scene.say(scene.save(2))
    scene.answer()
    assert scene.said == [(1, False), (2, False)]
    assert scene.pair.told == ["the store in memory is told to fail"]
    assert scene.pair.context.counters["store_errors"] == 2
    assert not scene.pair.context.narrator.durable
    scene.desk.store.broken = False
    scene.say(scene.save(3))
    scene.answer()
    assert scene.pair.told[1:] == ["the store can be written again"]
    assert scene.pair.context.narrator.durable


def test_a_full_disk_that_forgets_is_still_full(scene: Scene) -> None:
    scene.desk.store.broken = True
    scene.say(scene.save(1))
    scene.answer()
    scene.desk.store.broken = False
    scene.pair.context.forget(bytes(16), 1)
    scene.settle()
    scene.answer()
    assert scene.pair.told == ["the store in memory is told to fail"]
    assert not scene.pair.context.narrator.durable


def test_a_store_that_does_not_answer_counts_as_one_that_cannot(scene: Scene) -> None:
    scene.say(scene.save(1))
    scene.say(scene.save(2), LoadSession(bytes(16), scene.hear(10)))
    assert scene.keeping.get_timer() == scene.pair.now_ms + STORE_PATIENCE_MS
    scene.settle(STORE_PATIENCE_MS)
    assert scene.said[1:] == [(1, False), (2, False)]
    number, found = scene.said[0]
    assert number == 10
    assert isinstance(found, StoreError)
    assert scene.pair.context.counters["store_late"] == 1
    # What comes now is not made to wait for it.
    scene.say(scene.save(3))
    assert scene.said[3:] == [(3, False)]
    # Whatever it says in the end: nobody is told a second time, and the store is asked again.
    scene.answer()
    assert len(scene.said) == 4
    scene.say(scene.save(4))
    scene.answer()
    assert scene.said[4:] == [(4, True)]
    assert scene.pair.context.narrator.durable


def test_a_running_session_takes_another_path_while_the_store_does_not_answer() -> None:
    pair, desk = CorePair().attach(), SlowDesk()
    pair.keeping = Keeping(desk, pair.gateway, pair.told.append)
    silent = {0}
    pair.rules.append(lambda flight: [] if flight.uplink in silent else None)

    def bound_on(uplink: int) -> bool:
        active, address = pair.live.bindings.active, pair.addresses[uplink]
        return pair.attached and active is not None and endpoint(active.source) == address

    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: bound_on(1))
    # What that has changed is on its way to the store when the next path dies.
    pair.wait_for(lambda: desk.asked)
    silent.clear()
    pair.advance(3_000)
    silent.add(1)
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 200, 0, 2)
    pair.wait_for(lambda: bound_on(0))
    assert len(desk.asked) == 1
    assert pair.context.counters["store_late"] == 1
    desk.answer()
    pair.wait_for(lambda: len(desk.asked) == 2)


def test_what_ended_is_brought_to_the_store_until_it_has_forgotten(scene: Scene) -> None:
    scene.say(scene.save(1))
    scene.answer()
    ended = scene.record(1)
    scene.desk.store.broken = True
    scene.pair.context.forget(ended.session_id, ended.state_version)
    scene.settle()
    scene.answer()
    assert scene.pair.context.unforgotten == {ended.session_id: ended.state_version}
    scene.desk.store.broken = False
    assert scene.keeping.get_timer() == scene.pair.now_ms + STORE_RETRY_MS
    scene.settle(STORE_RETRY_MS)
    assert scene.desk.asked[-1].ended == [ForgetSession(ended.session_id, ended.state_version)]
    scene.answer()
    assert scene.desk.store.sessions() == []
    assert scene.pair.context.unforgotten == {}
    assert scene.keeping.get_timer() is None


def test_a_session_that_is_saved_and_ends_in_one_turn_is_not_kept(scene: Scene) -> None:
    pair = scene.pair
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


def test_a_session_that_its_clients_next_replaces_ends_once(scene: Scene) -> None:
    """It lived here and in the store: its end is told, and what the store forgets of it is not told again."""
    pair = scene.pair
    older = pair.live
    pair.client = pair.new_client()
    pair.client_worker.table.remove(0)
    pair.wait_for(lambda: older.machine.terminated and pair.attached)
    ends = [e.session_id for e in pair.events(StateChange) if e.to is State.TERMINATED]
    assert ends == [older.hex_id]
    assert [event.action for event in pair.events(OwnershipEvent)] == ["acquired", "acquired"]
    assert [record.session_id for record in pair.store.sessions()] == [pair.live.session_id]


def test_a_store_in_a_thread_answers_each_batch_once() -> None:
    desk = ThreadDesk(MemoryStore())
    desk.start()
    poll = select.poll()
    poll.register(desk.fileno(), select.POLLIN)
    for _ in range(2_000):
        desk.ask(Batch(loads=[LoadSession(bytes(16), lambda _found, _now_ms: None)]))
        while (answers := desk.answers()) is None:
            poll.poll(10_000)
        assert answers == Answers([None], [], [])
        assert desk.answers() is None
    desk.close()
