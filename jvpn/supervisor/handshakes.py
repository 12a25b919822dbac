"""Handshakes at the gateway: INIT → pending entry → key confirmation → session.

Cheapest check first: size and mac1 (one HMAC), buckets, then Diffie-Hellman, then who it is and whether the timestamp
is new. Until the client's first authenticated CONTROL confirms the keys there is one pending entry per client key,
bounded in time, and nothing else: no record, no worker, no live session replaced.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jvpn.protocol import handshake
from jvpn.protocol.addresses import to_text
from jvpn.protocol.constants import HANDSHAKE_PENDING_MS, Role
from jvpn.protocol.handshake import HandshakeError, InitOpened, Kem
from jvpn.protocol.suites import suite
from jvpn.session.bucket import Buckets, Rate
from jvpn.session.machine import Reason
from jvpn.session.record import Binding, SessionRecord
from jvpn.store.base import StoreError
from jvpn.supervisor.admission import Admission
from jvpn.supervisor.arrival import Arrival, path_fact
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.effects import ClearRecord, ForgetExpired, PutId, PutPrefix
from jvpn.supervisor.expired import over_by
from jvpn.supervisor.inner import prefixes_of
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.peers import Peer

#: Handshakes answered to one client key: each may cost a durable write, a worker's command and an older session.
KEY_RATE = Rate(1, 10)

#: All stored sessions are looked through for those that are over at most this often.
LOOK_AGAIN_MS = 60_000

OnAttached = Callable[[LiveSession, LiveSession | None, int], None]


@dataclass(slots=True)
class Pending:
    """A handshake answered and not yet confirmed. Its session has no record and no worker yet."""

    session: LiveSession
    arrival: Arrival
    timestamp_us: int
    answered_ms: int

    @property
    def expires_ms(self) -> int:
        return self.answered_ms + HANDSHAKE_PENDING_MS


class Handshakes:
    """`on_attached(session, older, now_ms)` follows every HANDSHAKE_OK; `older`: the peer's session until now.
    `on_refused(session, why, now_ms)`: the store would not keep it, so it is not to be."""

    def __init__(
        self,
        context: GatewayContext,
        on_attached: OnAttached,
        on_refused: Callable[[LiveSession, str, int], None],
    ) -> None:
        self._context = context
        self._on_attached = on_attached
        self._on_refused = on_refused
        self._pending: dict[bytes, Pending] = {}
        #: Told that the pool has no address left, since one was given the last time.
        self._exhausted = False
        self._look_ms = 0
        self._keys = Buckets(KEY_RATE, context.facts.capacity)
        facts = context.facts
        self._admission = Admission(facts.public_key, context.random_bytes, suite(1).hmac)

    def receive_init(self, datagram: bytes, arrival: Arrival, now_ms: int) -> None:
        """Answer an INIT, or drop and count it by reason."""
        context = self._context
        if context.draining:
            # In silence: its client goes on to another endpoint.
            context.counters["draining"] += 1
            return
        if context.fenced(now_ms):
            context.counters["fenced"] += 1
            return
        try:
            cookie = self._admission.judge(datagram, arrival, now_ms)
            if cookie is not None:
                context.counters["cookies_sent"] += 1
                context.send(arrival, cookie)
                return
            opened = handshake.read_init(datagram, context.facts.private_key)
        except HandshakeError as error:
            context.counters[error.reason] += 1
            return
        if opened.suite.number not in context.facts.suites:
            context.counters["suite_refused"] += 1
            return
        peer = context.peers.find(opened.client_public)
        if peer is None:
            context.counters["unknown_peer"] += 1
            return
        waiting = self._pending.get(peer.public_key)
        newest = waiting.timestamp_us if waiting else 0
        if not context.peers.is_fresh(peer.public_key, opened.timestamp_us) or opened.timestamp_us <= newest:
            context.counters["stale_timestamp"] += 1
            context.peers.stale_inits[peer.public_key] += 1
            return
        # Behind the proof and the timestamp: neither a stranger nor a copy can use it up.
        if not self._keys.take(peer.public_key, now_ms):
            context.counters["handshake_key_rate"] += 1
            return
        if not context.free_records:
            context.counters["table_full"] += 1
            return
        self._answer(opened, peer, arrival, now_ms)

    def _answer(self, opened: InitOpened, peer: Peer, arrival: Arrival, now_ms: int) -> None:
        context = self._context
        policy = peer.policy_for(opened.policy_name)
        given = peer.policy if policy is None else policy
        broken = peer.refuses(opened.policy_name)
        if broken:
            context.counters["policy_broken"] += 1
            context.narrator.policy_refuses(peer, broken, now_ms)
            return
        if not arrival.allowed_by(given):
            context.counters["transport_not_allowed"] += 1
            return
        kem = Kem.MLKEM768 if given.kem == "mlkem768" else Kem.NONE
        response, result = opened.respond(
            peer.psk, context.random_bytes(32), context.random_bytes(16), epoch=1, kem=kem
        )
        session = LiveSession(
            session_id=result.session_id,
            peer=peer,
            policy=given,
            secrets=result.secrets,
            machine_epoch=result.epoch,
            hook=lambda step: context.narrator.transition(session, step),
            record=-1,
            slot=context.least_loaded_slot(),
            supervisor_generation=context.facts.generation,
            created_ms=now_ms,
            key_limits=context.facts.key_limits[result.secrets.suite.number],
        )
        steering_id = session.indexes.ids[0]
        if not context.reserve(session, 0):
            session.retire()
            return
        context.note_keys(session.secrets, session.epoch)
        self._drop_pending(peer.public_key)
        self._pending[peer.public_key] = Pending(session, arrival, opened.timestamp_us, now_ms)
        session.refused_policy = opened.policy_name if policy is None else ""
        context.do(PutId(steering_id, session.slot, Role.PENDING, arrival.remote))
        context.send(arrival, response)

    def pending_of(self, session: LiveSession) -> Pending | None:
        """The pending entry of a session that is not confirmed yet."""
        waiting = self._pending.get(session.peer.public_key)
        return waiting if waiting is not None and waiting.session is session else None

    def confirm(self, pending: Pending, now_ms: int) -> bool:
        """The client proved the keys: make the session durable, give it to its worker, then attach it.

        False, and nothing done, when others took the last record meanwhile, or while this node is fenced.
        """
        context, session = self._context, pending.session
        if context.fenced(now_ms):
            context.counters["fenced"] += 1
            return False
        if not context.free_records:
            context.counters["table_full"] += 1
            return False
        del self._pending[session.peer.public_key]
        context.confirming[session.session_id] = (session, now_ms + HANDSHAKE_PENDING_MS)
        session.record = context.free_records.pop()
        arrival = pending.arrival
        source = (to_text(arrival.remote.address), arrival.remote.port)
        local = (to_text(arrival.local.address), arrival.local.port)
        session.proven_from = source[0]
        session.listeners[0] = arrival.listener
        first = Binding(0, source, local, arrival.transport, now_ms)
        session.bindings = session.bindings.bind(first, now_ms, None)
        context.peers.accept(session.peer.public_key, pending.timestamp_us)
        pool = context.facts.pool
        if session.pooled and pool is not None:
            context.bear(session, now_ms, pending.timestamp_us, pool, partial(self._born, session))
        else:
            context.save(session, now_ms, pending.timestamp_us, partial(self._stored, session))
        return True

    def _born(self, session: LiveSession, kept: SessionRecord | StoreError | None, now_ms: int) -> None:
        if isinstance(kept, SessionRecord):
            self._exhausted = False
            session.prefixes = prefixes_of(kept)
        elif kept is None and session.session_id in self._context.confirming:
            self._refuse_address(session, now_ms)
            return
        self._stored(session, isinstance(kept, SessionRecord), now_ms)

    def _refuse_address(self, session: LiveSession, now_ms: int) -> None:
        """Said once, until an address is given again."""
        self._context.counters["pool_exhausted"] += 1
        if not self._exhausted:
            self._context.worker_errors.append(
                f"peer {session.peer.name} gets no inner address: the pool has none left without a session; "
                "make it larger, or end sessions"
            )
        self._exhausted = True
        if now_ms >= self._look_ms:
            self._look_ms = now_ms + LOOK_AGAIN_MS
            self._context.do(ForgetExpired(over_by(self._context, now_ms)))
        self._on_refused(session, "no inner address is left in the pool", now_ms)

    def _stored(self, session: LiveSession, kept: bool, now_ms: int) -> None:
        context = self._context
        if session.session_id not in context.confirming:
            return
        if not kept:
            self._on_refused(session, "the store cannot be written", now_ms)
            return
        session.given_to_worker = True
        context.do(ClearRecord(session.record))
        context.write_row(session)
        context.open_indexes(session)
        for prefix in session.prefixes:
            context.do(PutPrefix(prefix, session.slot))
        add = session.add_command(context.next_seq())
        context.tell(session.slot, add, lambda done_ms: self._attach(session, done_ms))

    def _attach(self, session: LiveSession, now_ms: int) -> None:
        context = self._context
        if context.confirming.pop(session.session_id, None) is None:
            return
        older = context.by_peer.get(session.peer.public_key)
        if older is not None:
            context.counters["superseded"] += 1
        context.admit(session)
        context.by_peer[session.peer.public_key] = session
        context.narrator.acquired(session)
        details: dict[str, object] = {"peer": session.peer.name, "policy": session.policy.name}
        if session.bindings.active is not None:
            path = path_fact(session.bindings.active)
            details |= {
                "index": path.index,
                "transport": path.transport.name.lower(),
                "source": path.source_text,
            }
        session.machine.apply(Reason.HANDSHAKE_OK, now_ms, details=details)
        if session.refused_policy:
            context.narrator.policy_refused(session, session.refused_policy)
        context.counters["handshakes"] += 1
        self._on_attached(session, older, now_ms)

    def forget_clock(self, peer: Peer) -> None:
        """Nothing is left of the peer's handshake timestamps here, the one of a pending handshake included."""
        self._drop_pending(peer.public_key)
        self._context.peers.forget_clock(peer.public_key)

    def forget_pending(self) -> None:
        """Nothing that was answered until now counts: clients ask again."""
        for client_key in list(self._pending):
            self._drop_pending(client_key)

    def get_timer(self) -> int | None:
        return min((p.expires_ms for p in self._pending.values()), default=None)

    def handle_timer(self, now_ms: int) -> None:
        for key, pending in list(self._pending.items()):
            if pending.expires_ms <= now_ms:
                self._context.counters["handshake_timeout"] += 1
                pending.session.machine.apply(Reason.HANDSHAKE_TIMEOUT, now_ms)
                self._drop_pending(key)

    def _drop_pending(self, client_key: bytes) -> None:
        pending = self._pending.pop(client_key, None)
        if pending is not None:
            self._context.close_indexes(pending.session)
            pending.session.retire()
