"""The gateway: every type of datagram, in every state, genuine, forged and replayed, from the bound source and another.

What may happen stands in MAY; whatever is not there changes neither state nor version nor binding, at the supervisor or
at the worker.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from core_pair import CLIENT_KEY, GATEWAY_KEY, CorePair, every_pair_is_sound, fast_policy, lose
from forge import RACER
from speaking import Voice, forged, voice

from jvpn.agent.handshaking import Identity
from jvpn.protocol.constants import Direction, PacketType, Role
from jvpn.protocol.handshake import Kem
from jvpn.protocol.keys import steering_id
from jvpn.protocol.reattach import Result
from jvpn.protocol.suites import suite, x25519_public
from jvpn.session.machine import State, split_version
from jvpn.supervisor.live_session import LiveSession
from workers.commands import Endpoint
from workers.udp import socket_address

__all__ = ["every_pair_is_sound"]


class Move(Enum):
    NOTHING = "nothing changes"
    ATTACHES = "the session begins, bound where the handshake was"
    BINDS = "bound to the sender, on the index that it names"
    COMMITS = "another quality state; the binding stays"
    ENDS = "TERMINATED"


#: The first in each row is what a genuine, fresh datagram does from the bound source (in BIRTH: the one that the
#: RESPONSE went to), the second from another. Forged or replayed ones do nothing anywhere.
MAY = {
    ("BIRTH", "HEALTH"): (Move.ATTACHES, Move.NOTHING),
    ("BIRTH", "HEALTH proposing VOLATILE"): (Move.ATTACHES, Move.NOTHING),
    ("BIRTH", "CLOSE"): (Move.ENDS, Move.NOTHING),
    ("ATTACHED", "REQUEST with its challenge"): (Move.BINDS, Move.BINDS),
    ("VOLATILE", "REQUEST with its challenge"): (Move.BINDS, Move.BINDS),
    ("RECOVERING", "REQUEST with its challenge"): (Move.BINDS, Move.BINDS),
    ("DEGRADED", "REQUEST with its challenge"): (Move.BINDS, Move.BINDS),
    ("DEGRADED, bound", "REQUEST with its challenge"): (Move.BINDS, Move.BINDS),
    ("ATTACHED", "HEALTH proposing VOLATILE"): (Move.COMMITS, Move.COMMITS),
    ("ATTACHED", "CLOSE"): (Move.ENDS, Move.ENDS),
    ("VOLATILE", "CLOSE"): (Move.ENDS, Move.ENDS),
    ("DEGRADED, bound", "CLOSE"): (Move.ENDS, Move.ENDS),
}
STATES = ("BIRTH", "ATTACHED", "VOLATILE", "RECOVERING", "DEGRADED", "DEGRADED, bound", "TERMINATED")
#: All of the policy's windows of quality: what a client proposes is borne out by its measures, and by time.
QUALITY_MS = 100
#: The index that REQUESTs ask for.
ASKED = 2

#: How each is made, on the index in use, for a sender. INIT comes last: it replaces what is pending.
Make = Callable[[Voice, int, Endpoint], bytes]
MESSAGES: dict[str, Make] = {
    "HANDSHAKE_RESPONSE": lambda v, n, _: v.unsealed(PacketType.HANDSHAKE_RESPONSE, 100, n),
    "COOKIE": lambda v, n, _: v.unsealed(PacketType.COOKIE, 60, n),
    "REQUEST without challenge": lambda v, n, _: v.request(ASKED + 1, 2, version(v)),
    "REQUEST with a challenge of elsewhere": lambda v, n, source: v.request(
        ASKED + 1, 2, version(v), v.challenge(Endpoint(source.address, source.port + 1))
    ),
    "REATTACH_ACK": lambda v, n, _: v.ack(n, 1, version(v), Result.BOUND, n),
    "REATTACH_FAIL": lambda v, n, _: v.fail(n, 1, version(v)),
    "DATA": lambda v, n, _: v.data(PacketType.DATA, n, b"data" * 10),
    "DATA on an index not bound": lambda v, n, _: v.data(PacketType.DATA, ASKED + 1, b"data" * 10),
    "FRAGMENT": lambda v, n, _: v.data(PacketType.FRAGMENT, n, bytes(8) + b"part of a packet"),
    "RESENT": lambda v, n, _: v.data(PacketType.RESENT, n, bytes(4) + b"data" * 10),
    "PROBE": lambda v, n, _: v.probe(n),
    "PROBE_ACK": lambda v, n, _: v.probe_ack(n, flags=1),
    "HEALTH on an index not bound": lambda v, n, _: v.health(ASKED + 1, version(v), State.VOLATILE.number),
    "CLOSE on an index not bound": lambda v, n, _: v.close(ASKED + 1),
    "RESET": lambda v, n, _: v.reset(n),
    "HEALTH": lambda v, n, _: v.health(n, version(v)),
    "HEALTH proposing VOLATILE": lambda v, n, _: v.health(n, version(v), State.VOLATILE.number),
    "REQUEST with its challenge": lambda v, n, source: v.request(ASKED, 1, version(v), v.challenge(source)),
    "CLOSE": lambda v, n, _: v.close(n),
    "HANDSHAKE_INIT": lambda v, n, _: v.init(),
}


def version(speaker: Voice) -> int:
    live = speaker.pair.context.sessions.get(speaker.session_id)
    return 1 << 40 if live is None else live.machine.state_version


# The gateway in each state


class Stage:
    """A gateway with one session; its client is silent, and the test speaks for it."""

    def __init__(self) -> None:
        policy = fast_policy(
            kem="none",
            idle_probe_interval_ms=500,
            volatility_hold_ms=QUALITY_MS,
            volatile_to_degraded_ms=QUALITY_MS,
            stability_window_ms=QUALITY_MS,
        )
        self.pair = CorePair(policy)
        identity = Identity(suite(1), CLIENT_KEY, x25519_public(GATEWAY_KEY), bytes(32), "default", Kem.NONE)
        self.pair.client = self.pair.new_client(identity)
        self.live: LiveSession
        self.voice: Voice

    def begin(self, *, born: bool) -> None:
        pair = self.pair
        if born:
            pair.attach()
        else:
            pair.rules.append(lose(PacketType.CONTROL, 1_000, up=True))
            pair.wait_for(lambda: pair.client.session is not None)
        pair.client.stopped = True
        pair.rules.append(lambda flight: [] if not flight.up else None)
        self.voice = voice(pair, Direction.CLIENT_TO_GATEWAY)
        self.live = pair.context.by_steering_id[steering_id(self.voice.secrets, 0)][0]

    def enter(self, state: str) -> None:
        """From ATTACHED or VOLATILE."""
        self.pair.advance(QUALITY_MS)
        if self.live.machine.state is State.VOLATILE and state != "VOLATILE":
            self._propose(State.ATTACHED)
        if state in ("VOLATILE", "DEGRADED, bound"):
            self._propose(State.VOLATILE)
        if state == "DEGRADED, bound":
            self._propose(State.DEGRADED)
        elif state in ("RECOVERING", "DEGRADED"):
            self.pair.wait_for(lambda: self.live.machine.state is State[state])
        elif state == "TERMINATED":
            self.send(self.voice.close(self.index), self.bound)
        assert self.live.machine.state is State[state.partition(",")[0]]

    def _propose(self, state: State) -> None:
        self.send(self.voice.health(self.index, version(self.voice), state.number), self.bound)
        self.pair.advance(QUALITY_MS)

    @property
    def bound(self) -> Endpoint:
        return self.pair.addresses[0]

    @property
    def index(self) -> int:
        active = self.live.bindings.active
        return 0 if active is None else active.index

    def make(self, message: str, source: Endpoint) -> bytes:
        return MESSAGES[message](self.voice, self.index, source)

    def send(self, data: bytes, source: Endpoint) -> None:
        self.pair.inject(data, source)

    def snapshot(self) -> dict[str, Any]:
        """State, version and binding, as supervisor, steering and worker have them, and which sessions there are.

        Ids that are installed and no more come and go with what is authenticated: DATA is taken on none of them.
        """
        pair, live = self.pair, self.live
        active, draining = live.bindings.active, live.bindings.draining
        at_worker = pair.workers[live.slot].table.by_record.get(live.record)
        path = None if at_worker is None else at_worker.path
        return {
            "state": live.machine.state,
            "version": live.machine.state_version,
            "active": None if active is None else (active.index, active.source),
            "draining": None if draining is None else (draining.index, draining.source),
            "worker": None if path is None else (path.index, path.destination),
            "steered": {
                its_id: (entry.role, entry.source)
                for its_id, entry in pair.steered.ids.items()
                if its_id in live.indexes.ids.values() and entry.role is not Role.INSTALLED
            },
            "sessions": sorted(pair.context.sessions),
        }


def stage(state: str) -> Stage:
    made = Stage()
    made.begin(born=state != "BIRTH")
    if state != "BIRTH":
        made.enter(state)
    return made


def outcome(state: str, message: str, *, elsewhere: bool) -> Move:
    return MAY.get((state, message), (Move.NOTHING, Move.NOTHING))[elsewhere]


# The tests


def changed(scene: Stage, data: bytes, source: Endpoint) -> dict[str, Any]:
    """What the datagram changed."""
    before = scene.snapshot()
    scene.send(data, source)
    after = scene.snapshot()
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


@pytest.mark.parametrize("state", STATES)
def test_no_other_datagram_changes_anything(state: str) -> None:
    scene = stage(state)
    for message in MESSAGES:
        for source in (scene.bound, RACER):
            data = scene.make(message, source)
            assert changed(scene, forged(data), source) == {}, (message, source)
            if outcome(state, message, elsewhere=source is RACER) is Move.NOTHING:
                # An INIT replaces the pending entry, so that nothing of the older one is installed any more.
                expected = {"steered"} if (state, message) == ("BIRTH", "HANDSHAKE_INIT") else set()
                assert changed(scene, data, source).keys() <= expected, (message, source)


@pytest.mark.parametrize("state", [state for state in STATES if state != "BIRTH"])
def test_no_replay_changes_anything(state: str) -> None:
    scene = stage("ATTACHED")
    first = "REQUEST with its challenge"
    seen: dict[str, bytes] = {}
    for message in (first, *(other for other in MESSAGES if other not in (first, "CLOSE"))):
        seen[message] = scene.make(message, scene.bound)
        scene.send(seen[message], scene.bound)
    assert scene.index == ASKED
    scene.enter(state)
    for message, data in seen.items():
        for source in (scene.bound, RACER):
            assert changed(scene, data, source) == {}, (message, source)


def test_no_replayed_handshake_changes_a_pending_one() -> None:
    scene = stage("BIRTH")
    (init,) = scene.pair.of_kind(PacketType.HANDSHAKE_INIT, up=True)
    for source in (scene.bound, RACER):
        assert changed(scene, init.data, source) == {}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["bound source", "another"])
@pytest.mark.parametrize(("state", "message"), MAY)
def test_what_may_change_a_session_does(state: str, message: str, elsewhere: bool) -> None:
    move = outcome(state, message, elsewhere=elsewhere)
    if move is Move.NOTHING:
        return
    scene = stage(state)
    source = RACER if elsewhere else scene.bound
    before = scene.snapshot()
    scene.send(scene.make(message, source), source)
    after = scene.snapshot()
    sender = (".".join(map(str, source.address[12:])), source.port)
    count = split_version(after["version"]).count - split_version(before["version"]).count
    if move is Move.ATTACHES:
        assert (after["state"], count, after["active"]) == (State.ATTACHED, 1, (0, sender))
    elif move is Move.BINDS:
        assert after["active"] == (ASKED, sender)
        assert (after["state"], after["draining"]) == (State.ATTACHED, None)
        assert after["worker"] == (ASKED, socket_address(source.address, source.port))
        assert count == (1 if state == "RECOVERING" else 2)
    elif move is Move.COMMITS:
        assert (after["state"], count) == (State.VOLATILE, 1)
        assert all(after[part] == before[part] for part in ("active", "draining", "worker"))
    else:
        assert (after["state"], after["active"], after["sessions"]) == (State.TERMINATED, None, [])
        assert after["steered"] == {}


def test_the_genuine_ones_are_genuine() -> None:
    scene = stage("ATTACHED")
    pair = scene.pair
    worker = pair.workers[scene.live.slot]
    for message in ("DATA", "RESENT"):
        scene.send(scene.make(message, scene.bound), scene.bound)
    assert worker.delivered == [b"data" * 10] * 2
    for message, answer in [
        ("PROBE", PacketType.PATH),
        ("REQUEST without challenge", PacketType.REATTACH_ACK),
        ("HANDSHAKE_INIT", PacketType.HANDSHAKE_RESPONSE),
    ]:
        before = len(pair.of_kind(answer, up=False))
        scene.send(scene.make(message, RACER), RACER)
        assert len(pair.of_kind(answer, up=False)) == before + 1
