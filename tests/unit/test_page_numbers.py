"""Numbers in the shared page, which outlives a supervisor and its version: what they stand for stays."""

from jvpn.supervisor.live_session import CODES

#: As supervisors of other versions have written them. Further ones come after these.
WRITTEN = (
    "REATTACH_OK", "CHALLENGE_REQUIRED", "ALREADY_BOUND", "RATE_LIMITED", "UNKNOWN_SESSION", "BAD_PROOF",
    "NOT_ATTACHED", "ILLEGAL_CAUSE", "STALE_ATTEMPT", "NOT_OWNER", "VERSION_CONFLICT", "SESSION_OVER",
    "SESSION_TTL_EXPIRED", "TRANSPORT_LOSS_TTL_EXPIRED", "SWITCH_RATE_LIMITED", "TRANSPORT_NOT_ALLOWED",
    "POLICY_DENIED", "REAUTHENTICATE", "SAME_NODE", "ADDRESS_WITHDRAWN",
)  # fmt: skip


def test_a_refusal_means_the_same_to_every_version() -> None:
    assert CODES[: len(WRITTEN)] == WRITTEN
