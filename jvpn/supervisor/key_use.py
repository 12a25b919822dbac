"""How much a session's data keys have been used, and REKEY_REQUIRED when that is too much or takes too long.

Workers count in the shared page; it is read seldom: no worker is quick enough to use up what is left before the next
look. A session whose client does not rekey is asked again, and stops sending at its limit (the worker sees to that),
but is never refused a reattach.
"""

import math

from jvpn.protocol.control import ControlType
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.narrator import Limit

#: Datagrams that a worker handles at most.
QUICKEST_PER_MS = 4_000
LEAST_LOOK_MS = 1_000
MOST_LOOK_MS = 60_000
#: Rekeys are the client's affair; after this many intervals without one it is asked.
OVERDUE_INTERVALS = 2
#: A client that read the wish and did nothing is asked again after this.
ASK_AGAIN_MS = 10_000

#: What POLICY_EVENT names.
SENT = "key_datagrams_sent"
RECEIVED = "key_datagrams_received"
FORGED = "key_datagrams_forged"
OVERDUE = "rekey_age_ms"

#: Values of REKEY_REQUIRED, and reason codes of its events.
KEY_LIMIT = "KEY_LIMIT"
REKEY_OVERDUE = "REKEY_OVERDUE"


class KeyUse:
    def __init__(self, context: GatewayContext) -> None:
        self._context = context

    def get_timer(self, session: LiveSession) -> int | None:
        """When a session's keys are looked at next; None while nothing can be said to the client anyway."""
        return None if session.bindings.active is None else session.look_at_keys_ms

    def handle_timer(self, session: LiveSession, now_ms: int) -> None:
        if session.bindings.active is None or now_ms < session.look_at_keys_ms:
            return
        limit, left = self._closest(session, now_ms)
        under_way = session.next_secrets is not None or session.old_secrets is not None
        if limit.observed < limit.threshold or under_way:
            session.look_at_keys_ms = now_ms + min(max(LEAST_LOOK_MS, left), MOST_LOOK_MS)
            return
        session.look_at_keys_ms = now_ms + ASK_AGAIN_MS
        reason = REKEY_OVERDUE if limit.name == OVERDUE else KEY_LIMIT
        if session.rekey_ask_id is None or not session.channel.awaits(session.rekey_ask_id):
            session.rekey_ask_id = session.channel.send(ControlType.REKEY_REQUIRED, reason.encode(), now_ms)
        self._context.narrator.rekey_required(session, reason, limit)
        self._context.flush(session, now_ms)

    def _closest(self, session: LiveSession, now_ms: int) -> tuple[Limit, int]:
        """The limit that is reached first, and when it can be at the earliest, in ms from now."""
        limits, seen = session.key_limits, self._context.activity.read_activity(session.record)
        sent = seen.sent_packets - session.sent_at_rekey
        received = seen.received_packets - session.received_at_rekey
        forged = seen.forged - session.forged_at_rekey
        overdue_ms = OVERDUE_INTERVALS * session.policy.rekey_interval_ms
        known = (
            (Limit(SENT, sent, limits.ask_sent), QUICKEST_PER_MS),
            (Limit(RECEIVED, received, limits.ask_sent), QUICKEST_PER_MS),
            (Limit(FORGED, forged, limits.ask_forged), QUICKEST_PER_MS),
            (Limit(OVERDUE, now_ms - session.rekeyed_ms, overdue_ms), 1),
        )
        left = [(math.ceil((limit.threshold - limit.observed) / pace), limit) for limit, pace in known]
        soonest = min(left, key=lambda one: one[0])
        return soonest[1], soonest[0]
