"""Who may cost us a Diffie-Hellman: buckets, and under load a COOKIE that proves the source.

In quiet times an INIT with a right mac1 is taken within the bucket of its source, then the one for all that show no
cookie. In this order, so that one flooding source (of IPv6: a /64) does not empty the second for everybody. When either
is empty the answer is COOKIE, which costs two hashes, keeps no state and goes only where somebody really receives; an
INIT that shows it passes beside the flood. A source that has proven itself has a bucket of its own, which nobody who
forges its address can empty.
"""

from collections.abc import Callable

from jvpn.protocol import handshake
from jvpn.protocol.addresses import is_ipv4
from jvpn.protocol.handshake import COOKIE_SIZE, HandshakeError
from jvpn.session.bucket import Buckets, Rate, TokenBucket
from jvpn.supervisor.arrival import Arrival

#: Handshakes whose Diffie-Hellman we pay for: all together, from one source address, and without a cookie.
GLOBAL_RATE = Rate(500, 1000)
SOURCE_RATE = Rate(5, 10)
UNPROVEN_RATE = Rate(100, 200)
SOURCES_KEPT = 4096
#: A cookie is given out for this long and accepted for as long again.
COOKIE_SLOT_MS = 120_000


class Admission:
    """`mac(key, data)` is the suite-independent keyed hash for cookies; all times are milliseconds."""

    def __init__(
        self,
        gateway_public: bytes,
        random_bytes: Callable[[int], bytes],
        mac: Callable[[bytes, bytes], bytes],
    ) -> None:
        self._gateway_public = gateway_public
        self._random_bytes = random_bytes
        self._mac = mac
        self._global = TokenBucket(GLOBAL_RATE)
        self._unproven = TokenBucket(UNPROVEN_RATE)
        self._sources = Buckets(SOURCE_RATE, SOURCES_KEPT)
        self._secret = random_bytes(32)

    def judge(self, init: bytes, arrival: Arrival, now_ms: int) -> bytes | None:
        """None: pay for this INIT. Bytes: answer with this COOKIE instead.

        Raises HandshakeError: `bad_mac1` and the other reasons of `check_mac1`, or `handshake_rate`.
        """
        handshake.check_mac1(init, self._gateway_public)
        slot = now_ms // COOKIE_SLOT_MS
        proven = any(handshake.check_mac2(init, self._cookie(s, arrival)) for s in (slot, max(0, slot - 1)))
        within = self._sources.take((source_of(arrival), proven), now_ms)
        if not proven and not (within and self._unproven.take(now_ms)):
            cookie = self._cookie(slot, arrival)
            return handshake.cookie_datagram(init, self._gateway_public, cookie, self._random_bytes(16))
        if not within or not self._global.take(now_ms):
            raise HandshakeError("handshake_rate")
        return None

    def _cookie(self, slot: int, arrival: Arrival) -> bytes:
        remote = arrival.remote
        shown = slot.to_bytes(8, "big") + remote.address + remote.port.to_bytes(2, "big")
        return self._mac(self._secret, shown)[:COOKIE_SIZE]


def source_of(arrival: Arrival) -> bytes:
    """Whom a source's bucket belongs to: an IPv4 address, or the /64 that whoever has one IPv6 address has all of."""
    address = arrival.remote.address
    return address if is_ipv4(address) else address[:8]
