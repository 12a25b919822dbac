"""What a node does to belong to its fleet: it keeps its lease, moves its fence, and follows the watch.

The lease's rules and what the core makes of news are the product's; threads and etcd's connections are replaced by
calls over the node's way to the store.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from jvpn.sim.clock import NS, Agenda, MachineClock
from jvpn.sim.cluster import LEASE_MARGIN_MS, LEASE_TTL_MS, Change, Cluster, Nodes, Owned, Wanted
from jvpn.sim.store_way import StoreWay
from jvpn.store.base import StoreError
from jvpn.store.lease import Lease
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.core import GatewayCore
from workers.page import Page

#: A watch that was cut goes on after this.
WATCH_AGAIN_MS: Final = 500
#: Past at any time of CLOCK_BOOTTIME.
_LONG_AGO_NS: Final = 1


class Host(Protocol):
    """What the node's machine gives its member."""

    node_id: str
    clock: MachineClock
    page: Page
    way: StoreWay
    about: NodeAbout
    #: How late the watch is, ms.
    watch_lag_ms: float

    def when_awake(self, do: Callable[[], None]) -> None:
        """Now, or when the machine's processes run again."""

    def to_core(self, tell: Callable[[GatewayCore], None]) -> None:
        """Now, if there is a supervisor."""


class Member:
    """Lives and dies with its supervisor: `stop` says nothing to anybody. `ready()`: there is a lease, so nobody takes
    what is this node's own; the supervisor calls `caught_up` when it knows what that is."""

    def __init__(self, host: Host, cluster: Cluster, agenda: Agenda, ready: Callable[[], None]) -> None:
        self.lease = Lease(LEASE_TTL_MS, LEASE_MARGIN_MS)
        self._host = host
        self._cluster = cluster
        self._agenda = agenda
        self._ready: Callable[[], None] | None = ready
        self._running = True
        self._fence_ms = 0
        #: The fence waits for `caught_up`.
        self._behind = True
        #: How much of the cluster's log has been told; None: all there is comes next.
        self._told: int | None = None
        self._polls = False

    def start(self) -> None:
        self._cluster.watchers.append(self._changed)
        self._renew()

    def stop(self) -> None:
        self._running = False
        self._cluster.watchers.remove(self._changed)

    def _later(self, delay_ms: float, do: Callable[[], None]) -> None:
        self._agenda.later(delay_ms, lambda: self._host.when_awake(lambda: do() if self._running else None))

    # The lease

    def _renew(self) -> None:
        host, cluster, lease = self._host, self._cluster, self.lease
        sent_ms, number = host.clock.now_ms, lease.lease_id

        def grant() -> tuple[int, int]:
            return cluster.grant(host.node_id, host.about), LEASE_TTL_MS

        def keep() -> tuple[int, int]:
            assert number is not None
            return number, cluster.keep_alive(host.node_id, number)

        def answered(found: tuple[int, int] | StoreError) -> None:
            host.when_awake(lambda: self._answered(number is None, sent_ms, found))

        host.way.call(grant if number is None else keep, answered, lease.patience_ms)

    def _answered(self, new: bool, sent_ms: int, found: tuple[int, int] | StoreError) -> None:
        if not self._running:
            return
        lease, now_ms = self.lease, self._host.clock.now_ms
        if isinstance(found, StoreError):
            lease.failed(sent_ms, now_ms)
        elif new:
            lease.granted(found[0], sent_ms, found[1])
        else:
            lease.renewed(found[0], sent_ms, found[1])
        if lease.fence_ms != self._fence_ms:
            self._on_fence(lease.fence_ms)
        self._later(max(1, lease.next_ms - now_ms), self._renew)

    def _on_fence(self, fence_ms: int) -> None:
        """As the product's member does it (supervisor/fleet_member.py): past a fence that was reached everything may
        be another's by now."""
        began = self._ready is None
        if not fence_ms or (began and self._host.clock.now_ms >= self._fence_ms):
            self._behind = True
            self.renew()
        self._fence_ms = fence_ms
        if not self._behind or not fence_ms:
            self._move_fence()
        ready, self._ready = self._ready, None
        if ready is not None:
            ready()

    def _move_fence(self) -> None:
        self._host.page.write_fence(max(self._fence_ms * NS, _LONG_AGO_NS))

    def caught_up(self) -> None:
        """Nothing lives here that is another's."""
        if self._running:
            self._behind = False
            self._move_fence()

    def describe(self, about: NodeAbout) -> None:
        """Say something else of this node, as soon as the store is reached."""
        self._host.about = about

        def kept(found: StoreError | None) -> None:
            if isinstance(found, StoreError):
                self._later(WATCH_AGAIN_MS, lambda: self.describe(self._host.about))

        self._host.way.call(lambda: self._cluster.describe(self._host.node_id, about), kept)

    # The watch

    def renew(self) -> None:
        """All owners are to be looked at again."""
        self._told = None
        self._changed()

    def _changed(self) -> None:
        if not self._polls and self._running:
            self._polls = True
            self._later(self._host.watch_lag_ms, self._poll)

    def _poll(self) -> None:
        self._polls = False
        if self._host.way.cut or self._cluster.broken or (self._told is None and not self._fence_ms):
            self._polls = True
            self._later(WATCH_AGAIN_MS, self._poll)
            return
        log = self._cluster.log
        if self._told is None:
            self._told = len(log)
            self._host.to_core(self._tell_everything)
            return
        news, self._told = log[self._told :], len(log)
        self._host.to_core(lambda core: self._tell(core, news))

    def _tell(self, core: GatewayCore, news: Sequence[Change]) -> None:
        ours, now_ms = self._host.node_id, self._host.clock.now_ms
        for change in news:
            match change:
                case Nodes(nodes):
                    core.others.alive(nodes)
                case Wanted(session_id, owner, asker, attempt) if owner == ours:
                    core.others.asked_for(session_id, asker, attempt, now_ms)
                case Owned(session_id, before, owner) if before == ours != owner:
                    core.others.doubt([session_id])

    def _tell_everything(self, core: GatewayCore) -> None:
        owners = {i: record.owner_node for i, record in self._cluster.owners().items()}
        core.others.alive(self._cluster.nodes())
        core.others.all_owners(owners)
        self._tell(core, [Wanted(*word) for word in self._cluster.asked])
        if self._behind:
            core.others.when_settled(self.caught_up, self.renew)
