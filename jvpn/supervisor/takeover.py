"""A REATTACH_REQUEST on a steering id that this node does not know: the ticket leads to the session in the store.

A host that restarts loads nothing in advance: its sessions come back one by one, when their clients ask, by the same
code that takes over another node's. In this order, each step cheaper than what follows it:

 1. bucket of the source
 2. ticket opens           one AEAD
    buckets                of the session, then of all together; until here the store is not read
 3. store read             gone, or ended here: RESET, which only its own client believes; unreachable: silence
 4. proof                  the REQUEST opens under the stored session secret
 5. epoch                  the client knows a higher one: FAIL, and the record goes
 6. challenge              without a valid one: ACK(pending), and nothing has changed
 7. owner                  another node that lives: FAIL with its name (`supervisor/fleet.py`)
 8. lifetime               over: FAIL, and the record goes
 9. claim                  owner and epoch + 1, compare-and-swap, durable (`supervisor/claims.py`)
10. bind                   as for any session: RECOVERING in the new epoch, then ATTACHED

A session that was read for a REQUEST that has opened is not read again for the next one (`supervisor/proven.py`). What
is decided by such a copy is the claim alone, which is refused when the copy is not the truth any more.
"""

from collections.abc import Callable
from functools import partial

from jvpn.protocol import reattach, tickets
from jvpn.protocol.constants import NO_INDEX
from jvpn.protocol.indexes import window
from jvpn.protocol.reattach import Ack, Fail, Result
from jvpn.protocol.wire import WireError
from jvpn.session.bucket import DATAGRAM_RATE, Buckets, Rate, TokenBucket
from jvpn.session.machine import Reason, VersionExhausted
from jvpn.session.ownership import Code
from jvpn.session.record import SessionRecord
from jvpn.session.ttl import Instant, TtlClock, last_life, revive
from jvpn.session.version import epoch_of
from jvpn.store.base import StoreError
from jvpn.supervisor.admission import SOURCES_KEPT, source_of
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.claims import MOST_COPIES, Claims, Copy
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.effects import AskOwner, LoadSession
from jvpn.supervisor.fleet import ASK_AGAIN_MS, Fleet
from jvpn.supervisor.history import Answered
from jvpn.supervisor.inner import still_theirs
from jvpn.supervisor.live_session import Asked, LiveSession
from jvpn.supervisor.peers import Peer
from jvpn.supervisor.proven import Copies, Proven, Stored, find_index, opened, prove, wanted_id
from jvpn.supervisor.reattaching import Reattaching
from jvpn.supervisor.remembered import NotRemembered

OnTaken = Callable[[LiveSession, int], None]

#: REQUESTs with a ticket that we look at from one source (many clients may be behind one), and of those whose ticket
#: opens: of one session, and all together, which is what a core can do when a host's sessions come back at once.
SOURCE_RATE = Rate(100, 200)
SESSION_RATE = DATAGRAM_RATE
RATE = Rate(16_000, 1_000)
SESSIONS_KEPT = 4_096
#: Sessions that the store is asked for at a time: while it does not answer, no more than these wait for it.
MOST_READING = 4_096


class Takeover:
    """`on_taken(session, now_ms)`: a stored session is this node's now, and its REQUEST was judged."""

    def __init__(self, context: GatewayContext, reattaching: Reattaching, on_taken: OnTaken) -> None:
        self._context = context
        self._on_taken = on_taken
        self._claims = Claims(context, self._on_ours)
        #: REQUESTs that wait for the store to be read, by session.
        self._reading: dict[bytes, list[tuple[bytes, Arrival]]] = {}
        self._copies = Copies()
        self._reattaching = reattaching
        self._bucket = TokenBucket(RATE)
        self._sources = Buckets(SOURCE_RATE, SOURCES_KEPT)
        self._of_sessions = Buckets(SESSION_RATE, SESSIONS_KEPT)

    def claiming(self, session_id: bytes) -> bool:
        """Whether the session is on its way here."""
        return self._claims.under_way(session_id)

    def handle_timer(self, now_ms: int) -> None:
        """What was kept for a moment goes; nobody needs to be woken for that."""
        self._copies.handle_timer(now_ms)

    def receive_request(self, data: bytes, arrival: Arrival, now_ms: int) -> None:
        """Judge a REQUEST on an unknown id."""
        counters = self._context.counters
        ticket = tickets.ticket_of(data)
        if ticket == tickets.NO_TICKET:
            counters["unknown_id"] += 1
            return
        if not self._sources.take(source_of(arrival), now_ms):
            counters["ticket_rate"] += 1
            return
        session_id = tickets.open_ticket(self._context.facts.fleet_key, wanted_id(data), ticket)
        if session_id is None:
            counters["bad_ticket"] += 1
            return
        # The session's first: whoever repeats what he has recorded is not to empty the bucket of all the others.
        if not self._of_sessions.take(session_id, now_ms) or not self._bucket.take(now_ms):
            counters["ticket_rate"] += 1
            return
        if not self._needs_no_store(session_id, data, arrival, now_ms):
            self._look_up(session_id, data, arrival, now_ms)

    def _needs_no_store(self, session_id: bytes, data: bytes, arrival: Arrival, now_ms: int) -> bool:
        """Whether the session is here, or on its way here, or ended here; then the REQUEST is dealt with."""
        context = self._context
        live = context.sessions.get(session_id)
        if live is not None:
            self._on_live(live, data, arrival, now_ms)
            return True
        if context.fenced(now_ms):
            # Neither is it to begin here, nor is known whether what ended here has gone on elsewhere.
            context.counters["fenced"] += 1
            return True
        if self._claims.join(session_id, data, arrival):
            return True
        if session_id in context.unforgotten:
            # It ended here, whatever the store still says.
            self._reset(session_id, data, arrival)
            return True
        return False

    def _look_up(self, session_id: bytes, data: bytes, arrival: Arrival, now_ms: int) -> None:
        if self._context.draining:
            self._context.counters["draining"] += 1
            return
        copy = self._copies.get(session_id, now_ms)
        if copy is None:
            self._read(session_id, data, arrival)
        else:
            self._on_stored(copy, data, arrival, now_ms)

    def _read(self, session_id: bytes, data: bytes, arrival: Arrival) -> None:
        self._copies.drop(session_id)
        waiting = self._reading.get(session_id)
        if waiting is not None:
            if len(waiting) < MOST_COPIES:
                waiting.append((data, arrival))
        elif len(self._reading) >= MOST_READING:
            self._context.counters["store_busy"] += 1
        else:
            self._reading[session_id] = [(data, arrival)]
            self._context.do(LoadSession(session_id, partial(self._on_read, session_id)))

    def _on_read(self, session_id: bytes, found: SessionRecord | StoreError | None, now_ms: int) -> None:
        counters = self._context.counters
        for data, arrival in self._reading.pop(session_id):
            if isinstance(found, StoreError):
                counters["store_errors"] += 1
            elif self._needs_no_store(session_id, data, arrival, now_ms):
                continue
            elif found is None:
                self._reset(session_id, data, arrival)
            else:
                self._on_stored(found, data, arrival, now_ms)

    def _reset(self, session_id: bytes, data: bytes, arrival: Arrival) -> None:
        """The session is gone for certain."""
        self._context.counters["resets_sent"] += 1
        token = tickets.reset_token(self._context.facts.fleet_key, session_id)
        self._context.send(arrival, tickets.reset_datagram(wanted_id(data), token))

    def _on_live(self, session: LiveSession, data: bytes, arrival: Arrival, now_ms: int) -> None:
        """A session of ours on an index beyond the window: the ticket proves the id, the window moves there."""
        index = find_index(session.secrets, wanted_id(data), session.indexes.highest_seen)
        if index is None:
            self._context.counters["unknown_id"] += 1
            return
        try:
            reattach.open_request(session.secrets, index, data)
        except WireError as error:
            self._context.counters[error.reason] += 1
            return
        if session.indexes.saw(index):
            self._context.refresh_indexes(session)
        if index in session.indexes.ids:
            self._reattaching.receive_request(session, index, data, arrival, now_ms)

    def _on_stored(self, found: SessionRecord | Proven, data: bytes, arrival: Arrival, now_ms: int) -> None:
        """`found`: as it was read for this REQUEST, or for one before."""
        counters = self._context.counters
        try:
            if isinstance(found, Proven):
                proven = prove(found.stored, data, arrival, found)
            else:
                proven = prove(opened(found), data, arrival)
            if proven is None:
                counters["unknown_id"] += 1
            else:
                self._decide(proven, now_ms)
        except (NotRemembered, WireError, VersionExhausted) as error:
            counters[getattr(error, "reason", "not_remembered")] += 1

    def _decide(self, proven: Proven, now_ms: int) -> None:
        context, record, arrival = self._context, proven.stored.record, proven.arrival
        peer = context.peers.find(record.client_public)
        if peer is None:
            context.counters["unknown_peer"] += 1
            return
        newer = context.by_peer.get(record.client_public)
        if newer is not None:
            # A client has one session, and this one's has another here, by a handshake since.
            self._over(proven, Reason.SUPERSEDED, newer.session_id)
            return
        barred = context.fleet is not None and context.fleet.bars(record)
        if epoch_of(proven.request.state_version) > record.epoch and not barred:
            # The store has lost what it had kept: were the epoch opened a second time, so would its keys be. The client
            # would take no challenge out of an epoch that it has left.
            self._over(proven, Reason.OWNERSHIP_CONFLICT, code=Code.SESSION_OVER, counter="store_behind")
            return
        fresh = self._reattaching.fresh(record.session_id, arrival, now_ms)
        if not self._reattaching.challenged(record.session_id, proven.request, arrival, fresh):
            self._pending(proven, fresh.challenge, now_ms)
            return
        if barred and context.fleet is not None:
            self._refer(proven, context.fleet, now_ms)
            return
        clock = self._lifetime(proven.stored, now_ms)
        if isinstance(clock, Reason):
            self._over(proven, clock)
            return
        prefixes = still_theirs(peer, record, proven.stored.memory.pooled, context.facts.pool)
        if prefixes is None:
            self._over(proven, Reason.ADDRESS_WITHDRAWN, counter="address_withdrawn")
            return
        session = self._restore(proven, peer, now_ms)
        session.ttl, session.prefixes = clock, prefixes
        self._copies.drop(record.session_id)
        self._claims.begin(record, Asked(session, proven.index, proven.request, arrival, fresh), now_ms)

    def _pending(self, proven: Proven, challenge: bytes, now_ms: int) -> None:
        """Nothing is restored for a source that has not shown that it receives."""
        self._context.counters["takeover_pending"] += 1
        stored = proven.stored
        if not proven.copied and stored.record.owner_node == self._context.facts.node_id:
            # Of another node's session its keys may change meanwhile under the same version; of ours nobody else's do.
            self._copies.put(proven, now_ms)
        ack = Ack(
            attempt=proven.request.attempt,
            result=Result.PENDING,
            bound_index=NO_INDEX,
            state_version=stored.record.state_version,
            highest_installed=window(proven.index, stored.policy.max_candidates)[-1],
            observed_address=proven.arrival.remote.address,
            observed_port=proven.arrival.remote.port,
            challenge=challenge,
            reports=(),
        )
        salt = self._context.random_bytes(16)
        answer = reattach.seal_ack(stored.phases[0], salt, proven.steering_id, ack)
        self._context.send(proven.arrival, answer)

    def _refer(self, proven: Proven, fleet: Fleet, now_ms: int) -> None:
        """The client is sent to the owner; should it come back, the owner is asked to hand the session over."""
        context, record, attempt = self._context, proven.stored.record, proven.request.attempt
        if proven.copied:
            self._read(record.session_id, proven.data, proven.arrival)
            return
        context.counters["not_owner"] += 1
        if fleet.referred(record.session_id, attempt, now_ms):
            context.do(AskOwner(record.session_id, record.owner_node, context.facts.node_id, attempt))
        owner = fleet.endpoint_of(record.owner_node)
        self._fail(proven, Code.NOT_OWNER.value, ASK_AGAIN_MS, owner)

    def _fail(self, proven: Proven, reason: str, retry_after_ms: int = 0, owner: str = "") -> None:
        stored = proven.stored
        fail = Fail(proven.request.attempt, stored.record.state_version, retry_after_ms, reason, owner)
        salt = self._context.random_bytes(16)
        answer = reattach.seal_fail(stored.phases[0], salt, proven.steering_id, fail)
        self._context.send(proven.arrival, answer)

    def _restore(self, proven: Proven, peer: Peer, now_ms: int) -> LiveSession:
        """The session as stored, belonging to nobody yet."""
        context, stored = self._context, proven.stored
        record, memory, phases = stored.record, stored.memory, stored.phases
        # Of two stored phases the client may use either: we send under the older until it shows the newer.
        session = LiveSession(
            session_id=record.session_id,
            peer=peer,
            policy=stored.policy,
            secrets=phases[-2] if len(phases) > 1 else phases[-1],
            machine_epoch=record.epoch + 1,
            hook=lambda step: context.narrator.transition(session, step),
            record=-1,
            slot=context.least_loaded_slot(),
            supervisor_generation=context.facts.generation,
            created_ms=now_ms,
            key_limits=context.facts.key_limits[phases[-1].suite.number],
            highest_seen=proven.index,
        )
        if len(phases) > 1:
            session.next_secrets = phases[-1]
            session.control.add_phase(phases[-1])
        if memory.answered is not None:
            session.answered = Answered(*memory.answered)
        session.last_attempt = session.last_told_attempt = 0
        session.bound_in_epoch = False
        session.proven_from = memory.proven_from
        if record.boot_id == context.facts.boot_id:
            session.switches.times_ms = list(memory.switches_ms)
        return session

    def _lifetime(self, stored: Stored, now_ms: int) -> TtlClock | Reason:
        context, record, policy = self._context, stored.record, stored.policy
        now = Instant(context.wall_ms(), now_ms, context.facts.boot_id)
        heartbeat = last_life(record, policy.transport_loss_ttl_ms, now_ms)
        return revive(record, heartbeat, now, policy.transport_loss_ttl_ms, policy.recovery_window_ms)

    def _over(
        self, proven: Proven, reason: Reason, by: bytes = b"", code: Code | None = None, counter: str = ""
    ) -> None:
        """The session is not revived: its client is told by proof, the store forgets it. `counter` counts it."""
        context, record = self._context, proven.stored.record
        if proven.copied:
            self._read(record.session_id, proven.data, proven.arrival)
            return
        if counter:
            context.counters[counter] += 1
        self._fail(proven, reason.value if code is None else code.value)
        context.narrator.released(record, reason, by)
        context.forget(record.session_id, record.state_version)

    def _on_ours(self, asked: Asked, copies: list[Copy], now_ms: int) -> None:
        """They are judged like any others."""
        session = asked.session
        for secrets in (session.secrets, session.next_secrets):
            if secrets is not None:
                self._context.note_keys(secrets, session.epoch)
        if asked.index in session.indexes.ids:
            self._reattaching.receive_proven(asked, now_ms)
        if not session.given_to_worker:
            # Its bind would have done it.
            context = self._context
            context.tell(session.slot, session.add_command(context.next_seq()))
            session.given_to_worker = True
        for copy in copies:
            self._on_live(session, copy.data, copy.arrival, now_ms)
        self._on_taken(session, now_ms)
