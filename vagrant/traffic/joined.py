"""What crossed the wire in parts, as one: CONTROL messages out of their chunks, inner packets out of FRAGMENTs.

    for whole in joined(rdpcap("session.pcap")):
        whole.show()

Only what a key log has opened can be joined. Parts may come in any order, on any index, and more than once.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from scapy.packet import Packet

from jvpn.protocol.constants import GENERATION_SHIFT
from vagrant.traffic.control import JVPFrame, JVPFrames
from vagrant.traffic.jvp import JVP
from vagrant.traffic.plaintexts import JVPFragmentHead, JVPOffload, JVPResentHead

#: Whose parts they are: the kind of whole, who sent them under which epoch's keys, and its number there.
_Key = tuple[object, ...]


def joined(packets: Iterable[Packet]) -> Iterator[Packet]:
    """Every CONTROL frame and every inner packet with its head, whole, in the order in which they became so.

    A frame of several chunks is a `JVPFrame` of one chunk; what went in FRAGMENTs is what DATA or RESENT would have
    had: `JVPOffload` or `JVPResentHead`. A message of several chunks appears once, however often they were said; what
    is not complete does not appear.
    """
    parts: dict[_Key, dict[int, Packet]] = {}
    done: set[_Key] = set()
    for packet in packets:
        jvp: Any = packet.getlayer(JVP)
        sealing = getattr(jvp.payload, "sealing", None) if jvp is not None else None
        if sealing is None:
            continue
        sender = (sealing.secrets.session, sealing.epoch, sealing.direction)
        for frame in _frames(jvp.payload.payload):
            key: _Key = (JVPFrame, sender, frame.message_id)
            if frame.chunks == 1:
                yield frame
            elif key not in done:
                known = parts.setdefault(key, {})
                known[frame.chunk] = frame
                if len(known) == frame.chunks:
                    done.add(key)
                    yield _message(parts.pop(key))
        head = jvp.payload.payload
        if isinstance(head, JVPOffload | JVPResentHead):
            yield head
        elif isinstance(head, JVPFragmentHead):
            key = (JVPFragmentHead, sender, sealing.index, jvp.counter >> GENERATION_SHIFT, head.packet_id)
            known = parts.setdefault(key, {})
            known[head.offset] = head
            if _is_whole(known):
                yield _packet(parts.pop(key))


def _frames(plaintext: Packet) -> list[Any]:
    return list(plaintext.frames) if isinstance(plaintext, JVPFrames) else []


def _message(chunks: dict[int, Packet]) -> Packet:
    value = b"".join(bytes(chunks[number].payload) for number in sorted(chunks))
    first = chunks[0]
    head = JVPFrame(type=first.type, flags=first.flags, message_id=first.message_id, length=len(value))
    return JVPFrame(bytes(head) + value)


def _is_whole(fragments: dict[int, Packet]) -> bool:
    at = 0
    for offset, fragment in sorted(fragments.items()):
        if offset != at:
            return False
        at += len(fragment.payload)
        if fragment.last:
            return True
    return False


def _packet(fragments: dict[int, Packet]) -> Packet:
    plaintext = b"".join(bytes(fragments[offset].payload) for offset in sorted(fragments))
    return JVPResentHead(plaintext) if fragments[0].resent else JVPOffload(plaintext)
