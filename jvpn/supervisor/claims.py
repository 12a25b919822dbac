"""A stored session becomes this node's: owner and epoch + 1 in one compare-and-swap, then the bind that asked for it.

The store answers when it has kept the batch that the claim is in (`supervisor/keeping.py`). Until then the session is
nobody's here: it has no id and no place at a worker, and nothing is said. Copies of the REQUEST that came over other
paths meanwhile are judged after that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jvpn.session.machine import Machine, Reason, State
from jvpn.session.record import SessionRecord
from jvpn.supervisor import departing
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.effects import ClaimSession, ClearRecord, PutPrefix
from jvpn.supervisor.live_session import Arrival, LiveSession
from jvpn.supervisor.moves import Move

#: Copies of a REQUEST that wait for the claim, for each session.
MOST_COPIES = 4


class Waiting(NamedTuple):
    """A REQUEST that waits for the claim. `proven_index` is None for copies, of which only the ticket has opened."""

    proven_index: int | None
    data: bytes
    arrival: Arrival


OnOurs = Callable[[LiveSession, list[Waiting], int], None]


@dataclass(slots=True)
class _Claim:
    session: LiveSession
    record: SessionRecord
    requests: list[Waiting]


class Claims:
    """`on_ours(session, requests, now_ms)`: the session is this node's, durably; these REQUESTs are to be judged."""

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
        if len(claim.requests) < MOST_COPIES:
            claim.requests.append(Waiting(None, data, arrival))
        return True

    def begin(self, record: SessionRecord, session: LiveSession, proven: Waiting, now_ms: int) -> None:
        """Ask the store for a session whose REQUEST was proven, as it read it. Raises VersionExhausted."""
        context, facts = self._context, self._context.facts
        if not context.free_records:
            context.counters["table_full"] += 1
            return
        session.machine = Machine.open_epoch(
            record.state_version, State.RECOVERING, now_ms, session.machine_hook
        )
        session.record = context.free_records.pop()
        claimed = session.store_record(facts.node_id, context.wall_ms(), now_ms, facts.boot_id)
        self._pending[record.session_id] = _Claim(session, record, [proven])
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
        session = claim.session
        newer = context.by_peer.get(session.peer.public_key)
        if ours and newer is None:
            self._take(claim, now_ms)
            return
        context.free_records.append(session.record)
        if ours is None:
            context.counters["store_errors"] += 1
        elif not ours:
            context.counters["claim_lost"] += 1
        elif newer is not None:
            # In the same turn its client has got another session, by a handshake.
            context.narrator.released(claim.record, Reason.SUPERSEDED, newer.session_id)
            context.forget(session_id, claim.record.state_version)

    def _take(self, claim: _Claim, now_ms: int) -> None:
        context, session = self._context, claim.session
        owner = claim.record.owner_node
        how = Move.REVIVED if context.fleet is None else context.fleet.settled(session.session_id, owner)
        context.moves.note(how, owner, session.peer.name)
        session.given_to_worker = True
        departing.finish(context, session.session_id)
        context.admit(session)
        context.by_peer[session.peer.public_key] = session
        context.narrator.taken_over(session, claim.record.state_version)
        context.do(ClearRecord(session.record))
        context.write_row(session)
        context.open_indexes(session)
        for prefix in session.prefixes:
            context.do(PutPrefix(prefix, session.slot))
        context.tell(session.slot, session.add_command(context.next_seq()))
        context.counters["takeovers"] += 1
        self._on_ours(session, claim.requests, now_ms)
