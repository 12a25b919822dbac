"""REQUESTs on several candidates at once: one attempt, one bind, whichever answer comes first, late or never."""

import random
from collections import Counter

import pytest
from core_pair import DELAY_MS, CorePair, Flight, Rule, every_pair_is_sound, fast_policy, lose, silent

from jvpn.agent.session import ClientSession
from jvpn.observability.events import ReattachAttempt, ReattachResult, StateChange, TransportSwitch
from jvpn.protocol import reattach
from jvpn.protocol.constants import PacketType
from jvpn.protocol.keys import steering_id
from jvpn.protocol.reattach import Ack, Request, Result
from workers import commands

__all__ = ["every_pair_is_sound"]

REQUEST, ACK = PacketType.REATTACH_REQUEST, PacketType.REATTACH_ACK


def ours(pair: CorePair) -> ClientSession:
    assert pair.client.session is not None
    return pair.client.session


def warm(uplinks: int = 3) -> CorePair:
    """Every candidate has a challenge and has answered."""
    pair = CorePair(uplinks=uplinks).attach()
    pair.advance(100)
    return pair


def cold(uplinks: int = 3, **changes: int) -> CorePair:
    """Candidates have no challenge: no probe of theirs was ever answered."""
    pair = CorePair(fast_policy(**changes), uplinks=uplinks)
    pair.rules += [probes_lost(uplink) for uplink in range(1, uplinks)]
    pair.wait_for(lambda: pair.attached)
    pair.advance(100)
    return pair


def probes_lost(uplink: int) -> Rule:
    return lambda flight: [] if flight.uplink == uplink and flight.kind is PacketType.PATH else None


def acks_lost(uplink: int) -> Rule:
    return lambda flight: [] if flight.uplink == uplink and flight.kind is ACK else None


def asked(pair: CorePair) -> list[tuple[int | None, Request]]:
    """Every REQUEST that was sent, opened, with its uplink."""
    session = ours(pair)
    found = []
    for flight in pair.of_kind(REQUEST, up=True):
        index = next(i for i in range(64) if steering(session, i) == flight.data[4:12])
        found.append((flight.uplink, reattach.open_request(session.secrets, index, flight.data)))
    return found


def steering(session: ClientSession, index: int) -> bytes:
    return steering_id(session.secrets, index)


def acks(pair: CorePair) -> list[tuple[int | None, Ack]]:
    flights = pair.of_kind(ACK, up=False)
    return [(flight.uplink, reattach.open_ack(ours(pair).secrets, flight.data)) for flight in flights]


def gateway_binds(pair: CorePair) -> int:
    return sum(isinstance(command, commands.Rebind) for w in pair.workers.values() for command in w.commands)


def assert_one_bind(pair: CorePair, session_id: bytes) -> None:
    """One attempt led to one bind, at both ends, of the same path; nobody shook hands again."""
    session = ours(pair)
    assert session.session_id == pair.live.session_id == session_id
    assert pair.client.handshakes_done == 1
    assert pair.version == 3
    assert gateway_binds(pair) == 1
    (switch,) = (e for e in pair.client_sink.events if isinstance(e, TransportSwitch))
    active = pair.live.bindings.active
    assert active is not None
    assert switch.new.index == active.index
    assert session.paths.active_path is not None
    assert session.paths.active_path.index == active.index
    assert len({request.attempt for _uplink, request in asked(pair)}) == 1


def test_cold_candidates_are_asked_at_once_under_one_attempt_on_an_index_each() -> None:
    pair = cold()
    session_id = pair.live.session_id
    pair.link(0, False)
    pair.advance(6)
    first = asked(pair)
    assert sorted(uplink for uplink, _request in first if uplink is not None) == [1, 2]
    assert len({request.attempt for _uplink, request in first}) == 1
    assert len({request.path_index for _uplink, request in first}) == 2
    pair.wait_for(lambda: pair.attached)
    assert_one_bind(pair, session_id)


def test_each_of_them_that_is_pending_repeats_with_its_own_challenge_and_one_is_bound() -> None:
    pair = cold()
    session_id = pair.live.session_id
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    pair.advance(200)
    pending = [(uplink, ack) for uplink, ack in acks(pair) if ack.result is Result.PENDING]
    assert {uplink for uplink, _ack in pending} == {1, 2}
    challenges = {uplink: ack.challenge for uplink, ack in pending}
    echoes = {uplink: request.challenge for uplink, request in asked(pair)}
    assert echoes == challenges
    bound = [ack.bound_index for _uplink, ack in acks(pair) if ack.result is Result.BOUND]
    assert len(set(bound)) == 1
    assert_one_bind(pair, session_id)


def test_a_burst_of_pendings_brings_one_request_until_the_next_is_due() -> None:
    pair = cold(uplinks=2)
    pair.rules.insert(0, lambda flight: [] if flight.kind in (REQUEST, ACK) else None)
    pair.link(0, False)
    pair.wait_for(lambda: asked(pair))
    session, (_uplink, request) = ours(pair), asked(pair)[0]
    path = session.paths.paths[1]
    version = session.view.state_version
    challenges = [bytes([1 + n]) * 16 for n in range(40)]
    for challenge in challenges:
        pending = Ack(
            request.attempt, Result.PENDING, 0, version, 5, pair.addresses[1].address, 40_001, challenge
        )
        salt = pair.random.randbytes(16)
        pair.inject_down(reattach.seal_ack(session.secrets, salt, path.steering_id, pending), 1)
    assert [each.challenge for _uplink, each in asked(pair)] == [bytes(16), challenges[0]]
    pair.wait_for(lambda: len(asked(pair)) > 2, 100)
    assert asked(pair)[-1][1].challenge == challenges[-1]


def test_the_first_to_come_back_wins_however_it_ranks() -> None:
    pair = cold()
    session_id = pair.live.session_id
    pair.rules.insert(
        0, lambda flight: [150] if flight.uplink == 1 and flight.kind in (REQUEST, ACK) else None
    )
    pair.link(0, False)
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached)
    assert ours(pair).paths.active == 2
    assert pair.now_ms - began_ms < 100
    # What the slow one still says changes nothing.
    pair.advance(1_000)
    assert_one_bind(pair, session_id)


def test_a_sure_candidate_is_asked_alone() -> None:
    pair = warm()
    session_id = pair.live.session_id
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    assert len(asked(pair)) == 1
    assert_one_bind(pair, session_id)


def test_the_others_join_as_soon_as_the_sure_one_is_late() -> None:
    pair = warm()
    session_id = pair.live.session_id
    pair.rules.append(silent(1))
    pair.link(0, False)
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached)
    assert asked(pair)[0][0] == 1
    assert ours(pair).paths.active == 2
    # One wait, not three: 50 ms or the round trip of the silent one, and a round trip of the other.
    assert pair.now_ms - began_ms < 150
    assert_one_bind(pair, session_id)


def test_an_ack_that_comes_on_another_candidate_binds_the_one_it_names() -> None:
    pair = warm()
    session_id = pair.live.session_id
    pair.rules.append(acks_lost(1))
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    assert {uplink for uplink, ack in acks(pair) if ack.result is Result.BOUND} == {1, 2}
    assert ours(pair).paths.active == 1
    assert_one_bind(pair, session_id)
    pair.data_up(b"on the one that it names")
    pair.advance(2 * DELAY_MS)
    assert pair.workers[pair.live.slot].delivered[-1] == b"on the one that it names"


def test_late_and_doubled_acks_change_nothing() -> None:
    pair = cold()
    session_id = pair.live.session_id
    pair.rules.insert(0, lambda flight: [DELAY_MS, 40, 700] if flight.kind is ACK else None)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    pair.advance(1_500)
    assert_one_bind(pair, session_id)


def test_lost_acks_on_all_candidates_are_asked_for_again() -> None:
    pair = cold()
    session_id = pair.live.session_id
    pair.rules.insert(0, lose(ACK, 7))
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    assert_one_bind(pair, session_id)


def test_a_refusal_on_one_candidate_ends_the_attempt_for_all() -> None:
    pair = cold()
    session = ours(pair)
    pair.rules[:] = [acks_lost(1), acks_lost(2)]
    pair.link(0, False)
    pair.advance(6)
    attempt = session.requester.attempt
    assert attempt is not None
    first = attempt.number
    fail = reattach.Fail(first, session.view.state_version, 200, "RATE_LIMITED")
    path = session.paths.paths[2]
    pair.inject_down(reattach.seal_fail(session.secrets, bytes(16), path.steering_id, fail), 2)
    sent = len(asked(pair))
    pair.advance(190)
    assert len(asked(pair)) == sent
    pair.rules.clear()
    pair.wait_for(lambda: pair.attached)
    assert asked(pair)[-1][1].attempt > first
    results = [e for e in pair.client_sink.events if isinstance(e, ReattachResult)]
    assert [(e.attempt, e.result) for e in results] == [(first, "failed"), (first + 1, "bound")]


def test_the_path_that_seemed_dead_joins_when_no_other_answers_and_may_win() -> None:
    pair = warm(uplinks=2)
    session_id = pair.live.session_id
    pair.rules += [silent(0), silent(1)]
    while ours(pair).paths.active is not None:
        pair.data_up(b"traffic")
        pair.advance(5)
    pair.rules[:] = [silent(1)]
    pair.wait_for(lambda: pair.attached, 2_000)
    assert ours(pair).paths.active == 0
    assert asked(pair)[0][0] == 1
    assert ours(pair).session_id == session_id
    assert pair.version == 3


def test_early_data_goes_behind_the_first_request_on_that_path_alone() -> None:
    pair = warm(uplinks=4)
    pair.rules += [silent(1), silent(2)]
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    told = [c for c in pair.client_worker.commands if isinstance(c, commands.Rebind)]
    early = [command.early.index for command in told if command.early is not None]
    assert set(early) == {asked(pair)[0][1].path_index}
    # DATA of the gateway is taken on whichever index it binds, before the ACK.
    raced = {request.path_index for _uplink, request in asked(pair)}
    assert any(raced <= set(command.accept) for command in told)


def test_a_voluntary_switch_never_races() -> None:
    pair = warm()
    pair.rules.append(silent(1))
    pair.client.switch("upB", pair.now_ns)
    pair.advance(3_000)
    assert {uplink for uplink, _request in asked(pair)} == {1}
    assert ours(pair).paths.active == 0
    pair.data_up(b"on the old path all the time")
    pair.advance(DELAY_MS)
    assert pair.workers[pair.live.slot].delivered


def test_a_switch_whose_old_path_dies_becomes_a_race() -> None:
    pair = warm()
    pair.rules.append(silent(1))
    pair.client.switch("upB", pair.now_ns)
    pair.advance(20)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached, 1_000)
    assert ours(pair).paths.active == 2


@pytest.mark.parametrize("alive", [1, 3, 5])
def test_no_more_than_max_candidates_race_and_every_one_gets_its_turn(alive: int) -> None:
    pair = cold(uplinks=6, max_candidates=2)
    session_id = pair.live.session_id
    pair.rules += [silent(uplink) for uplink in range(1, 6) if uplink != alive]
    pair.link(0, False)
    seen: Counter[int] = Counter()

    def together(flight: Flight) -> None:
        if flight.kind is REQUEST:
            seen[pair.now_ms] += 1

    pair.rules.insert(0, together)
    pair.wait_for(lambda: pair.attached, 3_000)
    assert ours(pair).paths.active == alive
    assert ours(pair).session_id == session_id
    assert max(seen.values()) <= 2


@pytest.mark.parametrize("seed", range(12))
def test_four_uplinks_in_any_weather(seed: int) -> None:
    pair = CorePair(seed=seed, uplinks=4)
    dice = random.Random(seed)

    def weather(flight: Flight) -> list[int]:
        fate = dice.random()
        copies = 0 if fate < 0.3 else 2 if fate < 0.4 else 1
        return [dice.randrange(1, 120) for _ in range(copies)]

    pair.rules.append(weather)
    pair.wait_for(lambda: pair.attached)
    session_id = pair.live.session_id
    for _ in range(15):
        uplink = dice.randrange(4)
        pair.link(uplink, False)
        pair.advance(dice.randrange(300))
        pair.link(uplink, True)
        pair.data_up(b"traffic")
        pair.advance(dice.randrange(400))
    pair.rules.clear()
    pair.wait_for(lambda: pair.attached, 10_000)
    assert ours(pair).session_id == pair.live.session_id == session_id
    versions = [event.state_version for event in pair.events(StateChange)]
    assert versions == list(range(versions[0], versions[0] + len(versions)))
    seen: dict[tuple[PacketType, bytes], bytes] = {}
    for flight in pair.of_kind(REQUEST, up=True) + pair.of_kind(PacketType.CONTROL, up=True):
        assert seen.setdefault((flight.kind, flight.data[4:20]), flight.data) == flight.data
    attempts = [e.attempt for e in pair.client_sink.events if isinstance(e, ReattachAttempt)]
    assert len(attempts) == len(set(attempts))


def test_five_networks_in_a_row_that_lead_nowhere_strand_nobody() -> None:
    pair = warm()
    session_id = pair.live.session_id
    pair.rules += [silent(uplink) for uplink in range(3)]
    for number in range(5):
        pair.link(number % 3, False)
        pair.advance(700)
        pair.link(number % 3, True)
        pair.advance(700)
    pair.rules[:] = [silent(0), silent(1)]
    pair.wait_for(lambda: pair.attached, 3_000)
    assert ours(pair).paths.active == 2
    assert ours(pair).session_id == session_id
