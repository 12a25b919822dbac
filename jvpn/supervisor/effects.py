"""What the gateway core asks its shell to do, in the order in which it must happen.

The order is the protocol's ("Order at bind: shared page → BPF entry → worker REBIND → ACK"), so the shell carries
effects out one after another and never sorts them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jvpn.protocol.constants import Role
from jvpn.session.record import SessionRecord
from workers.commands import Command, Endpoint
from workers.page import SessionRow


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """One datagram through listener number `listener`, from `local` to `remote`."""

    listener: int
    local: Endpoint
    remote: Endpoint
    data: bytes


@dataclass(frozen=True, slots=True)
class WriteRow:
    record: int
    row: SessionRow


@dataclass(frozen=True, slots=True)
class ClearRecord:
    record: int


@dataclass(frozen=True, slots=True)
class PutId:
    """Steer datagrams of a steering id; replaces the id's entry atomically."""

    steering_id: bytes
    slot: int
    role: Role
    source: Endpoint | None
    drain_until_ms: int = 0


@dataclass(frozen=True, slots=True)
class RemoveId:
    steering_id: bytes


@dataclass(frozen=True, slots=True)
class PutPrefix:
    """Return traffic to an inner prefix comes out of this slot's TUN queue."""

    prefix: str
    slot: int


@dataclass(frozen=True, slots=True)
class RemovePrefix:
    prefix: str


@dataclass(frozen=True, slots=True)
class TellWorker:
    slot: int
    command: Command


@dataclass(frozen=True, slots=True)
class SaveSession:
    """Durable before anything else of its turn: the session's record and the peer's newest handshake timestamp."""

    record: SessionRecord
    timestamp_us: int


@dataclass(frozen=True, slots=True)
class ForgetSession:
    session_id: bytes


@dataclass(frozen=True, slots=True)
class ForgetOthers:
    """The client has this session and no other: what the store has of earlier ones, it is to forget."""

    client_public: bytes
    session_id: bytes


@dataclass(frozen=True, slots=True)
class ClaimSession:
    """Make this node the owner of a stored session if its version and owner are still those that were seen.

    `then(ours, now_ms)`: whether it is, durably; None when the store could not say.
    """

    record: SessionRecord
    seen_version: int
    seen_owner: str
    then: Callable[[bool | None, int], None]


#: What the store is to do, before anything else of the same turn.
StoreEffect = SaveSession | ClaimSession | ForgetSession | ForgetOthers

Effect = (
    SendDatagram
    | WriteRow
    | ClearRecord
    | PutId
    | RemoveId
    | PutPrefix
    | RemovePrefix
    | TellWorker
    | StoreEffect
)
