"""What gateways and clients can count, and the reasons that their events can have.

A counter stands in a status only once it has counted, so that one which is missing there is 0, and one which is
misspelt would be, too: hence these lists. The workers' and the BPF programs' counters have lists of their own; the
others are wherever they are counted, and a test compares what is here with that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from jvpn.protocol.reattach import Cause
from jvpn.session.ownership import Code, Kind, Violation
from jvpn.session.table import Reason
from jvpn.supervisor.steering import COUNTERS as XDP
from workers.counters import Counter

#: Why `jvpn.protocol` refuses a datagram, at either end.
REFUSED: Final = (
    "answered", "authentication", "bad_control", "bad_length", "bad_mac1", "bad_payload", "bad_proof", "bad_reattach",
    "bad_rekey", "bad_tag", "bad_version", "length", "low_order", "not_an_answer", "replay", "reserved_bits",
    "truncated", "unknown_phase", "unknown_suite", "unknown_type", "wrong_type",
)  # fmt: skip
SUPERVISOR: Final = (
    "address_withdrawn", "bad_ticket", "claim_lost", "control_not_bound", "cookies_sent", "draining", "fenced",
    "handed_over", "handshake_key_rate", "handshake_rate", "handshake_timeout", "handshakes", "health_not_committed",
    "not_attached", "not_handed_over", "not_owner", "not_remembered", "overtaken", "policy_broken", "pool_exhausted",
    "reattach_rate", "reattach_refused_before", "record_gone", "rekey_not_kept", "rekey_too_soon", "resets_sent",
    "route_errors", "stale_timestamp", "steering_id_collision", "store_behind", "store_busy", "store_errors",
    "store_late", "store_lost", "suite_refused", "superseded", "swept", "table_full", "takeover_pending", "takeovers",
    "ticket_rate", "transport_not_allowed", "unexpected_control", "unexpected_type", "unknown_id", "unknown_peer",
    "worker_refused", "worker_timeout", "wrong_source", *(f"reattach_{kind.value}" for kind in Kind),
)  # fmt: skip
AGENT: Final = (
    "handshakes", "kem_refused", "links_lost", "reset_contradicted", "sleeps", "unexpected_control", "unexpected_type",
    "unknown_id", "worker_refused",
)  # fmt: skip
_WORKER: Final = tuple(f"worker_{counter.name.lower()}" for counter in Counter)
OF_CLIENT: Final = frozenset((*AGENT, *REFUSED, *_WORKER))
OF_GATEWAY: Final = frozenset((*SUPERVISOR, *REFUSED, *_WORKER, *(f"xdp_{name}" for name in XDP)))

#: Reasons that are neither a transition's nor a verdict's.
OTHER_REASONS: Final = (
    "EVENTS_LOST", "KEY_LIMIT", "NO_ANSWER", "OPERATOR_RESET_CLOCK", "PATH_CHANGED", "POLICY_BROKEN", "POLICY_CHANGED",
    "POLICY_NOT_ALLOWED", "REKEYED", "REKEY_OVERDUE", "SUPERVISOR_RESTARTED", "SWITCH_IN_FLIGHT", "TAKEN_OVER",
    "WORKER_REPLACED",
)  # fmt: skip
#: The kinds of event of which the reasons are known more closely.
_OF_KIND: Final[Mapping[str, frozenset[str]]] = {
    "STATE_CHANGE": frozenset(Reason.__members__),
    "TRANSPORT_SWITCH": frozenset(Cause.__members__),
    "SECURITY_EVENT": frozenset((*Violation.__members__, "BAD_PROOF")),
}
_ANY: Final = frozenset((*Reason.__members__, *Code.__members__, *Violation.__members__, *OTHER_REASONS))


def counters_of(who: str) -> frozenset[str]:
    """Of "client", or of gateways."""
    return OF_CLIENT if who == "client" else OF_GATEWAY


def reasons_of(kind: str) -> frozenset[str]:
    """Of a kind of event."""
    return _OF_KIND.get(kind, _ANY)
