"""Sessions that outlived their supervisor: brought back from the shared page and the store.

Workers went on forwarding meanwhile, so nothing that they use may change: the page is believed for what changes often
(state, version, bindings, counters), the store for what it alone has (secrets, policy, lifetime). For each session, in
this order: its generation is raised in the page (a worker may have been replaced while nobody watched, and no counter
may come twice), every steering entry is written again, its worker gets the whole session, the client its CONFIG and
STATE. A session that only one of the two knows ends, with an event; steering entries of nobody go.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from jvpn.protocol.addresses import to_text
from jvpn.protocol.constants import OLD_PHASE_MS, Transport
from jvpn.protocol.handshake import Kem
from jvpn.protocol.reattach import Fail
from jvpn.session.machine import InvariantBroken, Machine, Reason, State, split_version
from jvpn.session.ownership import Code
from jvpn.session.record import Binding, Bindings, SessionRecord
from jvpn.session.ttl import TtlClock
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.effects import (
    ClearRecord,
    PutPrefix,
    RemoveId,
    RemovePrefix,
)
from jvpn.supervisor.history import Answered
from jvpn.supervisor.inner import still_theirs
from jvpn.supervisor.live_session import CODES, REASONS, LiveSession
from jvpn.supervisor.peers import Peer
from jvpn.supervisor.remembered import NotRemembered, Remembered, recall
from workers.commands import IndexReport, RemoveSession, Serve
from workers.page import SessionRow

NS_PER_MS = 1_000_000


@dataclass(slots=True)
class Found:
    """What an earlier supervisor left. `torn` are records that it was writing when it died."""

    rows: Mapping[int, SessionRow]
    torn: Iterable[int]
    stored: Iterable[SessionRecord]
    steering_ids: Iterable[bytes]
    prefixes: Iterable[str]


@dataclass(slots=True)
class Adopted:
    """How it went; `ended` says of each session that could not be kept why, for people."""

    sessions: int = 0
    ended: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ended = "".join(f"; {line}" for line in self.ended)
        return f"{self.sessions} sessions adopted, {len(self.ended)} ended{ended}"


class Adoption:
    def __init__(self, core: GatewayCore, now_ms: int) -> None:
        self._core = core
        self._context = core.context
        self._now_ms = now_ms
        self._result = Adopted()

    def run(self, found: Found) -> Adopted:
        """Bring everything back; what must be done for it are the core's effects."""
        context = self._context
        stored = {record.session_id: record for record in found.stored}
        restored = []
        for record, row in found.rows.items():
            if row.session_id == bytes(16):
                continue
            if State.from_number(row.state) is State.TERMINATED:
                if row.session_id in stored:
                    context.forget(row.session_id, row.state_version)
                continue
            session = self._one(record, row, stored.get(row.session_id))
            if session is not None:
                restored.append(session)
        for session in restored:
            # An id that traffic flows on is not given to another session that only has it in its window.
            for index in session.pinned_indexes():
                context.reserve(session, index)
        for session in restored:
            self._resume(session)
        for slot in context.facts.slots:
            # Its seat may have been given to a worker that waits for its sessions.
            context.tell(slot, Serve(context.next_seq()))
        for record in found.torn:
            self._discard(record, "its row of the shared page was half written")
        self._supersede()
        self._sweep(found)
        context.narrator.adopted(str(self._result))
        return self._result

    def _one(self, record: int, row: SessionRow, stored: SessionRecord | None) -> LiveSession | None:
        try:
            if stored is None:
                raise NotRemembered("the store does not know it")
            if self._context.fleet is not None and stored.owner_node != self._context.facts.node_id:
                self._lost(record, row, stored)
                return None
            session = self._restore(record, row, stored)
        except (NotRemembered, InvariantBroken, ValueError) as error:
            self._end_unknown(record, row, str(error))
            return None
        self._context.free_records.remove(record)
        return session

    def _resume(self, session: LiveSession) -> None:
        context = self._context
        context.admit(session)
        unborn = session.machine.state is State.BIRTH
        known = context.peers.find(session.peer.public_key) is not None
        addressed = bool(session.prefixes)
        if known and addressed and not unborn:
            older = context.by_peer.get(session.peer.public_key)
            if older is None or older.created_ms <= session.created_ms:
                context.by_peer[session.peer.public_key] = session
        self._put_in_force(session)
        if unborn:
            self._result.ended.append(f"{session.hex_id}: its handshake was not over")
            self._core.terminate(session, Reason.HANDSHAKE_FAIL, self._now_ms)
        elif not known:
            self._result.ended.append(f"{session.hex_id}: its peer is not configured any more")
            self._core.terminate(session, Reason.KEY_REVOKED, self._now_ms)
        elif not addressed:
            why = "its inner address is not its client's any more"
            self._result.ended.append(f"{session.hex_id}: {why}")
            self._core.terminate(session, Reason.ADDRESS_WITHDRAWN, self._now_ms, {"why": why})
        else:
            self._result.sessions += 1
            context.narrator.transferred(session, session.slot, "SUPERVISOR_RESTARTED")
            self._core.resume(session, self._now_ms)

    # One session

    def _restore(self, record: int, row: SessionRow, stored: SessionRecord) -> LiveSession:
        context, now_ms = self._context, self._now_ms
        memory = recall(stored.secrets)
        phases = memory.secrets()
        current = next((p for p in phases if p.phase_number & 15 == row.phase), None)
        if current is None:
            raise NotRemembered("the store does not have the key phase in force")
        if row.epoch != stored.epoch or row.slot not in context.facts.slots:
            raise NotRemembered("store and shared page name different epochs or workers")
        policy = memory.policy_snapshot()
        peer = context.peers.find(stored.client_public)
        session = LiveSession(
            session_id=row.session_id,
            peer=peer or Peer(stored.client_public.hex()[:16], stored.client_public, (), policy),
            policy=policy,
            secrets=current,
            machine_epoch=row.epoch,
            hook=lambda step: context.narrator.transition(session, step),
            record=record,
            slot=row.slot,
            supervisor_generation=context.facts.generation,
            created_ms=stored.expires_boot_ms - policy.lifetime_ms,
            key_limits=context.facts.key_limits[current.suite.number],
        )
        session.prefixes = still_theirs(session.peer, stored, memory.pooled, context.facts.pool) or ()
        state = State.from_number(row.state)
        session.machine = Machine.adopt(
            state,
            row.state_version,
            0 if state is State.BIRTH else row.bindings,
            row.since_ms,
            State.from_number(row.before) if row.before else None,
            lambda step: context.narrator.transition(session, step),
        )
        session.bindings = _bindings(row, now_ms)
        if session.bindings.active is not None:
            session.listeners[row.active_index] = row.listener
        session.ttl = TtlClock(
            stored.expires_boot_ms, row.loss_deadline_ms or None, row.window_deadline_ms or None
        )
        session.generation = row.generation + 1
        session.last_attempt = session.last_told_attempt = row.last_attempt
        session.bound_in_epoch = split_version(row.state_version).count > 0
        session.last_reason = REASONS[row.reason]
        self._restore_limits(session, row, memory)
        session.heard_ms = now_ms
        session.given_to_worker = True
        session.indexes.saw(row.highest_index)
        session.indexes.update(session.pinned_indexes())
        self._restore_keys(session, row, memory)
        return session

    @staticmethod
    def _restore_limits(session: LiveSession, row: SessionRow, memory: Remembered) -> None:
        """A restart gives nobody another try."""
        if row.refused_attempt:
            # A later version may have written it, which knows more of them.
            known = row.refused_code < len(CODES)
            code = CODES[row.refused_code] if known else Code.RATE_LIMITED.value
            session.refused = Fail(row.refused_attempt, session.machine.state_version, 0, code)
            session.last_told_attempt = max(session.last_told_attempt, row.refused_attempt)
        session.security_failures = row.security_failures
        session.proven_from = memory.proven_from
        session.switches.times_ms = list(memory.switches_ms)

    def _restore_keys(self, session: LiveSession, row: SessionRow, memory: Remembered) -> None:
        """Both phases of a rekey under way stay; the page says which one is in force."""
        for secrets in memory.secrets():
            self._context.note_keys(secrets, session.epoch)
            if secrets.phase_number == session.secrets.phase_number:
                continue
            session.control.add_phase(secrets)
            if secrets.phase_number > session.secrets.phase_number:
                session.next_secrets = secrets
            else:
                session.old_secrets = secrets
                session.old_until_ms = max(row.rekeyed_ms, 0) + OLD_PHASE_MS
        session.control.refuse_before(row.control_index, row.control_counter)
        if memory.answered is not None:
            session.answered = Answered(*memory.answered)
        session.rekeyed_ms, session.sent_at_rekey = row.rekeyed_ms, row.sent_at_rekey
        session.received_at_rekey, session.forged_at_rekey = row.received_at_rekey, row.forged_at_rekey
        # CONFIG may not have arrived: it goes again, where it may go at all.
        has_user_keys = session.demanded_kem is Kem.NONE or session.secrets.phase_number > 0
        session.configured = not has_user_keys

    def _put_in_force(self, session: LiveSession) -> None:
        context = self._context
        context.write_row(session)
        context.open_indexes(session)
        if context.by_peer.get(session.peer.public_key) is session:
            for prefix in session.prefixes:
                context.do(PutPrefix(prefix, session.slot))
        context.tell(session.slot, session.add_command(context.next_seq()))
        if session.bindings.active is not None:
            self._bind_again(session)

    def _bind_again(self, session: LiveSession) -> None:
        """The bind that the page has: perhaps the old supervisor died before the worker heard of it, and its ACK may be
        asked for again. That ACK says what has arrived by now."""
        context = self._context
        rebind = session.rebind_command(context.next_seq())
        session.bind_seq = rebind.seq

        def in_force(done_ms: int, reports: Sequence[IndexReport]) -> None:
            self._core.in_force(session, rebind.seq, reports, done_ms)
            context.flush(session, done_ms)

        context.tell_and_ask(session.slot, msgspec.structs.replace(rebind, report=True), in_force)

    # What cannot be kept

    def _supersede(self) -> None:
        """The supervisor died between a new session of a peer and the end of the older one."""
        for session in list(self._context.sessions.values()):
            newest = self._context.by_peer.get(session.peer.public_key)
            if newest is not None and newest is not session:
                details: dict[str, object] = {"by": newest.hex_id}
                self._core.terminate(session, Reason.SUPERSEDED, self._now_ms, details)

    def _end_unknown(self, record: int, row: SessionRow, why: str) -> None:
        """Explicitly: an event as for every end, though nobody has the keys to tell the client."""
        self._context.narrator.lost(row.session_id, row.state_version, State.from_number(row.state), why)
        self._discard(record, why, row.session_id.hex())
        self._context.forget(row.session_id, row.state_version)

    def _lost(self, record: int, row: SessionRow, stored: SessionRecord) -> None:
        """Another node has taken the session while nobody kept this one's lease."""
        self._context.narrator.lost_to(stored, row.state_version)
        self._discard(record, f"{stored.owner_node} owns it now", row.session_id.hex())

    def _discard(self, record: int, why: str, name: str = "") -> None:
        context = self._context
        for slot in context.facts.slots:
            context.tell(slot, RemoveSession(context.next_seq(), record))
        context.do(ClearRecord(record))
        self._result.ended.append(f"{name or f'record {record}'}: {why}")

    def _sweep(self, found: Found) -> None:
        """Steering entries that no adopted session has: pending handshakes, sessions that ended."""
        context = self._context
        for steering_id in found.steering_ids:
            if steering_id not in context.by_steering_id:
                context.do(RemoveId(steering_id))
        wanted = {prefix for session in context.by_peer.values() for prefix in session.prefixes}
        for prefix in found.prefixes:
            if prefix not in wanted:
                context.do(RemovePrefix(prefix))


def _bindings(row: SessionRow, now_ms: int) -> Bindings:
    local = (to_text(row.local), row.local_port)
    transport = Transport(row.transport)
    active = draining = None
    if row.bindings:
        source = (to_text(row.source), row.source_port)
        active = Binding(row.active_index, source, local, transport, now_ms)
    until_ms = row.drain_until_ns // NS_PER_MS
    if row.draining_index >= 0 and until_ms > now_ms:
        source = (to_text(row.draining_source), row.draining_port)
        draining = Binding(row.draining_index, source, local, transport, now_ms)
    return Bindings(active, draining, until_ms if draining is not None else 0)
