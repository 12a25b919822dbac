"""A node's lease on being alive, as this node knows it: when it ends, when to renew it. No clock and no socket here.

All times are ms of CLOCK_BOOTTIME, which goes on while the machine sleeps. The store counts a lease's time from when a
keepalive comes to it, which is after it was sent: what was granted ends no sooner than TTL after the *send*.
`margin_ms` covers clocks that run at different rates and the time from reading the fence to the packet's leaving.

Only a leader of the store can end a lease, and one that is elected gives every lease its whole time again (etcd:
`lessor.Promote`). So while the store keeps nothing, but no member leads, the lease goes on by itself: see `accounted`.
"""

from collections.abc import Collection
from enum import Enum


class Standing(Enum):
    """Of one member of the store, when it was asked."""

    FOLLOWS = "does not lead"
    RENEWS = "leads and renews the lease, but keeps nothing"
    GONE = "is not running"
    LEADS = "leads, but does not renew the lease"
    SILENT = "does not answer"


#: None of these can end our lease before its time.
SAFE = frozenset({Standing.FOLLOWS, Standing.RENEWS, Standing.GONE})
#: A keepalive goes this often within one TTL: two may be lost.
RENEWALS_PER_TTL = 3
#: And after one that failed the next one goes this often within one TTL.
RETRIES_PER_TTL = 12


class Lease:
    """`fence_ms`: until then, and no longer, this node may act as the owner of its sessions; 0 when it may not."""

    def __init__(self, ttl_ms: int, margin_ms: int) -> None:
        """Raises ValueError for a margin that leaves no time to renew."""
        if not 0 <= margin_ms < ttl_ms * (RENEWALS_PER_TTL - 1) // RENEWALS_PER_TTL:
            raise ValueError(f"a margin of {margin_ms} ms leaves no time to renew a lease of {ttl_ms} ms")
        self.wanted_ttl_ms = ttl_ms
        self.margin_ms = margin_ms
        self.lease_id: int | None = None
        self.fence_ms = 0
        self.next_ms = 0
        self._held_ms = 0
        self._ttl_ms = ttl_ms

    def fenced(self, now_ms: int) -> bool:
        return now_ms >= self.fence_ms

    @property
    def patience_ms(self) -> int:
        """How long to wait for the answer to one keepalive: another one is due then."""
        return self._ttl_ms // RENEWALS_PER_TTL

    def granted(self, lease_id: int, sent_ms: int, ttl_ms: int) -> None:
        """A new lease, asked for at `sent_ms`. The store may have given more or less time than was wanted."""
        self.lease_id = lease_id
        self._ttl_ms = ttl_ms
        self._hold(sent_ms)

    def renewed(self, lease_id: int, sent_ms: int, ttl_ms: int) -> None:
        """The answer to a keepalive sent at `sent_ms`; one for an earlier lease says nothing about this one."""
        if lease_id != self.lease_id:
            return
        if ttl_ms <= 0:
            self.lost(sent_ms)
            return
        self._ttl_ms = ttl_ms
        self._hold(sent_ms)

    def accounted(self, asked_ms: int, heard_ms: int, standings: Collection[Standing]) -> bool:
        """All members were asked one by one, none before `asked_ms`; `standings` are their answers, of which the last
        came at `heard_ms`. Returns whether the lease goes on by that.

        It does when nobody led, or only who renewed it there and then. Who leads later is elected after its own answer
        and gives our lease its whole time from then on. Who led before can have ended it only before it answered, and
        then it had not run out yet. Therefore every member has to answer, and before the fence: one that is silent may
        lead a majority that we do not see, by what it knew of our lease long ago.
        """
        if self.lease_id is None or heard_ms >= self.fence_ms or not standings:
            return False
        if not SAFE.issuperset(standings):
            return False
        self.fence_ms = max(self.fence_ms, asked_ms + self._ttl_ms - self.margin_ms)
        return True

    def doubted(self, now_ms: int) -> None:
        """Somebody says that another owns what is ours: the next keepalive goes as soon as after one that failed."""
        soonest_ms = self._held_ms + self._ttl_ms // RETRIES_PER_TTL
        self.next_ms = min(self.next_ms, max(now_ms, soonest_ms))

    def failed(self, sent_ms: int, now_ms: int) -> None:
        """No answer, or one that does not say whether the lease goes on. The fence stays where it is."""
        self.next_ms = max(now_ms, sent_ms + self._ttl_ms // RETRIES_PER_TTL)

    def lost(self, now_ms: int) -> None:
        """The store knows no such lease: others may own what was ours. A new one is to be asked for at once."""
        self.lease_id = None
        self.fence_ms = 0
        self.next_ms = now_ms

    def _hold(self, sent_ms: int) -> None:
        self._held_ms = max(self._held_ms, sent_ms)
        self.fence_ms = max(self.fence_ms, sent_ms + self._ttl_ms - self.margin_ms)
        self.next_ms = max(self.next_ms, sent_ms + self._ttl_ms // RENEWALS_PER_TTL)
