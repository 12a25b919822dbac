"""Known bugs, planted in the cores and the data plane for as long as a `with` lasts: can the simulator find them?

Each is what somebody could have written: a check left out, a counter begun anew, a list not looked at. The simulator
knows nothing of them. `BUGS` has them by name.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from jvpn.agent import owners
from jvpn.agent.paths import ClientPath, PathTable
from jvpn.agent.rekeying import ClientRekeying
from jvpn.protocol.constants import Role
from jvpn.protocol.replay import ReplayWindow
from jvpn.session import ownership
from jvpn.session.machine import Machine, Reason, State
from jvpn.session.ownership import Verdict
from jvpn.session.ttl import TtlClock
from jvpn.session.version import pack_version, split_version
from jvpn.sim.cluster import Cluster
from jvpn.store.base import StoreError
from jvpn.supervisor import reattaching
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.fleet import Fleet
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.narrator import Narrator
from jvpn.supervisor.other_nodes import OtherNodes
from jvpn.supervisor.reattaching import Reattaching
from jvpn.supervisor.takeover import Takeover
from workers.kept import KeptQueue
from workers.paths import PathEntry
from workers.reports import Missing
from workers.sessions import Session
from workers.singles import Singles
from workers.table import SessionTable

Bug = Callable[[], AbstractContextManager[object]]
BUGS: Final[dict[str, Bug]] = {}


def bug(plant: Bug) -> Bug:
    BUGS[plant.__name__] = plant
    return plant


def instead(owner: Any, name: str, made: Any) -> AbstractContextManager[object]:
    return patch.object(owner, name, made, create=True)


# Replays, proofs


@bug
def accepts_a_replay() -> AbstractContextManager[object]:
    """The window knows what it has seen, and nobody asks it."""
    mark = ReplayWindow.check_and_set

    def always(self: ReplayWindow, counter: int) -> bool:
        mark(self, counter)
        return True

    return instead(ReplayWindow, "check_and_set", always)


@bug
def binds_before_proof() -> AbstractContextManager[object]:
    """The challenge is not looked at."""
    return instead(Reattaching, "challenged", lambda self, session_id, request, arrival, now_ms: True)


@bug
def moves_before_proof() -> AbstractContextManager[object]:
    """The window of indexes follows a REQUEST that has not been opened yet."""
    receive = Reattaching.receive_request

    def early(
        self: Reattaching, session: LiveSession, index: int, datagram: bytes, arrival: Any, now_ms: int
    ) -> Reason | None:
        if session.indexes.saw(index):
            self._context.refresh_indexes(session)
        return receive(self, session, index, datagram, arrival, now_ms)

    return instead(Reattaching, "receive_request", early)


@bug
def counts_replays_against_the_session() -> AbstractContextManager[object]:
    """Whoever records a REQUEST can have the session ended."""
    judge = ownership.judge

    def strict(*args: Any) -> Verdict:
        verdict = judge(*args)
        return verdict._replace(counts_against_session=verdict.security_event is not None)

    return instead(reattaching, "judge", strict)


@bug
def roams_by_data() -> AbstractContextManager[object]:
    """Authentic user data from elsewhere moves the binding, as in WireGuard."""
    sample = Singles._sample

    def roam(self: Singles, udp: Any, received: Any, *rest: Any) -> None:
        sample(self, udp, received, *rest)
        entry: PathEntry = rest[2]
        if entry.session.path is not None:
            entry.remote = entry.session.path.destination = received.source

    return instead(Singles, "_sample", roam)


@bug
def believes_any_reset() -> AbstractContextManager[object]:
    """A RESET of the right length will do."""
    return instead(owners, "is_reset", lambda data, token: True)


# Nonces


@bug
def reuses_nonces_after_a_bind() -> AbstractContextManager[object]:
    """Counters begin anew with every bind."""
    rebind = SessionTable.rebind

    def anew(self: SessionTable, command: Any) -> Session:
        session = rebind(self, command)
        session._sequences.clear()
        return session

    return instead(SessionTable, "rebind", anew)


@bug
def reuses_nonces_in_a_new_worker() -> AbstractContextManager[object]:
    """A session's generation is not raised when another worker gets it."""
    return instead(LiveSession, "generation", property(lambda self: 0, lambda self, value: None))


@bug
def repeats_the_counter_of_requests() -> AbstractContextManager[object]:
    """REQUESTs are counted by path, and a path is forgotten when it is opened again: here never counted at all."""
    return instead(PathTable, "take_counter", lambda self, index: 0)


@bug
def takes_over_in_the_same_epoch() -> AbstractContextManager[object]:
    """A gateway that was restarted goes on with the keys that it had."""
    open_epoch = Machine.open_epoch.__func__  # type: ignore[attr-defined]

    def same(cls: type[Machine], last_version: int, *rest: Any) -> Machine:
        last = split_version(last_version)
        machine: Machine = open_epoch(cls, pack_version(max(0, last.epoch - 1), last.count), *rest)
        return machine

    return instead(Machine, "open_epoch", classmethod(same))


# Bindings, identity


@bug
def has_two_bindings() -> AbstractContextManager[object]:
    """In the worker the old index stays active."""
    bind = SessionTable._bind

    def both(self: SessionTable, session: Session, binding: Any) -> None:
        active = [entry for entry in session.entries.values() if entry.role is Role.ACTIVE]
        bind(self, session, binding)
        for entry in active:
            entry.role = Role.ACTIVE

    return instead(SessionTable, "_bind", both)


@bug
def sends_on_the_old_path() -> AbstractContextManager[object]:
    """A worker takes a new path only when it has none."""
    bind = Session.bind

    def keep(self: Session, path: Any) -> None:
        bind(self, path if self.path is None or path is None else self.path)

    return instead(Session, "bind", keep)


@bug
def replaces_a_session_in_silence() -> AbstractContextManager[object]:
    """A session gives way to a newer one of its client, and nobody says so."""
    terminate = GatewayCore.terminate

    def silent(
        self: GatewayCore, session: LiveSession, reason: Reason, now_ms: int, details: Any = None
    ) -> None:
        if reason is Reason.SUPERSEDED:
            self.context.sessions.pop(session.session_id, None)
            self.context.close_indexes(session)
            return
        terminate(self, session, reason, now_ms, details)

    return instead(GatewayCore, "terminate", silent)


@bug
def uses_a_steering_id_again() -> AbstractContextManager[object]:
    """A new path goes on with the last index: an observer of both networks sees the same client."""
    fresh = PathTable.open

    def reuse(self: PathTable, uplink: Any, now_ms: int, *, active: bool = False) -> ClientPath:
        if self.last_index > 0:
            self.last_index -= 1
        return fresh(self, uplink, now_ms, active=active)

    return instead(PathTable, "open", reuse)


# Versions, events


@bug
def forgets_a_version() -> AbstractContextManager[object]:
    """One transition counts twice."""
    number = Machine._number

    def skip(self: Machine, target: State) -> tuple[int, int]:
        version, local = number(self, target)
        return version + (target is State.VOLATILE), local

    return instead(Machine, "_number", skip)


@bug
def moves_without_an_event() -> AbstractContextManager[object]:
    """Entering RECOVERING is not told."""
    tell = Narrator.transition

    def mute(self: Narrator, session: LiveSession, step: Any) -> None:
        if step.to is not State.RECOVERING:
            tell(self, session, step)

    return instead(Narrator, "transition", mute)


@bug
def tells_a_wrong_reason() -> AbstractContextManager[object]:
    """A death is told as a choice."""
    tell = Narrator.transition

    def wrong(self: Narrator, session: LiveSession, step: Any) -> None:
        reason = Reason.QUALITY_SWITCH if step.reason is Reason.TRANSPORT_DEAD else step.reason
        tell(self, session, step._replace(reason=reason))

    return instead(Narrator, "transition", wrong)


# Deadlines


@bug
def ignores_the_recovery_window() -> AbstractContextManager[object]:
    """RECOVERING for ever."""
    entered = TtlClock.entered

    def endless(self: TtlClock, *args: Any) -> TtlClock:
        return entered(self, *args)._replace(window_deadline_ms=None)

    return instead(TtlClock, "entered", endless)


@bug
def forgets_the_loss_ttl() -> AbstractContextManager[object]:
    """Time without a path is not counted."""
    entered = TtlClock.entered

    def endless(self: TtlClock, *args: Any) -> TtlClock:
        return entered(self, *args)._replace(loss_deadline_ms=None)

    return instead(TtlClock, "entered", endless)


@bug
def restarts_the_loss_ttl() -> AbstractContextManager[object]:
    """Every transition without a binding begins the transport-loss TTL anew."""
    entered = TtlClock.entered

    def anew(self: TtlClock, *args: Any) -> TtlClock:
        return entered(self._replace(loss_deadline_ms=None), *args)

    return instead(TtlClock, "entered", anew)


# Lossless reattach, rekey


@bug
def delivers_twice() -> AbstractContextManager[object]:
    """What was sent again is not checked off where it was sent first, and everything is sent again."""

    def resent(self: Singles, entry: PathEntry, carrier: int, plaintext: Any) -> Any:
        return entry.session, plaintext[4:]

    @contextmanager
    def both() -> Iterator[None]:
        with (
            instead(Singles, "_resent", resent),
            instead(Missing, "__call__", lambda self, index, counter, generation: True),
        ):
            yield

    return both()


@bug
def sends_again_without_a_window() -> AbstractContextManager[object]:
    """What came late on the old path is not looked for before it is delivered again."""

    def resent(self: Singles, entry: PathEntry, carrier: int, plaintext: Any) -> Any:
        return entry.session, plaintext[4:]

    return instead(Singles, "_resent", resent)


@bug
def delivers_what_is_too_old() -> AbstractContextManager[object]:
    """What is kept is bounded in bytes, not in age."""

    def limit(self: KeptQueue[Any], max_bytes: int, window_ms: int) -> None:
        self._max_bytes = max_bytes if window_ms else 0
        self._window_ns = 3_600_000_000_000

    return instead(KeptQueue, "limit", limit)


@bug
def drops_the_old_phase_at_once() -> AbstractContextManager[object]:
    """With the new keys the old ones go: what was under way under them is lost."""
    respond = ClientRekeying.on_response

    def forget(self: ClientRekeying, value: bytes, now_ms: int) -> None:
        respond(self, value, now_ms)
        self._old_until_ms = now_ms

    return instead(ClientRekeying, "on_response", forget)


@bug
def answers_only_once() -> AbstractContextManager[object]:
    """A REQUEST that has been bound is not answered again: one lost ACK, and its client waits for ever."""
    return instead(Reattaching, "_same_ack", lambda self, asked, now_ms: None)


@bug
def takes_data_from_anywhere() -> AbstractContextManager[object]:
    """User data needs a tag and no source: nobody tells a client that its NAT mapping has changed."""
    return instead(PathEntry, "refusal", lambda self, source, now_ns, gateway: None)


# Fleets


@bug
def claims_without_comparing() -> AbstractContextManager[object]:
    """Whoever claims a session gets it, whatever became of it since it was read."""

    def claim(self: Cluster, record: Any, version: int, owner: str, *, owner_gone: bool = False) -> bool:
        self._check()
        self._records[record.session_id] = record
        return True

    return instead(Cluster, "claim", claim)


@bug
def ignores_the_fence() -> AbstractContextManager[object]:
    """Workers go on whatever the fence says."""
    return instead(SessionTable, "fenced", lambda self, now_ns: False)


@bug
def takes_from_a_living_owner() -> AbstractContextManager[object]:
    """A session is taken over wherever its client asks for it."""

    @contextmanager
    def both() -> Iterator[None]:
        with (
            instead(Fleet, "bars", lambda self, record: False),
            instead(Fleet, "must_be_gone", lambda self, owner: False),
        ):
            yield

    return both()


@bug
def hands_over_and_keeps() -> AbstractContextManager[object]:
    """An owner that hands a session over goes on with it."""
    give = OtherNodes._give

    def gives(self: OtherNodes, *asked: Any) -> None:
        """Also what lives here."""
        lives, self._context.sessions = self._context.sessions, {}
        give(self, *asked)
        self._context.sessions = lives

    @contextmanager
    def both() -> Iterator[None]:
        with (
            instead(OtherNodes, "_give", gives),
            instead(OtherNodes, "_let_go", lambda self, session, owner, now_ms: None),
        ):
            yield

    return both()


@bug
def resets_what_it_cannot_read() -> AbstractContextManager[object]:
    """A session that the store does not tell of at once is said to be gone."""
    read = Takeover._on_read

    def gone(self: Takeover, session_id: bytes, found: Any, now_ms: int) -> None:
        read(self, session_id, None if isinstance(found, StoreError) else found, now_ms)

    return instead(Takeover, "_on_read", gone)
