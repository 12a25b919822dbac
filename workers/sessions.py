"""What a worker knows of one session: keys, counters, replay windows, and a PathEntry (paths.py) per installed index.

Nothing here sends or receives. `SessionTable` (table.py) finds sessions and changes them as the commands say.
"""

import struct
from typing import Final

from jvpn.protocol.constants import (
    GENERATION_SHIFT,
    HEADER_SIZE,
    MAX_INDEX,
    TAG_SIZE,
    VERSION,
    PacketType,
)
from jvpn.protocol.replay import ReplayWindow
from workers.commands import AddSession
from workers.fragments import Reassembly
from workers.kept import KeptQueue, Pool, Sent, Waited
from workers.keys import Phase
from workers.page import Page
from workers.paths import PathEntry, SendPath
from workers.routes import PrefixMap
from workers.udp import Address

#: Per session: indexes whose counters and windows are remembered, highest first. Older ones are refused.
REMEMBERED_INDEXES: Final = 256
WINDOWS: Final = 16
GATEWAY_ADDRESSES: Final = 16
#: Datagrams that a client sends before its bind.
MAX_EARLY: Final = 64
#: And again with each REQUEST that is repeated.
MORE_EARLY: Final = 4
#: No sender gets this far; the shared page, which stores counters one higher, could not remember it.
NO_COUNTER: Final = (1 << 64) - 1

_HEADER = struct.Struct(">BBxx8sQ")
_NONCE = struct.Struct(">IQ")


class Session:
    """`receive` has the phases by header nibble, `phase` is the one to send under.

    `direct` is `path` unless something has to go first: `resending`, what was sent before and is missing, then
    `waiting`, what came from the TUN and could not go. `sent_lately` keeps what went out. `early`: where a client may
    send `early_left` more datagrams although nothing is bound.
    """

    def __init__(self, command: AddSession, page: Page, pool: Pool) -> None:
        self.record = command.record
        self.session_id = command.session_id
        self.generation = command.generation
        #: Nobody has ever sent on higher indexes than this: their counters begin with generation 0 (see `table.add`).
        self.unused_above = MAX_INDEX
        self.entries: dict[int, PathEntry] = {}
        self.path: SendPath | None = None
        self.direct: SendPath | None = None
        self.early: SendPath | None = None
        self.early_left = MAX_EARLY
        self.resend_window_ms = 0
        self.sent_lately: KeptQueue[Sent] = KeptQueue(pool, counts=False)
        self.waiting: KeptQueue[Waited] = KeptQueue(pool, counts=True)
        #: The last first.
        self.resending: list[Sent] = []
        #: Of packets that went in FRAGMENTs and again: (index, first counter) → the counter that this was under.
        self.stood_for: dict[tuple[int, int], int] = {}
        #: The index bound now or last, and the one before.
        self.bound_indexes: tuple[int, ...] = ()
        self.reassembly = Reassembly()
        self.too_big_after_ns = 0
        self._last_packet_id = 0
        self.allowed: PrefixMap[bool] = PrefixMap()
        self.routes: list[str] = []
        self.gateway_addresses: dict[Address, None] = {}
        self.source_change_after_ns = 0
        #: Highest index that anything authenticated came on, as far as the supervisor has been told.
        self.highest_seen = -1 if command.binding is None else command.binding.index
        #: The newest phase that the supervisor has been told of.
        self.phase_told = 0
        self.send_until = self.forged_until = 0
        self.receive: dict[int, Phase] = {}
        self.phase: Phase
        self._page = page
        self._sequences: dict[int, int] = {}
        self._generation_before = command.generation
        self._forgotten_below = 0
        self._windows: dict[int, ReplayWindow] = {}
        self._windows_below = 0
        before = page.read_activity(command.record)
        self._activity = [
            before.received_ns,
            before.sent_ns,
            before.received_bytes,
            before.sent_bytes,
            before.received_packets,
            before.sent_packets,
        ]
        self._forged = before.forged

    def bind(self, path: SendPath | None) -> None:
        """Make `path` the one to send on; None: there is none."""
        self.path = path
        self.go_on()
        if path is None:
            return
        self.early, self.early_left = None, MAX_EARLY
        if path.index not in self.bound_indexes[-1:]:
            self.bound_indexes = (*self.bound_indexes[-1:], path.index)

    def go_on(self) -> bool:
        """Let what comes from the TUN go at once if nothing has to go first; False when something has."""
        free = not self.waiting and not self.resending and not self.used_up
        self.direct = self.path if free else None
        return free

    @property
    def used_up(self) -> bool:
        """Whether nothing more may be sent under these keys."""
        return 0 < self.send_until <= self._activity[5]

    def forged(self, nibble: int) -> None:
        """A datagram did not open; after too many nothing more is taken under its key."""
        self._forged += 1
        self._page.write_forged(self.record, self._forged)
        if 0 < self.forged_until <= self._forged:
            phase = self.receive.pop(nibble, None)
            if phase is not None and phase is not self.phase:
                phase.discard()

    def keep(self, window_ms: int, max_bytes: int) -> None:
        """How much is kept for a reattach, from now on."""
        self.resend_window_ms = window_ms if max_bytes else 0
        self.sent_lately.limit(max_bytes, window_ms)
        self.waiting.limit(max_bytes, window_ms)

    def forget(self) -> None:
        """The session is over: nothing will be sent any more."""
        self.path = self.direct = self.early = None
        self.sent_lately.clear()
        self.waiting.clear()
        self.resending.clear()

    def forget_stood_for(self) -> None:
        """Of what will not be sent again: counters rise on an index, and indexes do."""
        oldest = (
            min((item.path_index, _counter_of(item.data)) for item in self.resending)
            if self.resending
            else None
        )
        self.stood_for = {at: c for at, c in self.stood_for.items() if oldest is not None and at >= oldest}

    def known_windows(self) -> dict[int, ReplayWindow]:
        """The replay windows of the indexes on which DATA came."""
        return {index: window for index, window in self._windows.items() if window.highest >= 0}

    def take_packet_id(self) -> int:
        """What the fragments of the next packet have in common."""
        self._last_packet_id = (self._last_packet_id + 1) & 0xFFFFFFFF
        return self._last_packet_id

    def take_counters(self, index: int, count: int) -> int:
        """The first of `count` counters for sending on `index`, never given out again."""
        sequence = self._sequences.get(index)
        if sequence is None:
            # A forgotten index would start at 0 again, which is a nonce used twice.
            assert index >= self._forgotten_below
            sequence = 0
            self._sequences[index] = 0
            if len(self._sequences) > REMEMBERED_INDEXES:
                lowest = min(self._sequences)
                del self._sequences[lowest]
                self._forgotten_below = lowest + 1
                assert index > lowest
        assert sequence + count < 1 << GENERATION_SHIFT
        self._sequences[index] = sequence + count
        return self.generation_of(index) << GENERATION_SHIFT | sequence

    def generation_of(self, index: int) -> int:
        """What counters on `index` are given out under."""
        return self.generation if index <= self.unused_above else 0

    def may_resend(self, index: int, counter: int) -> bool:
        """Whether the peer will know which counter of `index` is meant: a RESENT does not tell the generation, the peer
        takes that of the highest it has received there. So nothing may have gone there under a later one."""
        generation = counter >> GENERATION_SHIFT
        if generation == self.generation_of(index):
            return True
        return generation == self._generation_before and index not in self._sequences

    def may_send_on(self, index: int) -> bool:
        """False for an index so old that its counters are forgotten."""
        if index in self._sequences:
            return True
        full = len(self._sequences) >= REMEMBERED_INDEXES
        return index >= self._forgotten_below and not (full and index < min(self._sequences))

    def raise_generation(self, generation: int) -> None:
        """Counters start again at 0 under a higher generation."""
        assert generation > self.generation
        self._generation_before, self.generation = self.generation, generation
        self._sequences.clear()
        self._forgotten_below = 0

    def window(self, index: int) -> ReplayWindow | None:
        """The replay window of an index; None when it is so old that its window is forgotten."""
        window = self._windows.get(index)
        if window is None and index >= self._windows_below:
            highest = self._page.read_highest(self.record, index)
            window = ReplayWindow(seen_below=0 if highest is None else highest + 1)
            self._windows[index] = window
            if len(self._windows) > WINDOWS:
                lowest = min(self._windows)
                del self._windows[lowest]
                self._windows_below = lowest + 1
        return window

    def heard(self, now_ns: int) -> None:
        """Anything authenticated came, PATH too."""
        self._page.write_heard(self.record, now_ns)

    def received(self, now_ns: int, size: int, packets: int) -> None:
        activity = self._activity
        activity[0] = now_ns
        activity[2] += size
        activity[4] += packets
        self._page.write_activity(self.record, *activity)

    def sent(self, now_ns: int, size: int, packets: int) -> None:
        activity = self._activity
        activity[1] = now_ns
        activity[3] += size
        activity[5] += packets
        self._page.write_activity(self.record, *activity)
        if self.used_up:
            self.direct = None

    def waits(self, now_ns: int) -> None:
        """DATA came from the TUN and has no path: whoever looks for one is to hurry."""
        self._activity[1] = now_ns
        self._page.write_activity(self.record, *self._activity)

    def remember_gateway(self, address: Address) -> None:
        """Client: DATA may come from this address from now on."""
        self.gateway_addresses.pop(address, None)
        self.gateway_addresses[address] = None
        if len(self.gateway_addresses) > GATEWAY_ADDRESSES:
            del self.gateway_addresses[next(iter(self.gateway_addresses))]

    def highest_installed(self) -> int:
        return max(self.entries, default=0)

    def seal(self, kind: PacketType, entry: PathEntry, plaintext: bytes) -> bytes:
        """One datagram on any installed index, under the next counter of that index."""
        counter = self.take_counters(entry.index, 1)
        datagram = bytearray(HEADER_SIZE + len(plaintext) + TAG_SIZE)
        _HEADER.pack_into(datagram, 0, kind, VERSION << 4 | self.phase.nibble, entry.steering_id, counter)
        nonce = _NONCE.pack(entry.index, counter)
        self.phase.sealer()(
            nonce, plaintext, bytes(datagram[:HEADER_SIZE]), memoryview(datagram)[HEADER_SIZE:]
        )
        return bytes(datagram)


def _counter_of(datagram: bytes) -> int:
    return int.from_bytes(datagram[12:20], "big")
