"""Stored sessions that nobody can come back to: their clients stayed away until their time was over.

While there is room they are in nobody's way: a client that asks for one is told then, `sweeping.py` forgets the rest in
time. But one keeps its client's inner address, so they are looked for at once when a pool has no other left, and
when an operator wants an address back.
"""

from collections.abc import Callable

from jvpn.session.machine import Reason
from jvpn.session.record import SessionRecord
from jvpn.session.ttl import Instant, last_life, revive
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.remembered import NotRemembered, recall

Over = Callable[[SessionRecord], bool]


def over_by(context: GatewayContext, now_ms: int) -> Over:
    """Tells such sessions from others, as things are now, in any thread: those that a takeover would refuse, but for
    what lives here and what belongs to another node that lives."""
    facts = context.facts
    live = frozenset([*context.sessions, *context.confirming])
    nodes = None if context.fleet is None else context.fleet.nodes
    now = Instant(context.wall_ms(), now_ms, facts.boot_id)

    def over(record: SessionRecord) -> bool:
        if record.session_id in live:
            return False
        if record.owner_node != facts.node_id and (nodes is None or record.owner_node in nodes):
            return False
        try:
            policy = recall(record.secrets).policy_snapshot()
        except NotRemembered:
            return False
        heartbeat = last_life(record, policy.transport_loss_ttl_ms, now_ms)
        ends = policy.transport_loss_ttl_ms, policy.recovery_window_ms
        return isinstance(revive(record, heartbeat, now, *ends), Reason)

    return over
