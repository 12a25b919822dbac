"""A session's life between both cores, captured with its key log and read by Scapy."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from core_pair import CorePair, Flight, fast_policy
from scapy.config import conf
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet, Raw

from jvpn.protocol.addresses import to_bytes, to_text
from jvpn.protocol.constants import PacketType
from jvpn.session.machine import split_version
from vagrant.traffic import jvp, keylog
from workers.commands import Endpoint

STRANGER = Endpoint(to_bytes("198.51.100.9"), 999)
INNER = bytes(IP(src="10.8.0.2", dst="10.8.0.1") / UDP(sport=7, dport=9) / b"inner")
#: Kinds that the pair's workers do not send one by one; the vectors have them.
FROM_VECTORS = {PacketType.FRAGMENT, PacketType.RESENT}


@dataclass
class Capture:
    """What crossed the wire between both cores, and a key log of it."""

    pair: CorePair

    @property
    def lines(self) -> list[str]:
        return [keylog.line(secrets, epoch) for secrets, epoch in self.pair.gateway_keys]

    @property
    def log(self) -> keylog.KeyLog:
        return keylog.KeyLog.parse(self.lines)

    def flights(self, *kinds: PacketType) -> list[Flight]:
        return [flight for flight in self.pair.sent if flight.kind in kinds]


@pytest.fixture(scope="module")
def capture() -> Capture:
    """A session's life: cookie, KEM, rekey, DATA, cold and warm reattach, FAIL, takeover by a restart, RESET."""
    pair = CorePair(fast_policy(rekey_interval_ms=10_000))
    made = Capture(pair)
    pair.wait_for(lambda: pair.client.session is not None)
    pair.attach()
    init = pair.of_kind(PacketType.HANDSHAKE_INIT, up=True)[0].data
    while not pair.of_kind(PacketType.COOKIE, up=False):
        pair.inject(init, STRANGER)
    assert pair.data_up(bytes(8) + INNER)
    assert pair.data_down(bytes(8) + INNER)
    pair.advance(11_000)
    move(pair, to=1)
    while pair.live.binds.take(pair.now_ms):
        pass
    move(pair, to=0)
    assert pair.of_kind(PacketType.REATTACH_FAIL, up=False)
    pair.restart_gateway()
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: epoch_of(pair) == 2 and pair.attached)
    pair.store.forget(pair.live.session_id)
    pair.restart_gateway()
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.of_kind(PacketType.RESET, up=False))
    return made


def epoch_of(pair: CorePair) -> int:
    assert pair.client.session is not None
    return split_version(pair.client.session.view.state_version).epoch


def move(pair: CorePair, *, to: int) -> None:
    pair.link(to, True)
    pair.link(1 - to, False)
    pair.wait_for(lambda: pair.attached)


@pytest.fixture(autouse=True)
def strict_scapy() -> Iterator[None]:
    """A dissector that fails shows, and no test leaves its key log behind."""
    before = conf.debug_dissector
    conf.debug_dissector = True
    yield
    conf.debug_dissector = before
    jvp.use_keylog(None)


def captured(flight: Flight) -> Packet:
    """The flight as an IP packet that Scapy has dissected."""
    ends = {"src": to_text(flight.source.address), "dst": to_text(flight.destination.address)}
    ports = {"sport": flight.source.port, "dport": flight.destination.port}
    return IP(bytes(IP(**ends) / UDP(**ports) / Raw(flight.data)))


def rebuilt(packet: Packet) -> bytes:
    """Built from its fields alone, none of the bytes that it was dissected from."""
    packet.clear_cache()
    return bytes(packet)
