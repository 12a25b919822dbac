"""The machine against its table: every state × every reason, and what must not change when a step is refused."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from jvpn.session import diagram
from jvpn.session.machine import (
    PRECEDENCE,
    TABLE,
    Effect,
    IllegalTransition,
    InvariantBroken,
    Machine,
    Origin,
    Reason,
    RemoteProtocolError,
    State,
    Transition,
    Trigger,
    VersionExhausted,
    View,
    Walker,
    first_of,
    is_row,
    pack_version,
    split_version,
    trigger_of,
)
from jvpn.session.version import MAX_COUNT, MAX_EPOCH

ROOT = Path(__file__).parents[2]
R, S = Reason, State
EPOCH = 7
FIVE = pack_version(EPOCH, 5)
LIVE = (S.ATTACHED, S.VOLATILE, S.DEGRADED)


def everything(machine: Walker) -> tuple[object, ...]:
    """All a machine holds but its hook, read from outside."""
    return (
        machine.state,
        machine.state_before,
        machine.state_version,
        machine.active_bindings,
        machine.since_ms,
        getattr(machine, "local_seq", None),
    )


@dataclass(frozen=True)
class Place:
    """Somewhere a machine can be."""

    state: State
    bindings: int
    before: State | None = None

    def machine(self, hook: list[Transition]) -> Machine:
        if self.state is S.BIRTH:
            return Machine(EPOCH, hook.append)
        return Machine.adopt(self.state, FIVE, self.bindings, 10, self.before, hook.append)


PLACES = [
    Place(S.BIRTH, 0),
    Place(S.ATTACHED, 1),
    Place(S.VOLATILE, 1),
    Place(S.RECOVERING, 0),
    *(Place(S.RECOVERING, 0, before) for before in LIVE),
    *(Place(S.RECOVERING, 1, before) for before in LIVE),
    Place(S.DEGRADED, 0),
    Place(S.DEGRADED, 1),
    Place(S.TERMINATED, 0),
]

ENDS = {
    R.SESSION_TTL_EXPIRED, R.TRANSPORT_LOSS_TTL_EXPIRED, R.POLICY_TERMINATED, R.SECURITY_TERMINATED,
    R.OPERATOR_TERMINATED, R.PEER_CLOSED, R.SUPERSEDED, R.KEY_REVOKED, R.OWNERSHIP_CONFLICT,
    R.INVARIANT_VIOLATION, R.VERSION_EXHAUSTED, R.ADDRESS_WITHDRAWN,
}  # fmt: skip
VOLUNTARY = {
    R.QUALITY_SWITCH, R.PREFERENCE_SWITCH, R.TRANSPORT_RETURNED, R.OPERATOR_SWITCH, R.NODE_DRAIN,
}  # fmt: skip


def by_hand(place: Place) -> dict[Reason, tuple[State, int]]:
    """The design's table once more, written as cases: reason → (state, active bindings) from this place."""
    if place.state is S.TERMINATED:
        return {}
    legal: dict[Reason, tuple[State, int]] = dict.fromkeys(ENDS, (S.TERMINATED, 0))
    if place.state is S.BIRTH:
        legal[R.HANDSHAKE_OK] = (S.ATTACHED, 1)
        legal[R.HANDSHAKE_FAIL] = legal[R.HANDSHAKE_TIMEOUT] = (S.TERMINATED, 0)
    if place.state in LIVE:
        legal |= dict.fromkeys(VOLUNTARY, (S.RECOVERING, place.bindings))
        if place.bindings:
            legal |= dict.fromkeys((R.TRANSPORT_DEAD, R.ADDRESS_CHANGED), (S.RECOVERING, 0))
    if place.state is S.ATTACHED:
        legal[R.QUALITY_FLOOR_VIOLATION] = (S.VOLATILE, 1)
    if place.state in (S.VOLATILE, S.DEGRADED) and place.bindings:
        legal[R.QUALITY_RESTORED] = (S.ATTACHED, 1)
    if place.state is S.VOLATILE:
        legal[R.VOLATILITY_PERSISTED] = legal[R.SWITCH_RATE_LIMITED] = (S.DEGRADED, 1)
    if place.state is S.DEGRADED and not place.bindings:
        legal[R.REATTACH_REQUESTED] = (S.RECOVERING, 0)
    if place.state is S.RECOVERING:
        legal[R.REATTACH_OK] = (S.ATTACHED, 1)
        stays = (S.DEGRADED, place.bindings)
        legal |= dict.fromkeys((R.NO_CANDIDATE, R.SWITCH_RATE_LIMITED, R.RECOVERY_WINDOW_EXCEEDED), stays)
        refused = place.before if place.bindings else S.DEGRADED
        assert refused is not None
        legal[R.REATTACH_FAIL] = (refused, place.bindings)
    return legal


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("place", PLACES, ids=lambda p: f"{p.state}-{p.bindings}-{p.before or 'x'}")
def test_every_state_and_every_reason(place: Place, reason: Reason) -> None:
    steps: list[Transition] = []
    machine = place.machine(steps)
    before = everything(machine)
    expected = by_hand(place).get(reason)
    assert machine.allows(reason) == (expected is not None)
    if expected is None:
        with pytest.raises(IllegalTransition):
            machine.apply(reason, 20)
        assert everything(machine) == before
        assert steps == []
        return
    old_version = machine.state_version
    step = machine.apply(reason, 20, details={"why": "test"})
    assert steps == [step]
    assert (step.source, step.to, step.reason, step.at_ms) == (place.state, expected[0], reason, 20)
    assert (machine.state, machine.active_bindings, machine.since_ms) == (*expected, 20)
    assert step.version == machine.state_version == old_version + 1
    assert (step.bindings, step.origin, step.details) == (expected[1], Origin.GATEWAY, {"why": "test"})
    assert machine.state_before == (place.state if machine.state is S.RECOVERING else None)


@pytest.mark.parametrize("to", list(State))
@pytest.mark.parametrize("place", PLACES, ids=lambda p: f"{p.state}-{p.bindings}-{p.before or 'x'}")
def test_a_named_destination_is_taken_or_refused(place: Place, to: State) -> None:
    """Only a row that leads there is taken; the two reasons with two destinations obey."""
    for reason in Reason:
        machine = place.machine([])
        possible = {by_hand(place)[reason][0]} if reason in by_hand(place) else set()
        if place.state is S.RECOVERING and reason is R.RECOVERY_WINDOW_EXCEEDED:
            possible.add(S.TERMINATED)
        if place.state is S.RECOVERING and reason is R.REATTACH_FAIL:
            possible.add(S.DEGRADED)
        if to in possible:
            assert machine.apply(reason, 20, to=to).to is to
        else:
            before = everything(machine)
            with pytest.raises(IllegalTransition):
                machine.apply(reason, 20, to=to)
            assert everything(machine) == before


def test_versions_start_at_zero_and_count_without_a_gap() -> None:
    steps: list[Transition] = []
    machine = Machine(3, steps.append)
    assert split_version(machine.state_version).count == 0
    for reason in (
        R.HANDSHAKE_OK, R.QUALITY_FLOOR_VIOLATION, R.QUALITY_SWITCH, R.REATTACH_OK, R.TRANSPORT_DEAD,
        R.NO_CANDIDATE, R.REATTACH_REQUESTED, R.REATTACH_OK, R.PEER_CLOSED,
    ):  # fmt: skip
        machine.apply(reason, 0)
    assert [split_version(step.version).count for step in steps] == list(range(1, 10))
    assert {split_version(step.version).epoch for step in steps} == {3}


def test_a_kept_path_that_dies_closes_the_way_back() -> None:
    machine = Place(S.VOLATILE, 1).machine([])
    machine.apply(R.OPERATOR_SWITCH, 1)
    version = machine.state_version
    assert machine.lose_binding() is True
    assert machine.lose_binding() is False
    assert (machine.state, machine.state_version, machine.active_bindings) == (S.RECOVERING, version, 0)
    assert machine.apply(R.REATTACH_FAIL, 2).to is S.DEGRADED


@pytest.mark.parametrize("place", [p for p in PLACES if p.state is not S.RECOVERING], ids=lambda p: p.state)
def test_a_binding_is_not_lost_silently_elsewhere(place: Place) -> None:
    machine = place.machine([])
    before = everything(machine)
    with pytest.raises(IllegalTransition):
        machine.lose_binding()
    assert everything(machine) == before


class TestEpochs:
    def test_a_takeover_opens_in_recovering_at_zero_and_its_bind_is_one(self) -> None:
        steps: list[Transition] = []
        machine = Machine.open_epoch(FIVE, S.ATTACHED, 100, steps.append)
        assert (machine.state, machine.state_version) == (S.RECOVERING, pack_version(EPOCH + 1, 0))
        assert (machine.active_bindings, machine.state_before, machine.since_ms) == (0, None, 100)
        assert steps == []
        assert machine.apply(R.REATTACH_OK, 101).version == pack_version(EPOCH + 1, 1)

    @pytest.mark.parametrize("state", [S.BIRTH, S.TERMINATED])
    def test_what_never_lived_or_is_over_is_not_taken_over(self, state: State) -> None:
        with pytest.raises(IllegalTransition):
            Machine.open_epoch(FIVE, state, 0)

    def test_there_is_a_last_epoch(self) -> None:
        with pytest.raises(VersionExhausted):
            Machine.open_epoch(pack_version(MAX_EPOCH, 9), S.ATTACHED, 0)

    def test_the_last_count_is_kept_for_the_end(self) -> None:
        steps: list[Transition] = []
        last = pack_version(EPOCH, MAX_COUNT - 1)
        machine = Machine.adopt(S.ATTACHED, last, 1, 0, hook=steps.append)
        before = everything(machine)
        with pytest.raises(VersionExhausted):
            machine.apply(R.TRANSPORT_DEAD, 1)
        assert everything(machine) == before
        assert steps == []
        assert machine.apply(R.VERSION_EXHAUSTED, 1).version == last + 1

    @pytest.mark.parametrize("bindings", [0, 1, 2])
    @pytest.mark.parametrize("state", list(State))
    def test_adoption_refuses_what_a_state_cannot_have(self, state: State, bindings: int) -> None:
        allowed = {p.bindings for p in PLACES if p.state is state}
        if bindings in allowed:
            assert Machine.adopt(state, FIVE, bindings, 0).state_version == FIVE
        else:
            with pytest.raises(InvariantBroken):
                Machine.adopt(state, FIVE, bindings, 0)


class TestView:
    def attached(self) -> tuple[View, list[Transition]]:
        steps: list[Transition] = []
        view = View(EPOCH, steps.append)
        view.follow(S.ATTACHED, pack_version(EPOCH, 1), R.HANDSHAKE_OK, 0)
        steps.clear()
        return view, steps

    def test_own_steps_are_numbered_locally_and_leave_the_version_alone(self) -> None:
        view, steps = self.attached()
        view.apply(R.TRANSPORT_DEAD, 5)
        view.apply(R.NO_CANDIDATE, 6)
        assert [(s.local_seq, s.version, s.origin, s.followed) for s in steps] == [
            (2, pack_version(EPOCH, 1), Origin.CLIENT, False),
            (3, pack_version(EPOCH, 1), Origin.CLIENT, False),
        ]

    def test_it_follows_over_versions_it_never_saw(self) -> None:
        view, steps = self.attached()
        view.apply(R.TRANSPORT_DEAD, 5)
        step = view.follow(S.ATTACHED, pack_version(EPOCH, 9), R.REATTACH_OK, 6)
        assert step is not None
        assert steps[-1] == step
        assert (step.followed, step.local_seq, step.version) == (True, 3, pack_version(EPOCH, 9))
        assert (view.state, view.active_bindings) == (S.ATTACHED, 1)

    @pytest.mark.parametrize(
        "version", [pack_version(EPOCH - 1, 99), pack_version(EPOCH, 0), pack_version(EPOCH, 1)]
    )
    def test_versions_never_go_back(self, version: int) -> None:
        view, steps = self.attached()
        before = everything(view)
        assert view.follow(S.TERMINATED, version, R.PEER_CLOSED, 9) is None
        assert everything(view) == before
        assert steps == []

    def test_a_higher_epoch_is_followed(self) -> None:
        view, _ = self.attached()
        view.apply(R.TRANSPORT_DEAD, 5)
        assert view.follow(S.ATTACHED, pack_version(EPOCH + 1, 1), R.REATTACH_OK, 6) is not None
        assert split_version(view.state_version).epoch == EPOCH + 1

    def test_nothing_revives_a_terminated_view(self) -> None:
        view, steps = self.attached()
        view.apply(R.SESSION_TTL_EXPIRED, 1)
        steps.clear()
        assert view.follow(S.ATTACHED, pack_version(EPOCH + 1, 1), R.REATTACH_OK, 6) is None
        assert (view.state, steps) == (S.TERMINATED, [])

    def test_birth_is_nothing_a_gateway_says(self) -> None:
        view, _ = self.attached()
        before = everything(view)
        with pytest.raises(RemoteProtocolError):
            view.follow(S.BIRTH, pack_version(EPOCH, 9), R.HANDSHAKE_OK, 1)
        assert everything(view) == before

    def test_an_illegal_own_step_changes_nothing(self) -> None:
        view, steps = self.attached()
        before = everything(view)
        with pytest.raises(IllegalTransition):
            view.apply(R.REATTACH_OK, 1)
        assert (everything(view), steps) == (before, [])

    @pytest.mark.parametrize(
        ("state", "reason", "bindings"),
        [
            (S.RECOVERING, R.TRANSPORT_DEAD, 0),
            (S.RECOVERING, R.NODE_DRAIN, 1),
            (S.DEGRADED, R.VOLATILITY_PERSISTED, 1),
            (S.VOLATILE, R.QUALITY_FLOOR_VIOLATION, 1),
            (S.TERMINATED, R.OPERATOR_TERMINATED, 0),
        ],
    )
    def test_bindings_follow_what_was_told(self, state: State, reason: Reason, bindings: int) -> None:
        view, _ = self.attached()
        view.follow(state, pack_version(EPOCH, 4), reason, 1)
        assert (view.state, view.active_bindings) == (state, bindings)


class TestTable:
    def test_every_reason_has_a_row_and_a_rank(self) -> None:
        used = {reason for row in TABLE for reason in row.reasons}
        ranked = [reason for reasons in PRECEDENCE.values() for reason in reasons]
        assert used == set(Reason)
        assert Counter(ranked) == Counter(Reason)

    def test_terminated_is_absorbing_and_binds_happen_in_two_places(self) -> None:
        assert all(S.TERMINATED not in row.sources for row in TABLE)
        binds = {(source, row.to) for row in TABLE if row.effect is Effect.BIND for source in row.sources}
        assert binds == {(S.BIRTH, S.ATTACHED), (S.RECOVERING, S.ATTACHED)}

    def test_is_row_knows_the_state_before(self) -> None:
        assert is_row(S.RECOVERING, S.VOLATILE, R.REATTACH_FAIL, before=[S.VOLATILE])
        assert not is_row(S.RECOVERING, S.VOLATILE, R.REATTACH_FAIL, before=[S.ATTACHED])
        assert not is_row(S.ATTACHED, S.DEGRADED, R.VOLATILITY_PERSISTED)

    def test_states_have_numbers_of_one_byte(self) -> None:
        assert [S.from_number(state.number) for state in State] == list(State)
        for number in (-1, 6, 255):
            with pytest.raises(ValueError, match="no session state"):
                S.from_number(number)


class TestPrecedence:
    ORDER = (
        R.SESSION_TTL_EXPIRED, R.OWNERSHIP_CONFLICT, R.SECURITY_TERMINATED, R.OPERATOR_TERMINATED,
        R.TRANSPORT_LOSS_TTL_EXPIRED, R.TRANSPORT_DEAD, R.QUALITY_SWITCH, R.QUALITY_RESTORED,
    )  # fmt: skip

    def test_the_designs_order(self) -> None:
        """Whatever comes true together and in whatever order it is seen, the most urgent counts."""
        for size in range(1, len(self.ORDER) + 1):
            tail = list(self.ORDER[-size:])
            random.Random(size).shuffle(tail)
            assert first_of(tail) is self.ORDER[-size]

    def test_an_operators_switch_waits_for_a_dead_path(self) -> None:
        assert first_of([R.OPERATOR_SWITCH, R.TRANSPORT_DEAD]) is R.TRANSPORT_DEAD
        assert trigger_of(R.OPERATOR_SWITCH) is Trigger.SWITCH

    def test_nothing_triggers_nothing(self) -> None:
        assert first_of([]) is None


class TestVersion:
    @pytest.mark.parametrize(("epoch", "count"), [(0, 0), (1, 1), (MAX_EPOCH, MAX_COUNT)])
    def test_round_trip(self, epoch: int, count: int) -> None:
        version = split_version(pack_version(epoch, count))
        assert (version.epoch, version.count) == (epoch, count)
        assert pack_version(epoch, count) < 2**64

    @pytest.mark.parametrize(("epoch", "count"), [(-1, 0), (MAX_EPOCH + 1, 0), (0, -1), (0, MAX_COUNT + 1)])
    def test_what_does_not_fit(self, epoch: int, count: int) -> None:
        with pytest.raises(ValueError, match="does not fit"):
            pack_version(epoch, count)
        with pytest.raises(ValueError, match="does not fit"):
            split_version(2**64)


class TestPage:
    def test_the_page_is_what_the_table_generates(self) -> None:
        assert diagram.main(["--check", str(ROOT / "docs" / "session-machine.md")]) == 0

    def test_a_page_that_drifted_is_noticed_and_mended(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(f"head\n{diagram.BEGIN}\nold\n{diagram.END}\ntail\n")
        assert diagram.main(["--check", str(page)]) == 1
        assert diagram.main(["--write", str(page)]) == 0
        assert diagram.main(["--check", str(page)]) == 0
        text = page.read_text()
        assert text.startswith("head\n")
        assert text.endswith("\ntail\n")
        assert all(reason in text for reason in Reason)

    def test_a_page_without_marks_is_left_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        page = tmp_path / "page.md"
        page.write_text("nothing")
        assert diagram.main(["--write", str(page)]) == 2
        assert page.read_text() == "nothing"
        assert "needs one line" in capsys.readouterr().err
