"""The packets of steering.py: one for each verdict of bpf/steer.c, and the sessions that they meet."""

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address

from jvpn.protocol.constants import REATTACH_REQUEST_SIZE, SLOT_FIRST_WORKER, TAG_SIZE, PacketType, Role
from jvpn.protocol.wire import Header
from jvpn.supervisor.steering import Rate, Rates, Steering

PORT = 51820
SOURCE, SOURCE_PORT = "198.51.100.7", 40_000
OTHER_SOURCE = "198.51.100.8"
FLOODING = "198.51.100.9"
SOURCE6, GATEWAY6 = "2001:db8:7::7", "2001:db8::1"
GATEWAY = "192.0.2.1"
BODY = 1400

HOT_ID = b"bound v4"
HOT6_ID = b"bound v6"
AWAY_ID = b"far away"
PENDING_ID = b"pending!"
INSTALLED_ID = b"installd"
DRAINED_ID = b"drained!"
STRANGER_ID = b"stranger"
HERE, AWAY = SLOT_FIRST_WORKER, SLOT_FIRST_WORKER + 1

T = PacketType
FREE = Rates(Rate(0, 0), Rate(0, 0), Rate(0, 0))
#: Refills within no run's life; what is over, the source's bucket or the one of all, is the one that refuses.
DRY = Rate(1e-6, 1)
#: REQUESTs of a known id that pass at once (JVP_REATTACH_BURST_NS in bpf/jvp.h); settings do not change that.
REATTACH_BURST = 100


@dataclass(frozen=True)
class Case:
    """`counter` is where steer.c counts such a packet (jvpn.supervisor.steering.COUNTERS).

    `admitted`: of HOT_ID, so many pass at once, then a bucket refuses; 0: each one meets the same fate.
    """

    name: str
    counter: str
    frame: bytes
    rates: Rates = FREE
    admitted: int = 0


def datagram(kind: PacketType, steering_id: bytes, size: int = BODY) -> bytes:
    if kind == T.REATTACH_REQUEST:
        size = REATTACH_REQUEST_SIZE
    head = Header(kind, steering_id).encode()
    return head + bytes(max(TAG_SIZE, size - len(head)))


def frame(
    payload: bytes, source: str = SOURCE, port: int = PORT, protocol: int = socket.IPPROTO_UDP
) -> bytes:
    """Ethernet, IP (of the source's family), UDP; the program looks at no checksum."""
    near, far = ip_address(source), ip_address(GATEWAY if "." in source else GATEWAY6)
    length = 8 + len(payload)
    udp = struct.pack("!4H", SOURCE_PORT, port, length, 0)
    if near.version == 4:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, protocol, 0)
    else:
        ip = struct.pack("!IHBB", 6 << 28, length, protocol, 64)
    kind = 0x0800 if near.version == 4 else 0x86DD
    return bytes(12) + struct.pack("!H", kind) + ip + near.packed + far.packed + udp + payload


def data_frame(steering_id: bytes) -> bytes:
    return frame(datagram(T.DATA, steering_id))


def prepare(steering: Steering) -> None:
    """Ports, a worker on any CPU, and the sessions that the cases name."""
    steering.set_ports([PORT])
    steering.set_xdp_mode("native")
    steering.allow_cpumap(True)
    steering.set_slot(HERE, None, HERE, 0)
    source, source6 = mapped(SOURCE), mapped(SOURCE6)
    put_hot_id(steering)
    steering.put_id(HOT6_ID, HERE, Role.ACTIVE, source6, SOURCE_PORT)
    steering.put_id(AWAY_ID, AWAY, Role.ACTIVE, source, SOURCE_PORT)
    steering.put_id(PENDING_ID, 0, Role.PENDING, source, SOURCE_PORT)
    steering.put_id(INSTALLED_ID, HERE, Role.INSTALLED)
    steering.put_id(DRAINED_ID, HERE, Role.DRAINING, source, SOURCE_PORT, drain_until_ns=1)


def put_hot_id(steering: Steering) -> None:
    """With its buckets full."""
    steering.put_id(HOT_ID, HERE, Role.ACTIVE, mapped(SOURCE), SOURCE_PORT)


def other_worker(steering: Steering, cpu: int) -> None:
    """The second worker's queue and slot; needs a second CPU."""
    steering.set_cpu(cpu)
    steering.set_slot(AWAY, cpu, AWAY, 1)


def mapped(address: str) -> bytes:
    packed = ip_address(address).packed
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed


def cases(other_cpu: bool) -> list[Case]:
    """`other_cpu`: there is one that frames can be redirected to."""
    out = [
        Case("owner DATA pass", "owner_data", data_frame(HOT_ID)),
        Case("owner DATA pass IPv6", "owner_data", frame(datagram(T.DATA, HOT6_ID), SOURCE6)),
        Case("owner PATH", "owner_path", frame(datagram(T.PATH, HOT_ID))),
        Case("installed DATA", "owner_data", frame(datagram(T.DATA, INSTALLED_ID))),
        Case("CONTROL, slot 0", "pass_control", frame(datagram(T.CONTROL, HOT_ID))),
        Case(
            "reattach, slot 0", "pass_reattach",
            frame(datagram(T.REATTACH_REQUEST, HOT_ID)), admitted=REATTACH_BURST,
        ),
        Case("reattach, unknown id", "pass_reattach_unknown", frame(datagram(T.REATTACH_REQUEST, STRANGER_ID))),
        Case("handshake", "pass_handshake", frame(datagram(T.HANDSHAKE_INIT, STRANGER_ID))),
        Case("not ours", "pass_not_ours", frame(b"", protocol=socket.IPPROTO_TCP)),
        Case("other port", "pass_not_ours", frame(bytes(BODY), port=53)),
        Case("unknown id", "drop_unknown_id", data_frame(STRANGER_ID)),
        Case("wrong source", "drop_wrong_source", frame(datagram(T.DATA, HOT_ID), OTHER_SOURCE)),
        Case("wrong role", "drop_wrong_role", frame(datagram(T.DATA, PENDING_ID))),
        Case("drained", "drop_drained", frame(datagram(T.DATA, DRAINED_ID))),
        Case("unknown type", "drop_unknown_type", frame(b"\x3f" + bytes(BODY))),
        Case("bad version", "drop_bad_version", frame(bytes([T.DATA]) + bytes(BODY))),
        Case("truncated", "drop_truncated", frame(bytes([T.DATA]))),
        Case(
            "flood of one source", "drop_bucket_source",
            frame(datagram(T.HANDSHAKE_INIT, STRANGER_ID), FLOODING), Rates(Rate(0, 0), DRY, Rate(0, 0)),
        ),
        Case(
            "flood of all", "drop_bucket_global",
            frame(datagram(T.HANDSHAKE_INIT, STRANGER_ID)), Rates(DRY, Rate(0, 0), Rate(0, 0)),
        ),
        Case(
            "flood of one id", "drop_bucket_id",
            frame(datagram(T.DATA, INSTALLED_ID)), Rates(Rate(0, 0), Rate(0, 0), DRY),
        ),
        Case("flood of reattaches", "drop_bucket_id", frame(datagram(T.REATTACH_REQUEST, HOT_ID))),
    ]  # fmt: skip
    if other_cpu:
        out.insert(1, Case("owner DATA redirect", "redirected", data_frame(AWAY_ID)))
    return out
