"""The replay window of RFC 6479, one byte per counter in a ring, so that a run of counters is a slice.

A counter that is not above `highest` and not within the last `size` counts as seen. Callers check only counters of
datagrams that have been authenticated: a forged one must not move the window.
"""

from typing import Final

from jvpn.protocol.constants import REPLAY_WINDOW

#: 0 ↔ 1, byte by byte: seen → fresh.
_INVERT: Final = bytes((1, 0)) + bytes(254)


class ReplayWindow:
    """Which of the last `size` counters (64 bit, from 0) have been seen; everything older counts as seen.

    `seen_below`: every counter below it counts as seen from the start. `highest` is the highest counter seen, or
    `seen_below` - 1 (so -1 for a new window).
    """

    __slots__ = ("_ring", "_size", "highest")

    def __init__(self, size: int = REPLAY_WINDOW, seen_below: int = 0) -> None:
        self._size = size
        # Slot counter % size is 1 when that counter, the one within (highest - size, highest], was seen.
        self._ring = bytearray(b"\1") * size
        self.highest = seen_below - 1

    def check_and_set(self, counter: int) -> bool:
        """Mark one counter; True when it had not been seen."""
        gap = counter - self.highest
        slot = counter % self._size
        if gap > 0:
            if gap > 1:
                self._fill(self.highest + 1, gap - 1, 0)
            self.highest = counter
        elif gap <= -self._size or self._ring[slot]:
            return False
        self._ring[slot] = 1
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
                self._fill(self.highest + 1, gap - 1, 0)
            self._fill(first, count, 1)
            self.highest = last
            return None
        fresh = self.seen_run(first, count).translate(_INVERT)
        if 1 not in fresh:
            return fresh
        start = max(first, self.highest - self._size + 1)
        self._fill(start, last - start + 1, 1)
        self.highest = max(last, self.highest)
        return fresh if 0 in fresh else None

    def seen_run(self, first: int, count: int) -> bytes:
        """`count` bytes for the counters from `first`: 1 seen or too old to know, 0 not seen. Changes nothing."""
        end = first + count
        oldest = self.highest - self._size + 1
        too_old = min(max(oldest - first, 0), count)
        ahead = min(max(end - 1 - self.highest, 0), count)
        known = count - too_old - ahead
        return b"\1" * too_old + self._slice(first + too_old, known) + bytes(ahead)

    def _fill(self, first: int, count: int, value: int) -> None:
        size = self._size
        if count >= size:
            self._ring = bytearray((value,)) * size
            return
        start = first % size
        end = start + count
        piece = (b"\1" if value else b"\0") * count
        if end <= size:
            self._ring[start:end] = piece
        else:
            self._ring[start:] = piece[: size - start]
            self._ring[: end - size] = piece[size - start :]

    def _slice(self, first: int, count: int) -> bytes:
        start = first % self._size
        end = start + count
        ring = self._ring
        return bytes(ring[start:end] if end <= self._size else ring[start:] + ring[: end - self._size])
