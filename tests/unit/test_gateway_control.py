"""What the gateway says in CONTROL, and when: SWITCH, repetitions, CLOSE, and nothing before the ACK of a bind."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from core_pair import DELAY_MS, CorePair, Flight, every_pair_is_sound, fast_policy, silent
from forge import NEW, Forge, forge

from jvpn.observability.admin import AdminError
from jvpn.observability.events import AuditEvent, TransportSwitch
from jvpn.protocol.constants import CLOSE_REPEATS, CONTROL_REPEAT_MIN_MS, PacketType
from jvpn.protocol.control import ControlType, Frame, decode_frames
from jvpn.protocol.messages import Health
from jvpn.protocol.reattach import Cause
from jvpn.session.machine import Reason, State
from jvpn.supervisor.admin import GatewayAdmin
from jvpn.supervisor.round_trips import RoundTrips

__all__ = ["every_pair_is_sound", "forge"]


@pytest.fixture
def pair() -> CorePair:
    return CorePair()


def frames_of(forge: Forge, flights: list[Flight]) -> list[Frame]:
    """What the gateway's CONTROL datagrams say, opened as the client would."""
    session = forge.pair.client.session
    assert session is not None
    found = []
    for flight in flights:
        index = session.paths.by_steering_id(flight.data[4:12], 0)
        assert index is not None
        found += decode_frames(session.control.open(index.index, flight.data).plaintext)
    return found


def down(pair: CorePair) -> list[Flight]:
    return pair.of_kind(PacketType.CONTROL, up=False)


def acknowledge(forge: Forge, message_id: int) -> None:
    value = message_id.to_bytes(4, "big") + b"\xff"
    forge.pair.inject(forge.control(ControlType.ACK, value), forge.pair.addresses[0])


# SWITCH


def test_switch_is_said_until_it_is_read(forge: Forge) -> None:
    pair = forge.pair
    pair.sent.clear()
    pair.gateway.switch(forge.live, Reason.OPERATOR_SWITCH, pair.now_ms)
    pair.advance(500)
    frames = frames_of(forge, down(pair))
    assert len(frames) > 2
    assert {(f.kind, f.flags, f.chunks, f.value) for f in frames} == {
        (ControlType.SWITCH, 1, 1, b"OPERATOR_SWITCH")
    }
    assert len({frame.message_id for frame in frames}) == 1
    acknowledge(forge, frames[0].message_id)
    pair.sent.clear()
    pair.advance(2_000)
    assert down(pair) == []


def test_asking_for_a_switch_changes_nothing_but_is_told(forge: Forge) -> None:
    pair = forge.pair
    before = (forge.live.bindings, forge.live.machine.state_version)
    pair.gateway.switch(forge.live, Reason.OPERATOR_SWITCH, pair.now_ms)
    pair.advance(100)
    assert (forge.live.bindings, forge.live.machine.state_version) == before
    told = [event for event in pair.events(AuditEvent) if event.check == "switch"]
    assert [(event.reason_code, event.result) for event in told] == [("OPERATOR_SWITCH", "asked")]
    assert told[0].session_id == forge.live.hex_id


def test_a_client_that_is_asked_moves(pair: CorePair) -> None:
    pair.attach()
    pair.gateway.switch(pair.live, Reason.OPERATOR_SWITCH, pair.now_ms)
    pair.wait_for(lambda: pair.events(TransportSwitch) and pair.attached)
    (switched,) = pair.events(TransportSwitch)
    assert (switched.reason_code, switched.explicit) == ("OPERATOR_SWITCH", True)
    assert pair.live.switch_id is not None
    pair.wait_for(lambda: not pair.live.channel.awaits(pair.live.switch_id or 0))


def admin_of(pair: CorePair, monkeypatch: pytest.MonkeyPatch) -> GatewayAdmin:
    gateway: Any = SimpleNamespace(core=pair.gateway)
    admin = GatewayAdmin(gateway)
    monkeypatch.setattr("jvpn.supervisor.admin.now_ms", lambda: pair.now_ms)
    return admin


def test_the_operator_asks_and_sees_how_it_went(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, admin = forge.pair, admin_of(forge.pair, monkeypatch)
    pair.sent.clear()
    answer: Any = admin.handle({"command": "switch", "session": forge.live.hex_id[:8]})
    assert (answer["session"], answer["index"]) == (forge.live.hex_id, 0)
    pair.settle()
    asked = frames_of(forge, down(pair))
    seen: Any = admin.handle({"command": "switching", "session": forge.live.hex_id})
    assert (seen["index"], seen["read"]) == (0, False)
    acknowledge(forge, asked[0].message_id)
    forge.send(NEW, 1, 2, forge.challenge(NEW))
    seen = admin.handle({"command": "switching", "session": forge.live.hex_id})
    assert (seen["index"], seen["read"]) == (2, True)


def test_a_switch_that_the_policy_would_refuse_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = CorePair(fast_policy(switch_cooldown_ms=60_000)).attach()
    live = pair.live
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: pair.attached)
    admin = admin_of(pair, monkeypatch)
    with pytest.raises(AdminError, match="allows no switch"):
        admin.handle({"command": "switch", "session": live.hex_id})
    assert [event for event in pair.events(AuditEvent) if event.check == "switch"] == []


def test_a_policy_without_switches_refuses_client_and_operator_and_nobody_falls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = CorePair(fast_policy(max_switches_per_minute=0)).attach()
    live = pair.live
    with pytest.raises(AdminError, match="max_switches_per_minute is 0"):
        admin_of(pair, monkeypatch).handle({"command": "switch", "session": live.hex_id})
    assert pair.client.session is not None
    switching = pair.client.session.switching
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: switching.refused == "SWITCH_RATE_LIMITED")
    pair.wait_for(lambda: pair.attached)
    assert live.bindings.active is not None
    assert live.bindings.active.index == 0
    pair.link(0, up=False)
    pair.wait_for(lambda: pair.attached and live.bindings.active.index != 0)


def test_a_session_without_a_path_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = CorePair(fast_policy(idle_probe_interval_ms=500)).attach()
    pair.rules += [silent(0), silent(1)]
    pair.wait_for(lambda: pair.live.bindings.active is None)
    with pytest.raises(AdminError, match="no path"):
        admin_of(pair, monkeypatch).handle({"command": "switch", "session": pair.live.hex_id})


# Repetitions


def test_repetitions_wait_for_what_a_round_trip_takes() -> None:
    trips = RoundTrips()
    assert (trips.srtt_ms(0), trips.patience_ms(0)) == (None, 0.0)
    trips.sample(0, 100)
    assert (trips.srtt_ms(0), trips.patience_ms(0)) == (100, 300)
    trips.sample(0, 180)
    assert (trips.srtt_ms(0), trips.patience_ms(0)) == (110, 110 + 4 * 57.5)
    trips.sample(3, 10)
    trips.keep([3])
    assert (trips.srtt_ms(0), trips.srtt_ms(3)) == (None, 10)


def spacing(pair: CorePair, forge: Forge, ms: int) -> list[int]:
    """Milliseconds between repetitions of one message."""
    times: list[int] = []

    def watch(flight: Flight) -> list[int] | None:
        if not flight.up and flight.kind is PacketType.CONTROL:
            times.append(pair.now_ms)
        return None

    pair.rules.insert(0, watch)
    pair.gateway.switch(forge.live, Reason.OPERATOR_SWITCH, pair.now_ms)
    pair.advance(ms)
    return [later - before for before, later in pairwise(times)]


def test_control_is_repeated_after_srtt_and_four_times_its_variation(forge: Forge) -> None:
    forge.pair.advance(100)
    measured = Health(forge.live.machine.state_version, 0, 0, 400_000).encode()
    for _ in range(40):
        forge.pair.inject(forge.control(ControlType.HEALTH, measured), forge.pair.addresses[0])
    patience_ms = forge.live.round_trips.patience_ms(0)
    assert patience_ms > 350
    gaps = spacing(forge.pair, forge, 3_000)
    assert gaps
    assert all(patience_ms <= gap <= patience_ms + 2 for gap in gaps), (patience_ms, gaps)


def test_on_a_short_path_control_is_repeated_at_the_least_interval(forge: Forge) -> None:
    for _ in range(80):
        measured = Health(forge.live.machine.state_version, 0, 0, 1_000).encode()
        forge.pair.inject(forge.control(ControlType.HEALTH, measured), forge.pair.addresses[0])
    assert set(spacing(forge.pair, forge, 1_000)) == {CONTROL_REPEAT_MIN_MS}


def test_acknowledgements_measure_the_path() -> None:
    # With another uplink the client would do as it is asked.
    pair = CorePair(uplinks=1)
    pair.rules.append(lambda flight: [70] if flight.uplink == 0 else None)
    pair.attach()
    pair.advance(2_000)
    for _ in range(20):
        pair.gateway.switch(pair.live, Reason.OPERATOR_SWITCH, pair.now_ms)
        pair.advance(1_000)
    srtt_ms = pair.live.round_trips.srtt_ms(0)
    assert srtt_ms is not None
    assert 120 < srtt_ms < 160


def test_a_new_path_is_not_judged_by_the_old_one(forge: Forge) -> None:
    slow = Health(forge.live.machine.state_version, 0, 0, 900_000).encode()
    forge.pair.inject(forge.control(ControlType.HEALTH, slow), forge.pair.addresses[0])
    assert forge.live.channel.repeat_ms > 900
    forge.send(NEW, 1, 2, forge.challenge(NEW))
    assert forge.live.channel.repeat_ms == CONTROL_REPEAT_MIN_MS


# CLOSE


def test_three_closes_are_spaced_so_that_one_gap_does_not_take_them_all() -> None:
    pair = CorePair().attach()
    pair.advance(1_000)
    pair.sent.clear()
    pair.rules.insert(0, lambda flight: [] if flight.kind is PacketType.CONTROL and not flight.up else None)
    pair.gateway.terminate(pair.live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    assert len(down(pair)) == 1
    pair.advance(CONTROL_REPEAT_MIN_MS - 1)
    assert len(down(pair)) == 1
    pair.rules.pop(0)
    pair.advance(2_000)
    assert len(down(pair)) == CLOSE_REPEATS
    assert [over.reason for over in pair.over] == ["OPERATOR_TERMINATED"]
    assert pair.context.farewells == []


# Order of CONTROL and ACK


def test_nothing_is_said_on_a_new_path_before_the_ack_of_its_bind(forge: Forge) -> None:
    pair = forge.pair
    pair.worker_delay_ms = 40
    pair.sent.clear()
    pair.inject(forge.request(1, 2, forge.challenge(NEW)), NEW)
    pair.gateway.switch(forge.live, Reason.OPERATOR_SWITCH, pair.now_ms)
    pair.advance(39)
    said = (PacketType.CONTROL, PacketType.REATTACH_ACK)
    assert [flight for flight in pair.sent if not flight.up and flight.kind in said] == []
    pair.advance(DELAY_MS)
    kinds = [flight.kind for flight in pair.sent if not flight.up and flight.kind in said]
    assert kinds[0] is PacketType.REATTACH_ACK
    assert PacketType.CONTROL in kinds
    assert forge.live.machine.state is State.ATTACHED


def test_a_takeover_says_nothing_in_the_new_epoch_before_its_ack() -> None:
    pair = CorePair().attach()
    pair.advance(500)
    pair.restart_gateway()
    pair.worker_delay_ms = 300
    pair.sent.clear()
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.context.counters["takeovers"] == 1)
    pair.advance(250)
    bound = [flight for flight in pair.sent if not flight.up and flight.kind is PacketType.CONTROL]
    assert bound == []
    pair.wait_for(lambda: pair.attached)
    assert down(pair) != []


# Draining


def drained_ms(pair: CorePair) -> int:
    """How long the old index drains in all, once the client's word of the new path has settled it."""
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: pair.live.bindings.draining is not None)
    bound = pair.live.bindings.active
    assert bound is not None
    pair.wait_for(lambda: pair.live.bindings.draining is None)
    return pair.now_ms - bound.since_ms


def slow(uplink: int, one_way_ms: int) -> CorePair:
    pair = CorePair()
    pair.rules.append(lambda flight: [one_way_ms] if flight.uplink == uplink else None)
    pair.attach()
    pair.advance(5_000)
    return pair


def test_on_quick_paths_an_index_drains_for_the_policys_window(pair: CorePair) -> None:
    assert drained_ms(pair.attach()) == pair.policy.drain_window_ms


@pytest.mark.parametrize("uplink", [0, 1])
def test_an_index_drains_as_long_as_the_slower_of_both_paths_asks(uplink: int) -> None:
    pair = slow(uplink, 150)
    assert 2 * 290 <= drained_ms(pair) <= 2 * 400


def test_what_was_sent_before_the_client_knew_is_delivered_however_slow_the_new_path() -> None:
    pair = slow(1, 400)
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: pair.live.bindings.draining is not None)
    # Half a round trip of the new path from now the ACK is here; until then the client sends on the old one.
    pair.advance(380)
    worker = pair.workers[pair.live.slot]
    before = len(worker.delivered)
    assert pair.data_up(b"late" * 20)
    pair.advance(50)
    assert len(worker.delivered) == before + 1


def test_who_says_nothing_of_the_new_path_leaves_the_old_one_draining_longer(forge: Forge) -> None:
    cause = Cause.OPERATOR_SWITCH
    forge.send(NEW, 1, 2, forge.challenge(NEW), cause=cause)
    assert forge.live.bindings.drain_until_ms == forge.pair.now_ms + 2_000
    quick = Health(forge.live.machine.state_version, 0, 0, 10_000).encode()
    forge.pair.inject(forge.control(ControlType.HEALTH, quick, 2), NEW)
    assert forge.live.bindings.drain_until_ms == forge.pair.now_ms + forge.live.policy.drain_window_ms
