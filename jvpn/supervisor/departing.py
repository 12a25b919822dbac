"""Sessions that another node has: what their clients sent here before they knew is still delivered, nothing is sent.

A departed session has no binding here and no state; its old index drains like that of a path that was left. A REQUEST
on it is a stranger's, whose ticket leads to the store and so to the new owner.
"""

from jvpn.session.record import Bindings, drain_window_ms
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.effects import ClearRecord, RemoveId
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.round_trips import UNMEASURED_MS
from workers.commands import RemoveSession


def depart(context: GatewayContext, session: LiveSession, now_ms: int) -> None:
    """Its place in the tables is given up already; what is under way to it drains."""
    active = session.bindings.active
    context.close_indexes(session)
    # Nothing of it is to be adopted by a later supervisor.
    context.do(ClearRecord(session.record))
    session.bindings = Bindings()
    if active is not None and active.index in session.indexes.ids:
        measured_ms = session.round_trips.srtt_ms(active.index)
        srtt_ms = UNMEASURED_MS if measured_ms is None else measured_ms
        drain_ms = drain_window_ms(session.policy.drain_window_ms, srtt_ms, srtt_ms)
        session.bindings = Bindings(draining=active, drain_until_ms=now_ms + drain_ms)
        context.put_id(session, active.index)
        context.tell(session.slot, session.rebind_command(context.next_seq()))
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
    context.tell(session.slot, RemoveSession(context.next_seq(), session.record))
    context.free_records.append(session.record)
