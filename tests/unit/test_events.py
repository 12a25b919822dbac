"""Events, the sink that never fails, and the auditor that misses nothing."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jvpn.observability import events as ev
from jvpn.observability import verify
from jvpn.observability.linefile import LineFile
from jvpn.observability.sink import FileSink, MemorySink
from jvpn.observability.snapshot import ClientSnapshot, GatewaySnapshot, PathSnapshot, WorkerSnapshot
from jvpn.observability.verify import audit
from jvpn.policy.decisions import History, Phase
from jvpn.policy.model import Policy
from jvpn.policy.quality import Breach, Claim, Commitment, Quality, Signals
from jvpn.policy.replay import CommitRecord, QualityRecord, decide
from jvpn.session.machine import Machine, Origin, Reason, State, View, pack_version

R, S = Reason, State
SID = bytes(range(16))
COMMON_FIELDS = {
    "schema", "ts_ms", "event", "node_id", "origin", "session_id", "state_version", "reason_code",
    "policy_version",
}  # fmt: skip


class Story:
    """Tells a session's life into a memory sink, as a gateway would."""

    def __init__(self) -> None:
        self.sink = MemorySink()
        self.now_ms = 1_000
        self.machine = Machine(hook=self.step)

    def step(self, step: Any) -> None:
        self.sink.emit(
            ev.state_change(step, ts_ms=self.now_ms, node_id="n", session_id=SID, policy_version="p@1")
        )

    def common(self, **more: Any) -> dict[str, Any]:
        return {
            "ts_ms": self.now_ms, "node_id": "n", "origin": Origin.GATEWAY, "session_id": SID.hex(),
            "state_version": self.machine.state_version, "policy_version": "p@1",
        } | more  # fmt: skip

    def go(self, *reasons: Reason) -> "Story":
        for reason in reasons:
            self.now_ms += 10
            self.machine.apply(reason, self.now_ms)
        return self

    def switch(self, attempt: int, old: int, new: int) -> "Story":
        self.sink.emit(
            ev.ReattachAttempt(attempt=attempt, cause="TRANSPORT_DEAD", path=path(new), **self.common())
        )
        self.go(R.TRANSPORT_DEAD, R.REATTACH_OK)
        self.sink.emit(ev.TransportSwitch(old=path(old), new=path(new), explicit=False, **self.common()))
        self.sink.emit(ev.ReattachResult(attempt=attempt, result="bound", **self.common()))
        return self

    def lines(self) -> list[bytes]:
        return self.sink.lines()


def path(index: int) -> ev.PathRef:
    return ev.PathRef(index=index, transport="udp", source="198.51.100.7:4000")


def life() -> Story:
    return Story().go(R.HANDSHAKE_OK).switch(1, 0, 1).switch(2, 1, 3).go(R.PEER_CLOSED)


def samples() -> list[ev.AnyEvent]:
    """One event of every kind."""
    common = Story().common()
    return [
        life().sink.events[0],
        ev.TransportSwitch(old=None, new=path(1), explicit=True, gap_ms=1.5, **common),
        ev.TransportSwitchDenied(cause="QUALITY_SWITCH", retry_after_ms=5, **common),
        ev.ReattachAttempt(attempt=1, cause="TRANSPORT_DEAD", path=path(1), **common),
        ev.ReattachResult(attempt=1, result="failed", retry_after_ms=9, **common),
        ev.SecurityEvent(violation="STALE_ATTEMPT", **common),
        ev.PolicyEvent(limit="loss", observed=0.3, threshold=0.2, **common),
        ev.PolicySnapshot(policy={"name": "default", "hysteresis": 0.8}, **common),
        ev.DecisionEvent(record=decide(Policy.default(), (), History(Phase.VOLATILE, 5), 6)[1], **common),
        ev.QualityEvent(
            record=QualityRecord(
                "1",
                7,
                "a/0",
                Quality(),
                Signals(loss=0.5),
                "QUALITY_FLOOR_VIOLATION",
                (Breach("loss", 0.5, 0.2),),
            ),
            **common,
        ),
        ev.CommitEvent(
            record=CommitRecord("1", 7, "VOLATILE", 1, Claim("ATTACHED", Signals()), Commitment("")), **common
        ),
        ev.AuditEvent(check="bindings", result="ok", **common),
        ev.KeyEvent(action="rekeyed", phase=4, **common),
        ev.OwnershipEvent(action="acquired", last_version=7, **common),
        ev.TelemetryLoss(count=3, ts_ms=1, node_id="n", origin=Origin.CLIENT),
    ]


class TestEvents:
    @pytest.mark.parametrize("event", samples(), ids=lambda e: type(e).__name__)
    def test_every_kind_is_one_line_with_the_common_fields_and_comes_back(self, event: ev.AnyEvent) -> None:
        line = ev.encode(event)
        assert line.count(b"\n") == 1
        assert set(json.loads(line)) >= COMMON_FIELDS
        assert ev.decode(line) == event

    def test_a_transition_becomes_a_state_change(self) -> None:
        steps: list[Any] = []
        Machine(5, steps.append).apply(R.HANDSHAKE_OK, 77, details={"index": 0})
        event = ev.state_change(
            steps[0], ts_ms=123, node_id="gw", session_id=SID, policy_version="p@1", non_durable=True
        )
        assert json.loads(ev.encode(event)) == {
            "event": "STATE_CHANGE", "schema": 1, "ts_ms": 123, "node_id": "gw", "origin": "gateway",
            "session_id": "000102030405060708090a0b0c0d0e0f", "state_version": pack_version(5, 1),
            "reason_code": "HANDSHAKE_OK", "policy_version": "p@1", "non_durable": True,
            "from": "BIRTH", "to": "ATTACHED", "bindings": 1, "details": {"index": 0},
        }  # fmt: skip

    def test_a_clients_carries_its_own_number(self) -> None:
        steps: list[Any] = []
        view = View(5, steps.append)
        view.follow(S.ATTACHED, pack_version(5, 1), R.HANDSHAKE_OK, 0)
        view.apply(R.TRANSPORT_DEAD, 1)
        told, own = (
            json.loads(ev.encode(ev.state_change(s, ts_ms=1, node_id="c", session_id=SID, policy_version="")))
            for s in steps
        )
        assert (told["origin"], told["local_seq"], told["followed"]) == ("client", 1, True)
        assert (own["local_seq"], own["state_version"], "followed" in own) == (2, pack_version(5, 1), False)

    @pytest.mark.parametrize(
        "change",
        [
            {"schema": 2},
            {"event": "SOMETHING"},
            {"from": "NOWHERE"},
            {"state_version": 2**64},
            {"state_version": -1},
            {"origin": "nobody"},
        ],
    )
    def test_what_is_no_event_is_refused(self, change: dict[str, Any]) -> None:
        line = json.dumps(json.loads(life().lines()[0]) | change)
        with pytest.raises(ev.EventError):
            ev.decode(line)

    def test_fields_of_a_later_writer_are_ignored(self) -> None:
        line = life().lines()[0]
        assert ev.decode(json.dumps(json.loads(line) | {"colour": "blue"})) == ev.decode(line)


@pytest.fixture
def sinks() -> Iterator[Callable[..., FileSink]]:
    made: list[FileSink] = []

    def make(path: Path, **options: Any) -> FileSink:
        made.append(FileSink(path, "n", wall_ms=lambda: 42, **options))
        return made[-1]

    yield make
    for sink in made:
        sink.close(5)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "condition never came true"
        time.sleep(0.002)


def told(file: Path) -> list[ev.AnyEvent]:
    return [ev.decode(line) for line in file.read_bytes().splitlines() if line]


class Gate:
    """A FIFO: whoever opens it to write is held until somebody reads."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path, self.data = path, b""
        self._thread = threading.Thread(target=self._read, daemon=True)

    def open(self) -> None:
        self._thread.start()

    def _read(self) -> None:
        self.data = self.path.read_bytes()

    def lines(self) -> list[bytes]:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.data.splitlines()


class TestFileSink:
    def test_events_arrive_in_order(self, tmp_path: Path, sinks: Callable[..., FileSink]) -> None:
        sink, events = sinks(tmp_path / "e.jsonl"), life().sink.events
        for event in events:
            sink.emit(event)
        assert sink.close(20)
        assert told(tmp_path / "e.jsonl") == events
        assert (sink.written, sink.lost, sink.last_error) == (len(events), 0, "")

    def test_what_nobody_had_a_moment_for_is_written_all_the_same(
        self, tmp_path: Path, sinks: Callable[..., FileSink]
    ) -> None:
        sink, told_at_once = sinks(tmp_path / "e.jsonl"), sinks(tmp_path / "w.jsonl")
        sink.emit(samples()[0])
        told_at_once.emit(samples()[0])
        told_at_once.wake()
        wait_for(lambda: sink.written == told_at_once.written == 1)

    def test_a_stuck_disk_holds_nobody_and_the_hole_is_told_where_it_is(
        self, tmp_path: Path, sinks: Callable[..., FileSink]
    ) -> None:
        gate = Gate(tmp_path / "fifo")
        sink = sinks(gate.path, capacity=10)
        events = samples()[:1] * 500
        for event in events:
            sink.emit(event)  # returns although nothing can be written
        lost = sink.lost
        assert lost >= 480
        gate.open()
        wait_for(lambda: sink.written == 500 - lost)
        sink.emit(samples()[1])
        assert not sink.close(20), "something was lost, and close says so"
        kinds = [ev.decode(line) for line in gate.lines()]
        losses = [event for event in kinds if isinstance(event, ev.TelemetryLoss)]
        assert [(event.count, event.ts_ms, event.node_id) for event in losses] == [(lost, 42, "n")]
        assert kinds[-2:] == [losses[0], samples()[1]]
        assert len(kinds) == 500 - lost + 2

    def test_close_gives_up_in_time_on_a_stuck_disk(
        self, tmp_path: Path, sinks: Callable[..., FileSink]
    ) -> None:
        gate = Gate(tmp_path / "fifo")
        sink = sinks(gate.path)
        sink.emit(samples()[0])
        assert sink.close(0.05) is False
        gate.open()
        assert len(gate.lines()) == 1

    def test_a_missing_directory_costs_events_not_the_sink(
        self, tmp_path: Path, sinks: Callable[..., FileSink]
    ) -> None:
        file = tmp_path / "later" / "e.jsonl"
        sink = sinks(file, retry_s=0.01)
        sink.emit(samples()[0])
        wait_for(lambda: sink.lost == 1)
        assert "No such file" in sink.last_error
        file.parent.mkdir()
        wait_for(lambda: file.exists() and len(told(file)) == 1)
        sink.emit(samples()[1])
        assert not sink.close(20)
        loss, after = told(file)
        assert isinstance(loss, ev.TelemetryLoss)
        assert (loss.count, after, sink.last_error) == (1, samples()[1], "")

    def test_an_event_json_cannot_say_is_a_counted_loss(
        self, tmp_path: Path, sinks: Callable[..., FileSink]
    ) -> None:
        sink = sinks(tmp_path / "e.jsonl")
        bad = msgspec.structs.replace(samples()[0], details={"what": object()})
        for event in (samples()[1], bad, samples()[2]):
            sink.emit(event)
        assert not sink.close(20)
        there = told(tmp_path / "e.jsonl")
        assert [event for event in there if not isinstance(event, ev.TelemetryLoss)] == samples()[1:3]
        assert sum(event.count for event in there if isinstance(event, ev.TelemetryLoss)) == sink.lost == 1

    def test_after_close_events_are_counted_as_lost(
        self, tmp_path: Path, sinks: Callable[..., FileSink]
    ) -> None:
        sink = sinks(tmp_path / "e.jsonl")
        assert sink.close(20)
        sink.emit(samples()[0])
        assert sink.lost == 1

    def test_a_closed_sink_on_a_dead_disk_ends(self, tmp_path: Path, sinks: Callable[..., FileSink]) -> None:
        sink = sinks(tmp_path / "nowhere" / "e.jsonl", retry_s=3600)
        for event in samples():
            sink.emit(event)
        assert sink.close(20) is False
        assert sink.lost == len(samples())

    def test_what_gathered_while_the_disk_was_dead_is_counted_at_the_end(
        self, tmp_path: Path, sinks: Callable[..., FileSink]
    ) -> None:
        sink = sinks(tmp_path / "nowhere" / "e.jsonl", retry_s=3600)
        sink.emit(samples()[0])
        wait_for(lambda: sink.lost == 1)
        for event in samples():
            sink.emit(event)
        assert sink.close(20) is False
        assert sink.lost == 1 + len(samples())

    def test_a_rotated_file_is_opened_anew(self, tmp_path: Path, sinks: Callable[..., FileSink]) -> None:
        file, old = tmp_path / "e.jsonl", tmp_path / "e.jsonl.1"
        sink = sinks(file)
        sink.emit(samples()[0])
        wait_for(lambda: sink.written == 1)
        file.rename(old)
        sink.emit(samples()[1])
        assert sink.close(20)
        assert (told(old), told(file)) == (samples()[:1], samples()[1:2])


class TestLineFile:
    def test_a_torn_line_is_taken_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The disk fills in the middle of a line: the file keeps the whole ones, and goes on when there is room."""
        file, room, write = LineFile(tmp_path / "f"), [10], os.write

        def limited(fd: int, data: Any) -> int:
            if not room[0]:
                raise OSError(28, "No space left on device")
            count = write(fd, data[: room[0]])
            room[0] -= count
            return count

        monkeypatch.setattr(os, "write", limited)
        assert file.append([b"aaaa\n", b"bbb\n", b"cccc\n"]) == 2
        assert "No space left" in file.error
        assert (tmp_path / "f").read_bytes() == b"aaaa\nbbb\n"
        room[0] = 1000
        assert file.append([b"dddd\n"]) == 1
        assert (tmp_path / "f").read_bytes() == b"aaaa\nbbb\ndddd\n"
        assert file.error == ""
        file.close()

    def test_what_cannot_be_taken_back_is_ended_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A pipe cannot be truncated: the torn line stays, alone, and spoils no other."""
        os.mkfifo(tmp_path / "f")
        reader = os.open(tmp_path / "f", os.O_RDWR)
        file, write = LineFile(tmp_path / "f"), os.write
        try:
            with monkeypatch.context() as patch:
                rooms = iter([7])
                patch.setattr(os, "write", lambda fd, data: write(fd, data[: next(rooms, 0)]) or _full())
                assert file.append([b"aaaa\n", b"bbb\n"]) == 1
            assert file.append([b"cccc\n"]) == 1
            assert os.read(reader, 100) == b"aaaa\nbb\ncccc\n"
        finally:
            file.close()
            os.close(reader)


def _full() -> int:
    raise OSError(28, "No space left on device")


def codes(lines: list[bytes]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in audit(lines)]


def edited(line: bytes, **change: Any) -> bytes:
    return json.dumps(json.loads(line) | change).encode()


def at(story: Story, kind: str, number: int = 0) -> int:
    """Which line is the n-th event of this kind."""
    found = [i for i, line in enumerate(story.lines()) if json.loads(line)["event"] == kind]
    return found[number]


class TestAuditor:
    def test_a_whole_life_has_no_findings(self) -> None:
        assert codes(life().lines()) == []

    @pytest.mark.parametrize("number", range(5))
    def test_a_missing_transition_is_lost_telemetry(self, number: int) -> None:
        lines = life().lines()
        del lines[at(life(), "STATE_CHANGE", number)]
        found = codes(lines)
        assert {severity for severity, _ in found} == {"lost"}
        assert found[0][1] == ("VERSION_GAP" if number else "BEGINNING_MISSING")

    def test_a_step_the_table_does_not_have(self) -> None:
        lines = life().lines()
        lines[0] = edited(lines[0], reason_code="REATTACH_OK")
        assert codes(lines) == [("violation", "NOT_IN_TABLE")]
        lines[0] = edited(lines[0], reason_code="BECAUSE")
        assert codes(lines) == [("violation", "UNKNOWN_REASON")]

    def test_a_refused_switch_must_go_back_where_it_came_from(self) -> None:
        story = Story().go(R.HANDSHAKE_OK, R.OPERATOR_SWITCH, R.REATTACH_FAIL)
        assert codes(story.lines()) == []
        lines = [*story.lines()[:2], edited(story.lines()[2], to="VOLATILE")]
        assert codes(lines) == [("violation", "NOT_IN_TABLE")]

    def test_a_step_from_elsewhere(self) -> None:
        story = Story().go(R.HANDSHAKE_OK, R.QUALITY_FLOOR_VIOLATION, R.PEER_CLOSED)
        lines = [*story.lines()[:2], edited(story.lines()[2], **{"from": "ATTACHED"})]
        assert codes(lines) == [("violation", "DISCONTINUOUS")]

    def test_a_version_twice_or_backwards(self) -> None:
        lines = Story().go(R.HANDSHAKE_OK, R.QUALITY_FLOOR_VIOLATION).lines()
        assert codes([*lines, lines[1]])[0] == ("violation", "VERSION_WENT_BACK")
        back = edited(lines[1], state_version=pack_version(0, 9))
        assert codes([lines[0], back]) == [("violation", "VERSION_WENT_BACK")]

    def test_nothing_follows_the_end(self) -> None:
        story = life()
        lines = story.lines()
        more = edited(lines[-1], **{"from": "TERMINATED", "to": "ATTACHED", "reason_code": "REATTACH_OK"})
        assert codes([*lines, more]) == [("violation", "AFTER_END")]
        revived = ev.OwnershipEvent(
            action="acquired", last_version=1, **story.common(state_version=pack_version(2, 0))
        )
        assert codes([*lines, ev.encode(revived)]) == [("violation", "AFTER_END")]

    def test_attempts_and_results_go_in_pairs(self) -> None:
        story, lines = life(), life().lines()
        attempt, result = at(story, "REATTACH_ATTEMPT"), at(story, "REATTACH_RESULT")
        without = lines[:result] + lines[result + 1 :]
        assert codes(without) == [("violation", "NO_RESULT")]
        assert audit(without)[0].line == attempt + 1
        assert codes(lines[:attempt] + lines[attempt + 1 :]) == [("violation", "NO_ATTEMPT")]
        assert codes([*lines[: result + 1], lines[result], *lines[result + 1 :]]) == [
            ("violation", "SECOND_RESULT")
        ]
        assert codes([*lines[: attempt + 1], lines[attempt], *lines[attempt + 1 :]]) == [
            ("violation", "ATTEMPT_TWICE")
        ]

    @pytest.mark.parametrize("result", ["failed", "bound"])
    def test_an_attempt_that_has_its_result_is_not_told_again(self, result: str) -> None:
        story = Story().go(R.HANDSHAKE_OK)
        attempt = ev.ReattachAttempt(attempt=1, cause="NODE_DRAIN", path=path(1), **story.common())
        story.sink.emit(attempt)
        story.sink.emit(ev.ReattachResult(attempt=1, result=result, **story.common()))
        lines = story.lines()
        assert codes(lines) == []
        assert codes([*lines, lines[1]]) == [("violation", "ATTEMPT_TWICE")]
        other = ev.encode(msgspec.structs.replace(attempt, attempt=2))
        assert codes([*lines, other, edited(lines[2], attempt=2)]) == []

    def test_nothing_is_bound_after_the_end(self) -> None:
        story = Story().go(R.HANDSHAKE_OK)
        story.sink.emit(ev.ReattachAttempt(attempt=1, cause="NODE_DRAIN", path=path(1), **story.common()))
        story.go(R.SESSION_TTL_EXPIRED)
        failed = ev.ReattachResult(attempt=1, result="failed", **story.common())
        assert codes([*story.lines(), ev.encode(failed)]) == []
        bound = msgspec.structs.replace(failed, result="bound")
        assert codes([*story.lines(), ev.encode(bound)]) == [("violation", "AFTER_END")]

    def test_a_kept_path_may_die_while_the_switch_is_in_flight(self) -> None:
        story = Story().go(R.HANDSHAKE_OK, R.OPERATOR_SWITCH)
        story.machine.lose_binding()
        assert codes(story.go(R.REATTACH_FAIL).lines()) == []

    def test_an_admitted_loss_explains_a_missing_result(self) -> None:
        lines = life().lines()
        del lines[at(life(), "REATTACH_RESULT", 1)]
        lines.insert(0, ev.encode(ev.TelemetryLoss(count=1, ts_ms=1, node_id="n", origin=Origin.GATEWAY)))
        assert codes(lines) == [("lost", "TELEMETRY_LOSS"), ("lost", "NO_RESULT")]

    def test_a_path_changes_only_through_recovering(self) -> None:
        story = Story().go(R.HANDSHAKE_OK)
        story.sink.emit(ev.TransportSwitch(old=path(0), new=path(1), explicit=False, **story.common()))
        assert codes(story.lines()) == [("violation", "SILENT_SWITCH")]

    def test_a_second_switch_needs_a_second_bind(self) -> None:
        story = Story().go(R.HANDSHAKE_OK).switch(1, 0, 1)
        story.sink.emit(ev.TransportSwitch(old=path(1), new=path(2), explicit=False, **story.common()))
        assert codes(story.lines()) == [("violation", "SILENT_SWITCH")]

    def test_a_path_that_was_left_must_have_been_bound(self) -> None:
        assert codes(Story().go(R.HANDSHAKE_OK).switch(1, 0, 1).switch(2, 0, 2).lines()) == [
            ("violation", "SILENT_SWITCH")
        ]

    @pytest.mark.parametrize(("bindings", "code"), [(0, "BAD_BINDINGS"), (2, "BAD_BINDINGS")])
    def test_bindings_a_state_cannot_have(self, bindings: int, code: str) -> None:
        lines = Story().go(R.HANDSHAKE_OK).lines()
        assert ("violation", code) in codes([edited(lines[0], bindings=bindings)])

    def test_a_binding_that_goes_by_itself(self) -> None:
        lines = Story().go(R.HANDSHAKE_OK, R.OPERATOR_SWITCH).lines()
        assert codes([lines[0], edited(lines[1], bindings=0)]) == [("violation", "BINDING_CHANGED")]

    def takeover(self, last: int, epoch: int) -> list[bytes]:
        story = Story().go(R.HANDSHAKE_OK)
        opened = ev.OwnershipEvent(
            action="acquired",
            last_version=last,
            **story.common(node_id="m", state_version=pack_version(epoch, 0)),
        )
        story.sink.emit(opened)
        story.machine = Machine.open_epoch(pack_version(epoch - 1, 1), S.ATTACHED, 0, story.step)
        return story.go(R.REATTACH_OK).lines()

    def test_a_takeover_opens_an_epoch_and_says_so(self) -> None:
        lines = self.takeover(pack_version(1, 1), 2)
        assert codes(lines) == []
        assert codes([lines[0], lines[2]]) == [("violation", "EPOCH_NOT_OPENED")]

    def test_a_takeover_that_knows_more_than_the_stream(self) -> None:
        assert codes(self.takeover(pack_version(1, 4), 2)) == [("lost", "VERSION_GAP")]

    def test_an_epoch_is_opened_once(self) -> None:
        lines = self.takeover(pack_version(1, 1), 2)
        assert ("violation", "EPOCH_WENT_BACK") in codes([*lines, lines[1]])

    def test_a_dead_owners_attempts_are_lost_not_wrong(self) -> None:
        lines = self.takeover(pack_version(1, 1), 2)
        open_attempt = life().lines()[at(life(), "REATTACH_ATTEMPT")]
        assert codes([lines[0], open_attempt, *lines[1:]]) == [("lost", "NO_RESULT")]

    def test_a_new_owner_may_be_asked_for_an_attempt_that_the_old_one_has_answered(self) -> None:
        story = Story().go(R.HANDSHAKE_OK)
        pair = (
            ev.ReattachAttempt(attempt=1, cause="TRANSPORT_DEAD", path=path(1), **story.common()),
            ev.ReattachResult(attempt=1, result="failed", **story.common()),
        )
        lines = self.takeover(pack_version(1, 1), 2)
        again = [edited(ev.encode(event), state_version=pack_version(2, 1)) for event in pair]
        assert codes([lines[0], *map(ev.encode, pair), *lines[1:], *again]) == []

    def test_garbage_is_named_by_its_line_and_stops_nothing(self) -> None:
        lines = life().lines()
        findings = audit([lines[0], b"\n", b"{half a li\n", *lines[1:]])
        assert [(finding.line, finding.code) for finding in findings] == [(3, "BAD_LINE")]

    def test_sessions_and_ends_are_told_apart(self) -> None:
        mine = life().lines()
        other = [edited(line, session_id="ff" * 16) for line in mine]
        mixed = [line for pair in zip(mine, other, strict=True) for line in pair]
        assert codes(mixed) == []

    def client(self) -> list[bytes]:
        sink = MemorySink()
        view = View(
            1,
            lambda s: sink.emit(
                ev.state_change(s, ts_ms=1, node_id="c", session_id=SID, policy_version="")
            ),
        )  # fmt: skip
        view.follow(S.ATTACHED, pack_version(1, 1), R.HANDSHAKE_OK, 0)
        view.apply(R.TRANSPORT_DEAD, 1)
        view.follow(S.ATTACHED, pack_version(1, 5), R.REATTACH_OK, 2)
        view.apply(R.SESSION_TTL_EXPIRED, 3)
        return sink.lines()

    def test_a_client_may_skip_versions_but_not_its_own_numbers(self) -> None:
        lines = self.client()
        assert codes(lines) == []
        assert codes([lines[0], *lines[2:]]) == [("lost", "VERSION_GAP")]
        assert codes([lines[0], edited(lines[1], state_version=pack_version(1, 2))]) == [
            ("violation", "CLIENT_COUNTED")
        ]
        back = edited(lines[2], state_version=pack_version(1, 0))
        assert codes([*lines[:2], back]) == [("violation", "VERSION_WENT_BACK")]

    def test_the_command_says_where_and_what(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        good, bad = tmp_path / "good", tmp_path / "bad"
        good.write_bytes(b"".join(life().lines()))
        bad.write_bytes(edited(life().lines()[0], reason_code="REATTACH_OK") + b"\n")
        assert verify.main([str(good)]) == 0
        assert capsys.readouterr().out == ""
        assert verify.main([str(good), str(bad)]) == 1
        assert "line 1: violation: NOT_IN_TABLE" in capsys.readouterr().out
        assert verify.main([str(tmp_path / "none")]) == 2
        assert verify.main([]) == 2


def test_snapshots_travel_as_json() -> None:
    worker = WorkerSnapshot(slot=2, pid=1, cpu=-1, state="running", sessions=3)
    gateway = GatewaySnapshot(
        node_id="n", version="1", uptime_ms=5, listeners=["[::]:443"], xdp_mode={"eth0": "native"},
        steering="xdp", workers=[worker], sessions=3, counters={"bad_proof": 7}, policy="mobile@3", offload="off",
    )  # fmt: skip
    client_path = PathSnapshot(
        name="a", device="wlan0", index=None, state="candidate", validated=False, rtt_ms=None, loss=None,
        last_ack_ago_ms=None, source=None,
    )  # fmt: skip
    client = ClientSnapshot(
        session=None, state=S.BIRTH, state_version=0, active=None, paths=[client_path], offload="off"
    )
    for snapshot in (gateway, client):
        assert msgspec.json.decode(msgspec.json.encode(snapshot), type=type(snapshot)) == snapshot
