"""RESET and NOT_OWNER: whom the client asks before it believes that its session is gone, and how it says so."""

import pytest
from core_pair import DELAY_MS, GATEWAY, CorePair, Flight, every_pair_is_sound, silent

from jvpn.agent.owners import RESET_PATIENCE_MS
from jvpn.agent.paths import ClientPath
from jvpn.agent.session import ClientSession
from jvpn.observability.events import ReattachResult, StateChange
from jvpn.protocol import reattach
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType
from jvpn.protocol.wire import Header
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]

SECOND = Endpoint(to_bytes("203.0.113.2"), 51820)


def ours(pair: CorePair) -> ClientSession:
    assert pair.client.session is not None
    return pair.client.session


def reset_on(pair: CorePair, uplink: int, token: bytes | None = None) -> None:
    """The right RESET arrives, for the REQUEST on this uplink's path."""
    session = ours(pair)
    header = Header(PacketType.RESET, session.paths.paths[uplink].steering_id, 0).encode()
    pair.inject_down(header + (session.owners.token if token is None else token), uplink)


def fail_on(pair: CorePair, uplink: int, reason: str) -> None:
    session = ours(pair)
    attempt = session.requester.attempt
    assert attempt is not None
    path = session.paths.paths[uplink]
    fail = reattach.Fail(attempt.number, session.view.state_version, 0, reason)
    salt = pair.random.randbytes(16)
    pair.inject_down(reattach.seal_fail(session.secrets, salt, path.steering_id, fail), uplink)


def no_request_arrives(flight: Flight) -> list[int] | None:
    return [] if flight.kind is PacketType.REATTACH_REQUEST else None


def asking(uplinks: int = 2) -> CorePair:
    """The active path is gone, REQUESTs have gone out on another, and none of them arrives."""
    pair = CorePair(uplinks=uplinks).attach()
    pair.advance(100)
    pair.rules.append(no_request_arrives)
    pair.link(0, False)
    pair.advance(6)
    assert pair.of_kind(PacketType.REATTACH_REQUEST, up=True)
    return pair


def path(pair: CorePair, uplink: int) -> ClientPath:
    return ours(pair).paths.paths[uplink]


def assert_goes_on(pair: CorePair) -> None:
    session_id = ours(pair).session_id
    pair.rules.clear()
    pair.wait_for(lambda: pair.attached, 3_000)
    assert ours(pair).session_id == session_id
    assert pair.over == []


def test_a_gateway_that_lost_the_session_ends_it_visibly_and_a_new_one_follows() -> None:
    pair = CorePair().attach()
    first = pair.live.session_id
    pair.store.forget(first)
    pair.restart_gateway()
    while not pair.over:
        pair.data_up(b"traffic")
        pair.advance(5)
    assert {flight.uplink for flight in pair.of_kind(PacketType.RESET, up=False)} == {0, 1}
    assert (pair.over[0].reason, pair.over[0].again) == ("PEER_CLOSED", True)
    assert pair.over[0].note
    last = [e for e in pair.client_sink.events if isinstance(e, StateChange)][-1]
    assert (last.to, last.reason_code) == ("TERMINATED", "PEER_CLOSED")
    assert last.details == {"reset": True, "ways": 2}
    pair.wait_for(lambda: pair.attached)
    assert pair.live.session_id != first


def test_without_another_way_a_reset_ends_the_session_at_once() -> None:
    pair = asking()
    reset_on(pair, 1)
    assert [over.again for over in pair.over] == [True]


@pytest.mark.parametrize("token", [bytes(16), b"\xff" * 16])
def test_a_wrong_token_says_nothing(token: bytes) -> None:
    pair = asking()
    reset_on(pair, 1, token)
    assert pair.client.counters["bad_proof"] == 1
    assert_goes_on(pair)


def test_without_an_attempt_a_reset_says_nothing() -> None:
    pair = CorePair().attach()
    reset_on(pair, 0)
    reset_on(pair, 1)
    assert pair.client.counters["unexpected_type"] == 2
    assert pair.attached


def test_on_a_path_that_was_not_asked_it_says_nothing() -> None:
    pair = asking(uplinks=3)
    reset_on(pair, 2)
    assert pair.client.counters["unexpected_type"] == 1
    assert_goes_on(pair)


def test_what_arrived_since_the_request_contradicts_a_reset() -> None:
    pair = asking()
    pair.data_down(b"the gateway has the session")
    pair.advance(DELAY_MS)
    assert pair.client_worker.delivered == [b"the gateway has the session"]
    reset_on(pair, 1)
    assert pair.client.counters["reset_contradicted"] == 1
    assert_goes_on(pair)


def test_the_other_candidates_are_asked_before_a_reset_is_believed() -> None:
    pair = asking(uplinks=3)
    reset_on(pair, 1)
    assert pair.over == []
    pair.rules[:] = [silent(1)]
    pair.wait_for(lambda: pair.attached, RESET_PATIENCE_MS - 100)
    assert ours(pair).paths.active == 2
    pair.advance(2 * RESET_PATIENCE_MS)
    assert pair.over == []


def test_the_other_endpoint_is_asked_before_a_reset_is_believed() -> None:
    pair = asking()
    pair.client.uplinks[1].remotes = (GATEWAY, SECOND)
    asked_on = path(pair, 1).index
    reset_on(pair, 1)
    assert pair.over == []
    pair.advance(5)
    last = pair.of_kind(PacketType.REATTACH_REQUEST, up=True)[-1]
    assert last.destination == SECOND
    assert path(pair, 1).index > asked_on
    assert_goes_on(pair)
    assert pair.live.bindings.active is not None
    assert pair.live.bindings.active.local[0] == "203.0.113.2"


def test_all_endpoints_that_say_the_same_end_the_session() -> None:
    pair = asking()
    pair.client.uplinks[1].remotes = (GATEWAY, SECOND)
    pair.rules[:] = [silent(1)]
    reset_on(pair, 1)
    pair.advance(60)
    assert pair.over == []
    reset_on(pair, 1)
    assert pair.over[0].again


def test_ways_that_do_not_answer_hold_a_reset_back_for_a_while_only() -> None:
    pair = asking(uplinks=3)
    pair.rules[:] = [silent(1), silent(2)]
    reset_on(pair, 1)
    pair.advance(RESET_PATIENCE_MS - 1)
    # Repeated, it makes the end neither sooner nor later.
    reset_on(pair, 1)
    assert pair.over == []
    pair.advance(2)
    assert pair.over[0].again


def test_what_arrives_while_the_others_are_asked_takes_a_reset_back() -> None:
    pair = asking(uplinks=3)
    reset_on(pair, 1)
    pair.advance(RESET_PATIENCE_MS // 2)
    pair.data_down(b"the gateway has the session")
    pair.advance(RESET_PATIENCE_MS)
    assert pair.over == []
    assert_goes_on(pair)


def test_a_switch_that_is_answered_by_a_reset_is_a_refused_switch() -> None:
    pair = CorePair().attach()
    pair.advance(100)
    pair.rules.append(no_request_arrives)
    pair.client.switch("upB", pair.now_ns)
    pair.advance(6)
    reset_on(pair, 1)
    assert ours(pair).switching.refused == "RESET"
    assert ours(pair).paths.active == 0
    pair.data_up(b"on the old path")
    pair.advance(DELAY_MS)
    assert pair.workers[pair.live.slot].delivered == [b"on the old path"]
    assert_goes_on(pair)


def test_another_candidate_goes_on_when_one_leads_to_a_node_that_is_not_the_owner() -> None:
    pair = asking(uplinks=3)
    pair.rules[:] = [silent(1)]
    fail_on(pair, 1, "NOT_OWNER")
    pair.wait_for(lambda: pair.attached, 500)
    assert ours(pair).paths.active == 2
    results = [e for e in pair.client_sink.events if isinstance(e, ReattachResult)]
    assert [(e.attempt, e.result) for e in results] == [(1, "bound")]


def test_another_endpoint_is_asked_when_the_first_is_not_the_owner() -> None:
    pair = asking()
    pair.client.uplinks[1].remotes = (GATEWAY, SECOND)
    fail_on(pair, 1, "NOT_OWNER")
    pair.rules[:] = [lambda flight: [] if flight.up and flight.destination == GATEWAY else None]
    pair.wait_for(lambda: pair.attached, 500)
    assert path(pair, 1).uplink.remote == SECOND


def test_nobody_is_the_owner_and_the_client_asks_again() -> None:
    pair = asking()
    fail_on(pair, 1, "NOT_OWNER")
    attempt = ours(pair).requester.attempt
    assert attempt is not None
    assert attempt.number == 2
    assert_goes_on(pair)


def test_after_a_takeover_the_other_paths_lead_to_the_new_owner() -> None:
    pair = CorePair().attach()
    pair.advance(100)
    for uplink in pair.client.uplinks:
        uplink.remotes = (GATEWAY, SECOND)
    pair.restart_gateway()
    pair.client.uplinks[1].remote = SECOND
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    assert ours(pair).epoch == 2
    assert pair.client.uplinks[0].remote == SECOND
