"""Which inner prefixes of a fleet are reached by way of which other gateway. Sans-I/O.

What is for a client may arrive from inside at any gateway; only the owner of its session can deliver it. So for every
inner prefix that another node owns there is a route to that node's return address, and none for those of the node's
own sessions: they fall to the TUN. Whoever the store names is the owner, also while its lease has ended: until another
one has claimed the session there is nobody else to send to.

When a session leaves a node that drains, that one goes on sending for a second. So it is the last to lead traffic
elsewhere, when the new owner surely has the session in force; and the new owner, whose own route still led to it, is
just behind its bind. Between the two a packet goes to the old one by whatever way, and never round in circles.

A client that shakes hands anew has two sessions for a moment, maybe at two nodes. The one that began last is right.
"""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Final

from jvpn.store.etcd_watch import Announced, Change, Everything, Owned, Ownership
from jvpn.store.node_about import NodeAbout

#: After the claim: until the new owner takes traffic for itself, and until a node that drains leads it there.
NEW_OWNER_S: Final = 0.05
OLD_OWNER_S: Final = 0.5


def version_of(prefix: str) -> int:
    return 6 if ":" in prefix else 4


def _hops(about: NodeAbout) -> dict[int, str]:
    """Next hops by version; what is no address is none."""
    hops: dict[int, str] = {}
    for text in about.return_addresses:
        try:
            address = ip_address(text)
        except ValueError:
            continue
        hops[address.version] = str(address)
    return hops


class RouteTable:
    """`apply` each change of a FleetWatch, then `take` what is to be done. `wanted`: next hops by inner prefix.

    `complete`: it has heard of all sessions, so that a route that is not wanted is a stale one.
    """

    def __init__(self, node_id: str) -> None:
        self.wanted: dict[str, str] = {}
        self.complete = False
        self._node_id = node_id
        self._pending: dict[str, str | None] = {}
        self._sessions: dict[bytes, Ownership] = {}
        self._by_prefix: dict[str, tuple[bytes, ...]] = {}
        #: Owned by a node that says no address to send to.
        self._mute: set[str] = set()
        #: Also of nodes whose lease has ended.
        self._hops: dict[str, dict[int, str]] = {}
        self._draining: set[str] = set()
        #: Changes that wait: for how long, and since they were first looked at, until when.
        self._wait_s: dict[str, float] = {}
        self._due_s: dict[str, float] = {}

    def take(self, now_s: float) -> dict[str, str | None]:
        """Prefixes whose route is to be changed by now: the next hop, None for no route any more."""
        for prefix, wait_s in self._wait_s.items():
            self._due_s[prefix] = now_s + wait_s
        self._wait_s.clear()
        self._due_s = {prefix: at_s for prefix, at_s in self._due_s.items() if now_s < at_s}
        due = {prefix: hop for prefix, hop in self._pending.items() if prefix not in self._due_s}
        for prefix in due:
            del self._pending[prefix]
        return due

    @property
    def held(self) -> frozenset[str]:
        """Prefixes whose route is to stay for a moment as it is."""
        return frozenset(self._due_s)

    def apply(self, change: Change) -> None:
        match change:
            case Owned(session_id, _, now):
                self._session(session_id, now)
            case Announced(node_id, about):
                self._node(node_id, about)
            case Everything(owners, nodes):
                self._everything(owners, nodes)

    def nodes_at(self, hop: str) -> list[str]:
        return sorted(node_id for node_id, hops in self._hops.items() if hop in hops.values())

    def without_hop(self) -> set[tuple[str, int]]:
        """Other nodes that own prefixes of this version and say no address of it to send to."""
        return {(self._owner(prefix) or "", version_of(prefix)) for prefix in self._mute}

    def _everything(self, owners: Mapping[bytes, Ownership], nodes: Mapping[str, NodeAbout]) -> None:
        self._draining.clear()
        for node_id, about in nodes.items():
            self._node(node_id, about)
        for session_id in self._sessions.keys() - owners.keys():
            self._session(session_id, None)
        for session_id, now in owners.items():
            self._session(session_id, now)
        self.complete = True

    def _node(self, node_id: str, about: NodeAbout | None) -> None:
        """Where to send for a node whose lease has ended stays known."""
        self._draining.discard(node_id)
        if about is None:
            return
        if about.draining:
            self._draining.add(node_id)
        hops = _hops(about)
        if self._hops.get(node_id) == hops:
            return
        self._hops[node_id] = hops
        self._judge(prefix for prefix in self._by_prefix if self._owner(prefix) == node_id)

    def _session(self, session_id: bytes, now: Ownership | None) -> None:
        before = self._sessions.get(session_id)
        old = () if before is None else before.prefixes
        new = () if now is None else now.prefixes
        if now is None:
            self._sessions.pop(session_id, None)
        elif before is not None and (before.owner, old) == (now.owner, new):
            return
        else:
            self._sessions[session_id] = now
        if before is not None and now is not None and before.owner in self._draining:
            self._wait_s |= dict.fromkeys(new, self._wait_for(before.owner, now.owner))
        for prefix in old:
            if prefix not in new:
                self._leave(prefix, session_id)
        for prefix in new:
            if prefix not in old:
                self._by_prefix[prefix] = (*self._by_prefix.get(prefix, ()), session_id)
        self._judge({*old, *new})

    def _wait_for(self, old: str, new: str) -> float:
        """How long this node leaves the route of a session as it is, that goes from a node that drains to another."""
        if old == self._node_id:
            return OLD_OWNER_S
        return NEW_OWNER_S if new == self._node_id else 0.0

    def _leave(self, prefix: str, session_id: bytes) -> None:
        left = tuple(one for one in self._by_prefix[prefix] if one != session_id)
        if left:
            self._by_prefix[prefix] = left
        else:
            del self._by_prefix[prefix]

    def _owner(self, prefix: str) -> str | None:
        sessions = [self._sessions[session_id] for session_id in self._by_prefix.get(prefix, ())]
        return max(sessions, key=lambda one: one.born).owner if sessions else None

    def _judge(self, prefixes: Iterable[str]) -> None:
        for prefix in prefixes:
            owner, hop = self._owner(prefix), None
            self._mute.discard(prefix)
            if owner is not None and owner != self._node_id:
                hops = self._hops.get(owner)
                hop = None if hops is None else hops.get(version_of(prefix))
                if hops is not None and hop is None:
                    self._mute.add(prefix)
            if hop == self.wanted.get(prefix):
                continue
            self._pending[prefix] = hop
            if hop is None:
                del self.wanted[prefix]
            else:
                self.wanted[prefix] = hop
