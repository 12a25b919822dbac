"""The shared page: one memfd mapped by the holder, the supervisor (or agent) and every worker.

It outlives each of them but the first, so a supervisor that starts again and a worker that takes a dead one's place
find here what no store could keep up with. Every byte has one writer: rows of the table below name it.

    offset                 what                                              written by
    0                      magic, version, capacity, challenge key, fence    holder (fence: supervisor)
    COUNTERS + 1024 * s    128 counters of 64 bit of slot s                  the process in slot s
    RECORDS + 576 * r      session record r, first 256 bytes                 supervisor (sequence lock)
                           session record r, the rest                        the owning worker

Numbers are native-endian and naturally aligned: an aligned 64-bit store is one store on every CPU that Linux has eBPF
for, and is written as one, by an element of a memoryview, not by struct, which clears the bytes first. The supervisor's
part has a sequence lock (odd while being written). So a reader never sees half. That part ends in a checksum: a
supervisor that is killed in the middle of a row leaves the lock odd, and its successor must know whether it died before
or after the bytes were there.
"""

import mmap
import os
import struct
import time
import zlib
from typing import Final, NamedTuple

MAGIC: Final = b"JVPPAGE1"
VERSION: Final = 3
HEADER_BYTES: Final = 4096
COUNTER_SLOTS: Final = 64
COUNTERS_PER_SLOT: Final = 128
COUNTERS: Final = HEADER_BYTES
RECORDS: Final = COUNTERS + COUNTER_SLOTS * COUNTERS_PER_SLOT * 8
RECORD_BYTES: Final = 576
WORKER_PART: Final = 256
HIGHEST_TABLE: Final = 320
HIGHEST_ENTRIES: Final = 16

_FIXED = struct.Struct("=8sII32sQ")
_FENCE_OFFSET = 48
_SEQUENCE = struct.Struct("=I")
_ROW = struct.Struct("=HBBQ16sQIiQ16sHBBQ16sHHHBBI16sHQQQQQQQIQQBH")
_ROW_OFFSET = 4
_CHECKSUM_OFFSET = _ROW_OFFSET + _ROW.size
assert _CHECKSUM_OFFSET + 4 <= WORKER_PART
#: A supervisor writes a row in microseconds; who waits longer for one waits for a dead writer.
_WRITER_S: Final = 0.05

# The same places, counted in words of 8 bytes.
_FENCE_WORD = _FENCE_OFFSET // 8
_FIRST_WORD: Final = RECORDS // 8
_RECORD_WORDS: Final = RECORD_BYTES // 8
#: Six of activity, then when the session was heard, and how many datagrams were forged.
_ACTIVITY_WORD: Final = _FIRST_WORD + WORKER_PART // 8
_HEARD_WORD: Final = _ACTIVITY_WORD + 6
_FORGED_WORD: Final = _ACTIVITY_WORD + 7
#: Two for each index: which one it is, and one more than its highest counter.
_HIGHEST_WORD: Final = _FIRST_WORD + HIGHEST_TABLE // 8
assert WORKER_PART + 8 * 8 <= HIGHEST_TABLE
assert HIGHEST_TABLE + HIGHEST_ENTRIES * 16 <= RECORD_BYTES


class TornRow(ValueError):
    """A supervisor was killed in the middle of writing this row: nothing in it can be believed."""


class SessionRow(NamedTuple):
    """The supervisor's part of a session record, in its order: what no store could keep up with.

    `draining_index` is -1 when nothing drains. Addresses are 16 bytes, deadlines CLOCK_BOOTTIME milliseconds (0: not
    running). `bindings` tells an active binding at index 0 from none. `slot` is the owning worker, `listener` the
    number of the socket the active binding came in by, `before` the state that RECOVERING was entered from (0: none),
    `reason` the last transition's, as the supervisor numbers them. `control_index` and `control_counter` (one higher,
    0: none) are the newest CONTROL opened: whatever a later supervisor gets below them is a replay. `*_at_rekey` is the
    activity at which the present key phase began, `refused_attempt` the highest attempt refused (0: none) and
    `refused_code` why, as the supervisor numbers it, `security_failures` what counts against the session.
    """

    generation: int = 0
    state: int = 0
    phase: int = 0
    state_version: int = 0
    session_id: bytes = bytes(16)
    last_attempt: int = 0
    active_index: int = 0
    draining_index: int = -1
    drain_until_ns: int = 0
    source: bytes = bytes(16)
    source_port: int = 0
    transport: int = 0
    reason: int = 0
    epoch: int = 0
    local: bytes = bytes(16)
    local_port: int = 0
    listener: int = 0
    slot: int = 0
    before: int = 0
    bindings: int = 0
    highest_index: int = 0
    draining_source: bytes = bytes(16)
    draining_port: int = 0
    loss_deadline_ms: int = 0
    window_deadline_ms: int = 0
    since_ms: int = 0
    rekeyed_ms: int = 0
    sent_at_rekey: int = 0
    received_at_rekey: int = 0
    forged_at_rekey: int = 0
    control_index: int = 0
    control_counter: int = 0
    refused_attempt: int = 0
    refused_code: int = 0
    security_failures: int = 0


class Activity(NamedTuple):
    """The worker's part: what authenticated DATA came and went, when anything authenticated (a probe too) was last
    heard, and how many datagrams did not open. Times are CLOCK_BOOTTIME, 0 = never. `sent_ns` moves too when DATA was
    to go and there is no path."""

    received_ns: int
    sent_ns: int
    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int
    heard_ns: int = 0
    forged: int = 0


class Page:
    """A mapped shared page. `create` makes one, `attach` maps the one behind a descriptor."""

    def __init__(self, descriptor: int) -> None:
        """Map `descriptor`, which stays open and belongs to the caller. ValueError when it is no shared page."""
        self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        magic, version, capacity, key, _fence = _FIXED.unpack_from(self._map)
        if magic != MAGIC or version != VERSION:
            raise ValueError(f"this descriptor is not a shared page of version {VERSION}")
        self.capacity: int = capacity
        self.challenge_key: bytes = key
        whole = memoryview(self._map)
        self._words: memoryview[int] = whole.cast("Q")
        self._locks: memoryview[int] = whole.cast("I")

    @staticmethod
    def create(capacity: int, challenge_key: bytes) -> int:
        """Return the descriptor of a new page with `capacity` session records and a 32-byte challenge key."""
        descriptor = os.memfd_create("jvpn-page", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, RECORDS + capacity * RECORD_BYTES)
        os.pwrite(descriptor, _FIXED.pack(MAGIC, VERSION, capacity, challenge_key, 0), 0)
        return descriptor

    def close(self) -> None:
        self._words.release()
        self._locks.release()
        self._map.close()

    # Counters

    def counters(self, slot: int) -> "memoryview[int]":
        """The 128 counters of `slot`, as a writable view of unsigned 64-bit numbers."""
        start = COUNTERS + slot * COUNTERS_PER_SLOT * 8
        return memoryview(self._map)[start : start + COUNTERS_PER_SLOT * 8].cast("Q")

    # Supervisor's part

    def write_row(self, record: int, row: SessionRow) -> None:
        start = RECORDS + record * RECORD_BYTES
        lock = start // 4
        sequence = self._locks[lock]
        packed = _ROW.pack(*row)
        self._locks[lock] = sequence | 1
        begin = start + _ROW_OFFSET
        self._map[begin : begin + _ROW.size + 4] = packed + _SEQUENCE.pack(zlib.crc32(packed))
        self._locks[lock] = (sequence | 1) + 1 & 0xFFFFFFFF

    def read_row(self, record: int) -> SessionRow:
        """A consistent copy of the supervisor's part; waits while it is being written (some microseconds).

        A row that its writer never finished is taken when all of its bytes are there, else TornRow is raised.
        """
        start = RECORDS + record * RECORD_BYTES
        begin, lock = start + _ROW_OFFSET, start // 4
        until = time.monotonic() + _WRITER_S
        while True:
            before = self._locks[lock]
            packed = self._map[begin : begin + _ROW.size]
            checksum = self._map[begin + _ROW.size : begin + _ROW.size + 4]
            after = self._locks[lock]
            if before == after and (not before & 1 or time.monotonic() > until):
                break
        if not any(packed):
            return SessionRow()
        if checksum != _SEQUENCE.pack(zlib.crc32(packed)):
            raise TornRow(f"record {record} was being written when its supervisor died")
        return SessionRow._make(_ROW.unpack(packed))

    # Worker's part

    def write_activity(
        self,
        record: int,
        received_ns: int,
        sent_ns: int,
        received_bytes: int,
        sent_bytes: int,
        received_packets: int,
        sent_packets: int,
    ) -> None:
        words, at = self._words, _ACTIVITY_WORD + record * _RECORD_WORDS
        words[at] = received_ns
        words[at + 1] = sent_ns
        words[at + 2] = received_bytes
        words[at + 3] = sent_bytes
        words[at + 4] = received_packets
        words[at + 5] = sent_packets

    def read_activity(self, record: int) -> Activity:
        """Each number is whole; they need not all be of the same packet."""
        at = _ACTIVITY_WORD + record * _RECORD_WORDS
        return Activity(*self._words[at : at + 8])

    def write_heard(self, record: int, now_ns: int) -> None:
        """Anything authenticated came on this session, at CLOCK_BOOTTIME `now_ns`."""
        self._words[_HEARD_WORD + record * _RECORD_WORDS] = now_ns

    def write_forged(self, record: int, count: int) -> None:
        """So many datagrams of this session did not open."""
        self._words[_FORGED_WORD + record * _RECORD_WORDS] = count

    def write_highest(self, record: int, index: int, counter: int) -> None:
        """Remember the highest counter received on an index; written before the packet reaches the TUN."""
        words, at = self._words, self._highest_at(record, index)
        if words[at] != index:
            # Should this process be killed in between, nothing has come there: no counter is taken for another index's.
            words[at + 1] = 0
            words[at] = index
        # Stored one higher, so that zero means "nothing yet" and counter 0 is remembered too.
        words[at + 1] = counter + 1

    def read_highest(self, record: int, index: int) -> int | None:
        """Highest counter received on `index`, None when nothing was."""
        words, at = self._words, self._highest_at(record, index)
        counter = words[at + 1]
        return counter - 1 if words[at] == index and counter else None

    @staticmethod
    def _highest_at(record: int, index: int) -> int:
        return _HIGHEST_WORD + record * _RECORD_WORDS + index % HIGHEST_ENTRIES * 2

    def clear_record(self, record: int) -> None:
        """Empty a record for its next session (both parts; no worker holds it)."""
        start = RECORDS + record * RECORD_BYTES
        self._map[start : start + RECORD_BYTES] = bytes(RECORD_BYTES)

    # Fence

    def fence(self) -> "memoryview[int]":
        """One number: when this gateway's traffic ends, in ns of CLOCK_BOOTTIME, unless it is moved; 0: never."""
        return self._words[_FENCE_WORD : _FENCE_WORD + 1]

    def write_fence(self, until_ns: int) -> None:
        self._words[_FENCE_WORD] = until_ns

    def read_fence(self) -> int:
        return self._words[_FENCE_WORD]
