"""ClientCore against a real gateway core, over uplinks that fail in every way the failure matrix names."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from core_pair import DELAY_MS, NS, CorePair, Flight, every_pair_is_sound, fast_policy, lose, silent
from frozen import differences, frozen

from jvpn.agent.session import ClientSession
from jvpn.observability.events import ReattachAttempt, ReattachResult, StateChange, TransportSwitch
from jvpn.protocol import messages, reattach
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import MAX_CONTROL_DATAGRAM, PacketType
from jvpn.protocol.control import ControlType, Frame
from jvpn.session.machine import State
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]

QUICK = fast_policy(idle_probe_interval_ms=500, transport_loss_ttl_ms=6_000, recovery_window_ms=1_000)


@pytest.fixture
def pair() -> CorePair:
    return CorePair().attach()


def ours(pair: CorePair) -> ClientSession:
    assert pair.client.session is not None
    return pair.client.session


def on(pair: CorePair, uplink: int) -> Callable[[], bool]:
    return lambda: pair.attached and ours(pair).paths.active == uplink


def switches(pair: CorePair) -> list[str]:
    return [event.reason_code for event in pair.events(TransportSwitch)]


def assert_one_session(pair: CorePair, session_id: bytes) -> None:
    """Same SessionID, no second handshake, every state version accounted for."""
    assert ours(pair).session_id == pair.live.session_id == session_id
    assert pair.client.handshakes_done == pair.context.counters["handshakes"] == 1
    versions = [event.state_version for event in pair.events(StateChange)]
    assert versions == list(range(versions[0], versions[0] + len(versions)))
    assert versions[-1] == pair.live.machine.state_version


# Handshake


def test_timestamps_rise_and_are_durable_before_they_are_sent() -> None:
    pair = CorePair()
    pair.rules += [silent(0, up=False), silent(1, up=False)]
    durable = []

    def note(flight: Flight) -> None:
        if flight.up:
            durable.append(pair.persisted_us)

    pair.rules.insert(0, note)
    pair.advance(20_000)
    assert len(durable) > 4
    assert durable == sorted(set(durable))
    assert all(len(flight.data) <= MAX_CONTROL_DATAGRAM for flight in pair.sent)


def test_a_clock_set_back_does_not_keep_a_client_out(pair: CorePair) -> None:
    pair.persisted_us += 3_600_000_000
    pair.client = pair.new_client()
    pair.client_worker.table.remove(0)
    first = pair.live
    pair.wait_for(lambda: pair.attached and pair.live is not first)


def test_another_uplink_is_tried_when_the_first_does_not_answer() -> None:
    pair = CorePair()
    pair.rules.append(silent(0))
    pair.wait_for(on(pair, 1))


def test_old_and_foreign_responses_are_refused() -> None:
    pair = CorePair()
    pair.rules.append(lambda flight: [600] if flight.kind is PacketType.HANDSHAKE_RESPONSE else None)
    pair.advance(650)
    assert pair.client.session is None
    assert pair.client.counters["not_an_answer"] >= 1
    pair.rules.clear()
    pair.attach()
    before = frozen(pair.client)
    for flight in pair.of_kind(PacketType.HANDSHAKE_RESPONSE, up=False):
        pair.inject_down(flight.data)
    assert differences(before, frozen(pair.client)) == []


@pytest.mark.parametrize("told", [False, True], ids=["nothing", "STATE alone"])
def test_a_configuration_that_never_comes_is_given_up_and_tried_again(told: bool) -> None:
    pair = CorePair()

    def no_config(flight: Flight) -> list[int] | None:
        large = not flight.up and flight.kind is PacketType.CONTROL and len(flight.data) > 300
        return [] if large else None

    pair.rules.append(no_config)
    pair.wait_for(lambda: pair.context.sessions)
    pair.advance(50)
    if told:
        machine = pair.live.machine
        state = messages.State(machine.state_version, machine.state.number, "HANDSHAKE_OK").encode()
        frame = Frame(ControlType.STATE, 0, 99, 0, 1, state).encode()
        pair.inject_down(pair.live.control.seal(0, pair.live.indexes.ids[0], frame))
        assert ours(pair).view.state is State.ATTACHED
    pair.wait_for(lambda: pair.over, 6_000)
    assert pair.over[0].again
    pair.rules.clear()
    pair.attach()


# Failures of the active path


def test_link_down_moves_the_session_at_once(pair: CorePair) -> None:
    session_id = pair.live.session_id
    down_ms = pair.now_ms
    pair.link(0, False)
    pair.wait_for(on(pair, 1))
    assert pair.now_ms - down_ms == 2 * DELAY_MS
    assert switches(pair) == ["TRANSPORT_DEAD"]
    assert_one_session(pair, session_id)


@pytest.mark.parametrize("up", [None, True, False], ids=["both ways", "up", "down"])
def test_silence_moves_the_session(pair: CorePair, up: bool | None) -> None:
    session_id = pair.live.session_id
    pair.rules.append(silent(0, up=up))
    began_ms = pair.now_ms
    while not on(pair, 1)():
        pair.data_up(b"traffic")
        if pair.live.bindings.active is not None:
            pair.data_down(b"traffic")
        pair.advance(5)
        assert pair.now_ms < began_ms + 1_000
    assert switches(pair) == ["TRANSPORT_DEAD"]
    assert_one_session(pair, session_id)


def test_one_lost_packet_moves_nothing(pair: CorePair) -> None:
    for kind in (PacketType.DATA, PacketType.PATH):
        for up in (True, False):
            pair.rules[:] = [lose(kind, 1, up=up)]
            for _ in range(60):
                pair.data_up(b"traffic")
                pair.data_down(b"traffic")
                pair.advance(10)
    assert pair.version == 1
    assert switches(pair) == []


def test_an_idle_session_on_silent_uplinks_is_found_by_its_probes() -> None:
    pair = CorePair(QUICK).attach()
    pair.rules.append(silent(0))
    pair.wait_for(on(pair, 1), 3_000)
    assert switches(pair) == ["TRANSPORT_DEAD"]


def test_without_a_path_the_client_waits_idle_and_comes_back_as_the_same_session() -> None:
    pair = CorePair(QUICK).attach()
    session_id = pair.live.session_id
    pair.rules += [silent(0), silent(1)]
    pair.data_up(b"traffic")
    pair.wait_for(lambda: ours(pair).view.state is State.DEGRADED)
    pair.advance(1_000)
    pair.rules.clear()
    pair.wait_for(lambda: pair.attached, 3_000)
    assert_one_session(pair, session_id)


def test_without_a_path_nothing_is_sent(pair: CorePair) -> None:
    assert pair.data_up(b"traffic")
    pair.link(1, False)
    pair.link(0, False)
    assert not pair.data_up(b"traffic")
    pair.link(0, True)
    pair.wait_for(lambda: pair.attached)
    assert pair.data_up(b"traffic")


def test_links_that_return_are_used_at_once() -> None:
    pair = CorePair(QUICK).attach()
    session_id = pair.live.session_id
    pair.link(0, False)
    pair.link(1, False)
    pair.advance(3_000)
    back_ms = pair.now_ms
    pair.link(1, True)
    pair.wait_for(lambda: pair.attached)
    # A fresh index on a network that may be another one: request, challenge, request.
    assert pair.now_ms - back_ms <= 4 * DELAY_MS
    assert_one_session(pair, session_id)


def test_the_transport_loss_ttl_ends_the_session_and_a_new_one_follows() -> None:
    pair = CorePair(QUICK).attach()
    first = pair.live.session_id
    pair.link(0, False)
    pair.link(1, False)
    lost_ms = pair.now_ms
    pair.advance(5_999)
    assert not pair.over
    pair.wait_for(lambda: pair.over, 2)
    assert (pair.over[0].reason, pair.over[0].again) == ("TRANSPORT_LOSS_TTL_EXPIRED", True)
    assert pair.now_ms - lost_ms == 6_000
    pair.link(0, True)
    pair.wait_for(lambda: pair.attached)
    assert pair.live.session_id != first


# Lost answers, flapping, network changes


def test_a_lost_ack_is_asked_for_again(pair: CorePair) -> None:
    session_id = pair.live.session_id
    pair.rules.append(lose(PacketType.REATTACH_ACK, 3))
    pair.link(0, False)
    pair.wait_for(on(pair, 1))
    assert pair.version == 3
    assert_one_session(pair, session_id)


def test_an_ack_that_names_an_index_left_meanwhile_strands_nobody(pair: CorePair) -> None:
    session_id = pair.live.session_id
    pair.rules.append(lose(PacketType.REATTACH_ACK, 1_000))
    pair.link(0, False)
    pair.advance(25)
    assert pair.version == 3
    pair.link(1, False)
    pair.link(1, True)
    pair.advance(60)
    pair.rules.clear()
    pair.wait_for(on(pair, 1), 2_000)
    assert_one_session(pair, session_id)


@pytest.mark.parametrize("seed", range(5))
def test_a_candidate_that_flaps_fifty_times(seed: int) -> None:
    pair = CorePair(seed=seed).attach()
    session_id = pair.live.session_id
    dice = random.Random(seed)
    for number in range(50):
        pair.link(number % 2, False)
        pair.advance(dice.randrange(60))
        pair.link(number % 2, True)
        pair.advance(dice.randrange(60))
    pair.wait_for(lambda: pair.attached, 5_000)
    assert_one_session(pair, session_id)
    assert_no_nonce_twice(pair)


@pytest.mark.parametrize("up", [True, False], ids=["nothing reaches the gateway", "no answer comes back"])
def test_many_network_changes_in_a_row_while_cut_off(up: bool) -> None:
    pair = CorePair().attach()
    session_id = pair.live.session_id
    pair.rules += [silent(0, up=up), silent(1, up=up)]
    for number in range(12):
        pair.link(number % 2, False)
        pair.advance(300)
        pair.link(number % 2, True)
        pair.advance(200)
    pair.rules.clear()
    pair.wait_for(lambda: pair.attached, 5_000)
    assert_one_session(pair, session_id)
    assert_no_nonce_twice(pair)


def assert_no_nonce_twice(pair: CorePair) -> None:
    """No two different REQUESTs, CONTROLs or data datagrams under one id and counter, in either direction."""
    seen: dict[tuple[bool, str, bytes], bytes] = {}
    for flight in pair.sent:
        family = {PacketType.DATA: "data", PacketType.PATH: "data"}.get(flight.kind, flight.kind.name)
        if family in ("data", "CONTROL", "REATTACH_REQUEST"):
            key = (flight.up, family, flight.data[4:20])
            assert seen.setdefault(key, flight.data) == flight.data


def test_used_up_indexes_cost_linkability_and_not_the_session(pair: CorePair) -> None:
    session_id = pair.live.session_id
    pair.rules += [silent(0, up=True), silent(1, up=True)]
    for _ in range(12):
        pair.link(1, False)
        pair.link(1, True)
        pair.link(0, False)
        pair.link(0, True)
        pair.advance(400)
    indexes = {path.index for path in ours(pair).paths.paths.values()}
    assert len(indexes) == 1
    pair.rules.clear()
    pair.wait_for(lambda: pair.attached, 5_000)
    assert_one_session(pair, session_id)
    assert_no_nonce_twice(pair)


@pytest.mark.parametrize("seed", range(25))
def test_everything_at_once(seed: int) -> None:
    pair = CorePair(seed=seed)
    dice = random.Random(seed)

    def weather(flight: Flight) -> list[int]:
        fate = dice.random()
        copies = 0 if fate < 0.25 else 3 if fate < 0.4 else 1
        return [dice.randrange(1, 80) for _ in range(copies)]

    pair.rules.append(weather)
    pair.wait_for(lambda: pair.attached)
    session_id = pair.live.session_id
    for _ in range(20):
        what = dice.randrange(4)
        uplink = dice.randrange(2)
        if what < 2:
            pair.link(uplink, False)
            pair.advance(dice.randrange(400))
            pair.link(uplink, True)
        elif what == 2:
            pair.client.switch(f"up{'AB'[uplink]}", pair.now_ns)
        else:
            pair.data_up(b"traffic")
        pair.advance(dice.randrange(800))
    pair.rules.clear()
    pair.wait_for(lambda: pair.attached, 10_000)
    assert_one_session(pair, session_id)
    assert_no_nonce_twice(pair)
    results = Counter(e.attempt for e in pair.client_sink.events if isinstance(e, ReattachResult))
    assert set(results.values()) <= {1}


# NAT rebinding


def test_a_new_source_address_is_noticed_by_traffic_and_rebound_on_a_fresh_index(pair: CorePair) -> None:
    session_id, old = pair.live.session_id, pair.live.bindings.active
    moved = Endpoint(to_bytes("10.201.1.102"), 777)
    pair.addresses[0] = moved
    began_ms = pair.now_ms
    pair.data_up(b"from elsewhere")
    pair.wait_for(lambda: pair.attached and pair.live.bindings.active != old)
    assert pair.now_ms - began_ms <= 4 * DELAY_MS
    active = pair.live.bindings.active
    assert active is not None
    assert old is not None
    assert active.source == ("10.201.1.102", 777)
    assert active.index > old.index
    assert switches(pair) == ["ADDRESS_CHANGED"]
    assert pair.workers[pair.live.slot].delivered == []
    assert_one_session(pair, session_id)


def test_an_idle_client_notices_a_new_source_by_its_probe() -> None:
    pair = CorePair(QUICK).attach()
    pair.addresses[0] = Endpoint(to_bytes("10.201.1.102"), 777)
    pair.wait_for(lambda: switches(pair), QUICK.idle_probe_interval_ms + 6 * DELAY_MS)
    assert switches(pair) == ["ADDRESS_CHANGED"]


def test_data_from_a_new_source_alone_moves_nothing(pair: CorePair) -> None:
    before = pair.live.bindings
    pair.data_up(b"recorded")
    recorded = pair.of_kind(PacketType.DATA, up=True)[-1].data
    pair.advance(50)
    for _ in range(100):
        pair.inject(recorded, Endpoint(to_bytes("198.51.100.7"), 5555))
    pair.advance(500)
    assert pair.live.bindings == before
    assert pair.version == 1


# Voluntary switches


def test_an_operators_switch_delivers_over_the_old_path_until_bound_and_drains_it(pair: CorePair) -> None:
    pair.client.switch("upB", pair.now_ns)
    pair.data_up(b"old path")
    pair.settle()
    assert ours(pair).view.state is State.RECOVERING
    pair.wait_for(on(pair, 1))
    assert switches(pair) == ["OPERATOR_SWITCH"]
    assert pair.live.bindings.draining is not None
    pair.advance(pair.policy.drain_window_ms + 1)
    assert pair.live.bindings.draining is None
    pair.data_up(b"new path")
    pair.advance(DELAY_MS)
    assert pair.workers[pair.live.slot].delivered == [b"old path", b"new path"]


def test_what_the_old_path_still_carries_is_delivered_while_it_drains(pair: CorePair) -> None:
    pair.rules.append(lambda flight: [60] if flight.kind is PacketType.DATA else None)
    pair.data_down(b"slow")
    pair.data_up(b"slow")
    pair.client.switch("upB", pair.now_ns)
    pair.wait_for(on(pair, 1))
    pair.advance(60)
    assert pair.client_worker.delivered == [b"slow"]
    assert pair.workers[pair.live.slot].delivered == [b"slow"]


def test_a_path_that_was_left_is_warm_again_soon(pair: CorePair) -> None:
    pair.client.switch("upB", pair.now_ns)
    pair.wait_for(on(pair, 1))
    left = ours(pair).paths.paths[0]
    pair.wait_for(lambda: left.validated(pair.now_ms), 200)


def test_a_refused_switch_leaves_everything_as_it_was(pair: CorePair) -> None:
    pair.client.switch("upB", pair.now_ns)
    pair.wait_for(on(pair, 1))
    pair.advance(500)
    pair.client.switch("upA", pair.now_ns)
    pair.advance(100)
    assert pair.attached
    assert ours(pair).paths.active == 1
    assert pair.version == 3
    pair.data_up(b"still here")
    pair.advance(DELAY_MS)
    assert pair.workers[pair.live.slot].delivered[-1] == b"still here"


def test_a_switch_to_where_we_are_or_to_nowhere_is_refused(pair: CorePair) -> None:
    assert not pair.client.switch("upA", pair.now_ns)
    assert not pair.client.switch("upZ", pair.now_ns)


def test_a_path_that_dies_while_it_is_being_left_is_left_for_any_other(pair: CorePair) -> None:
    pair.client.switch("upB", pair.now_ns)
    pair.wait_for(on(pair, 1))
    pair.advance(500)
    # Too soon for another switch: it will be refused, and in that moment the link goes.
    pair.client.switch("upA", pair.now_ns)
    pair.settle()
    pair.link(1, False)
    pair.wait_for(on(pair, 0), 500)
    assert switches(pair) == ["OPERATOR_SWITCH", "TRANSPORT_DEAD"]


def test_a_switch_that_was_never_asked_for_on_the_wire_leaves_no_result(pair: CorePair) -> None:
    """The link goes before the first REQUEST: no attempt is told, so none may end (every_pair_is_sound audits)."""
    assert pair.client.switch("upB", pair.now_ns)
    pair.link(1, up=False)
    pair.wait_for(lambda: pair.attached)
    ours = pair.client.session
    assert ours is not None
    assert (ours.view.state, ours.paths.active) == (State.ATTACHED, 0)
    assert not [
        event for event in pair.client_sink.events if isinstance(event, ReattachAttempt | ReattachResult)
    ]


def test_a_switch_in_flight_does_not_hold_the_ttl_back() -> None:
    pair = CorePair(QUICK).attach()
    pair.rules += [silent(0), silent(1)]
    pair.client.switch("upB", pair.now_ns)
    pair.settle()
    pair.link(0, False)
    lost_ms = pair.now_ms
    pair.wait_for(lambda: pair.over, 7_000)
    assert pair.over[0].reason == "TRANSPORT_LOSS_TTL_EXPIRED"
    assert pair.now_ms - lost_ms == QUICK.transport_loss_ttl_ms
    asked = [e.attempt for e in pair.client_sink.events if isinstance(e, ReattachAttempt)]
    answered = [e.attempt for e in pair.client_sink.events if isinstance(e, ReattachResult)]
    assert sorted(asked) == sorted(answered)


def test_a_silent_target_does_not_hold_a_dying_path(pair: CorePair) -> None:
    pair.rules += [silent(1), silent(0)]
    pair.client.switch("upB", pair.now_ns)
    pair.data_up(b"into the dark")
    pair.advance(300)
    assert not ours(pair).requester.attempt or not ours(pair).requester.attempt.voluntary  # type: ignore[union-attr]
    pair.rules[:] = [silent(1)]
    pair.wait_for(on(pair, 0), 5_000)


def test_a_preferred_uplink_is_returned_to_when_it_has_been_steady() -> None:
    pair = CorePair()
    pair.client.uplinks[0].preference = 200
    pair.attach()
    pair.link(0, False)
    pair.wait_for(on(pair, 1))
    pair.link(0, True)
    back_ms = pair.now_ms
    pair.wait_for(on(pair, 0))
    assert pair.now_ms - back_ms >= pair.policy.stability_window_ms
    assert switches(pair) == ["TRANSPORT_DEAD", "TRANSPORT_RETURNED"]


# Ends


def test_stopping_tells_the_gateway(pair: CorePair) -> None:
    before = len(pair.of_kind(PacketType.CONTROL, up=True))
    pair.client.stop(pair.now_ns)
    pair.advance(DELAY_MS)
    assert pair.context.sessions == {}
    assert [event.reason_code for event in pair.events(StateChange)][-1] == "PEER_CLOSED"
    assert len(pair.of_kind(PacketType.CONTROL, up=True)) > before
    pair.advance(10_000)
    assert pair.context.sessions == {}


def test_a_session_that_ends_by_its_lifetime_is_followed_by_a_new_one() -> None:
    pair = CorePair(fast_policy(session_ttl_ms=60_000, transport_loss_ttl_ms=60_000)).attach()
    first = pair.live.session_id
    pair.wait_for(lambda: pair.over, 61_000)
    assert pair.over[0].reason == "SESSION_TTL_EXPIRED"
    pair.wait_for(lambda: pair.attached)
    assert pair.live.session_id != first


def test_a_fail_that_says_the_session_is_over_ends_it_and_starts_anew(pair: CorePair) -> None:
    session = ours(pair)
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.REATTACH_ACK else None)
    pair.link(0, False)
    pair.advance(5)
    attempt = session.requester.attempt
    assert attempt is not None
    path = session.paths.paths[1]
    fail = reattach.Fail(attempt.number, session.view.state_version, 0, "TRANSPORT_LOSS_TTL_EXPIRED")
    pair.inject_down(reattach.seal_fail(session.secrets, bytes(16), path.steering_id, fail), 1)
    assert pair.over[0].again
    pair.rules.clear()
    pair.wait_for(lambda: pair.attached)
    assert pair.client.handshakes_done == 2


# Timers


def test_no_deadline_is_ever_left_in_the_past() -> None:
    """The pair itself fails when a core spins; here every kind of silence is tried for it."""
    for rules in (
        [silent(1)],
        [silent(0)],
        [silent(0), silent(1)],
        [silent(0, up=False)],
        [silent(1, up=True)],
    ):
        pair = CorePair(QUICK).attach()
        pair.rules += rules
        pair.data_up(b"traffic")
        pair.advance(15_000)
        assert pair.client.get_timer() * NS > pair.now_ns - NS
