"""What the parts of the gateway core share: facts, tables, and the outgoing effects. Sans-I/O."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jvpn.policy.model import Policy
from jvpn.protocol.constants import CLOSE_REPEATS, Role
from jvpn.protocol.control import ControlType
from jvpn.protocol.key_limits import KEY_LIMITS, KeyLimits
from jvpn.protocol.keys import SessionSecrets
from jvpn.session.pool import InnerPool
from jvpn.session.record import SessionRecord
from jvpn.store.base import StoreError
from jvpn.supervisor.arrival import Arrival, endpoint
from jvpn.supervisor.effects import (
    BearSession,
    Effect,
    ForgetSession,
    PutId,
    PutPrefix,
    RemoveId,
    RemovePrefix,
    SaveSession,
    SendDatagram,
    TellWorker,
    WriteRow,
)
from jvpn.supervisor.fleet import Fleet
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.moves import Moves
from jvpn.supervisor.narrator import Narrator
from jvpn.supervisor.peers import PeerTable
from workers.commands import AddSession, Command, IndexReport, InstallIndexes, Rebind
from workers.page import Activity, SessionRow

#: What the store would not keep is brought to it again after this.
STORE_RETRY_MS = 1_000

#: Holds the place of a row.
_NO_ROW = SessionRow()

#: (now_ms, reports of what arrived)
Continuation = Callable[[int, Sequence[IndexReport]], None]


class ActivityReader(Protocol):
    """Reads what a worker wrote of a session's traffic into the shared page."""

    def read_activity(self, record: int) -> Activity: ...


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """What does not change while the supervisor runs. Keys are 32 bytes; `slots` are the worker numbers."""

    node_id: str
    boot_id: str
    private_key: bytes = field(repr=False)
    public_key: bytes
    fleet_key: bytes = field(repr=False)
    suites: frozenset[int]
    challenge_key: bytes = field(repr=False)
    generation: int
    slots: tuple[int, ...]
    capacity: int
    mtu: int
    routes: tuple[str, ...]
    default_policy: Policy
    #: Where peers without addresses get theirs.
    pool: InnerPool | None = None
    #: Name servers that clients are told of.
    dns: tuple[str, ...] = ()
    #: How far a key may be used, by suite.
    key_limits: Mapping[int, KeyLimits] = field(default_factory=lambda: KEY_LIMITS)


@dataclass(slots=True)
class GatewayContext:
    """Sessions by id, by steering id and by peer; records and sequence numbers; effects in order.

    `random_bytes(n)` and `wall_ms()` are the shell's; nothing here reads a clock.
    """

    facts: GatewayFacts
    peers: PeerTable
    narrator: Narrator
    random_bytes: Callable[[int], bytes]
    wall_ms: Callable[[], int]
    activity: ActivityReader
    effects: list[Effect] = field(default_factory=list)
    #: Sessions whose page rows are among these effects, and where.
    rows: dict[LiveSession, int] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    sessions: dict[bytes, LiveSession] = field(default_factory=dict)
    by_record: dict[int, LiveSession] = field(default_factory=dict)
    #: Confirmed by the client, not yet in force at their worker: session and when to give up.
    confirming: dict[bytes, tuple[LiveSession, int]] = field(default_factory=dict)
    by_steering_id: dict[bytes, tuple[LiveSession, int]] = field(default_factory=dict)
    by_peer: dict[bytes, LiveSession] = field(default_factory=dict)
    free_records: list[int] = field(default_factory=list)
    #: What happens when a worker has carried out a command: seq → (slot, continuation).
    awaiting: dict[int, tuple[int, Continuation]] = field(default_factory=dict)
    last_seq: int = 0
    #: Sessions of each worker.
    load: Counter[int] = field(default_factory=Counter)
    #: Sessions whose deadlines may have changed since they were last looked at.
    touched: set[LiveSession] = field(default_factory=set)
    #: Sessions that have ended and that the store may still have, with their last versions: they must not come back.
    unforgotten: dict[bytes, int] = field(default_factory=dict)
    #: Sessions that are another node's now, by id, until what is under way to them has come.
    departing: dict[bytes, LiveSession] = field(default_factory=dict)
    #: The nodes that the store is shared with; None where it is this node's alone.
    fleet: Fleet | None = None
    #: The node is to be left: it takes no session.
    draining: bool = False
    #: Whether this node's sessions may be another's by now: asked at every reattach.
    fenced: Callable[[int], bool] = lambda _now_ms: False
    #: A client has seen a higher epoch than this node knows: the node's lease is to be renewed at once, if it can be.
    doubt_lease: Callable[[], None] = lambda: None
    #: Keys were made: of a phase, in an epoch.
    note_keys: Callable[[SessionSecrets, int], None] = lambda _secrets, _epoch: None
    #: CLOSEs of sessions that are over, and when each goes out.
    farewells: list[tuple[int, SendDatagram]] = field(default_factory=list)
    #: Sessions that have come and gone, for a line in the log.
    moves: Moves = field(default_factory=Moves)
    #: What workers refused and what else an operator is to know, for the shell to print.
    worker_errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Workers may still answer commands of an earlier supervisor: no number of its may be one of ours.
        self.last_seq = self.facts.generation << 32
        self.free_records = list(range(self.facts.capacity - 1, -1, -1))

    def known_policies(self) -> dict[str, Policy]:
        """What peers may have, by name."""
        return {p.name: p for peer in self.peers.peers.values() for p in (peer.policy, *peer.others)}

    def take_effects(self) -> list[Effect]:
        """What is to be done, in order; the list is the caller's from now on."""
        due, self.effects = self.effects, []
        if self.rows:
            for session, place in self.rows.items():
                due[place] = WriteRow(session.record, session.page_row())
            self.rows = {}
        return due

    def next_seq(self) -> int:
        self.last_seq += 1
        return self.last_seq

    def do(self, effect: Effect) -> None:
        self.effects.append(effect)

    def forget(self, session_id: bytes, version: int) -> None:
        """A session has ended: the store is to forget it, again and again until it has."""
        self.unforgotten[session_id] = version
        self.do(ForgetSession(session_id, version))

    def save(
        self, session: LiveSession, now_ms: int, timestamp_us: int, then: Callable[[bool, int], None]
    ) -> None:
        """Have the store keep a session as it is now; `then(kept, now_ms)` when it has, or cannot."""
        self.do(SaveSession(self._to_store(session, now_ms), timestamp_us, then))

    def bear(
        self,
        session: LiveSession,
        now_ms: int,
        timestamp_us: int,
        pool: InnerPool,
        then: Callable[[SessionRecord | StoreError | None, int], None],
    ) -> None:
        """As `save`, for a new session that has its inner addresses from `pool`."""
        self.do(BearSession(self._to_store(session, now_ms), timestamp_us, pool, then))

    def _to_store(self, session: LiveSession, now_ms: int) -> SessionRecord:
        """What the store is to have of a session, which counts as brought there."""
        session.stored_ms = now_ms
        return session.store_record(self.facts.node_id, self.wall_ms(), now_ms, self.facts.boot_id)

    def save_changes(self, session: LiveSession, now_ms: int) -> None:
        """Have the store keep a running session as it is now; what it cannot keep is brought to it later."""
        self.save(session, now_ms, 0, lambda kept, done_ms: self.save_again_unless(kept, session, done_ms))

    def save_again_unless(self, kept: bool, session: LiveSession, now_ms: int) -> None:
        """What a running session misses in the store is brought to it later."""
        if not kept and self.sessions.get(session.session_id) is session:
            session.dirty_ms = now_ms + STORE_RETRY_MS
            self.touched.add(session)

    def tell(self, slot: int, command: Command, then: Callable[[int], None] | None = None) -> None:
        """Send a command to a worker; `then(now_ms)` runs when the worker says that it is in force."""
        if then is not None:
            self.awaiting[command.seq] = (slot, lambda done_ms, _reports: then(done_ms))
        self.do(TellWorker(slot, command))

    def tell_and_ask(self, slot: int, command: AddSession | Rebind, then: Continuation) -> None:
        """As `tell`, for what binds and may ask for reports: `then(now_ms, reports)`."""
        self.awaiting[command.seq] = (slot, then)
        self.do(TellWorker(slot, command))

    def send(self, arrival: Arrival, datagram: bytes) -> None:
        """Answer towards where something came from."""
        self.do(SendDatagram(arrival.listener, arrival.local, arrival.remote, datagram))

    def admit(self, session: LiveSession) -> None:
        """It lives here from now on."""
        self.sessions[session.session_id] = session
        self.by_record[session.record] = session
        self.load[session.slot] += 1

    def cede_peer(self, session: LiveSession) -> None:
        """It is not its client's session any more, if it was."""
        if self.by_peer.get(session.peer.public_key) is session:
            del self.by_peer[session.peer.public_key]

    def hand_prefixes(self, session: LiveSession) -> LiveSession | None:
        """Return traffic goes to the session that the client has now, if any, else nowhere. Returns that session."""
        other = self.by_peer.get(session.peer.public_key)
        for prefix in session.prefixes:
            if other is not None and prefix in other.prefixes:
                self.do(PutPrefix(prefix, other.slot))
            else:
                self.do(RemovePrefix(prefix))
        return other

    def dismiss(self, session: LiveSession) -> None:
        """It does not live here any more, if it did."""
        if self.sessions.pop(session.session_id, None) is not None:
            self.by_record.pop(session.record, None)
            self.load[session.slot] -= 1
        session.retire()

    def least_loaded_slot(self) -> int:
        return min(self.facts.slots, key=lambda slot: (self.load[slot], slot))

    # CONTROL

    def holds(self, session: LiveSession) -> bool:
        """Whether CONTROL waits: its path is not bound, or not yet in force at the worker, so the ACK comes first."""
        return session.bindings.active is None or session.bind_seq in self.awaiting

    def flush(self, session: LiveSession, now_ms: int) -> None:
        """Send what the control channel has due to the bound source; without one it waits."""
        self.touched.add(session)
        if not self.holds(session):
            self.effects += self.sealed(session, now_ms)

    def sealed(self, session: LiveSession, now_ms: int) -> list[SendDatagram]:
        """What the control channel has due, as datagrams to the bound source; none without one."""
        active = session.bindings.active
        if active is None or active.index not in session.indexes.ids:
            return []
        due = session.channel.plaintexts_to_send(now_ms)
        if not due:
            return []
        steering_id, listener = session.indexes.ids[active.index], session.listeners[active.index]
        local, source = endpoint(active.local), endpoint(active.source)
        return [
            SendDatagram(listener, local, source, session.control.seal(active.index, steering_id, plaintext))
            for plaintext in due
        ]

    def close(self, session: LiveSession, reason: str, now_ms: int) -> None:
        """CLOSE, three times, apart: the session will be forgotten, so the later ones are sealed now."""
        for number in range(CLOSE_REPEATS):
            session.channel.send(ControlType.CLOSE, reason.encode(), now_ms)
            datagrams = self.sealed(session, now_ms)
            if number:
                due_ms = now_ms + number * session.channel.repeat_ms
                self.farewells += [(due_ms, datagram) for datagram in datagrams]
            else:
                self.effects += datagrams

    def say_farewells(self, now_ms: int) -> None:
        """Send the CLOSEs that are due."""
        due = [datagram for due_ms, datagram in self.farewells if due_ms <= now_ms]
        if due:
            self.farewells = [later for later in self.farewells if later[0] > now_ms]
            self.effects += due

    # Session-wide steering

    def write_row(self, session: LiveSession) -> None:
        """The shared page is to have the session as it is at the end of this step: one row, where the first is asked
        for, so that nothing that follows a change is ahead of the page. One that waits for the store has no row: what
        the next supervisor finds there it may tell the end of, and that may have been told already."""
        if not session.given_to_worker and session.session_id in self.confirming:
            return
        self.touched.add(session)
        if session not in self.rows:
            self.rows[session] = len(self.effects)
            self.effects.append(WriteRow(session.record, _NO_ROW))

    def put_id(self, session: LiveSession, index: int) -> None:
        """Write the steering entry of one index as its role is now."""
        role = session.role_of(index)
        source = None
        if role is Role.ACTIVE and session.bindings.active is not None:
            source = endpoint(session.bindings.active.source)
        elif role is Role.DRAINING and session.bindings.draining is not None:
            source = endpoint(session.bindings.draining.source)
        steering_id = session.indexes.ids[index]
        until = session.bindings.drain_until_ms if role is Role.DRAINING else 0
        self.do(PutId(steering_id, session.slot, role, source, until))

    def reserve(self, session: LiveSession, index: int) -> bool:
        """Whether the steering id of `index` leads to `session` from now on.

        If not, eight random bytes met another session's: that index stays closed, the client uses another.
        """
        owned = (session, index)
        if self.by_steering_id.setdefault(session.indexes.ids[index], owned) == owned:
            return True
        del session.indexes.ids[index]
        self.counters["steering_id_collision"] += 1
        return False

    def open_indexes(self, session: LiveSession) -> None:
        """Install all indexes of a session, but for those whose steering id is another's."""
        for index in list(session.indexes.ids):
            if self.reserve(session, index):
                self.put_id(session, index)

    def close_indexes(self, session: LiveSession) -> None:
        """Take all steering entries of a session away."""
        for index, steering_id in session.indexes.ids.items():
            self._close(session, index, steering_id)

    def _close(self, session: LiveSession, index: int, steering_id: bytes) -> None:
        if self.by_steering_id.get(steering_id) == (session, index):
            del self.by_steering_id[steering_id]
            self.do(RemoveId(steering_id))

    def refresh_indexes(self, session: LiveSession) -> None:
        """Move the window of installed indexes to where it belongs, in the steering maps and in the worker."""
        added, gone = session.indexes.update(session.pinned_indexes())
        for index in added:
            if self.reserve(session, index):
                self.put_id(session, index)
        for index, steering_id in gone.items():
            self._close(session, index, steering_id)
        if added or gone:
            self.tell(session.slot, InstallIndexes(self.next_seq(), session.record, session.installed()))
