"""Sessions that are over leave the supervisor's memory by themselves: its garbage collector hardly ever walks what has
been there for a while."""

import gc
import sys
from dataclasses import replace

import pytest
from core_pair import CorePair, Flight, fast_policy

from jvpn.protocol.constants import PacketType
from jvpn.session.machine import Reason
from jvpn.supervisor.live_session import LiveSession


@pytest.fixture
def pair() -> CorePair:
    return CorePair(fast_policy()).attach()


def forgotten(pair: CorePair, session: LiveSession) -> bool:
    """Whether nobody but the caller has it. The pair's own notes of what was done do not count."""
    pair.saved.clear()
    pair.done.clear()
    # The caller's variable, this one's, and what is passed to getrefcount.
    return sys.getrefcount(session) <= 3


def living(pair: CorePair) -> LiveSession:
    (session,) = pair.context.sessions.values()
    return session


def unborn(pair: CorePair) -> list[LiveSession]:
    """Sessions of this gateway that no worker has."""
    (peer,) = pair.context.peers.peers.values()
    found = [one for one in gc.get_objects() if isinstance(one, LiveSession)]
    return [session for session in found if session.peer is peer and not session.given_to_worker]


def test_one_that_was_terminated(pair: CorePair) -> None:
    session = living(pair)
    assert not forgotten(pair, session)
    pair.gateway.terminate(session, Reason.SECURITY_TERMINATED, pair.now_ms)
    pair.advance(10_000)
    assert forgotten(pair, session)


def test_one_that_another_node_has_taken(pair: CorePair) -> None:
    session = living(pair)
    pair.rules.append(lambda flight: [] if flight.up else None)
    pair.gateway.others.overtaken(session.session_id, pair.now_ms, "other")
    pair.advance(10_000)
    assert forgotten(pair, session)


def test_one_whose_handshake_nobody_finished() -> None:
    pair = CorePair(fast_policy(), uplinks=1)
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.HANDSHAKE_RESPONSE else None)
    pair.wait_for(lambda: unborn(pair))
    session = unborn(pair)[0]
    assert not forgotten(pair, session)
    pair.rules.append(lambda flight: [] if flight.up else None)
    pair.advance(60_000)
    assert forgotten(pair, session)


def test_one_whose_claim_was_refused(pair: CorePair) -> None:
    found: list[LiveSession] = []
    (stored,) = pair.store.sessions()

    def claimed_meanwhile(flight: Flight) -> list[int] | None:
        if flight.kind is PacketType.REATTACH_ACK:
            pair.store.save(replace(stored, state_version=stored.state_version + 1), 0)
        return None

    claim = pair.store.claim

    def refused(record: object, version: int, owner: str, **more: object) -> bool:
        found.extend(unborn(pair))
        return claim(record, version, owner, **more)  # type: ignore[arg-type]

    pair.rules.append(claimed_meanwhile)
    pair.restart_gateway()
    pair.store.claim = refused  # type: ignore[assignment]
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.context.counters["claim_lost"])
    session = found.pop()
    found.clear()
    assert forgotten(pair, session)
