"""What a session durably is, and which path it is bound to.

Both are immutable values: a change is a new value that replaces the old one in a single assignment, so nobody
ever sees a session between two bindings, and a rule that raises has changed nothing.
"""

from dataclasses import dataclass, replace
from typing import Final

from jvpn.protocol.constants import KEY_SIZE, MAX_INDEX, SESSION_ID_SIZE, Transport
from jvpn.session.errors import LocalProtocolError
from jvpn.session.table import State
from jvpn.session.version import epoch_of, split_version

#: (address, port) as sockets give them; IPv4-mapped addresses are to be unmapped by the shell.
Endpoint = tuple[str, int]

NEVER_BOUND: Final = 0


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A row of the ownership store. Raises ValueError when a field has the wrong size or range.

    `secrets` is opaque here (sealed by the store's caller). Expiry is kept twice: `expires_boot_ms` on
    CLOCK_BOOTTIME, which counts while `boot_id` is the running boot's, and `expires_wall_ms` for any other boot
    or node. `stored_wall_ms` is when this row was written: a wall clock that reads earlier cannot be trusted
    with the expiry. `inner_v4`, `inner_v6`: inner prefixes of each family that are the session's while it lasts,
    separated by spaces; a single address has no length.
    """

    session_id: bytes
    client_public: bytes
    policy_name: str
    policy_version: str
    owner_node: str
    state: State
    state_version: int
    secrets: bytes
    inner_v4: str | None
    inner_v6: str | None
    created_wall_ms: int
    expires_wall_ms: int
    expires_boot_ms: int
    boot_id: str
    stored_wall_ms: int
    last_bound_attempt: int = NEVER_BOUND

    def __post_init__(self) -> None:
        if len(self.session_id) != SESSION_ID_SIZE:
            raise ValueError(f"a SessionID has {SESSION_ID_SIZE} bytes, not {len(self.session_id)}")
        if len(self.client_public) != KEY_SIZE:
            raise ValueError(f"a client key has {KEY_SIZE} bytes, not {len(self.client_public)}")
        if not self.owner_node:
            raise ValueError("a session has an owner")
        if self.expires_wall_ms <= self.created_wall_ms:
            raise ValueError("a session expires after its creation")
        epoch_of(self.state_version)

    @property
    def epoch(self) -> int:
        return epoch_of(self.state_version)

    @property
    def inner_prefixes(self) -> tuple[str, ...]:
        return (*(self.inner_v4 or "").split(), *(self.inner_v6 or "").split())

    def __repr__(self) -> str:
        """Never shows secrets or inner addresses: records end up in tracebacks."""
        return f"<SessionRecord {self.session_id.hex()} {self.state} {split_version(self.state_version)}>"


@dataclass(frozen=True, slots=True)
class Binding:
    """One path a session is bound to: the client's source, our local address, how, and since when."""

    index: int
    source: Endpoint
    local: Endpoint
    transport: Transport
    since_ms: int

    def __post_init__(self) -> None:
        if not 0 <= self.index <= MAX_INDEX:
            raise ValueError(f"index {self.index} does not fit 32 bits")


@dataclass(frozen=True, slots=True)
class Bindings:
    """At most one active binding, at most one draining one (receive-only, its old source only: not a binding)."""

    active: Binding | None = None
    draining: Binding | None = None
    drain_until_ms: int = 0

    @property
    def count(self) -> int:
        """Active bindings, as the machine counts them."""
        return 0 if self.active is None else 1

    def bind(self, new: Binding, now_ms: int, drain_ms: int | None) -> "Bindings":
        """Make `new` the active one. `drain_ms`: how long the old one drains after a voluntary switch, None
        after a death.

        What drained before stops draining. An old binding of the same index cannot drain: one id has one role.
        Raises LocalProtocolError when `new` is already active, or `drain_ms` is not positive.
        """
        if drain_ms is not None and drain_ms <= 0:
            raise LocalProtocolError(f"drain_ms must be positive, not {drain_ms}; None after a death")
        old = self.active
        if old is not None and (new.index, new.source, new.transport) == (
            old.index,
            old.source,
            old.transport,
        ):
            raise LocalProtocolError(f"index {new.index} is bound to {new.source} already")
        if old is None or drain_ms is None or old.index == new.index:
            return Bindings(active=new)
        return Bindings(active=new, draining=old, drain_until_ms=now_ms + drain_ms)

    def drop(self) -> "Bindings":
        """The active path is dead. After a death nothing drains."""
        return Bindings()

    def expire(self, now_ms: int) -> "Bindings":
        """Without what has drained long enough by `now_ms`; `self` when there is nothing to do."""
        if self.draining is None or now_ms < self.drain_until_ms:
            return self
        return replace(self, draining=None, drain_until_ms=0)

    def accepts_data(self, index: int, source: Endpoint, now_ms: int) -> bool:
        """May DATA on `index` from `source` be delivered?"""
        if self.active is not None and (index, source) == (self.active.index, self.active.source):
            return True
        drains = self.draining is not None and now_ms < self.drain_until_ms
        return (
            drains
            and self.draining is not None
            and (index, source) == (self.draining.index, self.draining.source)
        )


def drain_window_ms(policy_drain_ms: int, old_srtt_ms: float, new_srtt_ms: float) -> int:
    """How long the old id drains after a voluntary switch: max(policy, 2 × srtt of the slower path)."""
    return max(policy_drain_ms, round(2 * max(old_srtt_ms, new_srtt_ms)))
