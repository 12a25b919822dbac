"""No session waits behind another's flood: what a worker does when more comes than it can send.

A TUN's queue and a socket's buffer are the kernel's: first come, first served, and full for all when one fills them. So
while such a queue does not run empty and one session has most of what is in it, the worker reads ahead, far beyond what
it can send in a turn. What a session has within its share of the turn goes at once; what is beyond it waits in a queue
of that session, and when there is too much of that, the longest queue is cut: the flood's packets are dropped and
nobody else's. The queues take turns.

Without a flood none of this happens: sessions that share a queue about evenly lose alike, and TCP adapts.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

#: Cost units: a packet 1, a superpacket or a long run of datagrams about 8. What one session may send at once in a
#: turn, all of them together, and how much of the queues is sent in it.
SHARE: Final = 32
AT_ONCE: Final = 128
QUEUED: Final = 64
#: One queue's before it is the next one's turn.
_QUANTUM: Final = 8
#: Reads in a turn.
READ_AHEAD: Final = 256
#: What all queues of one direction hold together, and what each packet counts for besides its own bytes.
QUEUE_BYTES: Final = 8 << 20
_OVERHEAD: Final = 512
#: Turns after which the queue did not run empty: so many of the last are looked at, for who had the last packet.
_SAMPLES: Final = 16
_DOMINANT: Final = 13
#: Others count as long as something of them came this lately.
_LATELY_NS: Final = 1_000_000_000

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Crowd(Generic[K, T]):
    """Whether one of `K` floods a kernel's queue, and everybody's own queue while that is so (`active`)."""

    def __init__(self) -> None:
        self.active = False
        self.latest: Hashable = None
        self._mixed_ns = -_LATELY_NS
        self._samples: deque[K] = deque(maxlen=_SAMPLES)
        self._queues: OrderedDict[K, deque[tuple[T, int, int, int]]] = OrderedDict()
        self._bytes: dict[K, int] = {}
        self._held = 0
        self._dropped = 0
        self._spent: dict[K, int] = {}
        self._total = 0
        self._offered: dict[K, int] = {}
        self._calm_turns = 0

    # While nobody floods

    def seen(self, sender: Hashable, now_ns: int) -> None:
        """Something of `sender` was read: a session, or a source address."""
        if sender != self.latest:
            if self.latest is not None:
                self._mixed_ns = now_ns
            self.latest = sender

    def full_turn(self, key: K | None, now_ns: int) -> None:
        """A turn ended, with something of `key`, before the kernel's queue was empty."""
        if key is None:
            return
        self._samples.append(key)
        if now_ns - self._mixed_ns < _LATELY_NS and self._samples.count(key) >= _DOMINANT:
            self.active = True
            self._samples.clear()

    # While somebody does

    def begin_turn(self) -> None:
        self._spent.clear()
        self._total = 0
        self._offered.clear()

    @property
    def reads_ahead(self) -> bool:
        """False when the flood is over, and what waits is all that is left to do."""
        return self._calm_turns < _SAMPLES

    def may_go(self, key: K, cost: int) -> bool:
        """Whether what was read goes at once; else it is to be added."""
        self._offered[key] = self._offered.get(key, 0) + cost
        spent = self._spent.get(key, 0)
        if key in self._queues or spent >= SHARE or self._total >= AT_ONCE:
            return False
        self._spent[key] = spent + cost
        self._total += cost
        return True

    def has_room(self, key: K, size: int, packets: int = 1) -> bool:
        """Whether `size` bytes more may wait. The longest queue makes room; False, and they count as dropped, when that
        is their own."""
        size += _OVERHEAD
        while self._held + size > QUEUE_BYTES:
            longest = max(self._bytes, key=self._bytes.__getitem__)
            if self._bytes[longest] <= self._bytes.get(key, 0) + size:
                self._dropped += packets
                return False
            _item, _cost, freed, lost = self._queues[longest].pop()
            self._held -= freed
            self._bytes[longest] -= freed
            self._dropped += lost
        return True

    def add(self, key: K, item: T, cost: int, size: int, packets: int = 1) -> None:
        """Let `item`, of `size` bytes and so many packets, wait; there is room."""
        size += _OVERHEAD
        self._queues.setdefault(key, deque()).append((item, cost, size, packets))
        self._bytes[key] = self._bytes.get(key, 0) + size
        self._held += size

    def take_dropped(self) -> int:
        """Packets dropped since the last call."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def take(self) -> list[tuple[K, T, int]]:
        """What the next queue may send now, with its costs; empty when nothing waits."""
        if not self._queues:
            return []
        key, queue = next(iter(self._queues.items()))
        taken: list[tuple[K, T, int]] = []
        left = _QUANTUM
        while queue and left > 0:
            item, cost, size, _packets = queue.popleft()
            self._bytes[key] -= size
            self._held -= size
            left -= cost
            taken.append((key, item, cost))
        if queue:
            self._queues.move_to_end(key)
        else:
            del self._queues[key], self._bytes[key]
        return taken

    @property
    def waits(self) -> bool:
        return bool(self._queues)

    def end_turn(self, *, emptied: bool) -> None:
        """`emptied`: the kernel's queue is. Back to the ordinary when there is nothing left of a flood."""
        total = sum(self._offered.values())
        if self.reads_ahead:
            dominated = max(self._offered.values(), default=0) * 4 > 3 * total
            self._calm_turns = 0 if dominated else self._calm_turns + 1
        if not self._queues and (emptied or not self.reads_ahead):
            self.active = False
            self._calm_turns = 0
