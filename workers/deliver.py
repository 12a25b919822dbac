"""Opened DATA plaintexts → TUN: checked, joined into superpackets again where they are neighbours, written.

Whatever comes here has been authenticated and is new; every rule of `jvpn.protocol.offload.check` and the inner
source still decide about each datagram.
"""

from collections.abc import Sequence

from jvpn.protocol.offload import (
    LAST,
    MAX_PACKET,
    OFFLOAD,
    PARTIAL,
    Inner,
    OffloadError,
    Segmentation,
    check,
    has_cwr,
    rewrite,
    virtio_header,
)
from workers.counters import Counter
from workers.layouts import ReceiveLayout, consecutive
from workers.sessions import Session
from workers.tun import VNET_HEADER_BYTES, TunLike

_BODY = OFFLOAD.size
#: Where a UDP header has its checksum.
_UDP_CHECKSUM = 6


class Delivery:
    """Writes to one TUN queue."""

    def __init__(self, tun: TunLike, counters: "memoryview[int]") -> None:
        self._tun = tun
        self._counters = counters

    def deliver_run(
        self, session: Session, layout: ReceiveLayout, count: int, tail: memoryview | None
    ) -> bool:
        """Write the first `count` plaintexts of a layout, and a shorter `tail` behind them, as one superpacket.

        False, and nothing done, when they are not one run: then `deliver` sorts it out.
        """
        try:
            inner = check(layout.plaintexts[0])
        except OffloadError:
            return False
        headers = inner.headers
        if inner.kind == Segmentation.NONE or inner.flags & LAST or not self._may_join(inner):
            return False
        head = layout.opened[_BODY : _BODY + headers]
        rows, slices = layout.shape(headers)
        if rows[:count].tobytes() != head * count:
            return False
        words = consecutive(int.from_bytes(layout.opened[:_BODY], "big"), count)
        last = bool(layout.plaintexts[count - 1][0] & LAST) and tail is None
        if last:
            words = words[:-_BODY] + bytes((words[-_BODY] | LAST,)) + words[1 - _BODY :]
        if layout.offload_words[:count].tobytes() != words:
            return False
        payload = count * inner.size
        parts = slices[:count]
        if tail is not None:
            word = OFFLOAD.pack(
                inner.flags | LAST, inner.kind, inner.size, inner.start, inner.segment_index + count
            )
            if tail[:_BODY] != word or tail[_BODY : _BODY + headers] != head or len(tail) <= _BODY + headers:
                return False
            last = True
            payload += len(tail) - _BODY - headers
            parts.append(tail[_BODY + headers :])
        if inner.segment_index * inner.size + payload > MAX_PACKET - headers:
            return False
        if not session.allowed.lookup(inner.source):
            return False
        self._write_run(inner, head, parts, payload, last)
        return True

    def deliver_flow(self, session: Session, layout: ReceiveLayout, count: int) -> bool:
        """Write the first `count` plaintexts of a layout as one UDP superpacket.

        False, and nothing done, when they are not whole UDP packets of one flow with nothing but their payloads and a
        rising IP id to tell them apart: what the kernel makes of the superpacket is then exactly what was sent.
        """
        first = layout.plaintexts[0]
        try:
            inner = check(first)
        except OffloadError:
            return False
        plain = inner.start == (20 if first[_BODY] >> 4 == 4 else 40)
        udp = inner.flags & PARTIAL and inner.segment_index == _UDP_CHECKSUM
        if inner.kind != Segmentation.NONE or not udp or not plain or not self._tun.uso:
            return False
        flow = layout.flow(inner.start)
        size = layout.plaintext - _BODY - flow.headers
        if not size or not flow.is_one(count) or not session.allowed.lookup(inner.source):
            return False
        run = Inner(inner.flags, Segmentation.UDP, size, inner.start, 0, flow.headers, inner.source)
        head = layout.opened[_BODY : _BODY + flow.headers]
        self._write_run(run, head, flow.slices[:count], count * size, True)
        return True

    def deliver(self, session: Session, plaintexts: Sequence[memoryview]) -> None:
        """Check and write plaintexts in order; neighbours among them go together."""
        run: Inner | None = None
        parts: list[memoryview] = []
        head = b""
        payload = 0
        last = False
        for plaintext in plaintexts:
            try:
                inner = check(plaintext)
            except OffloadError as error:
                self._counters[Counter[error.reason.upper()]] += 1
                continue
            if not session.allowed.lookup(inner.source):
                self._counters[Counter.INNER_SOURCE] += 1
                continue
            body = _BODY + inner.headers
            # `parts` of a run that has not ended are all whole slices.
            joins = (
                run is not None
                and not last
                and self._may_join(inner)
                and (inner.kind, inner.size, inner.start) == (run.kind, run.size, run.start)
                and inner.segment_index == run.segment_index + len(parts)
                and plaintext[_BODY:body] == head
            )
            if not joins:
                if run is not None:
                    self._write_run(run, head, parts, payload, last)
                run = None
                if inner.kind == Segmentation.NONE:
                    self._write_packet(inner, plaintext)
                    continue
                run, head, parts, payload = inner, bytes(plaintext[_BODY:body]), [], 0
            parts.append(plaintext[body:])
            payload += len(plaintext) - body
            last = bool(inner.flags & LAST)
        if run is not None:
            self._write_run(run, head, parts, payload, last)

    def _may_join(self, inner: Inner) -> bool:
        return inner.kind != Segmentation.UDP or self._tun.uso

    def _write_run(
        self, run: Inner, head: bytes | bytearray, parts: list[memoryview], payload: int, last: bool
    ) -> None:
        several = len(parts) > 1
        front = bytearray(VNET_HEADER_BYTES) + head
        rewrite(front, VNET_HEADER_BYTES, run, payload, last)
        cwr = several and has_cwr(front, VNET_HEADER_BYTES, run)
        front[:VNET_HEADER_BYTES] = virtio_header(run, run.headers, several, cwr)
        self._write([front, *parts], len(parts), payload + len(parts) * len(head))

    def _write_packet(self, inner: Inner, plaintext: memoryview) -> None:
        self._write([virtio_header(inner, 0, False), plaintext[_BODY:]], 1, len(plaintext) - _BODY)

    def _write(self, buffers: Sequence[bytes | bytearray | memoryview], packets: int, size: int) -> None:
        try:
            self._tun.writev(buffers)
        except OSError:
            self._counters[Counter.TUN_WRITE_ERROR] += packets
            return
        self._counters[Counter.TUN_WRITES] += 1
        self._counters[Counter.DELIVERED_PACKETS] += packets
        self._counters[Counter.DELIVERED_BYTES] += size
