"""Random lives of a session against a model that is made from the table and shares no code with the machine."""

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from jvpn.observability import events as ev
from jvpn.observability.sink import MemorySink
from jvpn.observability.verify import audit
from jvpn.session.machine import (
    TABLE,
    Effect,
    IllegalTransition,
    Machine,
    Origin,
    Reason,
    State,
    Transition,
    View,
    split_version,
)

LOSE = "lose_binding"
TAKE_OVER = "take_over"
COMMANDS = st.one_of(
    st.sampled_from([LOSE, TAKE_OVER]),
    st.tuples(st.sampled_from(list(Reason)), st.one_of(st.none(), st.sampled_from(list(State)))),
    # Reasons that end a session are a third of all; without these, lives would be short.
    st.tuples(
        st.sampled_from([reason for row in TABLE if len(row.sources) < 5 for reason in row.reasons]),
        st.none(),
    ),
)
SESSION = bytes(16)

# One entry for each arrow: (from, reason, needed bindings, effect, to); "before" as a word.
ARROWS = [
    (source, reason, row.needs, row.effect, row.to or "before")
    for row in TABLE
    for source in row.sources
    for reason in row.reasons
]


class Model:
    """A tuple and a list comprehension."""

    def __init__(self) -> None:
        self.place: tuple[State, int, State | None] = (State.BIRTH, 0, None)
        self.epoch, self.count = 1, 0

    def targets(self, reason: Reason, wanted: State | None) -> Iterator[tuple[State, int]]:
        state, bindings, before = self.place
        for source, arrow, needs, effect, to in ARROWS:
            target = before if to == "before" else to
            if (source, arrow) == (state, reason) and needs in (None, bindings) and wanted in (None, target):
                assert isinstance(target, State)
                yield target, {Effect.BIND: 1, Effect.DROP: 0, Effect.KEEP: bindings}[effect]

    def step(self, reason: Reason, wanted: State | None) -> bool:
        for target, bindings in self.targets(reason, wanted):
            self.place = (target, bindings, self.place[0] if target is State.RECOVERING else None)
            self.count += 1
            return True
        return False


def record(sink: MemorySink, step: Transition) -> None:
    sink.emit(ev.state_change(step, ts_ms=step.at_ms, node_id="n", session_id=SESSION, policy_version="p"))


def take_over(machine: Machine, sink: MemorySink, now_ms: int) -> Machine:
    heir = Machine.open_epoch(machine.state_version, machine.state, now_ms, lambda step: record(sink, step))
    sink.emit(
        ev.OwnershipEvent(
            ts_ms=now_ms,
            node_id="n",
            origin=Origin.GATEWAY,
            session_id=SESSION.hex(),
            state_version=heir.state_version,
            action="acquired",
            last_version=machine.state_version,
        )
    )
    return heir


@settings(max_examples=400, deadline=None)
@given(st.lists(COMMANDS, max_size=60))
def test_any_life_is_the_models_and_its_stream_passes_the_audit(
    commands: list[str | tuple[Reason, State | None]],
) -> None:
    sink, model = MemorySink(), Model()
    machine = Machine(hook=lambda step: record(sink, step))
    for now_ms, command in enumerate(commands):
        written = len(sink.events)
        if command == LOSE:
            if model.place[0] is State.RECOVERING:
                machine.lose_binding()
                model.place = (State.RECOVERING, 0, model.place[2])
        elif command == TAKE_OVER:
            if model.place[0] not in (State.BIRTH, State.TERMINATED):
                machine = take_over(machine, sink, now_ms)
                model.place, model.epoch, model.count = (State.RECOVERING, 0, None), model.epoch + 1, 0
        else:
            assert isinstance(command, tuple)
            legal = model.step(*command)
            try:
                machine.apply(command[0], now_ms, command[1])
                assert legal
            except IllegalTransition:
                assert not legal
            assert len(sink.events) == written + legal
        version = split_version(machine.state_version)
        assert (machine.state, machine.active_bindings) == model.place[:2]
        assert (version.epoch, version.count) == (model.epoch, model.count)
    assert audit(sink.lines()) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(COMMANDS, max_size=60), st.data())
def test_a_stream_with_a_hole_never_passes_the_audit(
    commands: list[str | tuple[Reason, State | None]], data: st.DataObject
) -> None:
    """Take any event but the last out of any life: the auditor misses it."""
    sink = MemorySink()
    machine = Machine(hook=lambda step: record(sink, step))
    for now_ms, command in enumerate(commands):
        if isinstance(command, tuple) and machine.allows(*command):
            machine.apply(command[0], now_ms, command[1])
    lines = sink.lines()
    if len(lines) < 2:
        return
    hole = data.draw(st.integers(0, len(lines) - 2))
    assert {finding.severity for finding in audit(lines[:hole] + lines[hole + 1 :])} == {"lost"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(COMMANDS, st.booleans()), max_size=60))
def test_a_view_never_goes_back_and_its_stream_passes_the_audit(
    commands: list[tuple[str | tuple[Reason, State | None], bool]],
) -> None:
    """The gateway's steps reach the client or not, old ones come again, and the client takes steps of its own."""
    told: list[Transition] = []
    gateway, sink = Machine(hook=told.append), MemorySink()
    view = View(hook=lambda step: record(sink, step))
    for now_ms, (command, own) in enumerate(commands):
        known, was_over = view.state_version, view.terminated
        if isinstance(command, tuple) and own and view.allows(*command):
            view.apply(command[0], now_ms, command[1])
        elif isinstance(command, tuple) and gateway.allows(*command):
            gateway.apply(command[0], now_ms, command[1])
        elif told:
            step = told[now_ms % len(told)]
            followed = view.follow(step.to, step.version, step.reason, now_ms)
            assert (followed is not None) == (step.version > known and not was_over)
        assert view.state_version >= known
        assert view.terminated or not was_over
    assert audit(sink.lines()) == []
