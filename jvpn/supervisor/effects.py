"""What the gateway core asks its shell to do, in the order in which it must happen.

The order is the protocol's ("Order at bind: shared page → BPF entry → worker REBIND → ACK"), so the shell carries
effects out one after another and never sorts them. What the store is asked for it does when it can, in its own order:
nothing else waits for it but what the core does in `then`.

Those that each reattach makes are tuples: a frozen dataclass takes three times as long to make.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, get_args

from jvpn.protocol.constants import Role
from jvpn.session.pool import InnerPool
from jvpn.session.record import SessionRecord
from jvpn.store.base import StoreError
from workers.commands import Command, Endpoint
from workers.page import SessionRow


class SendDatagram(NamedTuple):
    """One datagram through listener number `listener`, from `local` to `remote`."""

    listener: int
    local: Endpoint
    remote: Endpoint
    data: bytes


class WriteRow(NamedTuple):
    record: int
    row: SessionRow


@dataclass(frozen=True, slots=True)
class ClearRecord:
    record: int


class PutId(NamedTuple):
    """Steer datagrams of a steering id; replaces the id's entry atomically."""

    steering_id: bytes
    slot: int
    role: Role
    source: Endpoint | None
    drain_until_ms: int = 0


class RemoveId(NamedTuple):
    steering_id: bytes


@dataclass(frozen=True, slots=True)
class PutPrefix:
    """Return traffic to an inner prefix comes out of this slot's TUN queue."""

    prefix: str
    slot: int


@dataclass(frozen=True, slots=True)
class RemovePrefix:
    prefix: str


class TellWorker(NamedTuple):
    slot: int
    command: Command


@dataclass(frozen=True, slots=True)
class Announce:
    """Let the other nodes of the fleet know whether this one is to be left."""

    draining: bool


@dataclass(frozen=True, slots=True)
class LoadSession:
    """Read a stored session. `then(found, now_ms)`: None when there is none for certain."""

    session_id: bytes
    then: Callable[[SessionRecord | StoreError | None, int], None]


@dataclass(frozen=True, slots=True)
class LoadExpired:
    """Read which of the next stored sessions were over before a time. `then(found, now_ms)`."""

    before_wall_ms: int
    then: Callable[[list[SessionRecord] | StoreError, int], None]


class SaveSession(NamedTuple):
    """Keep a session's record and its peer's newest handshake timestamp. `then(kept, now_ms)`: whether it is."""

    record: SessionRecord
    timestamp_us: int
    then: Callable[[bool, int], None]


@dataclass(frozen=True, slots=True)
class BearSession:
    """As SaveSession, for a new session whose client's inner addresses come from `pool`.

    `then(kept, now_ms)`: the record with its addresses; None when the pool has none left.
    """

    record: SessionRecord
    timestamp_us: int
    pool: InnerPool
    then: Callable[[SessionRecord | StoreError | None, int], None]


@dataclass(frozen=True, slots=True)
class ForgetSession:
    """A session has ended at this version."""

    session_id: bytes
    version: int


@dataclass(frozen=True, slots=True)
class ForgetExpired:
    """Forget all sessions that are `over(record)`, which is asked in the store's thread."""

    over: Callable[[SessionRecord], bool]


@dataclass(frozen=True, slots=True)
class ForgetOthers:
    """The client has this session and no other: what the store has of earlier ones, it is to forget."""

    client_public: bytes
    session_id: bytes


@dataclass(frozen=True, slots=True)
class AskOwner:
    """Let the owner of a stored session know that its client asks at `asker`, under this attempt."""

    session_id: bytes
    owner: str
    asker: str
    attempt: int


@dataclass(frozen=True, slots=True)
class WasAsked:
    """This node, the owner, has heard that it was asked for a session."""

    session_id: bytes
    owner: str


@dataclass(frozen=True, slots=True)
class ClaimSession:
    """Make this node the owner of a stored session if its version and owner are still those that were seen, and with
    `owner_gone` if that owner's lease has ended.

    `then(ours, now_ms)`: whether it is, durably; None when the store could not say.
    """

    record: SessionRecord
    seen_version: int
    seen_owner: str
    owner_gone: bool
    then: Callable[[bool | None, int], None]


#: What changes the store.
StoreWrite = (
    SaveSession
    | BearSession
    | ClaimSession
    | ForgetSession
    | ForgetOthers
    | ForgetExpired
    | AskOwner
    | WasAsked
)
StoreRead = LoadSession | LoadExpired
StoreEffect = StoreRead | StoreWrite
#: Their classes: every effect is looked up here, which takes a fraction of an isinstance of them all.
FOR_STORE: Final = frozenset(get_args(StoreEffect))

Effect = (
    SendDatagram
    | WriteRow
    | ClearRecord
    | PutId
    | RemoveId
    | PutPrefix
    | RemovePrefix
    | TellWorker
    | Announce
    | StoreEffect
)
