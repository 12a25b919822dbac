"""Sessions that another node has: what is still under way to them here is delivered.

Their clients send here until they have the new owner's ACK, and return traffic comes here until it is led elsewhere. So
a departed session stays at its worker as it was, with the keys of its epoch, which no new owner uses, until its time is
over; its client takes what it sends for as long as it lets the old index drain. It has no state here, and nothing binds
it: a REQUEST on its index is a stranger's, whose ticket leads to the store and so to the new owner. Its row stays in
the page until then: a supervisor that starts meanwhile finds it, asks the store, and takes it from the worker.
"""

from jvpn.session.record import Bindings, drain_window_ms
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.effects import ClearRecord, RemoveId
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.round_trips import UNMEASURED_MS
from workers.commands import RemoveSession

#: However short the drain window: an ACK may be lost, and is asked for again.
LEAST_MS = 1_000


def depart(context: GatewayContext, session: LiveSession, now_ms: int) -> None:
    """Its place in the tables is given up already; what is under way to it drains."""
    active = session.bindings.active
    context.close_indexes(session)
    session.bindings = Bindings(drain_until_ms=now_ms)
    if active is not None and active.index in session.indexes.ids:
        measured_ms = session.round_trips.srtt_ms(active.index)
        srtt_ms = UNMEASURED_MS if measured_ms is None else measured_ms
        drain_ms = max(drain_window_ms(session.policy.drain_window_ms, srtt_ms, srtt_ms), LEAST_MS)
        session.bindings = Bindings(draining=active, drain_until_ms=now_ms + drain_ms)
        context.put_id(session, active.index)
    context.departing[session.session_id] = session


def get_timer(context: GatewayContext) -> int | None:
    return min((session.bindings.drain_until_ms for session in context.departing.values()), default=None)


def handle_timer(context: GatewayContext, now_ms: int) -> None:
    for session in list(context.departing.values()):
        if session.bindings.drain_until_ms <= now_ms:
            finish(context, session.session_id)


def finish(context: GatewayContext, session_id: bytes) -> None:
    """Nothing is left of a departed session, if there is one: its time is over, or it comes back."""
    session = context.departing.pop(session_id, None)
    if session is None:
        return
    draining = session.bindings.draining
    steering_id = None if draining is None else session.indexes.ids.get(draining.index)
    if steering_id is not None and steering_id not in context.by_steering_id:
        context.do(RemoveId(steering_id))
    context.hand_prefixes(session)
    context.tell(session.slot, RemoveSession(context.next_seq(), session.record))
    context.do(ClearRecord(session.record))
    context.free_records.append(session.record)
