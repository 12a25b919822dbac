"""A session's timeline: what it says, that it fits the terminal, and that it finds the session asked for."""

import json
import re
from typing import Any

import msgspec
import pytest

from jvpn.observability import events as ev
from jvpn.observability.sink import MemorySink
from jvpn.observability.timeline import Timeline, TimelineError, build, read
from jvpn.session.machine import Machine, Origin, Reason, State, View, pack_version

R, S = Reason, State
SID, OTHER = bytes(range(16)), bytes([0xFF] * 16)
START_MS = 1_767_261_600_250
WLAN = ev.PathRef(index=0, transport="udp", source="198.51.100.7:40001", device="wlan0")
WWAN = ev.PathRef(index=3, transport="tcp", source="203.0.113.9:51820", device="wwan0")


class Story:
    """A made stream: one session on one gateway."""

    def __init__(self, session: bytes = SID) -> None:
        self.sink, self.now_ms, self.session = MemorySink(), 0, session
        self.machine = Machine(hook=self._step)

    def _step(self, step: Any) -> None:
        self.sink.emit(
            ev.state_change(
                step,
                ts_ms=START_MS + self.now_ms,
                node_id="gw-1",
                session_id=self.session,
                policy_version="mobile@3",
            )
        )

    def common(self, **more: Any) -> dict[str, Any]:
        return {
            "ts_ms": START_MS + self.now_ms, "node_id": "gw-1", "origin": Origin.GATEWAY,
            "session_id": self.session.hex(), "state_version": self.machine.state_version,
        } | more  # fmt: skip

    def go(self, now_ms: int, reason: Reason, **details: Any) -> None:
        self.now_ms = now_ms
        self.machine.apply(reason, now_ms, details=details)


def story() -> Story:
    told = Story()
    told.go(0, R.HANDSHAKE_OK, index=0, transport="udp", source="198.51.100.7:40001", device="wlan0")
    told.go(12_480, R.TRANSPORT_DEAD)
    told.go(12_507, R.REATTACH_OK)
    told.sink.emit(
        ev.TransportSwitch(
            old=WLAN, new=WWAN, explicit=False, detect_ms=131.0, reattach_ms=27.4, **told.common()
        )
    )
    told.now_ms = 20_004
    told.sink.emit(
        ev.SecurityEvent(violation="STALE_ATTEMPT", source="192.0.2.66:9", suppressed=412, **told.common())
    )
    told.go(3_796_220, R.TRANSPORT_DEAD)
    told.go(3_804_220, R.RECOVERY_WINDOW_EXCEEDED)
    told.go(4_396_220, R.TRANSPORT_LOSS_TTL_EXPIRED)
    return told


@pytest.fixture
def timeline() -> Timeline:
    return build(story().sink.events)


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


class TestRows:
    def test_rows_are_the_transitions(self, timeline: Timeline) -> None:
        assert [(row.offset_ms, row.version, row.source, row.to, row.reason) for row in timeline.rows] == [
            (0, "1.1", S.BIRTH, S.ATTACHED, "HANDSHAKE_OK"),
            (12_480, "1.2", S.ATTACHED, S.RECOVERING, "TRANSPORT_DEAD"),
            (12_507, "1.3", S.RECOVERING, S.ATTACHED, "REATTACH_OK"),
            (3_796_220, "1.4", S.ATTACHED, S.RECOVERING, "TRANSPORT_DEAD"),
            (3_804_220, "1.5", S.RECOVERING, S.DEGRADED, "RECOVERY_WINDOW_EXCEEDED"),
            (4_396_220, "1.6", S.DEGRADED, S.TERMINATED, "TRANSPORT_LOSS_TTL_EXPIRED"),
        ]
        assert (timeline.state, timeline.start_ms, timeline.length_ms) == (S.TERMINATED, START_MS, 4_396_220)

    def test_binds_show_their_path_and_switches_their_times(self, timeline: Timeline) -> None:
        assert [row.path for row in timeline.rows] == [WLAN, None, WWAN, None, None, None]
        assert [row.transport for row in timeline.rows] == ["udp", "", "tcp", "", "", ""]
        (switch,) = timeline.switches
        assert (switch.old, switch.new, switch.explicit) == (WLAN, WWAN, False)
        assert (switch.detect_ms, switch.reattach_ms, switch.gap_ms) == (131.0, 27.4, None)

    def test_what_happened_besides_hangs_on_its_row(self, timeline: Timeline) -> None:
        notes = [(number, note) for number, row in enumerate(timeline.rows) for note in row.notes]
        assert [(number, note.kind, note.offset_ms) for number, note in notes] == [
            (2, "SECURITY_EVENT", 20_004)
        ]

    def test_the_other_end_fills_what_this_one_cannot_know(self) -> None:
        told = story()
        measured = ev.TransportSwitch(
            old=None, new=WWAN, explicit=False, detect_ms=1.0, gap_ms=158.4,
            **told.common(origin=Origin.CLIENT, node_id="laptop", state_version=pack_version(1, 3)),
        )  # fmt: skip
        (switch,) = build([*told.sink.events, measured]).switches
        assert (switch.gap_ms, switch.silent_ms, switch.detect_ms) == (158.4, None, 131.0)

    def test_idle_time_is_no_gap(self) -> None:
        """A gateway knows only that no DATA came; and its client may say that nothing was under way."""
        told = story()
        told.now_ms += 1
        events = [
            msgspec.structs.replace(event, gap_ms=3_600_000.0)
            if isinstance(event, ev.TransportSwitch)
            else event
            for event in told.sink.events
        ]
        (alone,) = build(events).switches
        assert (alone.gap_ms, alone.silent_ms) == (None, 3_600_000.0)
        assert "gap" not in build(events).render_text()
        idle = ev.TransportSwitch(
            old=None, new=WWAN, explicit=False, detect_ms=1.0, gap_ms=None,
            **told.common(origin=Origin.CLIENT, node_id="laptop", state_version=pack_version(1, 3)),
        )  # fmt: skip
        (both,) = build([*events, idle]).switches
        assert (both.gap_ms, both.silent_ms) == (None, None)

    def test_a_takeover_is_a_row_of_its_own(self) -> None:
        told = Story()
        told.go(0, R.HANDSHAKE_OK)
        told.now_ms = 500
        told.sink.emit(
            ev.OwnershipEvent(
                action="acquired", last_version=pack_version(1, 1),
                **told.common(node_id="gw-2", state_version=pack_version(2, 0)),
            )
        )  # fmt: skip
        rows = build(told.sink.events).rows
        assert [(row.version, row.to, row.reason) for row in rows][1:] == [
            ("2.0", S.RECOVERING, "taken over by gw-2")
        ]

    def test_who_lost_it_says_to_whom(self) -> None:
        told = Story()
        told.go(0, R.HANDSHAKE_OK)
        told.now_ms = 500
        left = told.common(reason_code="TAKEN_OVER")
        told.sink.emit(ev.OwnershipEvent(action="transferred", owner="gw-2", **left))
        (note,) = build(told.sink.events).rows[0].notes
        assert note.text == "left this node for gw-2"

    def test_a_client_alone_is_shown_as_it_saw_itself(self) -> None:
        sink = MemorySink()
        view = View(
            1,
            lambda s: sink.emit(
                ev.state_change(s, ts_ms=1, node_id="laptop", session_id=SID, policy_version="")
            ),
        )  # fmt: skip
        view.follow(S.ATTACHED, pack_version(1, 1), R.HANDSHAKE_OK, 0)
        view.apply(R.TRANSPORT_DEAD, 1)
        shown = build(sink.events)
        assert (shown.origin, shown.nodes, [row.followed for row in shown.rows]) == (
            Origin.CLIENT,
            ["laptop"],
            [True, False],
        )

    def test_losses_are_admitted(self) -> None:
        told = story()
        told.sink.emit(ev.TelemetryLoss(count=7, ts_ms=1, node_id="gw-1", origin=Origin.GATEWAY))
        shown = build(told.sink.events)
        assert shown.lost == 7
        assert "7 events lost" in shown.render_text()

    def test_a_stream_cut_at_any_place_is_still_shown(self) -> None:
        events = story().sink.events
        for first in range(len(events)):
            for last in range(first + 1, len(events) + 1):
                shown = build(events[first:last])
                assert shown.render_text(60).startswith("Session 0001")


class TestChoice:
    def both(self) -> list[ev.AnyEvent]:
        other = Story(OTHER)
        other.go(5, R.HANDSHAKE_OK)
        return [*story().sink.events, *other.sink.events]

    @pytest.mark.parametrize(("asked", "found"), [("ff", OTHER), ("00", SID), (OTHER.hex().upper(), OTHER)])
    def test_a_prefix_suffices(self, asked: str, found: bytes) -> None:
        assert build(self.both(), asked).session_id == found.hex()

    def test_it_asks_when_several_fit(self) -> None:
        with pytest.raises(TimelineError, match=f"2 sessions fit.*{OTHER.hex()}"):
            build(self.both())

    @pytest.mark.parametrize("asked", [None, "abc", "0f"])
    def test_it_says_when_there_is_none(self, asked: str | None) -> None:
        with pytest.raises(TimelineError, match="no session"):
            build([] if asked is None else self.both(), asked)

    def test_an_end_that_said_nothing(self) -> None:
        with pytest.raises(TimelineError, match="no events of a client"):
            build(story().sink.events, origin=Origin.CLIENT)

    def test_lines_that_are_no_events_are_left_out(self) -> None:
        lines = story().sink.lines()
        assert read([lines[0], b"{half", b"\n", *lines[1:]]) == story().sink.events


class TestText:
    def test_it_reads_like_this(self, timeline: Timeline) -> None:
        assert timeline.render_text(88) == "\n".join(
            [
                "Session 000102030405060708090a0b0c0d0e0f",
                "TERMINATED at version 1.6 after 1 h 13 min · 1 switch",
                "since 2026-01-01 10:00:00.250 UTC · gateway gw-1 · policy mobile@3",
                "─" * 88,
                "     0:00.000  ● ATTACHED    1.1  HANDSHAKE_OK",
                "               │ ⇄ udp#0 wlan0 198.51.100.7:40001",
                "               │ 12.5 s",
                "     0:12.480  ○ RECOVERING  1.2  TRANSPORT_DEAD",
                "     0:12.507  ● ATTACHED    1.3  REATTACH_OK",
                "               │ ⇄ udp#0 wlan0 198.51.100.7:40001 → tcp#3 wwan0 203.0.113.9:51820",
                "               │   ████████████████████▒▒▒▒  detect 131 ms + reattach 27 ms",
                "     0:20.004  │ ! STALE_ATTEMPT from 192.0.2.66:9 (412 more not logged)",
                "               │ 1 h 03 min",
                "  1:03:16.220  ○ RECOVERING  1.4  TRANSPORT_DEAD",
                "               ┆ 8.0 s",
                "  1:03:24.220  ◌ DEGRADED    1.5  RECOVERY_WINDOW_EXCEEDED",
                "               ┆ 9 min 52 s",
                "  1:13:16.220  ■ TERMINATED  1.6  TRANSPORT_LOSS_TTL_EXPIRED",
            ]
        )

    @pytest.mark.parametrize("width", [1, 40, 41, 57, 80, 200])
    @pytest.mark.parametrize("color", [False, True])
    def test_no_line_is_wider_than_the_terminal(self, timeline: Timeline, width: int, color: bool) -> None:
        text = timeline.render_text(width, color)
        assert max(len(line) for line in bare(text).split("\n")) <= max(width, 40)

    def test_a_name_too_long_for_the_terminal_is_cut(self) -> None:
        told, long = story(), "a-very-long-device-name-that-fits-no-terminal-at-all"
        path = ev.PathRef(index=9, transport="quic", device=long)
        told.sink.events[3] = ev.TransportSwitch(
            old=path, new=path, explicit=True, **told.common(state_version=pack_version(1, 3))
        )
        lines = build(told.sink.events).render_text(40).split("\n")
        assert sum(line.endswith("…") and "a-very-long" in line for line in lines) == 2
        assert max(map(len, lines)) == 40

    def test_colour_changes_nothing_but_colour(self, timeline: Timeline) -> None:
        painted = timeline.render_text(100, color=True)
        assert "\x1b[32m" in painted
        assert bare(painted) == timeline.render_text(100)
        for line in painted.split("\n"):
            assert len(re.findall(r"\x1b\[[1-9]", line)) == line.count("\x1b[0m")

    def test_json_holds_the_same_rows(self, timeline: Timeline) -> None:
        shown = json.loads(timeline.to_json())
        assert shown["session_id"] == SID.hex()
        assert [row["to"] for row in shown["rows"]] == [row.to.value for row in timeline.rows]
        assert shown["rows"][2]["switch"]["detect_ms"] == 131.0
