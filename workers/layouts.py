"""Where each segment of a superpacket lies, prepared once per shape and used for every superpacket of that shape.

All per-segment objects (memoryviews, numpy columns) are made here, so that the pipelines touch a whole superpacket
with a handful of C calls. At most LAYOUTS of each kind are kept, least recently used first out.

    before sealing   virtio 10 | headers h | slice 0 | gap 8 + h | slice 1 | gap 8 + h | slice 2 …
    plaintexts           offload 8 ‖ headers h ‖ slice g, one behind the other (the first overlaps the virtio header)
    datagrams        header 20 ‖ ciphertext 8 + h + g ‖ tag 16, one behind the other: one UDP_SEGMENT send
"""

import struct
from collections import OrderedDict
from hmac import compare_digest
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from jvpn.protocol.constants import HEADER_SIZE, NONCE_SIZE, OFFLOAD_HEADER_SIZE, TAG_SIZE
from workers.bulk import OPEN, SEAL, Batch, Place
from workers.tun import VNET_HEADER_BYTES

LAYOUTS: Final = 32
#: Superpackets with smaller segments are cut by the reference: readv takes at most 1 024 pieces.
MIN_FAST_SEGMENT: Final = 256
#: Linux joins at most 64 datagrams in GRO, 128 fit newer kernels' UDP_SEGMENT.
_MAX_RUN: Final = 128
_MAX_HEADER_SHAPES: Final = 8
_ENVELOPE: Final = HEADER_SIZE + TAG_SIZE

#: 0, 1, 2 …: added to the first of a run of numbers.
COUNT: Final[npt.NDArray[np.uint64]] = np.arange(65_536 // MIN_FAST_SEGMENT + 2, dtype=np.uint64)

# `count` numbers of 64 bits each, one behind the other in one large integer: all 1, and 0, 1, 2 …
_ONES: Final = tuple(sum(1 << 64 * at for at in range(count)) for count in range(_MAX_RUN + 2))
_RISING: Final = tuple(sum(count - 1 - at << 64 * at for at in range(count)) for count in range(_MAX_RUN + 2))

_WORD: Final = struct.Struct(">Q")

Column = npt.NDArray[Any]
L = TypeVar("L")
K = TypeVar("K")


def consecutive(first: int, count: int) -> bytes:
    """`count` (at most a GRO run's) 64-bit numbers from `first`, as they stand in datagrams.

    Raises OverflowError when the first of them does not fit 64 bits; a carry out of a later one would spoil its
    neighbour, so the caller sees to it that the last one fits.
    """
    # One multiplication of a large integer takes half the time of packing the numbers one by one.
    return (_ONES[count] * first + _RISING[count]).to_bytes(8 * count, "big")


class LayoutCache(Generic[K, L]):
    """The LAYOUTS most recently used layouts."""

    def __init__(self) -> None:
        self._kept: OrderedDict[K, L] = OrderedDict()

    def get(self, key: K) -> L | None:
        layout = self._kept.get(key)
        if layout is not None:
            self._kept.move_to_end(key)
        return layout

    def put(self, key: K, layout: L) -> L:
        self._kept[key] = layout
        if len(self._kept) > LAYOUTS:
            self._kept.popitem(last=False)
        return layout

    def __len__(self) -> int:
        return len(self._kept)


class SendLayout:
    """Inner headers of `headers` bytes and slices of `size` bytes (at least MIN_FAST_SEGMENT)."""

    def __init__(self, headers: int, size: int) -> None:
        self.headers = headers
        self.size = size
        count = 65_535 // size + 1
        slot = OFFLOAD_HEADER_SIZE + headers + size
        gap = VNET_HEADER_BYTES - OFFLOAD_HEADER_SIZE
        self.buffer = bytearray(gap + slot * count)
        self.view = view = memoryview(self.buffer)
        #: The first piece takes a whole small packet.
        self.first_piece = VNET_HEADER_BYTES + headers + size
        starts = range(gap, gap + slot * count, slot)
        self.scatter = [view[: self.first_piece]] + [view[at + slot - size : at + slot] for at in starts[1:]]
        self.plaintexts = [view[at : at + slot] for at in starts]
        self.offload_words = _column(self.buffer, gap, count, slot, ">u8")
        self.header_rows = _rows(self.buffer, gap + OFFLOAD_HEADER_SIZE, count, slot, headers)

        self.datagram = datagram = slot + _ENVELOPE
        self.out = bytearray(datagram * count)
        self.out_view = out = memoryview(self.out)
        self.aads = [out[at : at + HEADER_SIZE] for at in range(0, len(out), datagram)]
        self.sealed = [out[at + HEADER_SIZE : at + datagram] for at in range(0, len(out), datagram)]
        self._prefixes = _rows(self.out, 0, count, datagram, 12)
        self.counters = _column(self.out, 12, count, datagram, ">u8")
        nonces = bytearray(count * NONCE_SIZE)
        self.nonces, self._nonce_indexes, self.nonce_counters = _nonces(nonces, count)
        self.sealing = Batch(
            SEAL,
            slot,
            count,
            source=Place(self.buffer, gap, slot),
            target=Place(self.out, HEADER_SIZE, datagram),
            nonce=Place(nonces, 0, NONCE_SIZE),
            aad=Place(self.out, 0, datagram),
            tag=Place(self.out, HEADER_SIZE + slot, datagram),
        )
        self._stamped: tuple[bytes, int] | None = None
        self._offload: tuple[int, int] | None = None

    def read(self, size: int) -> bytes:
        """A copy of the `size` bytes that were read into the scatter list."""
        return b"".join(self.scatter)[:size]

    def fill(self, packet: bytes) -> None:
        """Put `packet` where reading it from the TUN would have."""
        whole = memoryview(packet)
        at = 0
        for piece in self.scatter:
            part = whole[at : at + len(piece)]
            piece[: len(part)] = part
            at += len(part)
            if at == len(packet):
                return

    def stamp(self, prefix: bytes, index: int) -> None:
        """Put the first 12 header bytes of a path, and its index, into every header and nonce."""
        if self._stamped != (prefix, index):
            self._prefixes[:] = np.frombuffer(prefix, dtype=np.uint8)
            self._nonce_indexes[:] = index
            self._stamped = (prefix, index)

    def write_offload(self, word: int, last: int, count: int) -> None:
        """Offload headers of `count` segments: `word` (that of segment 0), counted up, `last` set in the last one."""
        first = word if count > 1 else word | last
        _WORD.pack_into(self.buffer, VNET_HEADER_BYTES - OFFLOAD_HEADER_SIZE, first)
        if self._offload != (word, count):
            # Reading from the TUN overwrites only the first, so the others stay for the next superpacket.
            words = COUNT[1:count] + np.uint64(word)
            words[-1:] |= np.uint64(last)
            self.offload_words[1:count] = words
            self._offload = word, count


class ReceiveLayout:
    """Datagrams of `segment` bytes each, one behind the other in `buffer` (the worker's one receive buffer)."""

    def __init__(self, buffer: bytearray, segment: int) -> None:
        self.segment = segment
        self.capacity = count = min(len(buffer) // segment, _MAX_RUN)
        view = memoryview(buffer)
        ends = range(segment, (count + 1) * segment, segment)
        self.ciphertexts = [view[end - segment + HEADER_SIZE : end] for end in ends]
        self.aads = [view[end - segment : end - segment + HEADER_SIZE] for end in ends]
        self.prefixes = _column(buffer, 0, count, segment, "V12")
        self.counters = _column(buffer, 12, count, segment, ">u8")
        nonces = bytearray(count * NONCE_SIZE)
        self.nonces, self._nonce_indexes, self.nonce_counters = _nonces(nonces, count)
        self._index: int | None = None

        self.plaintext = slot = segment - _ENVELOPE
        self.opened = bytearray(slot * count)
        opened = memoryview(self.opened)
        self.plaintexts = [opened[at : at + slot] for at in range(0, slot * count, slot)]
        self.offload_words = _column(self.opened, 0, count, slot, ">u8")
        #: As received, and as they should be.
        self._tags = _column(buffer, segment - TAG_SIZE, count, segment, f"V{TAG_SIZE}")
        self._own_tags = bytearray(count * TAG_SIZE)
        self.opening = Batch(
            OPEN,
            slot,
            count,
            source=Place(buffer, HEADER_SIZE, segment),
            target=Place(self.opened, 0, slot),
            nonce=Place(nonces, 0, NONCE_SIZE),
            aad=Place(buffer, 0, segment),
            tag=Place(self._own_tags, 0, TAG_SIZE),
        )
        self._shapes: dict[int, tuple[Column, list[memoryview]]] = {}
        self._flows: dict[int, Flow] = {}

    def stamp(self, index: int) -> None:
        if self._index != index:
            self._nonce_indexes[:] = index
            self._index = index

    def wrong_tags(self, count: int) -> list[int]:
        """Which of the first `count` datagrams do not carry the tags that `opening` found; in constant time."""
        carried, found = self._tags[:count].tobytes(), self._own_tags[: count * TAG_SIZE]
        if compare_digest(carried, found):
            return []
        return [
            at // TAG_SIZE
            for at in range(0, len(carried), TAG_SIZE)
            if not compare_digest(carried[at : at + TAG_SIZE], found[at : at + TAG_SIZE])
        ]

    def shape(self, headers: int) -> tuple[Column, list[memoryview]]:
        """For plaintexts with inner headers of that length: the headers (one item each), the slices."""
        found = self._shapes.get(headers)
        if found is None:
            if len(self._shapes) >= _MAX_HEADER_SHAPES:
                self._shapes.clear()
            rows = _column(self.opened, OFFLOAD_HEADER_SIZE, self.capacity, self.plaintext, f"V{headers}")
            slices = [plaintext[OFFLOAD_HEADER_SIZE + headers :] for plaintext in self.plaintexts]
            found = self._shapes[headers] = rows, slices
        return found

    def flow(self, transport: int) -> "Flow":
        """For whole UDP packets whose IP header has `transport` bytes: 20 (IPv4) or 40 (IPv6)."""
        found = self._flows.get(transport)
        if found is None:
            found = self._flows[transport] = Flow(self, transport)
        return found


class Flow:
    """The front of each plaintext of a layout, if it is a whole UDP packet without IP options or extension headers."""

    def __init__(self, layout: ReceiveLayout, transport: int) -> None:
        at = OFFLOAD_HEADER_SIZE
        self.headers = transport + 8
        # What one flow's datagrams of one size have in common: in IPv4 all but id and header checksum.
        ranges = ((0, at + 4), (at + 6, at + 10), (at + 12, at + 28)) if transport == 20 else ((0, at + 48),)
        count, stride = layout.capacity, layout.plaintext
        self.common = [
            _column(layout.opened, begin, count, stride, f"V{end - begin}") for begin, end in ranges
        ]
        self.ids = _column(layout.opened, at + 4, count, stride, ">u2") if transport == 20 else None
        self.slices = [plaintext[at + self.headers :] for plaintext in layout.plaintexts]

    def is_one(self, count: int) -> bool:
        """Whether the first `count` packets are of one flow and differ in nothing but payload and a rising IP id."""
        for column in self.common:
            if column[:count].tobytes() != column[:1].tobytes() * count:
                return False
        if self.ids is None:
            return True
        ids = COUNT[:count] + np.uint64(self.ids[0])
        return self.ids[:count].tobytes() == ids.astype(">u2").tobytes()


def _nonces(buffer: bytearray, count: int) -> tuple[list[memoryview], Column, Column]:
    """Nonces (index 4 ‖ counter 8) as views, and both parts as columns to write."""
    view = memoryview(buffer)
    views = [view[at : at + NONCE_SIZE] for at in range(0, len(buffer), NONCE_SIZE)]
    return views, _column(buffer, 0, count, NONCE_SIZE, ">u4"), _column(buffer, 4, count, NONCE_SIZE, ">u8")


def _column(buffer: bytearray, offset: int, count: int, stride: int, kind: str) -> Column:
    return np.ndarray((count,), dtype=kind, buffer=buffer, offset=offset, strides=(stride,))


def _rows(buffer: bytearray, offset: int, count: int, stride: int, width: int) -> Column:
    return np.ndarray((count, width), dtype=np.uint8, buffer=buffer, offset=offset, strides=(stride, 1))
