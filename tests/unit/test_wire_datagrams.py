"""What the data plane makes of a read from the TUN, and the sockets that it goes out by."""

import socket
import struct
from collections.abc import Iterator

import pytest
from test_worker_pipelines import CLIENT, Worker, data, datagram, opened, packet

from jvpn.protocol.constants import MAX_SEGMENTS, OVERHEAD_IPV4, OVERHEAD_IPV6, TUN_MTU
from jvpn.protocol.offload import LAST, OFFLOAD, PARTIAL, VIRTIO, deliver, segment
from workers.commands import Rebind
from workers.layouts import LAYOUTS, LayoutCache
from workers.reports import session_reports
from workers.udp import SOL_UDP, UDP_GRO, UDP_SEGMENT, open_socket

DATA_VALID = 2
_PMTUDISC_PROBE = 3


def superpacket(payload: bytes, size: int, flags: int = PARTIAL, tcp_flags: int = 0x10) -> bytes:
    """A TCP superpacket over IPv4 from inner 10.8.0.1 to 10.8.0.2, as a TUN gives it."""
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(payload), 7, 0x4000, 64, 6, 0)
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 1000, 0, 0x50, tcp_flags, 1000, 0, 0)
    inner = ip + bytes((10, 8, 0, 1, 10, 8, 0, 2)) + tcp + payload
    return VIRTIO.pack(flags, 1, 40, size, 20, 16) + inner


def plaintexts(worker: Worker) -> list[bytes]:
    return [opened(sealed) for _to, sealed in worker.take_sent()]


def test_no_send_has_more_than_64_segments() -> None:
    gateway = Worker()
    bursts: list[int] = []
    send = gateway.socket.sendmsg

    def note(buffers, ancillary, flags, address):  # type: ignore[no-untyped-def]
        size = len(b"".join(buffers))
        segments = [struct.unpack("=H", v)[0] for level, kind, v in ancillary if kind == UDP_SEGMENT]
        bursts.append(-(-size // segments[0]) if segments else 1)
        return send(buffers, ancillary, flags, address)

    gateway.socket.sendmsg = note  # type: ignore[method-assign]
    gateway.tun.pending.append(superpacket(bytes(64_000), 400))
    gateway.tun.pending.extend([bytes(10) + packet(1, destination=2)] * 200)
    gateway.turn()
    assert sum(bursts) == 160 + 200
    assert max(bursts) <= MAX_SEGMENTS == 64


@pytest.mark.parametrize("size", [400, 30])
def test_of_the_flags_that_the_kernel_gives_only_the_partial_checksum_travels(size: int) -> None:
    gateway = Worker()
    checked = bytearray(bytes(10) + packet(1, destination=2))
    checked[0] = DATA_VALID
    gateway.tun.pending.append(bytes(checked))
    gateway.turn()
    assert [plaintext[0] for plaintext in plaintexts(gateway)] == [0]
    read = superpacket(bytes(1000), size, PARTIAL | DATA_VALID)
    gateway.tun.pending.append(read)
    gateway.turn()
    flags = [plaintext[0] for plaintext in plaintexts(gateway)]
    last = LAST if size >= 64 else 0  # shorter ones travel as whole packets
    assert flags == [PARTIAL] * (len(flags) - 1) + [PARTIAL | last]
    assert [plaintext[0] for plaintext in segment(read)] == flags


def test_each_datagram_has_the_headers_unchanged_its_slice_and_its_number() -> None:
    gateway = Worker()
    payload = bytes(range(250)) * 10
    read = superpacket(payload, 600, tcp_flags=0x19)
    gateway.tun.pending.append(read)
    gateway.turn()
    sent = plaintexts(gateway)
    headers = read[VIRTIO.size : VIRTIO.size + 40]
    assert [plaintext[8:48] for plaintext in sent] == [headers] * 5
    assert b"".join(plaintext[48:] for plaintext in sent) == payload
    fields = [OFFLOAD.unpack_from(plaintext) for plaintext in sent]
    assert fields == [(PARTIAL | (LAST if i == 4 else 0), 1, 600, 20, i) for i in range(5)]
    # Any of them can be delivered without the others: FIN and PSH belong to the last alone.
    alone = [packet for _virtio, packet in deliver(reversed(sent))]
    assert [a[33] for a in alone] == [0x19, 0x10, 0x10, 0x10, 0x10]
    assert [struct.unpack(">I", a[24:28])[0] - 1000 for a in alone] == [2400, 1800, 1200, 600, 0]


def test_the_overhead_is_what_the_page_says() -> None:
    gateway = Worker()
    inner = packet(1, b"p" * 100, destination=2)
    gateway.tun.pending.append(bytes(10) + inner)
    gateway.turn()
    ((_to, sealed),) = gateway.take_sent()
    assert len(sealed) + 8 + 20 - len(inner) == OVERHEAD_IPV4 == 72
    assert len(sealed) + 8 + 40 - len(inner) == OVERHEAD_IPV6 == 92
    assert TUN_MTU == 1400


def test_a_worker_reports_its_three_newest_indexes_newest_first() -> None:
    gateway = Worker()
    for index in range(5):
        gateway.table.rebind(Rebind(2 + index, 3, gateway.path(index, CLIENT), None, 0, []))
        gateway.get(*(datagram(data(), counter, index=index) for counter in (0, 2)))
    reports = session_reports(gateway.table.by_record[3])
    assert [(report.index, report.next_counter) for report in reports] == [(4, 3), (3, 3), (2, 3)]
    assert {report.missing for report in reports} == {b"\x02" + bytes(31)}  # counter 1


def test_no_more_than_32_layouts_are_kept_and_the_one_used_longest_ago_goes() -> None:
    gateway = Worker()
    for counter in range(3 * LAYOUTS):
        gateway.get(*(datagram(data(bytes(counter)), 4 * counter + at) for at in range(4)))
        assert len(gateway.decryptor.layouts) <= LAYOUTS == 32
    assert len(gateway.decryptor.layouts) == LAYOUTS
    cache: LayoutCache[int, str] = LayoutCache()
    for size in range(LAYOUTS):
        cache.put(size, str(size))
    assert cache.get(0) == "0"
    cache.put(LAYOUTS, "new")
    assert (cache.get(0), cache.get(1), cache.get(LAYOUTS)) == ("0", None, "new")


@pytest.fixture
def opened_socket() -> Iterator[socket.socket]:
    with open_socket("::", 0) as made:
        yield made


def test_sockets_take_runs_do_not_fragment_and_mark_nothing(opened_socket: socket.socket) -> None:
    ip, ipv6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
    assert opened_socket.getsockopt(SOL_UDP, UDP_GRO) == 1
    assert opened_socket.getsockopt(ip, 10) == _PMTUDISC_PROBE  # IP_MTU_DISCOVER
    assert opened_socket.getsockopt(ipv6, 23) == _PMTUDISC_PROBE  # IPV6_MTU_DISCOVER
    assert opened_socket.getsockopt(ip, socket.IP_TOS) == 0
    assert opened_socket.getsockopt(ipv6, socket.IPV6_TCLASS) == 0
