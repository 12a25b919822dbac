"""What a client tells of a change of path: gaps in what was under way, no idle time; and a version put right."""

from core_pair import DELAY_MS, CorePair, every_pair_is_sound, fast_policy, silent

from jvpn.observability.events import ReattachResult, TransportSwitch
from jvpn.protocol.reattach import Cause
from jvpn.session.machine import Reason, State

__all__ = ["every_pair_is_sound"]

IDLE_MS = 65_000


def told(pair: CorePair) -> TransportSwitch:
    (switch,) = (event for event in pair.client_sink.events if isinstance(event, TransportSwitch))
    return switch


def stream(pair: CorePair, ms: int, *, down: bool = False) -> None:
    for _ in range(ms // 5):
        if not down:
            pair.data_up(b"under way")
        elif pair.live.bindings.active is not None:
            pair.data_down(b"under way")
        pair.advance(5)


def test_an_idle_session_that_changes_its_path_had_no_gap():
    pair = CorePair().attach()
    stream(pair, 500)
    pair.advance(IDLE_MS)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    assert told(pair).gap_ms is None


def test_an_idle_session_whose_path_dies_is_not_told_to_have_had_one():
    pair = CorePair().attach()
    pair.advance(IDLE_MS)
    pair.rules.append(silent(0))
    pair.wait_for(lambda: pair.live.bindings.active is not None and pair.version > 1)
    pair.wait_for(lambda: pair.attached)
    assert told(pair).gap_ms is None


def test_what_is_sent_after_a_long_silence_counts_from_there():
    pair = CorePair(fast_policy(idle_probe_interval_ms=60_000)).attach()
    pair.advance(IDLE_MS)
    pair.rules.append(silent(0))
    began_ms = pair.now_ms
    stream(pair, 500)
    pair.wait_for(lambda: pair.attached)
    gap_ms = told(pair).gap_ms
    assert gap_ms is not None
    assert 120 <= gap_ms <= 180 + 2 * DELAY_MS
    assert gap_ms <= pair.now_ms - began_ms


def test_a_stream_that_stops_coming_counts_from_its_last_datagram():
    pair = CorePair().attach()
    stream(pair, 1_000, down=True)
    pair.rules.append(silent(0))
    stream(pair, 500, down=True)
    pair.wait_for(lambda: pair.attached)
    gap_ms = told(pair).gap_ms
    assert gap_ms is not None
    assert 120 <= gap_ms <= 300


def test_a_link_that_goes_while_traffic_flows_costs_about_a_round_trip():
    pair = CorePair().attach()
    stream(pair, 1_000)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    gap_ms = told(pair).gap_ms
    assert gap_ms is not None
    assert 2 * DELAY_MS <= gap_ms <= 2 * DELAY_MS + 40 + 2 * DELAY_MS


def test_a_version_that_the_gateway_never_gave_is_put_right_by_its_answer():
    pair = CorePair().attach()
    pair.advance(1_000)
    session = pair.client.session
    assert session is not None
    ahead = session.view.state_version + 7
    session.view.follow(State.VOLATILE, ahead, Reason.QUALITY_FLOOR_VIOLATION, pair.now_ms)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached, 1_000)
    results = [e for e in pair.client_sink.events if isinstance(e, ReattachResult)]
    assert [(e.result, e.reason_code) for e in results] == [
        ("failed", "VERSION_CONFLICT"),
        ("bound", "REATTACH_OK"),
    ]
    assert session.view.state_version == pair.live.machine.state_version < ahead
    assert pair.live.security_failures == 1
    assert pair.client.handshakes_done == 1


def test_a_drain_with_nowhere_to_go_is_denied_and_said():
    pair = CorePair(uplinks=1).attach()
    pair.advance(1_000)
    pair.gateway.switch(pair.live, Reason.NODE_DRAIN, pair.now_ms)
    pair.settle()
    pair.advance(1_000)
    denied = [e for e in pair.client_sink.lines() if b"TRANSPORT_SWITCH_DENIED" in e]
    assert len(denied) == 1
    assert b"NO_CANDIDATE" in denied[0]
    assert Cause.NODE_DRAIN.name.encode() in denied[0]
    assert pair.attached
