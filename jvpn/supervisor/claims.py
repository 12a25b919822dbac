"""A stored session becomes this node's: owner and epoch + 1 in one compare-and-swap, then the bind that asked for it.

The claim is written as the bind will leave the session, so that the record is written once for both. Should the bind be
refused, or come otherwise, the record follows as after any change.

The store answers when it has kept the batch that the claim is in (`supervisor/keeping.py`). Until then the session is
nobody's here: it has no id and no place at a worker, and nothing is said. Copies of the REQUEST that came over other
paths meanwhile are judged after that.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from jvpn.session.machine import Machine, Reason, State
from jvpn.session.record import SessionRecord
from jvpn.supervisor import departing
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.effects import ClaimSession, ClearRecord, PutPrefix
from jvpn.supervisor.live_session import Asked
from jvpn.supervisor.moves import Move
from jvpn.supervisor.remembered import remember

#: Copies of a REQUEST that wait for the claim, for each session.
MOST_COPIES = 4


class Copy(NamedTuple):
    """A REQUEST that waits for the claim, and of which only the ticket has opened."""

    data: bytes
    arrival: Arrival


OnOurs = Callable[[Asked, list[Copy], int], None]


@dataclass(slots=True)
class _Claim:
    asked: Asked
    record: SessionRecord
    claimed: SessionRecord
    began_ms: int
    copies: list[Copy] = field(default_factory=list)

    def foreseen(self) -> bool:
        """Whether the bind has come as it was claimed: then the store has it."""
        session, claimed = self.asked.session, self.claimed
        return (
            session.machine.state is claimed.state
            and session.machine.state_version == claimed.state_version
            and session.last_attempt == claimed.last_bound_attempt
            and remember(session) == claimed.secrets
        )


class Claims:
    """`on_ours(asked, copies, now_ms)`: the session is this node's, durably; these REQUESTs are to be judged."""

    def __init__(self, context: GatewayContext, on_ours: OnOurs) -> None:
        self._context = context
        self._on_ours = on_ours
        self._pending: dict[bytes, _Claim] = {}

    def under_way(self, session_id: bytes) -> bool:
        return session_id in self._pending

    def join(self, session_id: bytes, data: bytes, arrival: Arrival) -> bool:
        """Whether the session is being claimed; then this REQUEST, whose ticket has opened, waits for that too."""
        claim = self._pending.get(session_id)
        if claim is None:
            return False
        if len(claim.copies) < MOST_COPIES:
            claim.copies.append(Copy(data, arrival))
        return True

    def begin(self, record: SessionRecord, asked: Asked, now_ms: int) -> None:
        """Ask the store for a session whose REQUEST was proven, as it read it. Raises VersionExhausted."""
        context, facts, session = self._context, self._context.facts, asked.session
        if not context.free_records:
            context.counters["table_full"] += 1
            session.retire()
            return
        session.machine = Machine.open_epoch(
            record.state_version, State.RECOVERING, now_ms, session.machine_hook
        )
        session.record = context.free_records.pop()
        claimed = session.store_record(
            facts.node_id, context.wall_ms(), now_ms, facts.boot_id, binds=asked.request.attempt
        )
        self._pending[record.session_id] = _Claim(asked, record, claimed, now_ms)
        context.do(
            ClaimSession(
                claimed,
                record.state_version,
                record.owner_node,
                context.fleet is not None and context.fleet.must_be_gone(record.owner_node),
                lambda ours, done_ms: self._answered(record.session_id, ours, done_ms),
            )
        )

    def _answered(self, session_id: bytes, ours: bool | None, now_ms: int) -> None:
        context, claim = self._context, self._pending.pop(session_id)
        session = claim.asked.session
        newer = context.by_peer.get(session.peer.public_key)
        if ours and newer is None:
            self._take(claim, now_ms)
            return
        context.free_records.append(session.record)
        session.retire()
        if ours is None:
            context.counters["store_errors"] += 1
        elif not ours:
            context.counters["claim_lost"] += 1
        elif newer is not None:
            # In the same turn its client has got another session, by a handshake.
            context.narrator.released(claim.record, Reason.SUPERSEDED, newer.session_id)
            context.forget(session_id, claim.record.state_version)

    def _take(self, claim: _Claim, now_ms: int) -> None:
        context, session = self._context, claim.asked.session
        owner = claim.record.owner_node
        how = Move.REVIVED if context.fleet is None else context.fleet.settled(session.session_id, owner)
        context.moves.note(how, owner, session.peer.name)
        departing.finish(context, session.session_id)
        context.admit(session)
        context.by_peer[session.peer.public_key] = session
        context.narrator.taken_over(session, claim.record.state_version)
        context.do(ClearRecord(session.record))
        context.write_row(session)
        context.open_indexes(session)
        for prefix in session.prefixes:
            context.do(PutPrefix(prefix, session.slot))
        context.counters["takeovers"] += 1
        self._on_ours(claim.asked, claim.copies, now_ms)
        if claim.foreseen():
            session.dirty_ms, session.stored_ms = None, claim.began_ms
        elif session.dirty_ms is None:
            session.dirty_ms = now_ms
