"""The replay window of RFC 6479, with a bit for each counter, so that a run of counters is a slice.

While counters come one after the other there is nothing to write down: a window knows from where on all of them have
been seen. It has a ring of bits from the first gap on.

A counter that is not above `highest` and not within the last `size` counts as seen. Callers check only counters of
datagrams that have been authenticated: a forged one must not move the window.
"""

from typing import Final

from jvpn.protocol.constants import REPLAY_WINDOW

#: 0 ↔ 1, byte by byte: seen → fresh.
_INVERT: Final = bytes((1, 0)) + bytes(254)
#: The bits of each byte, lowest first, as bytes of 0 and 1.
_BITS: Final = [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]


class ReplayWindow:
    """Which of the last `size` counters (64 bit, from 0) have been seen; everything older counts as seen.

    `seen_below`: every counter below it counts as seen from the start. `highest` is the highest counter seen, or
    `seen_below` - 1 (so -1 for a new window).
    """

    __slots__ = ("_ring", "_size", "_whole_from", "highest")

    def __init__(self, size: int = REPLAY_WINDOW, seen_below: int = 0) -> None:
        self._size = size
        self.highest = seen_below - 1
        #: Everything from here to `highest` has been seen, whatever the ring says of it.
        self._whole_from = 0
        #: Of counters below `_whole_from` that are not too old: with slot = counter % size, bit slot % 8 of byte
        #: slot // 8 is set when that one was seen. None: all of them were.
        self._ring: bytearray | None = None

    def check_and_set(self, counter: int) -> bool:
        """Mark one counter; True when it had not been seen."""
        gap = counter - self.highest
        if gap > 0:
            if gap > 1:
                self._skip(counter)
            self.highest = counter
            return True
        if counter >= self._whole_from or gap <= -self._size:
            return False
        slot = counter % self._size
        at, bit = slot >> 3, 1 << (slot & 7)
        ring = self._written()
        if ring[at] & bit:
            return False
        ring[at] |= bit
        return True

    def check_and_set_run(self, first: int, count: int) -> bytes | None:
        """Mark `count` (at least 1) consecutive counters from `first`, as `check_and_set` on each in turn.

        None: every one was fresh. Else `count` bytes, 1 fresh and 0 seen before. Takes no step per counter.
        """
        assert count > 0
        last = first + count - 1
        gap = first - self.highest
        if gap > 0:
            if gap > 1:
                self._skip(first)
            self.highest = last
            return None
        fresh = self.seen_run(first, count).translate(_INVERT)
        if 1 not in fresh:
            return fresh
        start = max(first, self.highest - self._size + 1)
        if start < self._whole_from:
            self._mark(start, min(last + 1, self._whole_from) - start, seen=True)
        self.highest = max(last, self.highest)
        return fresh if 0 in fresh else None

    def seen_run(self, first: int, count: int) -> bytes:
        """`count` bytes for the counters from `first`: 1 seen or too old to know, 0 not seen. Changes nothing."""
        end = first + count
        oldest = self.highest - self._size + 1
        too_old = min(max(oldest - first, 0), count)
        ahead = min(max(end - 1 - self.highest, 0), count)
        known = count - too_old - ahead
        whole = min(max(end - ahead - self._whole_from, 0), known)
        written = self._seen(first + too_old, known - whole) if known > whole else b""
        return b"\1" * too_old + written + b"\1" * whole + bytes(ahead)

    def _skip(self, counter: int) -> None:
        """Nothing between `highest` and `counter` has been seen; the next to be seen is `counter`."""
        if self._ring is None:
            self._ring = bytearray(b"\xff") * -(-self._size // 8)
        else:
            self._mark(self._whole_from, self.highest + 1 - self._whole_from, seen=True)
        self._mark(self.highest + 1, counter - self.highest - 1, seen=False)
        self._whole_from = counter

    def _written(self) -> bytearray:
        ring = self._ring
        assert ring is not None
        return ring

    def _mark(self, first: int, count: int, seen: bool) -> None:
        size = self._size
        if count >= size:
            self._ring = bytearray(b"\xff" if seen else b"\0") * -(-size // 8)
            return
        start = first % size
        end = start + count
        if end <= size:
            self._mark_slots(start, end, seen)
        else:
            self._mark_slots(start, size, seen)
            self._mark_slots(0, end - size, seen)

    def _mark_slots(self, start: int, end: int, seen: bool) -> None:
        ring, low, high = self._written(), start >> 3, (end + 7) >> 3
        mask = ((1 << (end - start)) - 1) << (start & 7)
        bits = int.from_bytes(ring[low:high], "little")
        bits = bits | mask if seen else bits & ~mask
        ring[low:high] = bits.to_bytes(high - low, "little")

    def _seen(self, first: int, count: int) -> bytes:
        start = first % self._size
        end = start + count
        if end <= self._size:
            return self._seen_slots(start, end)
        return self._seen_slots(start, self._size) + self._seen_slots(0, end - self._size)

    def _seen_slots(self, start: int, end: int) -> bytes:
        low = start >> 3
        bits = b"".join([_BITS[byte] for byte in bytes(self._written()[low : (end + 7) >> 3])])
        return bits[start - (low << 3) : end - (low << 3)]
