"""What a simulated supervisor starts with: keys, one peer, and the context of its core."""

import random
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from jvpn.policy.model import Policy
from jvpn.protocol.suites import x25519_public
from jvpn.session.pool import AddressPool, InnerPool, ranges_of
from jvpn.sim.clock import MachineClock
from jvpn.store.memory import MemoryStore
from jvpn.supervisor.context import GatewayContext, GatewayFacts
from jvpn.supervisor.narrator import Narrator
from jvpn.supervisor.peers import Peer, PeerTable
from workers.page import Page

GATEWAY_KEY: Final = b"\x11" * 32
CLIENT_KEY: Final = b"\x22" * 32
INNER_ADDRESS: Final = "10.8.0.2"
#: The one address that there is for the client: whoever loses it, or keeps it from the client, is found out.
POOL: Final = InnerPool((AddressPool(4, ranges_of(ip_network("10.8.0.0/30"), [ip_network("10.8.0.1/32")])),))
#: Sessions that a node may have.
CAPACITY: Final = 8


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a supervisor works: its node, what it finds there, and how many have been there before."""

    node_id: str
    clock: MachineClock
    page: Page
    generation: int
    slots: tuple[int, ...]
    policy: Policy


def context_of(seat: Seat, store: MemoryStore, narrator: Narrator, draw: random.Random) -> GatewayContext:
    """Raises StoreError."""
    facts = GatewayFacts(
        node_id=seat.node_id,
        boot_id=seat.clock.boot_id,
        private_key=GATEWAY_KEY,
        public_key=x25519_public(GATEWAY_KEY),
        fleet_key=store.fleet_key,
        suites=frozenset({1, 2}),
        challenge_key=seat.page.challenge_key,
        generation=seat.generation,
        slots=seat.slots,
        capacity=CAPACITY,
        mtu=1400,
        routes=("10.8.0.0/24",),
        default_policy=seat.policy,
        pool=POOL,
    )
    laptop = Peer("laptop", x25519_public(CLIENT_KEY), (), seat.policy)
    peers = PeerTable({laptop.public_key: laptop}, store.timestamps_us())
    return GatewayContext(facts, peers, narrator, draw.randbytes, seat.clock.wall_ms, seat.page)
