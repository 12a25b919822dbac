"""The table `bound` of bpf/steer.c, in memory that kernel and supervisor share: active ids, found without a hash.

It repeats what the map `ids` says and never says more: an id is taken out before its entry there changes, and put in
after. So a supervisor may die between any two steps, and what adopts the maps has nothing to mend. What finds no place
is in `ids` alone, where it costs more time and has the same fate.

The program reads without a lock. An id is one aligned word, stored last and cleared first, so a place never shows an id
that is not bound. While one id gives its place to another, a program that has just read the first id may read the
second one's source and slot, as with an entry of `ids` that is deleted and used again: at worst one datagram reaches
a worker that has no such session, and drops it.
"""

import mmap
import os
import struct
from pathlib import Path
from typing import Final

from jvpn.holder import bpf_syscall as bpf

#: struct bound_id in 64-bit words, and how many of them a struct bound_bucket has.
WORDS: Final = 4
PLACES: Final = 4

_REST: Final = struct.Struct("=16s2sHI")
_AS_WORDS: Final = struct.Struct(f"={WORDS - 1}Q")
_ID: Final = struct.Struct("=Q")


class BoundTable:
    """Buckets of PLACES ids each in `memory`, whose length in bytes says how many; zeros are an empty table."""

    def __init__(self, memory: "mmap.mmap | bytearray") -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("Q")
        self.buckets = len(self._words) // (WORDS * PLACES)

    @classmethod
    def of_map(cls, pin: Path) -> "BoundTable":
        """The pinned map. Raises OSError."""
        fd = bpf.obj_get(pin)
        try:
            info = bpf.map_info(fd)
            return cls(mmap.mmap(fd, info.max_entries * info.value_size))
        finally:
            os.close(fd)

    def put(self, steering_id: bytes, slot: int, source: bytes, port: int) -> None:
        """Where there is room for it; `steering_id` is not in the table. `source`: 16 bytes, as in the map `ids`."""
        word = _ID.unpack(steering_id)[0]
        if not word:  # it says that a place is free
            return
        for place in self._places(word):
            if not self._words[place]:
                rest = _REST.pack(source, port.to_bytes(2, "big"), slot, 0)
                for offset, value in enumerate(_AS_WORDS.unpack(rest), start=1):
                    self._words[place + offset] = value
                self._words[place] = word
                return

    def remove(self, steering_id: bytes) -> None:
        """Afterwards the table does not have it; nothing happens when it did not."""
        word = _ID.unpack(steering_id)[0]
        for place in self._places(word):
            if self._words[place] == word:
                self._words[place] = 0

    def close(self) -> None:
        self._words.release()
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()

    def _places(self, word: int) -> range:
        first = ((word & 0xFFFF_FFFF) * self.buckets >> 32) * WORDS * PLACES
        return range(first, first + WORDS * PLACES, WORDS)
