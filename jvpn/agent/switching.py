"""Leaving a path: from a death, a changed address or a wish to the bind of another, and what is said meanwhile."""

from typing import TYPE_CHECKING

from jvpn.agent.narrator import path_ref
from jvpn.agent.paths import NS, ClientPath, Uplink
from jvpn.agent.reattaching import RETRY_MS, Attempt
from jvpn.protocol import reattach
from jvpn.protocol.reattach import Ack, Cause, Report, Result
from jvpn.session.machine import Reason, State, split_version
from jvpn.session.ownership import Code
from workers import commands

if TYPE_CHECKING:
    from jvpn.agent.session import ClientSession

#: How long a REQUEST waits for the worker's word of what has arrived; then it goes without: "unknown", and what came
#: meanwhile is lost. A worker answers within a turn of its loop, or waits for its CPU: then it delivers nothing either.
REPORT_WAIT_MS = 200
#: However long a gateway asks a client without a path to wait.
RETRY_AFTER_MAX_MS = 5_000
#: How long at least the index left for another node receives: its owner hears from the store that it is to go, and what
#: came for the client until then goes out there.
NODE_LEFT_MS = 1_000
#: FAILs after which there is nothing left to reattach.
_OVER = frozenset(
    {
        Code.SESSION_OVER,
        Code.SESSION_TTL_EXPIRED,
        Code.TRANSPORT_LOSS_TTL_EXPIRED,
        Code.ADDRESS_WITHDRAWN,
    }
)


class Switching:
    """The changes of path of one session, which it is a part of."""

    def __init__(self, session: "ClientSession") -> None:
        self._session = session
        self._paths = session.paths
        self._requester = session.requester
        self._view = session.view
        self._narrator = session.narrator
        #: What had arrived when the path was lost, and the command whose Done will say so.
        self._reports: tuple[Report, ...] = ()
        self._report_seq = -1
        #: Why the gateway refused the last attempt, "" when it did not.
        self.refused = ""

    def on_link(self, uplink: Uplink, up: bool, now_ms: int) -> None:
        """A link event: a dead active path is left at once; a link that came (back) gets a fresh index and a probe."""
        if not self._session.configured:
            return
        if not up:
            if self._paths.active == uplink.number:
                self.lose(Cause.TRANSPORT_DEAD, now_ms)
            self._requester.hurry(now_ms)
            return
        if self._paths.active != uplink.number:
            self._paths.open(uplink, now_ms)
            self._session.worker.tell_indexes()
        self._try_again(uplink, now_ms)

    def on_path_event(self, uplink: Uplink, now_ms: int) -> None:
        """An address or route of an uplink with a link changed. A link that comes up brings several of these: a path
        that is being asked for already keeps its index, or the ACK would name one that was left. One whose address
        has gone does not: its index would link the networks, so an active one asks on a fresh index at once."""
        attempt, path = self._requester.attempt, self._paths.paths.get(uplink.number)
        moved = path is not None and path.local != uplink.local
        if moved and self._paths.active == uplink.number and self._session.configured:
            self.lose(Cause.ADDRESS_CHANGED, now_ms, stay=True)
        elif (
            attempt is not None
            and path is not None
            and not moved
            and (uplink.number, path.index) in attempt.asked_over
        ):
            self._try_again(uplink, now_ms)
        else:
            self.on_link(uplink, True, now_ms)

    def _try_again(self, uplink: Uplink, now_ms: int) -> None:
        self._paths.paths[uplink.number].health.on_link_event(now_ms * NS)
        self._requester.hurry(now_ms)

    def on_wake(self, now_ms: int) -> None:
        """The machine has slept: every path is probed, and what waits is asked for, at once."""
        for path in self._paths.paths.values():
            path.health.woke(now_ms * NS)
        self._requester.hurry(now_ms)

    def reroute(self, uplink: Uplink, now_ms: int) -> None:
        """Its `remote` changed: a fresh path, unless DATA goes out on it."""
        if self._session.configured and self._paths.active != uplink.number:
            self._paths.open(uplink, now_ms)
            self._session.worker.tell_indexes()

    def installed(self, highest: int, index: int) -> None:
        """The gateway has answered on `index`, and has installed those up to `highest`."""
        self._paths.installed(highest, index)
        self.renew()

    def renew(self) -> None:
        """Paths that had to share an index, or whose index has lost its ticket, do so no more if that can be. But for
        those that are asked: the ACK names them by it."""
        attempt = self._requester.attempt
        if self._paths.renew(() if attempt is None else attempt.asked_over):
            self._session.worker.tell_indexes()

    def lose(self, cause: Cause, now_ms: int, *, stay: bool = False) -> None:
        """The active path is no path any more. `stay`: the same uplink is the best candidate (its source changed)."""
        active = self._paths.active_path
        if active is None:
            return
        # First of all: it takes the worker about as long to say what has arrived as to decide where to go takes us.
        # And without a candidate that may be late, the index will be forgotten.
        self._ask_for_reports([active.index])
        self._session.act()
        seen = active.health.snapshot(now_ms * NS)
        detect_ms = 0.0
        if not stay and active.uplink.link_up and seen.last_answer_ms is not None:
            detect_ms = now_ms - max(seen.last_answer_ms, self._session.upkeep.last_received_ns // NS)
        if cause is Cause.TRANSPORT_DEAD and not stay:
            self._session.deciding.lost(now_ms)
        self._give_up_switch(cause)
        reason = Reason[cause.name]
        if not self._view.allows(reason):
            reason = Reason.REATTACH_REQUESTED
        old, number = path_ref(active), active.uplink.number
        challenge = (active.challenge, active.challenge_ms)
        self._paths.active = None
        fresh = self._paths.open(active.uplink, now_ms)
        self._paths.outnumber(fresh.index if stay else old.index)
        self._session.worker.tell_indexes()
        if stay:
            fresh.keep_challenge(*challenge)
            fresh.health.on_round_trip(active.health.srtt_ns or 0, now_ms * NS)
        attempt = self._requester.begin(cause, now_ms, detect_ms, old, None if stay else number, None)
        attempt.alive = number if stay else None
        attempt.gap_from_ms = self._undelivered_since_ms(active, now_ms)
        self._await_reports(attempt, now_ms)
        if self._view.allows(reason):
            self._view.apply(reason, now_ms, details={"old": f"{old.device} #{old.index}"})
        self._session.clocks(now_ms)
        self.request(now_ms)

    def _undelivered_since_ms(self, path: ClientPath, now_ms: int) -> float | None:
        """Since when something was to be delivered over `path` and nothing was; None when nothing was under way."""
        since_ns = path.health.undelivered_since_ns(now_ms * NS)
        if since_ns is None:
            return None
        return min(now_ms, max(since_ns, self._session.upkeep.last_received_ns) / NS)

    def _give_up_switch(self, cause: Cause) -> None:
        """A switch was in flight when the path it was leaving died: now any path will do, not only its target."""
        attempt, self._requester.attempt = self._requester.attempt, None
        if attempt is None:
            return
        self._session.worker.expect_nobody()
        if attempt.asked:
            version = self._view.state_version
            self._narrator.result(attempt.number, "abandoned", cause.name, version)
        if self._view.state is State.RECOVERING:
            self._view.lose_binding()

    def request(self, now_ms: int) -> None:
        attempt = self._requester.attempt
        if attempt is None or now_ms < attempt.next_ms:
            return
        # Before others join: what went on that index cannot go again on an older one, were it bound.
        if attempt.early is not None and self._paths.outnumber(attempt.early, kept=attempt.asked):
            self._session.worker.tell_indexes()
        racing = self._requester.racing(now_ms)
        self._ask(self._requester.due(racing, now_ms), attempt, now_ms)
        self._requester.rest(racing, now_ms)

    def _ask(self, paths: list[ClientPath], attempt: Attempt, now_ms: int) -> None:
        """Send a REQUEST on each of these paths, and expect DATA there from now on."""
        before = attempt.asked
        if attempt.early is None and self._paths.active is None and paths:
            attempt.early = min(path.index for path in paths)
        for path in paths:
            if attempt.cause is Cause.NODE_DRAIN:
                self._session.worker.expect_next(path)
            self._session.do(
                self._requester.request(path, now_ms, () if attempt.voluntary else self._reports)
            )
            self._session.act()
        # Some DATA may follow the first REQUEST, and a little each later one on that path, and on that alone: the
        # gateway holds it until the bind.
        early = [path.worker_binding() for path in paths if path.index == attempt.early]
        if early or attempt.asked != before:
            self._session.worker.rebind(self._awaited(attempt), early=early[0] if early else None)
        if paths and not before:
            self._narrator.attempt(attempt.number, attempt.cause.name, paths[0], self._view.state_version)

    @staticmethod
    def _awaited(attempt: Attempt) -> list[int]:
        """Indexes on which DATA may come before the ACK: the gateway binds first, and perhaps the old path died in one
        direction only."""
        old = [] if attempt.old is None else [attempt.old.index]
        return [*old, *attempt.asked]

    def _ask_for_reports(self, accept: list[int]) -> None:
        """The worker has no path any more, and is to say what has arrived."""
        self._reports = ()
        self._report_seq = self._session.worker.unbind(accept)

    @staticmethod
    def _await_reports(attempt: Attempt, now_ms: int) -> None:
        """The REQUEST of an attempt just begun goes as soon as the worker has said what has arrived."""
        attempt.next_ms = attempt.not_before_ms = now_ms + REPORT_WAIT_MS

    def on_done(self, done: commands.Done, now_ms: int) -> None:
        """The worker has carried out, or refused, a command."""
        if done.seq != self._report_seq:
            return
        self._reports = tuple(Report(r.index, r.next_counter, r.missing) for r in done.reports)
        attempt = self._requester.attempt
        if attempt is not None and not attempt.asked:
            attempt.not_before_ms = attempt.next_ms = now_ms
            self.request(now_ms)

    def on_ack(self, ack: Ack, path: ClientPath, now_ms: int) -> None:
        attempt = self._requester.attempt
        if attempt is None or ack.attempt != attempt.number:
            # A copy from an earlier attempt: its challenge may be one that the gateway takes no more.
            return
        if split_version(ack.state_version).epoch < self._session.epoch:
            return
        self._session.owners.heard(now_ms)
        path.keep_challenge(ack.challenge, now_ms)
        lane = attempt.lane(path)
        if lane.sent == 1:
            path.health.on_round_trip((now_ms - lane.sent_ms) * NS, now_ms * NS)
        if ack.result is Result.PENDING:
            # A second one for the same challenge answers a REQUEST that went before it. Whatever number of them comes,
            # each REQUEST that was due brings one more at most.
            if lane.sent and path.uplink.link_up and lane.echoed != ack.challenge and not lane.prompted:
                self._ask([path], attempt, now_ms)
                lane.prompted = True
                self._requester.rest(self._requester.racing(now_ms), now_ms)
            return
        taken_over = split_version(ack.state_version).epoch > self._session.epoch
        if taken_over:
            self._paths.moved()
        self.installed(ack.highest_installed, path.index)
        bound = next((p for p in (path, *self._paths.paths.values()) if p.index == ack.bound_index), None)
        if bound is not None and taken_over and bound.uplink.remote != path.uplink.remote:
            # The new owner has bound an index that was never asked for at that endpoint of its: somebody else did.
            bound = None
        if bound is None or not bound.uplink.link_up:
            self._request_again(attempt, now_ms)
        else:
            self._bind(bound, ack, now_ms)

    def _request_again(self, attempt: Attempt, now_ms: int) -> None:
        """What was bound was left, or lost its link, before the ACK came: only a new attempt can bind another."""
        version = self._view.state_version
        self._narrator.result(attempt.number, "abandoned", "PATH_CHANGED", version)
        self._session.worker.expect_nobody()
        # The gateway has left the old path too, so this is no choice any more and no limit of choices holds it back.
        cause = Cause.TRANSPORT_DEAD if attempt.voluntary else attempt.cause
        started_ms = attempt.started_ms
        again = self._requester.begin(
            cause, now_ms, attempt.detect_ms, attempt.old, None, None, started_ms=started_ms
        )
        again.gap_from_ms = attempt.gap_from_ms
        self._ask_for_reports(self._awaited(attempt))
        self._await_reports(again, now_ms)

    def _bind(self, bound: ClientPath, ack: Ack, now_ms: int) -> None:
        attempt, self._requester.attempt = self._requester.attempt, None
        assert attempt is not None
        previous = self._paths.active_path
        self._paths.active = bound.uplink.number
        bound.health.set_active(True, now_ms * NS)
        if attempt.gap_from_ms is not None and not attempt.voluntary:
            gap_ms = min(now_ms - attempt.gap_from_ms, self._session.policy.resend_window_ms)
            bound.health.expect_backlog(round(gap_ms * NS), now_ms * NS)
        bound.bound_us = now_ms * 1000
        self._session.choosing.bound(bound.uplink, attempt.cause)
        self._session.deciding.bound(bound, now_ms)
        draining = None
        if attempt.voluntary and previous is not None and previous.index != bound.index:
            draining = previous.index
        if draining is not None and previous is not None:
            # Before the worker is told its indexes: it must know the new one to probe on it.
            self._paths.open(previous.uplink, now_ms)
        resend, drain_ms = None, max(self._session.policy.drain_window_ms, 250)
        epoch = split_version(ack.state_version).epoch
        if epoch > self._session.epoch:
            # Another node, or one that began anew: it has never seen what was sent before.
            left = None if draining is None else (draining, now_ms + max(drain_ms, NODE_LEFT_MS))
            self._session.enter_epoch(epoch, left, now_ms)
            self._session.owners.moved(bound, now_ms)
            draining = None
        else:
            self._session.worker.expect_nobody()
            if not attempt.voluntary:
                resend = [commands.IndexReport(*report) for report in ack.reports]
        self._reports = ()
        self._session.channel.move(now_ms)
        # Ahead of what was kept: until it is answered, packets of full size go in fragments, twice as many datagrams.
        self._session.mtu_probing.handle_timer(now_ms * NS, now_ms * NS)
        self._session.worker.rebind([], draining, now_ms + drain_ms, resend=resend)
        self._session.act()
        self._view.follow(State.ATTACHED, ack.state_version, Reason.REATTACH_OK, now_ms)
        self._session.clocks(now_ms)
        self._narrator.result(attempt.number, "bound", "REATTACH_OK", ack.state_version)
        self._narrator.switched(
            attempt.cause.name,
            ack.state_version,
            old=attempt.old,
            new=bound,
            explicit=attempt.voluntary,
            detect_ms=attempt.detect_ms,
            reattach_ms=now_ms - attempt.started_ms,
            gap_ms=None if attempt.gap_from_ms is None else now_ms - attempt.gap_from_ms,
        )
        self._session.send_health(now_ms)

    def on_fail(self, fail: reattach.Fail, path: ClientPath, now_ms: int) -> None:
        attempt = self._requester.attempt
        if attempt is None or fail.attempt != attempt.number:
            return
        owners = self._session.owners
        owners.heard(now_ms)
        elsewhere = fail.reason == Code.NOT_OWNER and not attempt.voluntary
        if elsewhere and owners.not_owner(attempt, path, fail.retry_after_ms, now_ms):
            self.request(now_ms)
            return
        if fail.reason == Code.REAUTHENTICATE:
            self._session.anew_over = path.uplink
            self._session.anew_by = attempt.cause
        if fail.reason == Code.VERSION_CONFLICT:
            # Claimed again it would be refused again, and in the end cost the session.
            self._view.correct(fail.state_version)
        self.refuse(attempt, fail.reason, fail.retry_after_ms, now_ms)

    def refuse(self, attempt: Attempt, reason: str, retry_after_ms: int, now_ms: int) -> None:
        """The gateway will not bind this attempt, on no path: go on on the old one, or try again with another."""
        self._requester.attempt = None
        self._session.worker.expect_nobody()
        self.refused = reason
        self._narrator.result(attempt.number, "failed", reason, self._view.state_version, retry_after_ms)
        if reason in _OVER:
            end = Reason(reason) if reason in Reason.__members__ else Reason.PEER_CLOSED
            self._session.was_reset = reason == Code.SESSION_OVER
            self._session.end(end, now_ms, tell=False)
            return
        if reason == Code.REAUTHENTICATE:
            # Not told: the gateway keeps the session until the new one is confirmed, and then says SUPERSEDED.
            self._session.end(Reason.POLICY_TERMINATED, now_ms, tell=False, details={"fail": reason})
            return
        if attempt.voluntary and self._paths.active is not None:
            self._view.apply(Reason.REATTACH_FAIL, now_ms, details={"fail": reason})
            self._session.deciding.refused(retry_after_ms, now_ms)
            self._session.leaving.go_on(attempt, now_ms)
        else:
            again = self._requester.begin(
                attempt.cause,
                now_ms,
                attempt.detect_ms,
                attempt.old,
                attempt.leave,
                None,
                started_ms=attempt.started_ms,
            )
            again.gap_from_ms = attempt.gap_from_ms
            again.next_ms = now_ms + min(max(retry_after_ms, RETRY_MS), RETRY_AFTER_MAX_MS)
        self._session.clocks(now_ms)
