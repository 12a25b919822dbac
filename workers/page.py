"""The shared page: one memfd mapped by the holder, the supervisor (or agent) and every worker.

It outlives each of them but the first, so a supervisor that starts again and a worker that takes a dead one's place
find here what no store could keep up with. Every byte has one writer: rows of the table below name it.

    offset                 what                                              written by
    0                      magic, version, capacity, challenge key, fence    holder (fence: supervisor)
    COUNTERS + 1024 * s    128 counters of 64 bit of slot s                  the process in slot s
    RECORDS + 576 * r      session record r, first 256 bytes                 supervisor (sequence lock)
                           session record r, the rest                        the owning worker

Numbers are native-endian and naturally aligned: an aligned 64-bit store is one store on every CPU that Linux has
eBPF for, and the supervisor's part has a sequence lock (odd while being written), so a reader never sees half. It ends
in a checksum: a supervisor that is killed in the middle of a row leaves the lock odd, and its successor must know
whether it died before or after the bytes were there.
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
_ACTIVITY = struct.Struct("=QQQQQQ")
_HEARD_OFFSET = WORKER_PART + _ACTIVITY.size
_FORGED_OFFSET = _HEARD_OFFSET + 8
assert _FORGED_OFFSET + 8 <= HIGHEST_TABLE
_HIGHEST = struct.Struct("=IxxxxQ")
_U64 = struct.Struct("=Q")


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

    @staticmethod
    def create(capacity: int, challenge_key: bytes) -> int:
        """Return the descriptor of a new page with `capacity` session records and a 32-byte challenge key."""
        descriptor = os.memfd_create("jvpn-page", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, RECORDS + capacity * RECORD_BYTES)
        os.pwrite(descriptor, _FIXED.pack(MAGIC, VERSION, capacity, challenge_key, 0), 0)
        return descriptor

    def close(self) -> None:
        self._map.close()

    # Counters

    def counters(self, slot: int) -> "memoryview[int]":
        """The 128 counters of `slot`, as a writable view of unsigned 64-bit numbers."""
        start = COUNTERS + slot * COUNTERS_PER_SLOT * 8
        return memoryview(self._map)[start : start + COUNTERS_PER_SLOT * 8].cast("Q")

    # Supervisor's part

    def write_row(self, record: int, row: SessionRow) -> None:
        start = RECORDS + record * RECORD_BYTES
        (sequence,) = _SEQUENCE.unpack_from(self._map, start)
        packed = _ROW.pack(*row)
        _SEQUENCE.pack_into(self._map, start, (sequence | 1) & 0xFFFFFFFF)
        begin = start + _ROW_OFFSET
        self._map[begin : begin + _ROW.size + 4] = packed + _SEQUENCE.pack(zlib.crc32(packed))
        _SEQUENCE.pack_into(self._map, start, ((sequence | 1) + 1) & 0xFFFFFFFF)

    def read_row(self, record: int) -> SessionRow:
        """A consistent copy of the supervisor's part; waits while it is being written (some microseconds).

        A row that its writer never finished is taken when all of its bytes are there, else TornRow is raised.
        """
        begin = RECORDS + record * RECORD_BYTES + _ROW_OFFSET
        until = time.monotonic() + _WRITER_S
        while True:
            before = _SEQUENCE.unpack_from(self._map, begin - _ROW_OFFSET)[0]
            packed = self._map[begin : begin + _ROW.size]
            checksum = self._map[begin + _ROW.size : begin + _ROW.size + 4]
            after = _SEQUENCE.unpack_from(self._map, begin - _ROW_OFFSET)[0]
            if before == after and (not before & 1 or time.monotonic() > until):
                break
        if not any(packed):
            return SessionRow()
        if checksum != _SEQUENCE.pack(zlib.crc32(packed)):
            raise TornRow(f"record {record} was being written when its supervisor died")
        return SessionRow._make(_ROW.unpack(packed))

    # Worker's part

    def write_activity(self, record: int, *values: int) -> None:
        """received_ns, sent_ns, received_bytes, sent_bytes, received_packets, sent_packets"""
        _ACTIVITY.pack_into(self._map, RECORDS + record * RECORD_BYTES + WORKER_PART, *values)

    def read_activity(self, record: int) -> Activity:
        start = RECORDS + record * RECORD_BYTES
        values = _ACTIVITY.unpack_from(self._map, start + WORKER_PART)
        heard_and_forged = struct.unpack_from("=QQ", self._map, start + _HEARD_OFFSET)
        return Activity(*values, *heard_and_forged)

    def write_heard(self, record: int, now_ns: int) -> None:
        """Anything authenticated came on this session, at CLOCK_BOOTTIME `now_ns`."""
        _U64.pack_into(self._map, RECORDS + record * RECORD_BYTES + _HEARD_OFFSET, now_ns)

    def write_forged(self, record: int, count: int) -> None:
        """So many datagrams of this session did not open."""
        _U64.pack_into(self._map, RECORDS + record * RECORD_BYTES + _FORGED_OFFSET, count)

    def write_highest(self, record: int, index: int, counter: int) -> None:
        """Remember the highest counter received on an index; written before the packet reaches the TUN."""
        # Stored one higher, so that zero means "nothing yet" and counter 0 is remembered too.
        _HIGHEST.pack_into(self._map, self._highest_at(record, index), index, counter + 1)

    def read_highest(self, record: int, index: int) -> int | None:
        """Highest counter received on `index`, None when nothing was."""
        stored, counter = _HIGHEST.unpack_from(self._map, self._highest_at(record, index))
        return counter - 1 if stored == index and counter else None

    @staticmethod
    def _highest_at(record: int, index: int) -> int:
        row = RECORDS + record * RECORD_BYTES + HIGHEST_TABLE
        return row + (index % HIGHEST_ENTRIES) * _HIGHEST.size

    def clear_record(self, record: int) -> None:
        """Empty a record for its next session (both parts; no worker holds it)."""
        start = RECORDS + record * RECORD_BYTES
        self._map[start : start + RECORD_BYTES] = bytes(RECORD_BYTES)

    # Fence

    def fence(self) -> "memoryview[int]":
        """One number: when this gateway's traffic ends, in ns of CLOCK_BOOTTIME, unless it is moved; 0: never."""
        return memoryview(self._map)[_FENCE_OFFSET : _FENCE_OFFSET + _U64.size].cast("Q")

    def write_fence(self, until_ns: int) -> None:
        # In one store: struct clears the bytes first, and whoever reads between would find "never".
        self.fence()[0] = until_ns

    def read_fence(self) -> int:
        return self.fence()[0]
