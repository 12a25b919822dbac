"""The client: every type of datagram, in every state, genuine, forged and replayed, over its own uplink and another.

What may happen stands in MAY; whatever is not there changes neither the client's view nor its path, at the agent or at
the worker.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from core_pair import CLIENT_KEY, GATEWAY_KEY, CorePair, every_pair_is_sound, fast_policy, lose
from speaking import Voice, forged, voice

from jvpn.agent.handshaking import Identity
from jvpn.agent.session import ClientSession
from jvpn.protocol.constants import Direction, PacketType
from jvpn.protocol.handshake import Kem
from jvpn.protocol.reattach import Result
from jvpn.protocol.suites import suite, x25519_public
from jvpn.session.machine import State

__all__ = ["every_pair_is_sound"]


class Move(Enum):
    NOTHING = "nothing changes"
    BINDS = "DATA goes out on the path that the ACK came on"
    STAYS = "the switch is refused: the old path goes on, in the state before"
    LOSES = "the path is none any more, and another is asked for"
    COMMITS = "the state that the gateway says; the path stays"
    ENDS = "TERMINATED"


_BOUND = ("ATTACHED", "VOLATILE")
_ALIVE = ("BIRTH", "ATTACHED", "VOLATILE", "RECOVERING", "RECOVERING, old path delivers", "DEGRADED")
#: What a genuine, fresh datagram does on the uplink that it belongs to; over another uplink none does anything.
MAY = {
    **{(state, "PROBE_ACK: bound to another source"): Move.LOSES for state in _BOUND},
    **{(state, "PROBE_ACK: not the active index"): Move.LOSES for state in _BOUND},
    **{(state, "STATE ATTACHED"): Move.COMMITS for state in ("BIRTH", *_BOUND)},
    ("RECOVERING", "ACK that binds"): Move.BINDS,
    ("RECOVERING, old path delivers", "ACK that binds"): Move.BINDS,
    ("DEGRADED", "ACK that binds"): Move.BINDS,
    ("RECOVERING, old path delivers", "FAIL"): Move.STAYS,
    **{(state, "CLOSE"): Move.ENDS for state in _ALIVE},
}
STATES = (*_ALIVE, "TERMINATED")

#: How each is made, on the index of the path that is active or asked for.
MESSAGES: dict[str, Callable[["Stage"], bytes]] = {
    "HANDSHAKE_INIT": lambda s: s.voice.init(),
    "HANDSHAKE_RESPONSE": lambda s: s.voice.unsealed(PacketType.HANDSHAKE_RESPONSE, 120, s.index),
    "COOKIE": lambda s: s.voice.unsealed(PacketType.COOKIE, 60, s.index),
    "REQUEST": lambda s: s.voice.request(s.index, 1, s.version),
    "DATA": lambda s: s.voice.data(PacketType.DATA, s.index, b"data" * 10),
    "FRAGMENT": lambda s: s.voice.data(PacketType.FRAGMENT, s.index, bytes(8) + b"part of a packet"),
    "RESENT": lambda s: s.voice.data(PacketType.RESENT, s.index, bytes(4) + b"data" * 10),
    "PROBE": lambda s: s.voice.probe(s.index),
    "PROBE_ACK: all is well": lambda s: s.voice.probe_ack(s.index, flags=3),
    "HEALTH": lambda s: s.voice.health(s.index, s.version),
    "STATE of an older version": lambda s: s.voice.state(
        s.index, s.version - 1, State.VOLATILE.number, "QUALITY_FLOOR_VIOLATION"
    ),
    "ACK of an earlier attempt": lambda s: s.voice.ack(
        s.index, s.attempt - 1, s.version, Result.BOUND, s.index
    ),
    "ACK pending": lambda s: s.voice.ack(s.index, s.attempt, s.version, Result.PENDING, s.index),
    "ACK of an earlier epoch": lambda s: s.voice.ack(s.index, s.attempt, 1, Result.BOUND, s.index),
    "FAIL of an earlier attempt": lambda s: s.voice.fail(s.index, s.attempt - 1, s.version),
    "PROBE_ACK: bound to another source": lambda s: s.voice.probe_ack(s.index, flags=1),
    "PROBE_ACK: not the active index": lambda s: s.voice.probe_ack(s.index, flags=2),
    "STATE ATTACHED": lambda s: s.voice.state(
        s.index, s.version + 1, State.ATTACHED.number, "QUALITY_RESTORED"
    ),
    "FAIL": lambda s: s.voice.fail(s.index, s.attempt, s.version),
    "ACK that binds": lambda s: s.voice.ack(s.index, s.attempt, s.version + 2, Result.BOUND, s.index),
    "CLOSE": lambda s: s.voice.close(s.index),
}


class Stage:
    """A client with a session whose gateway has become silent; the test speaks for the gateway."""

    def __init__(self, state: str) -> None:
        self.pair = pair = CorePair(fast_policy(kem="none"))
        identity = Identity(suite(1), CLIENT_KEY, x25519_public(GATEWAY_KEY), bytes(32), "default", Kem.NONE)
        pair.client = pair.new_client(identity)
        if state == "BIRTH":
            pair.rules.append(lose(PacketType.CONTROL, 1_000))
            pair.wait_for(lambda: pair.client.session is not None)
        else:
            pair.attach()
        pair.rules.insert(0, lambda _flight: [])
        assert pair.client.session is not None
        self.session: ClientSession = pair.client.session
        self.voice: Voice = voice(pair, Direction.GATEWAY_TO_CLIENT)

    def enter(self, state: str) -> None:
        """From ATTACHED."""
        pair = self.pair
        if state == "VOLATILE":
            told = self.voice.state(
                self.index, self.version + 1, State.VOLATILE.number, "QUALITY_FLOOR_VIOLATION"
            )
            pair.inject_down(told, self.uplink)
        elif state == "RECOVERING, old path delivers":
            assert pair.client.switch("upB", pair.now_ns)
            pair.settle()
        elif state in ("RECOVERING", "DEGRADED"):
            pair.link(0, False)
            pair.wait_for(
                lambda: (
                    self.session.view.state is State[state]
                    and bool(pair.of_kind(PacketType.REATTACH_REQUEST, up=True))
                )
            )
        elif state == "TERMINATED":
            pair.inject_down(self.voice.close(self.index), self.uplink)
        assert self.session.view.state is State[state.partition(",")[0]]

    @property
    def version(self) -> int:
        return self.session.view.state_version

    @property
    def attempt(self) -> int:
        """The one in flight, else one that the client has not begun."""
        attempt = self.session.requester.attempt
        return 1 if attempt is None else attempt.number

    @property
    def uplink(self) -> int:
        """The one asked for, else the active one."""
        asked = [flight.uplink for flight in self.pair.of_kind(PacketType.REATTACH_REQUEST, up=True)]
        if self.session.requester.attempt is not None and asked and asked[-1] is not None:
            return asked[-1]
        return self.session.paths.active or 0

    @property
    def index(self) -> int:
        return self.session.paths.paths[self.uplink].index

    def snapshot(self) -> dict[str, Any]:
        session = self.session
        active = session.paths.active_path
        at_worker = self.pair.client_worker.table.by_record.get(0)
        path = None if at_worker is None else at_worker.path
        return {
            "state": session.view.state,
            "version": session.view.state_version,
            "active": None if active is None else (active.uplink.number, active.index),
            "worker": None if path is None else (path.socket.number, path.index),
        }

    def changed(self, data: bytes, uplink: int) -> dict[str, Any]:
        before = self.snapshot()
        self.pair.inject_down(data, uplink)
        after = self.snapshot()
        return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def stage(state: str) -> Stage:
    made = Stage(state)
    if state != "BIRTH":
        made.enter(state)
    return made


@pytest.mark.parametrize("state", STATES)
def test_no_other_datagram_changes_anything(state: str) -> None:
    scene = stage(state)
    for message, make in MESSAGES.items():
        own = scene.uplink
        for uplink in (own, 1 - own):
            data = make(scene)
            assert scene.changed(forged(data), uplink) == {}, (message, uplink)
            if uplink != own or (state, message) not in MAY:
                assert scene.changed(data, uplink) == {}, (message, uplink)


@pytest.mark.parametrize("state", STATES)
def test_no_replay_changes_anything(state: str) -> None:
    """Copies of all that this client has been sent in its life, over either uplink."""
    scene = stage(state)
    copies = [flight.data for flight in scene.pair.sent if not flight.up]
    assert copies
    for data in copies:
        for uplink in (0, 1):
            assert scene.changed(data, uplink) == {}, (data[0], uplink)


@pytest.mark.parametrize(("state", "message"), MAY)
def test_what_may_change_a_session_does(state: str, message: str) -> None:
    scene, move = stage(state), MAY[state, message]
    before, own, index = scene.snapshot(), scene.uplink, scene.index
    data = MESSAGES[message](scene)
    scene.pair.inject_down(data, own)
    after = scene.snapshot()
    if move is Move.BINDS:
        assert after["active"] == after["worker"] == (own, index)
        assert after["state"] is State.ATTACHED
    elif move is Move.LOSES:
        assert (after["state"], after["active"], after["worker"]) == (State.RECOVERING, None, None)
        assert scene.session.requester.attempt is not None
    elif move in (Move.STAYS, Move.COMMITS):
        assert (after["state"], after["active"]) == (State.ATTACHED, before["active"])
    else:
        assert after["state"] is State.TERMINATED
        assert after["worker"] is None
    if move is not Move.ENDS:
        assert scene.changed(data, own) == {}, "a copy of it"
