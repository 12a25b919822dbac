"""After a voluntary switch: how long the old index drains, and its end."""

from dataclasses import replace

from jvpn.session.record import drain_window_ms
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.round_trips import UNMEASURED_MS


def drain_ms_of(session: LiveSession, old_index: int, new_index: int) -> int | None:
    """max(policy's window, 2 × srtt of the slower path): by then what the client sent before it had the ACK is here.

    A path that has not been measured counts as slow, until HEALTH tells (`settle`). None: nothing drains.
    """
    policy_ms, trips = session.policy.drain_window_ms, session.round_trips
    # A policy of zero means that nothing drains, as after a death.
    if not policy_ms:
        return None
    known = [trips.srtt_ms(index) for index in (old_index, new_index)]
    old_ms, new_ms = (UNMEASURED_MS if srtt_ms is None else srtt_ms for srtt_ms in known)
    return drain_window_ms(policy_ms, old_ms, new_ms)


def settle(context: GatewayContext, session: LiveSession) -> None:
    """The new path has been measured: the old one drains as long as the slower of the two asks for."""
    active, drained = session.bindings.active, session.bindings.draining
    if active is None or drained is None:
        return
    until_ms = active.since_ms + (drain_ms_of(session, drained.index, active.index) or 0)
    if until_ms != session.bindings.drain_until_ms:
        session.bindings = replace(session.bindings, drain_until_ms=until_ms)
        _tell(context, session, drained.index)


def finish(context: GatewayContext, session: LiveSession, now_ms: int) -> None:
    """Close what has drained long enough."""
    drained = session.bindings.draining
    session.bindings = session.bindings.expire(now_ms)
    if drained is not None and session.bindings.draining is None:
        _tell(context, session, drained.index)


def _tell(context: GatewayContext, session: LiveSession, index: int) -> None:
    if index in session.indexes.ids:
        context.put_id(session, index)
    context.write_row(session)
    context.tell(session.slot, session.rebind_command(context.next_seq()))
