"""Keeps a node's lease in etcd: /nodes/<node> is there as long as it, and the fence follows what was granted.

A thread of its own, with a connection of its own: the supervisor's turns may wait for the store, for a disk, for a
storm of clients, and none of that may end a lease that is renewed every second. It shares one number with the
supervisor, the fence, and hands it out by `on_fence`. It dies with the process, and so does the lease, a TTL later.

A keepalive alone is no proof: a leader whose disk hangs goes on renewing leases while another one was elected and ends
them. So the fence moves when a transaction was kept behind the keepalive, in the same term; and when nothing is kept,
as far as all members together show that nobody can have ended the lease (`Lease.accounted`).

A name belongs to whoever has registered under it, until that lease ends: another gateway of the same name, by
`NodeAbout.instance`, takes nothing and owns nothing. Another supervisor of the same data plane takes it at once.
"""

import threading
from collections.abc import Callable, Mapping

from jvpn.clocks import now_ms
from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdAccess, EtcdClient, EtcdRefused
from jvpn.store.etcd_fleet_key import FleetKey
from jvpn.store.etcd_keys import Json, Keys, absent, get, put, unchanged, value_of, when
from jvpn.store.etcd_members import Members
from jvpn.store.lease import Lease, Standing
from jvpn.store.node_about import NodeAbout, understood
from jvpn.store.outages import Outages

_NOT_FOUND = 5
#: Of one member, within the time for a keepalive.
_QUESTIONS = 4
_GO_ON = "sessions go on where they are, there are no new ones and none changes its node"
_NO_QUORUM = f"etcd has no quorum: {_GO_ON}"
_KEEPS_NOTHING = f"etcd keeps nothing at present: {_GO_ON}"
_UNSEEN = "etcd may have a quorum that this node does not see: its sessions end here at its fence"


class NameTaken(StoreError):
    """Another gateway of this name lives."""


class LeaseKeeper:
    """`start`, then `fence_ms` and `fenced`; `stop` gives the lease back at once.

    `on_fence(fence_ms)` is called in the keeper's thread whenever the fence has moved: ms of CLOCK_BOOTTIME, 0 when the
    lease is lost. `say(text)`: when renewing begins to fail, what that means, and when it works again. `taken`: while
    another gateway has the name, the error that says which; this one has no lease then. `mark`: is put back
    should somebody take it away. Raises StoreError for an access that cannot be one, ValueError for a margin that
    leaves no time.
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
        mark: FleetKey | None = None,
    ) -> None:
        self._lease = Lease(ttl_s * 1000, margin_ms)
        self._client = EtcdClient(access)
        self._node_id = node_id
        self._node = Keys(prefix).node(node_id)
        self._about = self._registered = about.encode()
        self.taken: NameTaken | None = None
        self._mark = mark
        #: Whether the mark in etcd was said to be another one.
        self._marked_otherwise = False
        self._on_fence = on_fence
        self._say = say
        self._members = Members(access)
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._outages = Outages()
        self._meaning = _UNSEEN
        self._told_ms = 0
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    @property
    def fence_ms(self) -> int:
        return self._lease.fence_ms

    @property
    def fenced(self) -> bool:
        return self._lease.fenced(now_ms())

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
        self._lease.lost(now_ms())
        self._tell()
        try:
            if lease_id is not None:
                self._client.read("/v3/lease/revoke", {"ID": str(lease_id)})
        except StoreError as error:
            self._say(f"the lease of this node ends by itself: {error}")

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._woken.wait(max(0, self._lease.next_ms - now_ms()) / 1000):
                self._woken.clear()
                self._lease.doubted(now_ms())
                continue
            sent_ms = now_ms()
            try:
                if self._lease.lease_id is None:
                    self._ask(sent_ms)
                else:
                    self._renew(self._lease.lease_id, sent_ms)
            except NameTaken as error:
                self._lease.lost(sent_ms)
                self._lease.failed(sent_ms, now_ms())
                self._lost_name(error)
            except StoreError as error:
                self._lease.failed(sent_ms, now_ms())
                self._failed(error)
            else:
                self._works()
            self._tell()
            if self.taken is None and not self._outages.failing:
                self._members.learn(self._client, self._question_s)

    def _works(self) -> None:
        self._say_some(self._outages.works("the lease of this node is renewed again", now_ms()))
        self._meaning = _UNSEEN
        if self.taken is not None:
            self._say(f"no other gateway calls itself {self._node_id} any more: this one does")
        self.taken = None

    def _lost_name(self, error: NameTaken) -> None:
        if self.taken is None:
            self._say(f"this node owns nothing until the lease of another one of its name has ended: {error}")
        self.taken = error

    def _say_some(self, text: str) -> None:
        if text:
            self._say(text)

    @property
    def _question_s(self) -> float:
        """For one member: all of a usual cluster are asked before the next keepalive is due."""
        return self._lease.patience_ms / 1000 / _QUESTIONS

    def _failed(self, error: StoreError) -> None:
        text = f"the lease of this node cannot be renewed: {error}"
        self._say_some(self._outages.failed(text, now_ms()))
        if self._lease.lease_id is None:
            return
        asked_ms = now_ms()
        standings = self._members.roll_call(self._lease.lease_id, self._question_s)
        accounted = self._lease.accounted(asked_ms, now_ms(), standings.values())
        meaning = _meaning(accounted, standings)
        if meaning != self._meaning and self._outages.told:
            members = ", ".join(f"{name} {standing.value}" for name, standing in standings.items())
            self._say(f"{meaning} ({members})")
            self._meaning = meaning

    def _ask(self, sent_ms: int) -> None:
        """A new lease counts when the node is registered under it."""
        timeout_s = self._lease.patience_ms / 1000
        found = self._client.read("/v3/kv/range", get(self._node)["request_range"], timeout_s).get("kvs", [])
        held = found[0] if found else None
        self._check(held)
        wanted = {"TTL": str(self._lease.wanted_ttl_ms // 1000)}
        reply = self._client.read("/v3/lease/grant", wanted, timeout_s)
        lease_id = int(reply["ID"])
        self._register(lease_id, held, timeout_s)
        self._lease.granted(lease_id, sent_ms, int(reply["TTL"]) * 1000)

    def _check(self, held: Json | None) -> None:
        """Raises NameTaken when the key is another gateway's. Who does not say which it is is taken for this one."""
        there = NodeAbout() if held is None else understood(value_of(held))
        if there.instance in ("", understood(self._about).instance):
            return
        where = f", at {there.advertise[0]}" if there.advertise else ""
        raise NameTaken(f"another gateway calls itself {self._node_id}{where}: give each node_id once")

    def _register(self, lease_id: int, held: Json | None, timeout_s: float) -> None:
        """`held`: the key as it was when it was found to be nobody else's."""
        about = self._about
        wanted = when([unchanged(self._node, held)], [put(self._node, about, lease_id)])["request_txn"]
        if not self._client.read("/v3/kv/txn", wanted, timeout_s).get("succeeded"):
            raise StoreError("another gateway, or process of this one, has registered this node meanwhile")
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
        about = self._about
        mark = [] if self._mark is None else [self._mark.put_if_absent()]
        missing = when(
            [absent(self._node)], [put(self._node, about, lease_id), *mark], [get(self._node), *mark]
        )
        kept = self._client.read("/v3/kv/txn", missing["request_txn"], timeout_s)
        if _term(kept) != _term(reply):
            raise StoreError("etcd has elected another leader meanwhile")
        held = None if kept.get("succeeded") else kept["responses"][0]["response_range"]["kvs"][0]
        self._check(held)
        for found in kept["responses"][1:]:
            self._see_mark(found["response_txn"])
        self._lease.renewed(lease_id, sent_ms, ttl_ms)
        if held is None:
            self._registered = about
        elif self._registered != about:
            self._register(lease_id, held, timeout_s)

    def _see_mark(self, found: Json) -> None:
        assert self._mark is not None
        if found.get("succeeded"):
            self._say(self._mark.was_gone)
        other = not found.get("succeeded") and not self._mark.is_mark(found["responses"][0])
        if other and not self._marked_otherwise:
            self._say(
                f"{self._mark.name} in etcd is that of another fleet.key_file: nothing of this node is kept there. "
                f"Stop the nodes with the wrong file; if it is theirs in etcd, remove {self._mark.name}, and this node "
                "puts its own there"
            )
        self._marked_otherwise = other

    def _tell(self) -> None:
        if self._lease.fence_ms != self._told_ms:
            self._told_ms = self._lease.fence_ms
            self._on_fence(self._told_ms)


def _term(reply: Json) -> int:
    """Of the member that answered."""
    return int(reply.get("header", {}).get("raft_term", 0))


def _meaning(accounted: bool, standings: Mapping[str, Standing]) -> str:
    """Of what the members say while nothing is kept."""
    if not accounted:
        return _UNSEEN
    return _KEEPS_NOTHING if Standing.RENEWS in standings.values() else _NO_QUORUM
