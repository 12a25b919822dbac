"""A session's paths: what came in under each installed index, and the one that DATA goes out on."""

import struct
from typing import TYPE_CHECKING, Final

from jvpn.protocol.constants import (
    MIN_MTU,
    OVERHEAD_IPV4,
    OVERHEAD_IPV6,
    VERSION,
    PacketType,
    Role,
)
from workers.commands import Endpoint
from workers.counters import Counter
from workers.udp import Address, Ancillary, UdpSocket

if TYPE_CHECKING:
    from workers.sessions import Session

#: PROBEs (and verifications of DATA from elsewhere) an id is answered: a second, and at once.
PROBES_PER_S: Final = 40
PROBE_BURST: Final = 20
#: PATH datagrams that are not new, from another source than the bound one, a second, and at once.
STRAY_PER_S: Final = 1
STRAY_BURST: Final = 3

_PREFIX = struct.Struct(">BBxx8s")


class _Bucket:
    """So many a second, and so many at once."""

    __slots__ = ("_burst", "_per_s", "_refilled_ns", "_tokens")

    def __init__(self, per_s: int, burst: int) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._tokens = self._burst
        self._refilled_ns = 0

    def take(self, now_ns: int) -> bool:
        passed_s = (now_ns - self._refilled_ns) / 1e9
        self._tokens = min(self._burst, self._tokens + passed_s * self._per_s)
        self._refilled_ns = now_ns
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class PathEntry:
    """An installed index: what its steering id may be used for, and what came in under it.

    `remote` is where DATA may come from (None until it is bound); `received` and `highest` count authenticated
    datagrams of any type, as PATH reports them; `path_highest` only PATH.
    """

    __slots__ = (
        "_again",
        "_probes",
        "_stray",
        "accepted",
        "drain_until_ns",
        "highest",
        "index",
        "path_highest",
        "received",
        "remote",
        "role",
        "session",
        "steering_id",
    )

    def __init__(self, session: "Session", index: int, steering_id: bytes) -> None:
        self.session = session
        self.index = index
        self.steering_id = steering_id
        self.role = Role.INSTALLED
        self.accepted = False
        self.remote: Address | None = None
        self.drain_until_ns = 0
        self.received = 0
        self.highest = 0
        self.path_highest = -1
        # Most indexes are never used: their buckets come with what they are for.
        self._probes: _Bucket | None = None
        self._again: _Bucket | None = None
        self._stray: _Bucket | None = None

    def refusal(self, source: Address, now_ns: int, gateway: bool) -> Counter | None:
        """Why DATA from `source` on this index is not taken; None when it is."""
        role = self.role
        draining = role is Role.DRAINING and now_ns < self.drain_until_ns
        if gateway:
            if role is not Role.ACTIVE and not draining:
                return Counter.NOT_BOUND
            return None if source == self.remote else Counter.WRONG_SOURCE
        if role is not Role.ACTIVE and not draining and not self.accepted:
            return Counter.NOT_BOUND
        return None if source in self.session.gateway_addresses else Counter.WRONG_SOURCE

    def count(self, highest: int, datagrams: int) -> None:
        self.received += datagrams
        if highest > self.highest:
            self.highest = highest

    def take_token(self, now_ns: int) -> bool:
        """The bucket of this id: whether one more answer is allowed now."""
        if self._probes is None:
            self._probes = _Bucket(PROBES_PER_S, PROBE_BURST)
        return self._probes.take(now_ns)

    def may_handle(self, counter: int, source: Address, now_ns: int) -> bool:
        """Whether an authentic PATH datagram is handled, by buckets.

        One that is not new may be genuine, when somebody copied it or a later one and was faster. Or it is a replay:
        that must neither use up what new ones need, nor have many answers go where nobody counts them, for what the
        other end does not get it takes for lost.
        """
        if counter > self.path_highest:
            return self.take_token(now_ns)
        if self.remote is None or source == self.remote:
            if self._again is None:
                self._again = _Bucket(PROBES_PER_S, PROBE_BURST)
            return self._again.take(now_ns)
        if self._stray is None:
            self._stray = _Bucket(STRAY_PER_S, STRAY_BURST)
        return self._stray.take(now_ns)


class SendPath:
    """The active binding, ready to send on."""

    __slots__ = (
        "ancillary",
        "destination",
        "entry",
        "index",
        "local",
        "mtu",
        "prefix",
        "session",
        "settled",
        "socket",
    )

    def __init__(self, entry: PathEntry, socket: UdpSocket, local: Endpoint, destination: Address) -> None:
        self.session = entry.session
        self.entry = entry
        self.index = entry.index
        self.socket = socket
        self.local = local
        self.destination = destination
        self.ancillary: list[Ancillary] = []
        #: Longest inner packet that fits one datagram of the path; whether that is certain.
        self.mtu = 65_535
        self.settled = False
        self.prefix = b""
        self.renew_prefix()

    def limit(self, mtu: int, settled: bool) -> None:
        """The path carries outer IP packets of `mtu` bytes, but never less than IPv6 demands; 0: no limit is known."""
        overhead = OVERHEAD_IPV4 if self.destination[0].startswith("::ffff:") else OVERHEAD_IPV6
        self.mtu = max(mtu, MIN_MTU) - overhead if mtu else 65_535
        self.settled = settled

    def renew_prefix(self) -> None:
        """Make the first 12 header bytes of DATA; again when the phase has changed."""
        phase = self.session.phase.nibble
        self.prefix = _PREFIX.pack(PacketType.DATA, VERSION << 4 | phase, self.entry.steering_id)
