"""UDP datagrams out of capture files (pcap, pcapng), without dissecting more of a frame than leads to them.

A capture on the machine that sends may have superpackets: several datagrams in one frame, which the card was to cut.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from scapy.error import Scapy_Exception
from scapy.utils import RawPcapNgReader, RawPcapReader

from jvpn.protocol.addresses import to_text
from jvpn.protocol.constants import HEADER_SIZE, OFFSET_COUNTER

NS: Final = 1_000_000_000
#: Address in text and port.
Address = tuple[str, int]
_VLAN: Final = frozenset({0x8100, 0x88A8})
_IPV4, _IPV6, _UDP = 0x0800, 0x86DD, 17
_MAPPED: Final = bytes(10) + b"\xff\xff"
#: Where the EtherType stands, by link type (https://www.tcpdump.org/linktypes.html): Ethernet, LINUX_SLL, LINUX_SLL2.
_ETHERTYPE_AT: Final = {1: 12, 113: 14, 276: 0}
_NETWORK_AT: Final = {1: 14, 113: 16, 276: 20}
#: What begins with the IP header: RAW, RAW as some systems number it, IPV4 and IPV6.
_RAW: Final = frozenset({12, 14, 101, 228, 229})


class CaptureError(Exception):
    """A file that is no capture, or of devices that are not known here: a sentence with what to do."""


class Captured(NamedTuple):
    """One UDP datagram, or None for a frame that has none whole: another protocol, a later IP fragment, cut off."""

    time_ns: int
    source: Address
    destination: Address
    payload: bytes


def captured(path: Path) -> Iterator[Captured | None]:
    """Every frame of a file, in its order; times are CLOCK_REALTIME, ns. Raises OSError and CaptureError."""
    try:
        reader = RawPcapReader(str(path))
    except Scapy_Exception as error:
        raise CaptureError(f"{path} is no pcap or pcapng file: {error}") from None
    with reader:
        for frame, about in reader:
            time_ns = _time_ns(reader, about)
            link: int = getattr(about, "linktype", None) or getattr(reader, "linktype", 1)  # type: ignore[assignment]
            found = _udp(frame, link, path)
            if found is None:
                yield None
                continue
            source, destination, payload = found
            for one in apart(payload):
                yield Captured(time_ns, source, destination, one)


def apart(payload: bytes) -> list[bytes]:
    """The datagrams of a superpacket: all as long as the first, but for the last, each with the next counter."""
    following = payload[:OFFSET_COUNTER] + _next(payload[OFFSET_COUNTER:HEADER_SIZE])
    size = payload.find(following, HEADER_SIZE) if len(following) == HEADER_SIZE else -1
    if size < 0:
        return [payload]
    return [payload[at : at + size] for at in range(0, len(payload), size)]


def _next(counter: bytes) -> bytes:
    return (
        (int.from_bytes(counter, "big") + 1 & (1 << 64) - 1).to_bytes(8, "big") if len(counter) == 8 else b""
    )


def _time_ns(reader: RawPcapReader, about: object) -> int:
    if isinstance(reader, RawPcapNgReader):
        ticks = (about.tshigh or 0) << 32 | (about.tslow or 0)  # type: ignore[attr-defined]
        return int(ticks * NS // (about.tsresol or 1_000_000))  # type: ignore[attr-defined]
    fraction = about.usec * (1 if reader.nano else 1_000)  # type: ignore[attr-defined]
    return int(about.sec * NS + fraction)  # type: ignore[attr-defined]


def _udp(frame: bytes, link: int, path: Path) -> tuple[Address, Address, bytes] | None:
    """Ends and payload of the UDP datagram in a frame; None when there is none, or not the whole."""
    if link in _RAW:
        return _of_ip(frame)
    if link not in _NETWORK_AT:
        known = "Ethernet, raw IP, LINUX_SLL and LINUX_SLL2"
        raise CaptureError(f"{path}: link type {link}; known are {known}: capture one device, not a monitor")
    kind_at, network_at = _ETHERTYPE_AT[link], _NETWORK_AT[link]
    while int.from_bytes(frame[kind_at : kind_at + 2], "big") in _VLAN and link == 1:
        kind_at, network_at = kind_at + 4, network_at + 4
    known_kind = int.from_bytes(frame[kind_at : kind_at + 2], "big") in (_IPV4, _IPV6)
    return _of_ip(frame[network_at:]) if known_kind else None


def _of_ip(packet: bytes) -> tuple[Address, Address, bytes] | None:
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        size, fragment = struct.unpack_from("!H2xH", packet, 2)
        if packet[9] != _UDP or fragment & 0x3FFF:
            return None
        return _of_udp(
            _MAPPED + packet[12:16], _MAPPED + packet[16:20], packet[(packet[0] & 15) * 4 : size or None]
        )
    if version == 6 and len(packet) >= 40 and packet[6] == _UDP:
        return _of_udp(packet[8:24], packet[24:40], packet[40:])
    return None


def _of_udp(source: bytes, destination: bytes, segment: bytes) -> tuple[Address, Address, bytes] | None:
    if len(segment) < 8:
        return None
    source_port, destination_port, size = struct.unpack_from("!HHH", segment)
    # A superpacket's length may not fit; then it is zero, as a jumbogram's (RFC 2675).
    payload = segment[8 : size or None]
    if size and len(payload) < size - 8:
        return None
    return (to_text(source), source_port), (to_text(destination), destination_port), payload
