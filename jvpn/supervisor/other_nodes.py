"""What the other nodes of a fleet do to the sessions that live here: take them, ask for them, end them. Sans-I/O.

Whatever is heard is news of some moment ago. So a session is let go only by what the store says when it is asked.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from jvpn.session.machine import Reason
from jvpn.session.record import SessionRecord
from jvpn.store.base import StoreError
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor import departing
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.effects import ClaimSession, LoadSession, WasAsked
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.moves import Move

#: What may concern thousands of sessions at once is said so often.
SAY_EVERY_MS = 60_000


class OtherNodes:
    """`terminate(session, reason, now_ms)` ends a session for good."""

    def __init__(
        self, context: GatewayContext, terminate: Callable[[LiveSession, Reason, int], None]
    ) -> None:
        self._context = context
        self._terminate = terminate
        self._say_gone_ms = 0
        #: Lookups under way, whether one of them has failed, and what waits for the last of them.
        self._doubts = 0
        self._failed = False
        self._afterwards: tuple[Callable[[], None], Callable[[], None]] | None = None
        #: Nodes that were said to have another pool.
        self._apart: set[str] = set()

    def alive(self, nodes: Mapping[str, NodeAbout]) -> None:
        """All nodes whose lease goes on."""
        if self._context.fleet is not None:
            self._context.fleet.nodes = dict(nodes)
            self._compare_pools()

    def announced(self, node_id: str, about: NodeAbout | None) -> None:
        """What a node says of itself; None when its lease has ended."""
        fleet = self._context.fleet
        if fleet is None or fleet.nodes is None:
            return
        others = {name: known for name, known in fleet.nodes.items() if name != node_id}
        fleet.nodes = others if about is None else {**others, node_id: about}
        self._compare_pools()

    def _compare_pools(self) -> None:
        """Nodes with different pools give a client another address each time it comes to the other one."""
        pool, fleet = self._context.facts.pool, self._context.fleet
        assert fleet is not None
        assert fleet.nodes is not None
        mine = "" if pool is None else pool.fingerprint
        ours = self._context.facts.node_id
        apart = {name for name, about in fleet.nodes.items() if about.pool != mine and name != ours}
        for name in sorted(apart - self._apart):
            self._context.worker_errors.append(
                f"node {name} has another pool of inner addresses, or other addresses of peers: sessions that move "
                "between it and this node may end; give all nodes of the fleet the same pool, tun.addresses and peers"
            )
        self._apart = apart

    def all_owners(self, owners: Mapping[bytes, str]) -> None:
        """Every session's owner, as it was some moment ago: what is not found there to be this node's is looked up."""
        ours = self._context.facts.node_id
        self.doubt(i for i in list(self._context.sessions) if owners.get(i) != ours)

    def doubt(self, session_ids: Iterable[bytes]) -> None:
        """Somebody may have taken these sessions, or ended them: the store is asked."""
        for session_id in session_ids:
            session = self._context.sessions.get(session_id)
            if session is not None:
                self._doubts += 1
                self._context.do(LoadSession(session_id, partial(self._found, session)))

    def when_settled(self, settled: Callable[[], None], unknown: Callable[[], None]) -> None:
        """Call one of the two when all that is in doubt now has been looked up: the other one if the store could not
        say of all of it."""
        self._afterwards = (settled, unknown)
        self._settle()

    def _settle(self) -> None:
        if self._doubts or self._afterwards is None:
            return
        (settled, unknown), self._afterwards = self._afterwards, None
        failed, self._failed = self._failed, False
        (unknown if failed else settled)()

    def _found(self, session: LiveSession, found: SessionRecord | StoreError | None, now_ms: int) -> None:
        self._doubts -= 1
        self._judge(session, found, now_ms)
        self._settle()

    def _judge(self, session: LiveSession, found: SessionRecord | StoreError | None, now_ms: int) -> None:
        context = self._context
        if context.sessions.get(session.session_id) is not session:
            return
        if isinstance(found, StoreError):
            context.counters["store_errors"] += 1
            self._failed = True
        elif found is None:
            self._gone(session, now_ms)
        elif found.owner_node == context.facts.node_id:
            return
        elif context.fleet is None and found.epoch == session.epoch:
            self._rename(session, found, now_ms)
        else:
            self.overtaken(session.session_id, now_ms, found.owner_node)

    def _rename(self, session: LiveSession, found: SessionRecord, now_ms: int) -> None:
        """A gateway without a fleet has nobody to lose a session to: it had another name when it was kept."""
        context, facts = self._context, self._context.facts
        mine = session.store_record(facts.node_id, context.wall_ms(), now_ms, facts.boot_id)

        def told(kept: bool | None, done_ms: int) -> None:
            context.save_again_unless(kept is True, session, done_ms)

        context.do(ClaimSession(mine, found.state_version, found.owner_node, False, told))

    def _gone(self, session: LiveSession, now_ms: int) -> None:
        """Somebody has taken its record away: another node, where its client has another session now and does not care
        for this one, or a hand in the store, and then the client is to shake hands anew."""
        context = self._context
        context.counters["record_gone"] += 1
        if now_ms >= self._say_gone_ms:
            self._say_gone_ms = now_ms + SAY_EVERY_MS
            context.worker_errors.append(
                f"the store has no record of session {session.hex_id} any more: it ends here; its client has another "
                "one at another node, or records were removed, and clients shake hands anew (counter record_gone)"
            )
        self._terminate(session, Reason.OWNERSHIP_CONFLICT, now_ms)

    def overtaken(self, session_id: bytes, now_ms: int, owner: str = "") -> None:
        """Another node has made itself the owner of a session that lives here: it is let go without a word to its
        client, who is told by that node, and without a word to the store."""
        session = self._context.sessions.get(session_id)
        if session is not None:
            self._context.counters["overtaken"] += 1
            self._context.moves.note(Move.OVERTAKEN, owner, session.peer.name)
            self._let_go(session, owner, now_ms)

    def asked_for(self, session_id: bytes, asker: str, attempt: int, now_ms: int) -> None:
        """A session's client asks for it at another node, under this attempt, and has not found it here.

        It is handed over, unless that very attempt, or a later one, has been bound here meanwhile: first nothing binds
        it here any more, then the store says whose it is. Should the store not be told, the session is this node's
        still, and is taken over from itself, or handed over as it is stored when somebody asks again.

        It is a claim, which whatever this node has asked the store for before cannot write over, however late it comes.
        """
        context, session = self._context, self._context.sessions.get(session_id)
        context.do(WasAsked(session_id, context.facts.node_id))
        if session is None:
            self._look_up_and_give(session_id, asker, None)
            return
        if session.bound_in_epoch and session.last_attempt >= attempt:
            context.counters["not_handed_over"] += 1
            return
        newest = session.store_record(asker, context.wall_ms(), now_ms, context.facts.boot_id)
        self._let_go(session, asker, now_ms)
        self._look_up_and_give(session_id, asker, newest)

    def _look_up_and_give(self, session_id: bytes, asker: str, newest: SessionRecord | None) -> None:
        self._context.do(LoadSession(session_id, partial(self._give, asker, newest)))

    def _give(
        self, asker: str, newest: SessionRecord | None, found: SessionRecord | StoreError | None, _now_ms: int
    ) -> None:
        """`newest`: as it was let go for that, which the store need not have yet; None where its client has not come
        here since this node began, or let it go. If it comes now, one of the two claims is refused."""
        context = self._context
        ours = context.facts.node_id
        if (
            not isinstance(found, SessionRecord)
            or found.owner_node != ours
            or found.session_id in context.sessions
        ):
            return
        seen_version = found.state_version
        known = newest is not None and newest.epoch == found.epoch and newest.state_version >= seen_version
        given = newest if newest is not None and known else replace(found, owner_node=asker)

        def told(kept: bool | None, _done_ms: int) -> None:
            if kept:
                context.counters["handed_over"] += 1
                peer = context.peers.find(given.client_public)
                context.moves.note(
                    Move.HANDED_OVER, asker, given.session_id.hex() if peer is None else peer.name
                )
                if newest is None:
                    context.narrator.lost_to(given, seen_version)
            elif kept is False:
                # Something that was under way to the store has come in between: of that there is an end.
                self._look_up_and_give(given.session_id, asker, newest)

        context.do(ClaimSession(given, seen_version, ours, False, told))

    def _let_go(self, session: LiveSession, owner: str, now_ms: int) -> None:
        context = self._context
        context.narrator.taken_away(session, owner)
        context.dismiss(session)
        context.cede_peer(session)
        departing.depart(context, session, now_ms)
