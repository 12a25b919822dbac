"""Rules of the session that show in a whole life of both cores, not in one of its parts."""

from collections import Counter

import pytest
from core_pair import CLIENT_KEY, GATEWAY_KEY, CorePair, every_pair_is_sound, fast_policy, silent
from forge import NEW, RACER, Forge, forge

from jvpn.observability.events import ReattachAttempt, ReattachResult, StateChange, TransportSwitch, encode
from jvpn.policy.model import Policy
from jvpn.protocol import keys
from jvpn.protocol.constants import Direction, PacketType
from jvpn.session.machine import Origin, Reason, State, split_version

__all__ = ["every_pair_is_sound", "forge"]


def test_the_default_policys_numbers() -> None:
    wanted = {
        "session_ttl_ms": 28_800_000,
        "transport_loss_ttl_ms": 600_000,
        "recovery_window_ms": 8_000,
        "max_switches_per_minute": 8,
        "switch_cooldown_ms": 1_500,
        "volatility_hold_ms": 500,
        "volatile_to_degraded_ms": 4_000,
        "stability_window_ms": 2_000,
        "loss_floor": 0.20,
        "loss_window_ms": 2_000,
        "latency_floor_ms": 300,
        "jitter_floor_ms": 80,
        "switch_improvement_factor": 1.10,
        "hysteresis": 0.8,
        "max_candidates": 3,
        "allowed_transports": ("udp", "quic", "tcp"),
        "drain_window_ms": 250,
        "resend_window_ms": 500,
        "resend_bytes": 4_194_304,
        "probe_interval_ms": 40,
        "idle_probe_interval_ms": 10_000,
        "rekey_interval_ms": 120_000,
        "on_recovery_window_exceeded": "degrade",
        "kem": "mlkem768",
    }
    default = Policy.default()
    assert {name: getattr(default, name) for name in wanted} == wanted


def test_silence_is_death_for_the_gateway_after_three_idle_intervals_and_not_before(forge: Forge) -> None:
    pair = forge.pair
    pair.rules.append(lambda flight: [])
    pair.advance(1_000)  # nothing is under way any more
    limit_ms = 3 * pair.policy.idle_probe_interval_ms
    heard_ms = max(
        forge.live.heard_ms, pair.gateway_page.read_activity(forge.live.record).heard_ns // 1_000_000
    )
    pair.advance(heard_ms + limit_ms - pair.now_ms - 1)
    assert forge.live.machine.state is State.ATTACHED
    pair.advance(2)
    assert forge.live.machine.state is State.RECOVERING
    last = pair.events(StateChange)[-1]
    assert (last.reason_code, last.bindings) == ("TRANSPORT_DEAD", 0)
    # Zero bindings begin now, and with them the transport-loss TTL.
    assert forge.live.ttl.loss_deadline_ms is not None
    assert abs(forge.live.ttl.loss_deadline_ms - pair.now_ms - pair.policy.transport_loss_ttl_ms) <= 1


def test_what_comes_while_recovering_is_no_transition(forge: Forge) -> None:
    """A second path, a second request, a challenge."""
    pair = forge.pair
    pair.wait_for(lambda: forge.live.machine.state is State.RECOVERING)
    version, told = forge.live.machine.state_version, len(pair.events(StateChange))
    for source, index in ((NEW, 2), (RACER, 3), (NEW, 2)):
        assert len(forge.send(source, 1, index)) == 1  # ACK(pending), with a challenge
    assert forge.live.machine.state is State.RECOVERING
    assert (forge.live.machine.state_version, len(pair.events(StateChange))) == (version, told)
    forge.send(NEW, 1, 2, forge.challenge(NEW))
    assert split_version(forge.live.machine.state_version).count == split_version(version).count + 1
    assert forge.live.machine.state is State.ATTACHED


def test_the_recovery_window_ends_in_degraded_with_the_session_kept(forge: Forge) -> None:
    pair = forge.pair
    pair.wait_for(lambda: forge.live.machine.state is State.RECOVERING)
    pair.advance(pair.policy.recovery_window_ms - 1)
    assert forge.live.machine.state is State.RECOVERING
    pair.advance(2)
    assert forge.live.machine.state is State.DEGRADED
    forge.send(NEW, 1, 2, forge.challenge(NEW))
    assert [event.reason_code for event in pair.events(StateChange)][-3:] == [
        "RECOVERY_WINDOW_EXCEEDED",
        "REATTACH_REQUESTED",
        "REATTACH_OK",
    ]


def test_an_event_for_each_version_in_order_and_a_result_for_each_attempt() -> None:
    pair = CorePair(fast_policy(switch_cooldown_ms=0)).attach()
    for down in (0, 1, 0):
        pair.link(down, up=False)
        pair.wait_for(lambda: pair.attached)
        pair.link(down, up=True)
        pair.advance(3_000)
    pair.gateway.terminate(pair.live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.advance(1_000)
    counts = [split_version(event.state_version).count for event in pair.events(StateChange)]
    assert counts == list(range(1, len(counts) + 1))
    assert len(counts) >= 8
    for sink in (pair.gateway_sink, pair.client_sink):
        attempts = [event.attempt for event in sink.events if isinstance(event, ReattachAttempt)]
        results = [event.attempt for event in sink.events if isinstance(event, ReattachResult)]
        assert sorted(attempts) == sorted(set(attempts)) == sorted(results)
        assert attempts
    assert all(event.reason_code for event in pair.events(StateChange))
    told = [event for event in pair.client_sink.events if isinstance(event, StateChange)]
    assert {event.origin for event in told} == {Origin.CLIENT}
    assert [event.local_seq for event in told] == list(range(1, len(told) + 1))


def test_no_event_shows_a_payload_a_key_or_an_inner_address() -> None:
    pair = CorePair(fast_policy(rekey_interval_ms=10_000)).attach()
    first = pair.live.secrets
    pair.data_up(b"a-payload-to-be-found" * 4)
    pair.data_down(b"a-payload-to-be-found" * 4)
    pair.wait_for(lambda: pair.live.secrets.phase_number > first.phase_number)
    second = pair.live.secrets
    pair.rules += [silent(0)]
    pair.wait_for(lambda: any(isinstance(e, TransportSwitch) for e in pair.gateway_sink.events), 60_000)
    pair.client.stop(pair.now_ns)
    pair.advance(1_000)
    lines = b"".join(encode(event) for event in (*pair.gateway_sink.events, *pair.client_sink.events))
    secret = [GATEWAY_KEY, CLIENT_KEY, pair.gateway_page.challenge_key, b"a-payload-to-be-found"]
    for secrets in (first, second):
        secret += [secrets.session, secrets.phase, keys.reattach_key(secrets)]
        for direction in Direction:
            secret += [keys.data_key(secrets, direction, 1), keys.control_key(secrets, direction, 1)]
    for value in secret:
        assert value not in lines
        assert value.hex().encode() not in lines.lower()
    assert b"10.8.0." not in lines
    # Outer addresses are what a switch is about.
    assert b"10.201.2.2" in lines


@pytest.mark.parametrize("waits", [True, False], ids=["traffic waits", "idle"])
def test_without_a_path_requests_go_every_50_ms_and_less_often_when_nothing_waits(waits: bool) -> None:
    pair = CorePair(fast_policy(recovery_window_ms=60_000)).attach()
    pair.rules += [silent(0), silent(1)]
    pair.data_up(b"something to prove")
    session = pair.client.session
    assert session is not None
    pair.wait_for(lambda: session.view.state is State.RECOVERING)

    def asked_within(ms: int) -> int:
        """REQUESTs on the path that was asked most."""
        before = len(pair.of_kind(PacketType.REATTACH_REQUEST, up=True))
        for _ in range(10):
            if waits:
                pair.data_up(b"more of it")
            pair.advance(ms / 10)
        sent = pair.of_kind(PacketType.REATTACH_REQUEST, up=True)[before:]
        return max(Counter(flight.uplink for flight in sent).values(), default=0)

    early = asked_within(1_000)
    pair.advance(20_000)
    late = asked_within(1_000)
    assert 18 <= early <= 21
    assert 18 <= late <= 21 if waits else late < early / 4
    # A link event asks at once.
    before = len(pair.of_kind(PacketType.REATTACH_REQUEST, up=True))
    pair.link(1, up=False)
    pair.link(1, up=True)
    assert len(pair.of_kind(PacketType.REATTACH_REQUEST, up=True)) > before


@pytest.mark.parametrize(
    ("policy", "lifetime_ms"),
    [
        (fast_policy(reauthenticate_interval_h=1), 3_600_000),
        (fast_policy(reauthenticate_interval_h=24), 28_800_000),
        (fast_policy(), 28_800_000),
    ],
    ids=["each hour", "longer than a session may live", "never"],
)
def test_a_session_ends_for_a_new_handshake_after_the_hours_that_the_policy_says(
    policy: Policy, lifetime_ms: int
) -> None:
    pair = CorePair(policy).attach()
    session = pair.client.session
    assert session is not None
    assert pair.live.ttl.session_deadline_ms - pair.live.created_ms == lifetime_ms
    # The client has it from the gateway, and ends the session itself where nobody can tell it.
    assert abs(session.ttl.session_deadline_ms - pair.live.created_ms - lifetime_ms) < 1_000
    (stored,) = pair.store.sessions()
    assert stored.expires_wall_ms - stored.created_wall_ms == lifetime_ms


def test_an_idle_client_whose_control_is_not_acknowledged_asks_whether_its_path_lives() -> None:
    """It does not wait for the next idle probe, 10 s apart."""
    pair = CorePair(fast_policy()).attach()
    pair.advance(5_000)
    session = pair.client.session
    assert session is not None
    pair.sent.clear()
    pair.advance(3_000)
    assert [flight for flight in pair.of_kind(PacketType.PATH, up=True) if flight.uplink == 0] == []
    pair.rules.append(silent(0))
    session.rekeying.begin(pair.now_ms)
    session.flush(pair.now_ms)
    pair.wait_for(lambda: session.paths.active == 1, 1_500)
    (switch,) = pair.events(TransportSwitch)
    assert switch.reason_code == "TRANSPORT_DEAD"
