"""This node's part in its fleet: a lease that is kept, a watch that is followed, and the fence between them.

Each has a thread and a connection of its own; what they hear the supervisor's loop fetches by `news`. The routes to
clients of the other nodes follow in the watch's thread, whatever the loop is at. The fence moves in the lease's thread,
past everything that may hold the loop up. But when it was reached, others may own by now what was this node's: then it
stays where it is until the loop has looked at all that came meanwhile, and said `caught_up`.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

from msgspec import structs

from jvpn.clocks import now_ms
from jvpn.store.base import StoreError
from jvpn.store.etcd_fleet_key import FleetKey
from jvpn.store.etcd_lease import LeaseKeeper
from jvpn.store.etcd_watch import Change, FleetWatch
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.plan import FleetPlan
from jvpn.supervisor.return_routes import ReturnRoutes

#: How long a start waits for the lease, without which this node may own nothing.
FIRST_LEASE_S = 10.0
#: How often the watch's thread looks whether it is to end, or to begin anew.
_POLL_S = 0.25
#: Before a watch that is broken is tried again.
_RETRY_S = 0.2


class FleetMember:
    """`instance`: what NodeAbout says of it. `move_fence(fence_ms)`: until then this node may act as the owner of its
    sessions, CLOCK_BOOTTIME; 0: no more. `mark`: that of the store, put back should somebody take it away.

    Raises StoreError for an access that cannot be one. `fileno()` is readable when there is news.
    """

    def __init__(
        self,
        plan: FleetPlan,
        node_id: str,
        instance: str,
        move_fence: Callable[[int], None],
        say: Callable[[str], None],
        mark: FleetKey | None = None,
    ) -> None:
        self._plan = plan
        self._instance = instance
        self._move_fence = move_fence
        self._say = say
        self._lock = threading.Lock()
        self._behind = True
        self._anew = threading.Event()
        self._stopping = threading.Event()
        self._granted = threading.Event()
        self._news: SimpleQueue[Change] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._fence_ms = 0
        ttl_s = plan.lease_ttl_ms // 1000
        about = self._encode(plan.about)
        self._keeper = LeaseKeeper(
            plan.access, node_id, self._on_fence, say, plan.prefix, ttl_s, about=about, mark=mark
        )
        self._watch = FleetWatch(plan.access, plan.prefix)
        self._routes = ReturnRoutes(node_id, say)
        self._follower = threading.Thread(target=self._follow, name="watch", daemon=True)

    def start(self) -> None:
        """Until this node has its lease. Raises StoreError when it gets none, or another gateway has its name."""
        self._keeper.start()
        if not self._granted.wait(FIRST_LEASE_S):
            # Nor is it to take the name later, while the process ends.
            self._keeper.stop()
            if self._keeper.taken is not None:
                raise self._keeper.taken
            raise StoreError(f"etcd has given this node no lease in {FIRST_LEASE_S:g} s: has it a quorum?")
        self._follower.start()

    def fileno(self) -> int:
        return self._wake

    def news(self) -> Iterator[Change]:
        """What has come since; never waits."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        while True:
            try:
                yield self._news.get_nowait()
            except Empty:
                return

    def counters(self) -> dict[str, int]:
        return self._routes.counters()

    @property
    def routes(self) -> int:
        """To clients of the other gateways, in the kernel."""
        return self._routes.routes_installed

    @property
    def fence_ms(self) -> int:
        """Until when the lease lasts if it is not renewed, CLOCK_BOOTTIME; 0: it has ended."""
        return self._fence_ms

    @property
    def behind(self) -> bool:
        """Whether the fence waits for `caught_up`."""
        return self._behind

    def caught_up(self) -> None:
        """Everything that the last Everything said has been looked at: nothing lives here that is another's."""
        with self._lock:
            self._behind = False
            self._move_fence(self._fence_ms)

    def announce(self, about: NodeAbout) -> None:
        """What the others are to know of this node from now on. Its own watch tells when they may."""
        self._keeper.announce(self._encode(about))

    def _encode(self, about: NodeAbout) -> str:
        return structs.replace(about, instance=self._instance).encode()

    def renew(self) -> None:
        """Somebody says that this node has lost a session: all owners are to be looked at again, and the lease."""
        self._anew.set()
        self._keeper.doubt()

    def stop(self, give_back: bool = True) -> None:
        """With `give_back` the lease ends at once: others may take what was this node's. Else it ends in a TTL, unless
        another supervisor of this node keeps one before; it finds the routes to the others' clients as they are."""
        self._stopping.set()
        if self._follower.ident is not None:
            self._follower.join()
        if give_back:
            self._routes.remove()
        self._routes.close()
        if self._granted.is_set():
            self._keeper.stop(give_back)
        self._watch.close()

    # The lease's thread

    def _on_fence(self, fence_ms: int) -> None:
        with self._lock:
            if not fence_ms or (self._granted.is_set() and now_ms() >= self._fence_ms):
                self._behind = True
                self._anew.set()
            self._fence_ms = fence_ms
            if not self._behind or not fence_ms:
                self._move_fence(fence_ms)
        if fence_ms:
            self._granted.set()

    # The watch's thread

    def _follow(self) -> None:
        failing = False
        while not self._stopping.is_set():
            self._routes.tend(time.monotonic())
            try:
                if self._anew.is_set() and self._keeper.fence_ms:
                    self._anew.clear()
                    self._watch.close()
                    self._watch = FleetWatch(self._plan.access, self._plan.prefix)
                changes = self._watch.poll(_POLL_S)
            except StoreError as error:
                if not failing:
                    self._say(f"it is not heard what the other nodes do: {error}")
                failing = True
                self._stopping.wait(_RETRY_S)
                continue
            if failing:
                self._say("it is heard again what the other nodes do")
                failing = False
            for change in changes:
                self._routes.apply(change)
                self._news.put(change)
            if changes:
                os.eventfd_write(self._wake, 1)
