"""Two sessions whose steering ids meet: the one that has the id keeps it, the other does without, whatever happens."""

from collections.abc import Callable, Sequence

import pytest
from core_pair import CLIENT_KEY, GATEWAY_KEY, CorePair, every_pair_is_sound
from test_adoption import restart

from jvpn.agent.handshaking import Identity
from jvpn.protocol.keys import SessionSecrets, steering_id, steering_ids
from jvpn.protocol.suites import suite, x25519_public
from jvpn.session.machine import Reason, State, split_version
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.peers import Peer

__all__ = ["every_pair_is_sound"]

OTHER_KEY = b"\x33" * 32
Collide = Callable[[int, LiveSession], None]


@pytest.fixture
def pair() -> CorePair:
    """Its gateway knows two clients."""
    pair = CorePair()
    other = Peer("phone", x25519_public(OTHER_KEY), ("10.8.0.3/32",), pair.policy)
    pair.context.peers.peers[other.public_key] = other
    return pair


@pytest.fixture
def collide(monkeypatch: pytest.MonkeyPatch) -> Collide:
    """`collide(index, session)`: at the gateway, all other sessions' ids of `index` are that session's of index 0."""

    def begin(index: int, session: LiveSession) -> None:
        def colliding(secrets: SessionSecrets, indexes: Sequence[int]) -> dict[int, bytes]:
            found = steering_ids(secrets, indexes)
            if secrets.session != session.secrets.session and index in found:
                found[index] = session.indexes.ids[0]
            return found

        monkeypatch.setattr("jvpn.protocol.indexes.steering_ids", colliding)

    return begin


def come(pair: CorePair, private_key: bytes) -> LiveSession:
    """A client with this key takes the place of the one before, whose session stays."""
    known = set(pair.context.sessions)
    gateway = x25519_public(GATEWAY_KEY)
    pair.client_worker.table.remove(0)
    pair.client = pair.new_client(Identity(suite(1), private_key, gateway, bytes(32), "default"))
    pair.wait_for(lambda: pair.context.sessions.keys() - known)
    (new,) = pair.context.sessions.keys() - known
    pair.advance(500)
    return pair.context.sessions[new]


def check_entries(pair: CorePair) -> None:
    """Steering leads to each session by what the session has installed, and to nobody else."""
    entries = {
        its_id: (session, index)
        for session in pair.context.sessions.values()
        for index, its_id in session.indexes.ids.items()
    }
    assert pair.context.by_steering_id == entries
    assert pair.steered.ids.keys() == entries.keys()
    for its_id, (session, index) in entries.items():
        put = pair.steered.ids[its_id]
        assert (put.slot, put.role) == (session.slot, session.role_of(index))


def test_a_confirmed_session_does_not_take_another_ones_id(pair: CorePair, collide: Collide) -> None:
    pair.attach()
    first = pair.live
    collide(1, first)
    second = come(pair, OTHER_KEY)
    assert 1 not in second.indexes.ids
    assert pair.context.counters["steering_id_collision"] >= 1
    check_entries(pair)
    pair.gateway.terminate(second, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    assert list(pair.context.sessions) == [first.session_id]
    check_entries(pair)


def test_who_supersedes_a_session_keeps_its_own_ids(pair: CorePair, collide: Collide) -> None:
    pair.attach()
    first = pair.live
    collide(1, first)
    second = come(pair, CLIENT_KEY)
    assert list(pair.context.sessions) == [second.session_id]
    assert pair.context.counters["steering_id_collision"] >= 1
    check_entries(pair)


def test_a_handshake_that_is_never_confirmed_leaves_others_ids_alone(
    pair: CorePair, collide: Collide
) -> None:
    pair.attach()
    first = pair.live
    collide(0, first)
    pair.client = pair.new_client(
        Identity(suite(1), OTHER_KEY, x25519_public(GATEWAY_KEY), bytes(32), "default")
    )
    pair.wait_for(lambda: pair.context.counters["steering_id_collision"] > 1)
    pair.advance(6_000)
    assert list(pair.context.sessions) == [first.session_id]
    check_entries(pair)


def test_a_session_that_is_taken_over_does_not_take_another_ones_id(pair: CorePair) -> None:
    pair.attach()
    secrets, highest = pair.live.secrets, pair.live.indexes.highest_installed
    pair.restart_gateway()
    taken = steering_id(secrets, highest)
    owner = pair.context.by_steering_id[taken] = (None, 0)  # type: ignore[assignment]
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.attached and split_version(pair.live.machine.state_version).epoch == 2)
    live = pair.live
    assert highest not in live.indexes.ids
    assert taken not in pair.steered.ids
    assert pair.context.counters["steering_id_collision"] >= 1
    pair.gateway.terminate(live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    assert pair.context.by_steering_id == {taken: owner}


def test_a_restarted_supervisor_leaves_an_id_to_the_session_that_is_bound_to_it(
    pair: CorePair, collide: Collide
) -> None:
    """Of the two, the one that only has it in its window comes first in the shared page."""
    pair.attach()
    room = pair.live
    bound = come(pair, OTHER_KEY)
    pair.gateway.terminate(room, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    collide(1, bound)
    first = come(pair, CLIENT_KEY)
    assert first.record < bound.record
    pair.context.counters.clear()
    restart(pair)
    pair.advance(500)
    adopted = pair.context.sessions
    assert adopted[bound.session_id].machine.state is State.ATTACHED
    assert adopted[bound.session_id].indexes.ids[0] == bound.indexes.ids[0]
    assert 1 not in adopted[first.session_id].indexes.ids
    assert pair.context.counters["steering_id_collision"] >= 1
    check_entries(pair)
