"""The store that a fleet shares: one that knows the leases of its nodes, and tells what has changed to who watches.

The contract is the store's in memory. What a fleet's store has besides: a node is there as long as its lease, nobody
can read or write without a quorum, no lease ends then, and each has its whole time again when there is one (etcd's
new leader renews them all). `log` has all changes in their order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from jvpn.session.record import SessionRecord
from jvpn.sim.clock import NS, Agenda
from jvpn.store.memory import MemoryStore
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.store_desk import Answers, Batch, serve

LEASE_TTL_MS: Final = 3_000
LEASE_MARGIN_MS: Final = 250


@dataclass(frozen=True, slots=True)
class Owned:
    """A session that was `before`'s is `owner`'s now; None: nobody's, it was not there or is not any more."""

    session_id: bytes
    before: str | None
    owner: str | None
    version: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Word for `owner`: the session's client asks for it at `asker`."""

    session_id: bytes
    owner: str
    asker: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Nodes:
    """Those whose leases go on."""

    nodes: Mapping[str, NodeAbout]


Change = Owned | Wanted | Nodes
#: (session, record before, record now, by which node)
OnRecord = Callable[[bytes, SessionRecord | None, SessionRecord | None, str], None]


@dataclass(slots=True)
class _Lease:
    number: int
    until_ns: int
    about: NodeAbout


class Cluster(MemoryStore):
    """`broken`: there is no quorum."""

    def __init__(self, agenda: Agenda, fleet_key: bytes) -> None:
        super().__init__(fleet_key)
        self.log: list[Change] = []
        #: Called after each change of `log`.
        self.watchers: list[Callable[[], None]] = []
        self.on_record: OnRecord = lambda session_id, before, now, by: None
        #: Told of each batch when it is done.
        self.on_served: Callable[[Batch, Answers], None] = lambda batch, answers: None
        #: When each node's last lease ended, and when it last ceased to drain.
        self.gone_ns: dict[str, int] = {}
        self.drained_ns: dict[str, int] = {}
        self._agenda = agenda
        self._leases: dict[str, _Lease] = {}
        self._last_number = 0
        #: What the batch under way leaves owners word of.
        self._words: list[Wanted] = []
        #: The highest epoch that each session has had, also of those that are forgotten.
        self._epochs: dict[bytes, int] = {}

    # Sessions

    def serve(self, batch: Batch, by: str) -> Answers:
        """What node `by` asks for."""
        before = dict(self._records)
        self._words.clear()
        answers = serve(self, batch)
        # Of a batch that was taken back nobody is overtaken.
        self.overtaken()
        changes: list[Change] = []
        for session_id in sorted(before.keys() | self._records.keys()):
            was, now = before.get(session_id), self._records.get(session_id)
            if was is now:
                continue
            if now is not None:
                self._epochs[session_id] = max(now.epoch, self._epochs.get(session_id, 0))
            self.on_record(session_id, was, now, by)
            if _owner(was) != _owner(now):
                known = now or was
                assert known is not None
                changes.append(Owned(session_id, _owner(was), _owner(now), known.state_version))
        self.on_served(batch, answers)
        changes += self._words
        self._tell(changes)
        return answers

    def ask_owner(self, session_id: bytes, owner: str, asker: str, attempt: int) -> None:
        super().ask_owner(session_id, owner, asker, attempt)
        self._words.append(Wanted(session_id, owner, asker, attempt))

    def newest_epoch(self, session_id: bytes) -> int:
        """The highest that the session has had here, whoever may read it and though it be forgotten; 0: none."""
        return self._epochs.get(session_id, 0)

    def owners(self) -> dict[bytes, SessionRecord]:
        """All sessions at one moment. Raises StoreError."""
        self._check()
        return dict(self._records)

    # Leases

    def nodes(self) -> dict[str, NodeAbout]:
        return {name: lease.about for name, lease in sorted(self._leases.items())}

    def grant(self, node_id: str, about: NodeAbout) -> int:
        """A new lease, with the node's key under it. Raises StoreError."""
        self._check()
        self._last_number += 1
        lease = _Lease(self._last_number, 0, about)
        if node_id in self._leases:
            self.gone_ns[node_id] = self._agenda.now_ns
        self._leases[node_id] = lease
        self.alive.add(node_id)
        self._hold(node_id, lease)
        self._tell([Nodes(self.nodes())])
        return lease.number

    def keep_alive(self, node_id: str, number: int) -> int:
        """How long the lease goes on, ms; 0: there is no such lease. Raises StoreError."""
        self._check()
        lease = self._leases.get(node_id)
        if lease is None or lease.number != number:
            return 0
        self._hold(node_id, lease)
        return LEASE_TTL_MS

    def describe(self, node_id: str, about: NodeAbout) -> None:
        """The node says something else of itself. Raises StoreError."""
        self._check()
        if node_id in self._leases:
            if self._leases[node_id].about.draining:
                self.drained_ns[node_id] = self._agenda.now_ns
            self._leases[node_id].about = about
            self._tell([Nodes(self.nodes())])

    def set_quorum(self, there: bool) -> None:
        self.broken = not there
        if there:
            for node_id, lease in list(self._leases.items()):
                self._hold(node_id, lease)

    def _hold(self, node_id: str, lease: _Lease) -> None:
        lease.until_ns = self._agenda.now_ns + LEASE_TTL_MS * NS
        self._agenda.at(lease.until_ns, lambda: self._expire(node_id, lease))

    def _expire(self, node_id: str, lease: _Lease) -> None:
        over = lease.until_ns <= self._agenda.now_ns and not self.broken
        if over and self._leases.get(node_id) is lease:
            del self._leases[node_id]
            self.alive.discard(node_id)
            self.gone_ns[node_id] = self._agenda.now_ns
            self._tell([Nodes(self.nodes())])

    def _tell(self, changes: list[Change]) -> None:
        if changes:
            self.log += changes
            for watch in self.watchers:
                watch()


def _owner(record: SessionRecord | None) -> str | None:
    return None if record is None else record.owner_node
