"""What the client core asks its shell to do, in order."""

from dataclasses import dataclass

from workers.commands import Command, Endpoint


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """One datagram through the socket of uplink number `uplink` (its `socket`)."""

    uplink: int
    remote: Endpoint
    data: bytes


@dataclass(frozen=True, slots=True)
class TellWorker:
    command: Command


@dataclass(frozen=True, slots=True)
class PersistTimestamp:
    """Durable before the next effect: the handshake timestamp that is about to be sent, microseconds."""

    timestamp_us: int


@dataclass(frozen=True, slots=True)
class ConfigureTunnel:
    """Give the TUN its addresses, MTU and routes, and the machine the gateway's name servers."""

    addresses: tuple[str, ...]
    routes: tuple[str, ...]
    mtu: int
    dns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClearRecord:
    """Empty the session's row of the shared page, before another session takes it."""

    record: int


@dataclass(frozen=True, slots=True)
class SessionOver:
    """The session ended; `again`: a new handshake follows by itself. `note`: more for people to read."""

    reason: str
    again: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Say:
    """Something for people to read, in the client's log."""

    text: str


Effect = SendDatagram | TellWorker | PersistTimestamp | ConfigureTunnel | ClearRecord | SessionOver | Say
