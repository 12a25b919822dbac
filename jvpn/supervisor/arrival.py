"""Where datagrams come from, and paths as the gateway's events and policies name them."""

from functools import lru_cache
from typing import NamedTuple

from jvpn.policy.model import Policy
from jvpn.protocol.addresses import RECENT, joined, to_bytes
from jvpn.protocol.constants import Transport
from jvpn.session.record import Binding
from workers import commands

#: Transports as policies and events name them.
TRANSPORTS = {transport: transport.name.lower() for transport in Transport}


class Arrival(NamedTuple):
    """Where a datagram came in: listener number, its source, the local address it was sent to, and what carried it.

    What a REQUEST says of its transport is the client's claim; this is what the gateway knows.
    """

    listener: int
    local: commands.Endpoint
    remote: commands.Endpoint
    transport: Transport = Transport.UDP

    def allowed_by(self, policy: Policy) -> bool:
        return TRANSPORTS[self.transport] in policy.allowed_transports


class Fresh(NamedTuple):
    """The challenge of a path in a slot of time."""

    slot: int
    challenge: bytes


@lru_cache(RECENT)
def endpoint(source: tuple[str, int]) -> commands.Endpoint:
    return commands.Endpoint(to_bytes(source[0]), source[1])


class PathFact:
    """A path as events name it."""

    __slots__ = ("index", "source_text", "transport")

    def __init__(self, index: int, transport: Transport, source_text: str) -> None:
        self.index = index
        self.transport = transport
        self.source_text = source_text

    @property
    def text(self) -> str:
        """For people: "udp 192.0.2.1:4500 #3"."""
        return f"{TRANSPORTS[self.transport]} {self.source_text} #{self.index}"


def path_fact(binding: Binding) -> PathFact:
    return PathFact(binding.index, binding.transport, joined(*binding.source))


def path_text(binding: Binding | None) -> str:
    """A binding for people; empty for none."""
    return "" if binding is None else path_fact(binding).text
