"""What a capture's datagrams come to: counts, bytes, times, steering ids and sources, by direction and type."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from jvpn.protocol.addresses import joined
from jvpn.protocol.constants import PacketType
from jvpn.protocol.wire import Header, WireError
from vagrant.traffic.datagrams import NS, Address, Captured, CaptureError

UP, DOWN = "up", "down"
#: What each answer answers. INIT, REQUEST and PROBE are never answered by more bytes than they had.
ASKED_BY: Final = {
    PacketType.HANDSHAKE_RESPONSE: PacketType.HANDSHAKE_INIT,
    PacketType.COOKIE: PacketType.HANDSHAKE_INIT,
    PacketType.REATTACH_ACK: PacketType.REATTACH_REQUEST,
    PacketType.REATTACH_FAIL: PacketType.REATTACH_REQUEST,
    PacketType.RESET: PacketType.REATTACH_REQUEST,
    PacketType.PATH: PacketType.PATH,
}
#: Sources and steering ids that are told one by one, the busiest; a flood has one for each datagram.
TOLD: Final = 100
#: Bins that are told at most; a capture with one wrong time would have them by the thousand million.
MOST_BINS: Final = 1_000_000


@dataclass(slots=True)
class Seen:
    """Datagrams of one kind; times in ns, sizes of UDP payloads in bytes."""

    packets: int = 0
    total_bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0
    smallest: int = 0
    largest: int = 0
    steering_ids: set[bytes] = field(default_factory=set)
    sources: set[Address] = field(default_factory=set)

    def add(self, time_ns: int, size: int, steering_id: bytes, source: Address) -> None:
        if not self.packets:
            self.first_ns, self.last_ns, self.smallest = time_ns, time_ns, size
        self.packets += 1
        self.total_bytes += size
        self.first_ns, self.last_ns = min(self.first_ns, time_ns), max(self.last_ns, time_ns)
        self.smallest, self.largest = min(self.smallest, size), max(self.largest, size)
        self.steering_ids.add(steering_id)
        self.sources.add(source)

    def told(self, origin_ns: int) -> dict[str, Any]:
        """Times in seconds from `origin_ns`, None where there was nothing."""
        return {
            "packets": self.packets,
            "bytes": self.total_bytes,
            "first_s": _seconds(self.first_ns, origin_ns) if self.packets else None,
            "last_s": _seconds(self.last_ns, origin_ns) if self.packets else None,
            "smallest": self.smallest,
            "largest": self.largest,
            "steering_ids": len(self.steering_ids),
            "sources": len(self.sources),
        }


@dataclass(slots=True)
class Asked:
    """What one remote end asked under one steering id, of one type."""

    packets: int = 0
    largest: int = 0
    answers: int = 0


@dataclass(slots=True)
class Answers:
    """Answers of one type: those larger than all that had asked there, and those that nobody had asked for (yet)."""

    packets: int = 0
    larger: int = 0
    unasked: int = 0


@dataclass(slots=True)
class Tally:
    """Datagrams from and to the gateway's `ports`, added in the order of the capture.

    Up is what goes to such a port. `bin_ns`: length of the bins that types are counted in, 0 for none. `origin_ns`:
    what times count from; None: the first datagram.
    """

    ports: frozenset[int]
    origin_ns: int | None = None
    bin_ns: int = 0
    #: Frames that have no datagram of these ports; datagrams of them that are no JVP/1, by what is wrong.
    other_frames: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ways: dict[str, dict[PacketType, Seen]] = field(
        default_factory=lambda: {way: {kind: Seen() for kind in PacketType} for way in (UP, DOWN)}
    )
    answers: dict[PacketType, Answers] = field(default_factory=lambda: {kind: Answers() for kind in ASKED_BY})
    _asked: dict[tuple[PacketType, Address, bytes], Asked] = field(default_factory=dict)
    _remotes: dict[Address, Counter[str]] = field(default_factory=dict)
    _ids: dict[bytes, Counter[str]] = field(default_factory=dict)
    _bins: Counter[tuple[str, PacketType, int]] = field(default_factory=Counter)

    def add(self, one: Captured | None) -> tuple[str, Header] | None:
        """Count a frame. Returns direction and header of what is JVP/1, None for the rest."""
        to_gateway = one is not None and one.destination[1] in self.ports
        if one is None or not (to_gateway or one.source[1] in self.ports):
            self.other_frames += 1
            return None
        if self.origin_ns is None:
            self.origin_ns = one.time_ns
        try:
            header = Header.decode(one.payload)
        except WireError as error:
            self.refused[error.reason] += 1
            return None
        way, remote = (UP, one.source) if to_gateway else (DOWN, one.destination)
        self._count(way, remote, header, one)
        return way, header

    def _count(self, way: str, remote: Address, header: Header, one: Captured) -> None:
        kind, size = header.type, len(one.payload)
        self.ways[way][kind].add(one.time_ns, size, header.steering_id, one.source)
        for told in (
            self._remotes.setdefault(remote, Counter()),
            self._ids.setdefault(header.steering_id, Counter()),
        ):
            told[f"{way}_packets"] += 1
            told[f"{way}_bytes"] += size
        if self.bin_ns and self.origin_ns is not None:
            self._bins[way, kind, (one.time_ns - self.origin_ns) // self.bin_ns] += 1
        if way == UP:
            asked = self._asked.setdefault((kind, remote, header.steering_id), Asked())
            asked.packets, asked.largest = asked.packets + 1, max(asked.largest, size)
        elif kind in ASKED_BY:
            self._answer(kind, remote, header.steering_id, size)

    def _answer(self, kind: PacketType, remote: Address, steering_id: bytes, size: int) -> None:
        asked = self._asked.setdefault((ASKED_BY[kind], remote, steering_id), Asked())
        answers = self.answers[kind]
        answers.packets += 1
        asked.answers += 1
        answers.larger += size > asked.largest
        answers.unasked += asked.answers > asked.packets

    def told(self) -> dict[str, Any]:
        """Everything, for JSON. `types` and each direction have all types, those that were not seen too.

        Raises CaptureError for more than MOST_BINS bins.
        """
        origin_ns = self.origin_ns or 0
        told: dict[str, Any] = {
            "origin_ns": self.origin_ns,
            "packets": sum(seen.packets for way in self.ways.values() for seen in way.values()),
            "bytes": sum(seen.total_bytes for way in self.ways.values() for seen in way.values()),
            "other_frames": self.other_frames,
            "refused": dict(self.refused),
            "types": {
                kind.name: sum(self.ways[way][kind].packets for way in (UP, DOWN)) for kind in PacketType
            },
        }
        for way, kinds in self.ways.items():
            told[way] = {kind.name: seen.told(origin_ns) for kind, seen in kinds.items()}
        told["answers"] = {
            "larger": sum(answers.larger for answers in self.answers.values()),
            "unasked": sum(answers.unasked for answers in self.answers.values()),
            **{
                kind.name: {"packets": of.packets, "larger": of.larger, "unasked": of.unasked}
                for kind, of in self.answers.items()
            },
        }
        told["remotes"] = _busiest({joined(*remote): count for remote, count in self._remotes.items()})
        told["steering_ids"] = _busiest({known.hex(): count for known, count in self._ids.items()})
        if self.bin_ns:
            told["bins"] = self._told_bins()
        return told

    def _told_bins(self) -> dict[str, Any]:
        """Counts from the first bin that has something to the last one, of the types that were seen."""
        numbers = [number for _way, _kind, number in self._bins]
        every = range(min(numbers), max(numbers) + 1) if numbers else range(0)
        if len(every) > MOST_BINS:
            raise CaptureError(
                f"the capture lasts {len(every) * self.bin_ns / NS:.0f} s, which is {len(every)} bins and more than "
                f"{MOST_BINS}: take longer ones, or cut the capture"
            )
        told: dict[str, Any] = {
            "bin_s": self.bin_ns / NS,
            "at_s": [round(number * self.bin_ns / NS, 6) for number in every],
        }
        for way, kinds in self.ways.items():
            told[way] = {
                kind.name: [self._bins[way, kind, number] for number in every]
                for kind, seen in kinds.items()
                if seen.packets
            }
        return told


def _seconds(time_ns: int, origin_ns: int) -> float:
    return round((time_ns - origin_ns) / NS, 6)


def _busiest(found: dict[str, Counter[str]]) -> dict[str, Any]:
    names = ("up_packets", "up_bytes", "down_packets", "down_bytes")
    ordered = sorted(found, key=lambda name: (-found[name].total(), name))
    return {
        "count": len(found),
        "busiest": [{"name": name, **{key: found[name][key] for key in names}} for name in ordered[:TOLD]],
    }
