"""Keeps a node's lease in etcd: /nodes/<node> is there as long as it, and the fence follows what was granted.

A thread of its own, with a connection of its own: the supervisor's turns may wait for the store, for a disk, for a
storm of clients, and none of that may end a lease that is renewed every second. It shares one number with the
supervisor, the fence, and hands it out by `on_fence`. It dies with the process, and so does the lease, a TTL later.

A keepalive alone is no proof: a leader whose disk hangs goes on renewing leases while another one was elected and ends
them. So the fence moves when a transaction was kept behind the keepalive, in the same term; and when nothing is kept,
as far as all members together show that nobody can have ended the lease (`Lease.accounted`).
"""

import threading
import time
from collections.abc import Callable

from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdAccess, EtcdClient, EtcdRefused
from jvpn.store.etcd_keys import Json, Keys, absent, put, when
from jvpn.store.etcd_members import Members
from jvpn.store.lease import Lease

_NOT_FOUND = 5
#: Of one member, within the time for a keepalive.
_QUESTIONS = 4
_NO_QUORUM = (
    "etcd has no quorum: sessions go on where they are, there are no new ones and none changes its node"
)
_UNSEEN = "etcd may have a quorum that this node does not see: its sessions end here at its fence"


def boottime_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class LeaseKeeper:
    """`start`, then `fence_ms` and `fenced`; `stop` gives the lease back at once.

    `on_fence(fence_ms)` is called in the keeper's thread whenever the fence has moved: ms of CLOCK_BOOTTIME, 0 when the
    lease is lost. `say(text)`: when renewing begins to fail, what that means, and when it works again. Raises
    StoreError for an access that cannot be one, ValueError for a margin that leaves no time.
    """

    def __init__(
        self,
        access: EtcdAccess,
        node_id: str,
        on_fence: Callable[[int], None] = lambda _fence_ms: None,
        say: Callable[[str], None] = lambda _text: None,
        prefix: str = "/jvpn",
        ttl_s: int = 3,
        margin_ms: int = 250,
        about: str = "",
    ) -> None:
        self._lease = Lease(ttl_s * 1000, margin_ms)
        self._client = EtcdClient(access)
        self._node = Keys(prefix).node(node_id)
        self._about = self._registered = about.encode()
        self._on_fence = on_fence
        self._say = say
        self._members = Members(access)
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._failing = False
        self._accounted = False
        self._told_ms = 0
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    @property
    def fence_ms(self) -> int:
        return self._lease.fence_ms

    @property
    def fenced(self) -> bool:
        return self._lease.fenced(boottime_ms())

    def start(self) -> None:
        self._thread.start()

    def doubt(self) -> None:
        """Somebody says that another node owns what is ours: the lease is renewed, or found lost, soon. Any thread."""
        self._woken.set()

    def announce(self, about: str) -> None:
        """What the others are to know of this node from now on; they do soon. Any thread."""
        self._about = about.encode()
        self._woken.set()

    def stop(self, give_back: bool = True) -> None:
        """With `give_back` others may take over what was this node's now, else a TTL later. Blocks for a few
        calls to etcd at most."""
        self._stopping.set()
        self._woken.set()
        self._thread.join()
        if give_back:
            self._give_back()
        self._client.close()
        self._members.close()

    def _give_back(self) -> None:
        lease_id = self._lease.lease_id
        self._lease.lost(boottime_ms())
        self._tell()
        try:
            if lease_id is not None:
                self._client.read("/v3/lease/revoke", {"ID": str(lease_id)})
        except StoreError as error:
            self._say(f"the lease of this node ends by itself: {error}")

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._woken.wait(max(0, self._lease.next_ms - boottime_ms()) / 1000):
                self._woken.clear()
                self._lease.doubted(boottime_ms())
                continue
            sent_ms = boottime_ms()
            try:
                if self._lease.lease_id is None:
                    self._ask(sent_ms)
                else:
                    self._renew(self._lease.lease_id, sent_ms)
            except StoreError as error:
                self._lease.failed(sent_ms, boottime_ms())
                self._failed(error)
            else:
                if self._failing:
                    self._say("the lease of this node is renewed again")
                self._failing = self._accounted = False
            self._tell()
            if not self._failing:
                self._members.learn(self._client, self._question_s)

    @property
    def _question_s(self) -> float:
        """For one member: all of a usual cluster are asked before the next keepalive is due."""
        return self._lease.patience_ms / 1000 / _QUESTIONS

    def _failed(self, error: StoreError) -> None:
        if not self._failing:
            self._say(f"the lease of this node cannot be renewed: {error}")
        self._failing = True
        if self._lease.lease_id is None:
            return
        asked_ms = boottime_ms()
        standings = self._members.roll_call(self._lease.lease_id, self._question_s)
        accounted = self._lease.accounted(asked_ms, boottime_ms(), standings.values())
        if accounted != self._accounted:
            members = ", ".join(f"{name} {standing.value}" for name, standing in standings.items())
            self._say(f"{_NO_QUORUM if accounted else _UNSEEN} ({members})")
        self._accounted = accounted

    def _ask(self, sent_ms: int) -> None:
        """A new lease counts when the node is registered under it."""
        timeout_s = self._lease.patience_ms / 1000
        wanted = {"TTL": str(self._lease.wanted_ttl_ms // 1000)}
        reply = self._client.read("/v3/lease/grant", wanted, timeout_s)
        lease_id = int(reply["ID"])
        self._register(lease_id, timeout_s)
        self._lease.granted(lease_id, sent_ms, int(reply["TTL"]) * 1000)

    def _register(self, lease_id: int, timeout_s: float) -> None:
        about = self._about
        registered = when((), [put(self._node, about, lease_id)])["request_txn"]
        self._client.read("/v3/kv/txn", registered, timeout_s)
        self._registered = about

    def _renew(self, lease_id: int, sent_ms: int) -> None:
        timeout_s = self._lease.patience_ms / 1000
        try:
            reply = self._client.read("/v3/lease/keepalive", {"ID": str(lease_id)}, timeout_s)
        except EtcdRefused as error:
            if error.code != _NOT_FOUND:
                raise
            reply = {}
        ttl_ms = int(reply.get("TTL", 0)) * 1000
        if ttl_ms <= 0:
            self._lease.lost(sent_ms)
            self._say("the lease of this node has ended: others may own what was ours")
            return
        # Somebody may have taken the key away, or another process of this name have registered under its own lease.
        missing = when([absent(self._node)], [put(self._node, self._about, lease_id)])["request_txn"]
        kept = self._client.read("/v3/kv/txn", missing, timeout_s)
        if _term(kept) != _term(reply):
            raise StoreError("etcd has elected another leader meanwhile")
        self._lease.renewed(lease_id, sent_ms, ttl_ms)
        if self._registered != self._about:
            self._register(lease_id, timeout_s)

    def _tell(self) -> None:
        if self._lease.fence_ms != self._told_ms:
            self._told_ms = self._lease.fence_ms
            self._on_fence(self._told_ms)


def _term(reply: Json) -> int:
    """Of the member that answered."""
    return int(reply.get("header", {}).get("raft_term", 0))
