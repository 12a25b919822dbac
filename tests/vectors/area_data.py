"""DATA: superpackets as a TUN gives them, their plaintexts, datagrams, and the packets that come of them."""

from common import EPOCH, LATER_EPOCH, UP, Vector, given_secrets, pattern, phase_zero, seal_data_kind, vector

from jvpn.protocol import offload
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.suites import SUITES
from workers.fragments import fragments


def data_vectors() -> list[Vector]:
    plaintexts = {name: offload.segment(superpacket) for name, superpacket in _superpackets().items()}
    vectors = [_offload(name, parts) for name, parts in plaintexts.items()]
    for suite in SUITES.values():
        secrets = phase_zero(suite)
        for name, parts in plaintexts.items():
            vectors.append(_data(f"DATA {name} {suite.name}", secrets, PacketType.DATA, parts))
        old = b"\x02" + (5).to_bytes(3, "big") + plaintexts["whole packet"][0]
        vectors.append(_data(f"RESENT {suite.name}", secrets, PacketType.RESENT, [old]))
        whole = plaintexts["whole packet"]
        vectors.append(
            _data(f"DATA in a later epoch {suite.name}", secrets, PacketType.DATA, whole, epoch=LATER_EPOCH)
        )
        vectors += [_wrapping(suite.name, secrets, *counters, whole[0]) for counters in WRAPS]
        parts = list(fragments(whole[0], 8 + 20, 7, resent=False))
        vectors.append(
            _data(f"FRAGMENT {suite.name}", secrets, PacketType.FRAGMENT, parts, plaintext=whole[0])
        )
        parts = list(fragments(old, 8 + 20, 8, resent=True))
        vectors.append(
            _data(f"FRAGMENT of a RESENT {suite.name}", secrets, PacketType.FRAGMENT, parts, plaintext=old)
        )
    return vectors


#: Highest counter received on the old index, and the old counter of the RESENT: their upper 40 bits differ.
WRAPS = ((0x2000003, 0x1FFFFFE), (0x1FFFFFE, 0x2000003))


def _wrapping(suite: str, secrets: SessionSecrets, highest: int, old: int, plaintext: bytes) -> Vector:
    body = b"\x02" + (old & 0xFFFFFF).to_bytes(3, "big") + plaintext
    name = f"RESENT of {old:#x} where {highest:#x} is the highest, {suite}"
    facts = {"highest_on_old_index": highest, "old_counter": old}
    return _data(name, secrets, PacketType.RESENT, [body], **facts)


def _offload(name: str, parts: list[bytes]) -> Vector:
    """Each plaintext and the packet that a receiver makes of it, checksums filled in."""
    packets = []
    for virtio, packet in offload.deliver(parts):
        flags, _kind, _headers, _size, start, offset = offload.VIRTIO.unpack(virtio)
        packets.append(offload.fill_checksum(packet, start, offset) if flags else packet)
    return vector(f"packets of {name}", None, {"plaintexts": parts}, {"packets": packets})


def _data(
    name: str,
    secrets: SessionSecrets,
    kind: PacketType,
    parts: list[bytes],
    epoch: int = EPOCH,
    **more: bytes | int,
) -> Vector:
    datagrams = [seal_data_kind(secrets, UP, kind, 2, 10 + i, part, epoch) for i, part in enumerate(parts)]
    given = given_secrets(secrets) | {
        "epoch": epoch,
        "direction": int(UP),
        "index": 2,
        "first_counter": 10,
        "plaintexts": parts,
    }
    given |= more
    return vector(name, secrets.suite, given, {"datagrams": datagrams})


def _superpackets() -> dict[str, bytes]:
    """What a TUN gives (virtio_net_hdr and packet): two whole packets and a superpacket of each segmentation."""
    whole = _ipv4(17, _udp(b"hello, world", 0), 40)
    filled = offload.fill_checksum(_with_partial_sum(whole, 17, 6), 20, 6)
    fin_psh_ack = 0x19
    return {
        "whole packet": bytes(10) + filled,
        "packet without checksum": _virtio(1, 0, 0, 20, 6) + _with_partial_sum(whole, 17, 6),
        "TCP over IPv4": _virtio(1, 1, 100, 20, 16)
        + _with_partial_sum(_ipv4(6, _tcp(pattern(0, 250), fin_psh_ack), 0xFFFF), 6, 16),
        "TCP over IPv6": _virtio(1, 4, 100, 40, 16)
        + _with_partial_sum(_ipv6(6, _tcp(pattern(1, 200), 0x10)), 6, 16),
        "UDP over IPv4": _virtio(1, 5, 64, 20, 6)
        + _with_partial_sum(_ipv4(17, _udp(pattern(2, 130), 0), 7), 17, 6),
    }


def _virtio(flags: int, kind: int, size: int, start: int, offset: int) -> bytes:
    return offload.VIRTIO.pack(flags, kind, 0, size, start, offset)


def _ipv4(protocol: int, body: bytes, identification: int) -> bytes:
    header = bytearray.fromhex("4500 0000 0000 4000 40 00 0000 0a080002 0a080001")
    header[2:4] = (20 + len(body)).to_bytes(2, "big")
    header[4:6] = identification.to_bytes(2, "big")
    header[9] = protocol
    header[10:12] = (0xFFFF - offload.ones_sum(header)).to_bytes(2, "big")
    return bytes(header) + body


def _ipv6(protocol: int, body: bytes) -> bytes:
    addresses = to_bytes("fd00:8::2") + to_bytes("fd00:8::1")
    return bytes.fromhex("60000000") + len(body).to_bytes(2, "big") + bytes((protocol, 64)) + addresses + body


def _tcp(payload: bytes, flags: int) -> bytes:
    return (
        bytes.fromhex("9c40 01bb fffffff0 00000002 50")
        + bytes((flags,))
        + bytes.fromhex("faf0 0000 0000")
        + payload
    )


def _udp(payload: bytes, checksum: int) -> bytes:
    return (
        bytes.fromhex("9c40 0035")
        + (8 + len(payload)).to_bytes(2, "big")
        + checksum.to_bytes(2, "big")
        + payload
    )


def _with_partial_sum(packet: bytes, protocol: int, offset: int) -> bytes:
    """The pseudo header's sum in the checksum field, as a kernel leaves it that does not fill checksums in."""
    start = 20 if packet[0] >> 4 == 4 else 40
    addresses = packet[12:20] if start == 20 else packet[8:40]
    filled = bytearray(packet)
    total = offload.ones_sum(addresses, protocol + len(packet) - start)
    filled[start + offset : start + offset + 2] = total.to_bytes(2, "big")
    return bytes(filled)
