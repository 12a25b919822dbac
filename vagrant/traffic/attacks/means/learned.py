"""Floods that need what the wire shows of a session: its steering id and the client's source."""

import time
from collections.abc import Callable
from typing import Final

from jvpn.protocol.constants import OFFSET_COUNTER, OFFSET_STEERING_ID, PacketType
from vagrant.traffic.attacks.means.batches import Pool
from vagrant.traffic.attacks.means.place import Place, paced
from vagrant.traffic.attacks.means.tap import Datagram

#: Types that carry an id of the session and come from the path in use.
SHOWING: Final = (
    PacketType.DATA,
    PacketType.CONTROL,
    PacketType.PATH,
    PacketType.FRAGMENT,
    PacketType.RESENT,
)
#: How often it is looked whether the session has another id or source by now, and how long each time.
AGAIN_S: Final = 1.0
PATIENCE_S: Final = 0.02


def flood_on_the_wire(place: Place, make: Callable[[Datagram], list[bytes]]) -> None:
    """Send what `make` makes of a datagram of the client's session, at --rate until --count or the end; made again when
    the session goes on under another id or from another source."""
    shown = place.learn(*SHOWING)
    if shown is None:
        return
    pool, looked = place.pool(make(shown)), time.monotonic()
    for size in paced(place.run):
        if time.monotonic() - looked > AGAIN_S:
            pool, shown = _newest(place, make, pool, shown)
            looked = time.monotonic()
        place.flood(pool, size)


def _newest(
    place: Place, make: Callable[[Datagram], list[bytes]], pool: Pool, shown: Datagram
) -> tuple[Pool, Datagram]:
    newest = place.learn(*SHOWING, patience_s=PATIENCE_S)
    if newest is None or (newest.source, steering_id(newest)) == (shown.source, steering_id(shown)):
        return pool, shown
    return place.pool(make(newest)), newest


def steering_id(datagram: Datagram) -> bytes:
    return datagram.data[OFFSET_STEERING_ID:OFFSET_COUNTER]
