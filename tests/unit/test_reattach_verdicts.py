"""Every verdict on a REATTACH_REQUEST, end to end: what is answered, what is in force, what is told."""

from dataclasses import replace

import pytest
from core_pair import DELAY_MS, CorePair, Flight, every_pair_is_sound, fast_policy
from forge import LOCAL, NEW, RACER, Forge, forge
from frozen import differences, frozen

from jvpn.observability.events import ReattachAttempt, SecurityEvent, StateChange, TransportSwitchDenied
from jvpn.protocol import reattach
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import NO_INDEX, PacketType, Role, Transport
from jvpn.protocol.reattach import Cause, Result
from jvpn.session.machine import State, pack_version
from jvpn.supervisor import effects
from jvpn.supervisor.arrival import Arrival
from workers import commands
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound", "forge"]


def test_without_a_challenge_a_request_is_pending_and_changes_nothing(forge: Forge) -> None:
    pair = forge.pair
    forge.send(NEW, 1, 2)  # moves the window of indexes: authenticated, so allowed
    before = frozen(pair.gateway)
    answer = forge.ack(forge.send(NEW, 1, 2))
    assert answer.result is Result.PENDING
    assert answer.challenge == forge.challenge(NEW)
    assert (answer.observed_address, answer.observed_port) == (NEW.address, NEW.port)
    assert differences(before, frozen(pair.gateway)) == []
    assert pair.version == 1


def test_the_same_request_with_the_challenge_binds(forge: Forge) -> None:
    pair = forge.pair
    challenge = forge.ack(forge.send(NEW, 1, 2)).challenge
    answer = forge.ack(forge.send(NEW, 1, 2, challenge))
    assert (answer.result, answer.bound_index) == (Result.BOUND, 2)
    assert answer.state_version == pair.live.machine.state_version == pack_version(1, 3)
    active = pair.live.bindings.active
    assert active is not None
    assert (active.index, active.source) == (2, ("10.201.2.2", 40_001))
    assert [event.reason_code for event in pair.events(StateChange)] == [
        "HANDSHAKE_OK",
        "TRANSPORT_DEAD",
        "REATTACH_OK",
    ]


def test_the_ack_goes_out_only_when_everything_is_in_force(forge: Forge) -> None:
    pair = forge.pair
    pair.worker_delay_ms = 5
    mark = len(pair.done)
    assert forge.send(NEW, 1, 2, forge.challenge(NEW)) == []
    pair.advance(5)
    told = []
    for effect in pair.done[mark:]:
        match effect:
            case effects.WriteRow():
                told.append("page")
            case effects.PutId(role=Role.ACTIVE):
                told.append("steering")
            case effects.TellWorker(command=commands.Rebind()):
                told.append("worker")
            case effects.SendDatagram(data=data) if data[0] == PacketType.REATTACH_ACK:
                told.append("ACK")
    assert list(dict.fromkeys(told)) == ["page", "steering", "worker", "ACK"]


def test_a_bound_attempt_repeated_gets_the_same_ack_and_no_second_bind(forge: Forge) -> None:
    pair = forge.pair
    challenge = forge.challenge(NEW)
    first = forge.ack(forge.send(NEW, 1, 2, challenge))
    before = frozen(pair.gateway)
    for source in (NEW, RACER):
        again = forge.ack(forge.send(source, 1, 2, challenge))
        assert (again.result, again.bound_index, again.state_version) == (
            Result.BOUND,
            2,
            first.state_version,
        )
    assert differences(before, frozen(pair.gateway)) == []


def test_racing_candidates_share_an_attempt_and_learn_which_index_won(forge: Forge) -> None:
    pair = forge.pair
    forge.send(NEW, 1, 2, forge.challenge(NEW))
    other = Endpoint(to_bytes("10.201.3.2"), 40_002)
    assert forge.ack(forge.send(other, 1, 3, forge.challenge(other))).bound_index == 2
    assert pair.version == 3


def test_each_path_that_asks_while_the_bind_is_carried_out_has_one_ack_once_it_is_in_force(
    forge: Forge,
) -> None:
    pair = forge.pair
    others = [Endpoint(to_bytes(f"10.201.{n}.2"), 40_000) for n in range(3, 9)]
    pair.worker_delay_ms = 5
    assert forge.send(NEW, 1, 2, forge.challenge(NEW)) == []
    for _ in range(2):
        # On the path that is being bound, on others of the race, and from more sources than may race.
        assert forge.send(NEW, 1, 2, forge.challenge(NEW)) == []
        assert [forge.send(other, 1, 3) for other in others] == [[] for _ in others]
    before = len(pair.sent)
    pair.advance(5)
    acks = [flight for flight in pair.sent[before:] if flight.kind is PacketType.REATTACH_ACK]
    assert [flight.destination for flight in acks] == [NEW, *others[: pair.policy.max_candidates - 1]]
    answers = [reattach.open_ack(forge.secrets, flight.data) for flight in acks]
    assert {(answer.result, answer.bound_index) for answer in answers} == {(Result.BOUND, 2)}
    assert [answer.observed_address for answer in answers] == [flight.destination.address for flight in acks]
    assert pair.version == 3
    # From now on at once.
    assert forge.ack(forge.send(others[-1], 1, 3)).bound_index == 2


def test_an_attempt_below_the_last_bound_is_a_security_event(forge: Forge) -> None:
    pair = forge.pair
    forge.send(NEW, 5, 2, forge.challenge(NEW))
    before = frozen(pair.gateway)
    for _ in range(10):
        assert forge.send(RACER, 4, 2, forge.challenge(RACER)) == []
    assert differences(before, frozen(pair.gateway)) == []
    (event,) = pair.events(SecurityEvent)
    assert event.violation == "STALE_ATTEMPT"
    pair.advance(1_000)
    forge.send(RACER, 4, 2)
    assert pair.events(SecurityEvent)[-1].suppressed == 9


@pytest.mark.parametrize(
    ("version", "reason"),
    [(pack_version(1, 9), "VERSION_CONFLICT"), (pack_version(2, 0), "NOT_OWNER")],
)
def test_a_version_ahead_of_ours_is_refused(forge: Forge, version: int, reason: str) -> None:
    pair = forge.pair
    forge.send(NEW, 1, 2)
    answer = forge.fail(forge.send(NEW, 1, 2, forge.challenge(NEW), version=version))
    assert (answer.reason, answer.state_version) == (reason, pack_version(1, 1))
    assert pair.version == 1
    conflicts = [event.violation for event in pair.events(SecurityEvent)]
    assert conflicts == (["VERSION_CONFLICT"] if reason == "VERSION_CONFLICT" else [])


def test_copies_of_an_illegal_request_count_once(forge: Forge) -> None:
    pair = forge.pair
    data = forge.request(1, 2, forge.challenge(NEW), version=pack_version(1, 9))
    for _ in range(10):
        pair.inject(data, NEW)
    assert pair.version == 1
    assert pair.live.machine.state is State.ATTACHED


def test_a_key_holder_that_goes_on_being_illegal_is_ended(forge: Forge) -> None:
    pair = forge.pair
    live = pair.live
    for attempt in range(1, live.policy.security_failures_before_terminate + 1):
        forge.send(NEW, attempt, 2, forge.challenge(NEW), version=pack_version(1, 9))
    assert live.machine.state is State.TERMINATED
    assert pair.events(StateChange)[-1].reason_code == "SECURITY_TERMINATED"


def test_voluntary_switches_are_limited_and_recovery_is_not(forge: Forge) -> None:
    pair = forge.pair
    forge.send(NEW, 1, 2, forge.challenge(NEW), cause=Cause.OPERATOR_SWITCH)
    assert pair.live.bindings.draining is not None
    old = pair.addresses[0]
    refused = forge.fail(forge.send(old, 2, 3, forge.challenge(old), cause=Cause.OPERATOR_SWITCH))
    assert refused.reason == "SWITCH_RATE_LIMITED"
    assert 0 < refused.retry_after_ms <= pair.policy.switch_cooldown_ms
    assert len(pair.events(TransportSwitchDenied)) == 1
    assert pair.version == 3
    bound = forge.ack(forge.send(old, 3, 4, forge.challenge(old)))
    assert bound.bound_index == 4
    assert pair.live.bindings.draining is None


def test_a_refused_attempt_is_refused_for_good(forge: Forge) -> None:
    pair = forge.pair
    forge.send(NEW, 1, 2, forge.challenge(NEW), cause=Cause.OPERATOR_SWITCH)
    old = pair.addresses[0]
    challenge = forge.challenge(old)
    forge.send(old, 2, 3, challenge, cause=Cause.OPERATOR_SWITCH)
    pair.advance(pair.policy.switch_cooldown_ms)
    again = forge.fail(forge.send(old, 2, 3, challenge, cause=Cause.OPERATOR_SWITCH))
    assert again.reason == "SWITCH_RATE_LIMITED"
    assert pair.version == 3


def test_recoveries_have_a_bucket_of_their_own(forge: Forge) -> None:
    sources = [Endpoint(to_bytes(f"10.201.{n}.2"), 40_000) for n in (1, 2)]
    answers = []
    for attempt in range(1, 8):
        source = sources[attempt % 2]
        answers += forge.send(source, attempt, attempt, forge.challenge(source))
    kinds = [flight.kind for flight in answers]
    assert kinds == [PacketType.REATTACH_ACK] * 5 + [PacketType.REATTACH_FAIL] * 2
    assert reattach.open_fail(forge.secrets, answers[-1].data).reason == "RATE_LIMITED"


def test_challenges_are_good_for_their_source_and_for_two_minutes_at_most(forge: Forge) -> None:
    for challenge in (forge.challenge(RACER), forge.challenge(NEW, age_s=121), bytes(16)):
        assert forge.ack(forge.send(NEW, 1, 2, challenge)).result is Result.PENDING
    assert forge.ack(forge.send(NEW, 1, 2, forge.challenge(NEW, age_s=60))).result is Result.BOUND


@pytest.mark.parametrize("claimed", [Transport.UDP, Transport.TCP])
def test_a_transport_the_policy_does_not_allow_is_refused(forge: Forge, claimed: Transport) -> None:
    """Whatever the REQUEST says of it: it comes over UDP."""
    forge.live.policy = replace(forge.live.policy, allowed_transports=("tcp",))
    before = forge.live.bindings
    answer = forge.fail(forge.send(NEW, 1, 2, forge.challenge(NEW), transport=claimed))
    assert answer.reason == "TRANSPORT_NOT_ALLOWED"
    assert forge.live.bindings == before


@pytest.mark.parametrize("claimed", [Transport.TCP, Transport.QUIC])
def test_a_transport_that_is_only_claimed_is_refused(forge: Forge, claimed: Transport) -> None:
    """Though the policy allows it. A challenge for the transport claimed proves nothing either."""
    pair, before = forge.pair, forge.live.bindings
    assert claimed.name.lower() in forge.live.policy.allowed_transports
    challenge = forge.challenge(NEW, transport=claimed)
    pending = forge.ack(forge.send(NEW, 1, 2, challenge, transport=claimed))
    assert pending.result is Result.PENDING
    answer = forge.fail(forge.send(NEW, 1, 2, pending.challenge, transport=claimed))
    assert answer.reason == "TRANSPORT_NOT_ALLOWED"
    assert forge.live.bindings == before
    assert {event.path.transport for event in pair.events(ReattachAttempt)} == {"udp"}


def test_what_is_bound_is_the_transport_that_the_request_came_over(forge: Forge) -> None:
    pair, tcp = forge.pair, Transport.TCP
    request = forge.request(1, 2, forge.challenge(NEW, transport=tcp), transport=tcp)
    pair.gateway.receive_datagram(request, Arrival(0, LOCAL, NEW, tcp), pair.now_ms)
    pair.settle()
    assert forge.live.bindings.active is not None
    assert forge.live.bindings.active.transport is tcp


def test_a_handshake_over_a_transport_the_policy_does_not_allow_gets_no_answer() -> None:
    pair = CorePair(fast_policy(allowed_transports=("tcp", "quic")))
    pair.wait_for(lambda: pair.context.counters["transport_not_allowed"] > 1)
    assert not any(not flight.up for flight in pair.sent)
    assert (pair.context.sessions, pair.context.by_steering_id, pair.steered.ids) == ({}, {}, {})


def test_a_flood_of_bad_proofs_on_one_id_leaves_the_others_free(forge: Forge) -> None:
    pair = forge.pair
    before = frozen(pair.gateway)
    genuine = forge.request(9, 2, forge.challenge(RACER))
    for number in range(10_000):
        forged = bytearray(genuine)
        forged[100 + number % 150] ^= 1 + number % 255
        pair.inject(bytes(forged), RACER if number % 2 else pair.addresses[0])
    assert differences(before, frozen(pair.gateway)) == []
    assert pair.context.counters["reattach_rate"] > 9_000
    assert len(pair.events(SecurityEvent)) == 1
    assert forge.ack(forge.send(NEW, 1, 3, forge.challenge(NEW))).result is Result.BOUND


def test_a_racer_that_relays_a_request_wins_nothing_and_spoils_nothing() -> None:
    pair = CorePair().attach()
    ours = pair.client.session
    assert ours is not None
    for path in ours.paths.paths.values():
        path.challenge = b""
    relayed: list[bytes] = []

    def relay(flight: Flight) -> list[int] | None:
        if flight.kind is PacketType.REATTACH_REQUEST and flight.uplink is not None:
            relayed.append(flight.data)
            pair._later(1, lambda: pair.inject(flight.data, RACER))
        return None

    pair.rules.append(relay)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached and pair.version == 3)
    assert relayed
    assert pair.strangers
    assert all(len(flight.data) <= 256 for flight in pair.strangers)
    assert {flight.kind for flight in pair.strangers} == {PacketType.REATTACH_ACK}
    assert pair.live.bindings.active is not None
    assert pair.live.bindings.active.source == ("10.201.2.2", 40_001)
    assert pair.events(SecurityEvent) == []
    pair.data_down(b"for the client alone")
    pair.advance(DELAY_MS)
    assert pair.client_worker.delivered == [b"for the client alone"]
    assert all(flight.kind is not PacketType.DATA for flight in pair.strangers)


def test_a_policy_may_let_nothing_drain() -> None:
    pair = CorePair(fast_policy(drain_window_ms=0)).attach()
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: pair.attached)
    assert pair.live.bindings.draining is None


def test_an_ack_tells_an_active_index_zero_from_none() -> None:
    pair = CorePair(fast_policy(idle_probe_interval_ms=500)).attach()
    forge = Forge(pair)
    assert forge.ack(forge.send(NEW, 1, 2)).bound_index == 0
    pair.wait_for(lambda: forge.live.bindings.active is None)
    pending = forge.ack(forge.send(NEW, 1, 2))
    assert (pending.result, pending.bound_index) == (Result.PENDING, NO_INDEX)
    bound = forge.ack(forge.send(NEW, 1, 2, forge.challenge(NEW)))
    assert (bound.result, bound.bound_index) == (Result.BOUND, 2)
    pair.wait_for(lambda: forge.live.bindings.active is None)
    again = forge.ack(forge.send(NEW, 1, 2, forge.challenge(NEW)))
    assert (again.result, again.bound_index) == (Result.BOUND, NO_INDEX)
