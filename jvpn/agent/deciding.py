"""The client's policy at work: how good its paths are, which quality state that means, and whether to move.

Measures come from `PathHealth`, verdicts from `jvpn.policy.quality` and `jvpn.policy.decisions`, which are pure. Here
they get their arguments, and what they say is proposed, asked for and told. A decision is told when it acts, or denies
something that it has not just denied, never for each look; what is told carries all that it was taken from.

Recovery is not in here: a death is left by `Switching` at once. It is only told, by `lost`, as the decision it is.
"""

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from jvpn.agent.effects import Say
from jvpn.agent.paths import NS, ClientPath
from jvpn.policy.decisions import NEVER_MS, Action, Candidate, Decision, History, Phase
from jvpn.policy.quality import Quality, Signals, judge
from jvpn.policy.replay import DecisionRecord, QualityRecord, decide
from jvpn.protocol.reattach import Cause
from jvpn.session.machine import Reason, State

if TYPE_CHECKING:
    from jvpn.agent.session import ClientSession

LOOK_MS: Final = 100
#: A proposal that the gateway has not answered is made again.
PROPOSE_AGAIN_MS: Final = 250
#: Paths that first answer within this of the handshake have not returned: they were there all along.
FIRST_ANSWERS_MS: Final = 1_000
BINDS_KEPT: Final = 64

_DELIVERING: Final = frozenset({State.ATTACHED, State.VOLATILE, State.DEGRADED})
_SAYS: Final = {"QUALITY_FLOOR_VIOLATION": State.VOLATILE, "QUALITY_RESTORED": State.ATTACHED}
#: By which the step to a proposed state is looked up in the table.
_STEP: Final = {
    State.VOLATILE: Reason.QUALITY_FLOOR_VIOLATION,
    State.ATTACHED: Reason.QUALITY_RESTORED,
    State.DEGRADED: Reason.VOLATILITY_PERSISTED,
}


class Deciding:
    """A part of its session. Times are CLOCK_BOOTTIME milliseconds."""

    def __init__(self, session: "ClientSession", now_ms: int) -> None:
        self._session = session
        self._paths = session.paths
        self._view = session.view
        self._narrator = session.narrator
        self._next_ms = now_ms
        self._attached_ms = now_ms + FIRST_ANSWERS_MS
        self._binds_ms: deque[int] = deque(maxlen=BINDS_KEPT)
        self._refused_until_ms = 0
        #: The quality state that the gateway is to commit, and whether limits are why; said again from then on.
        self._wanted: State | None = None
        self._limited = False
        self._propose_ms = 0
        #: What was denied last, and until when that needs no telling.
        self._denied: tuple[str, str | None] = ("", None)
        self._denied_until_ms = 0
        #: When it is told that the path in use is not allowed and there is no other; None: that is not so.
        self._stuck_ms: int | None = None

    # What happened

    def bound(self, path: ClientPath, now_ms: int) -> None:
        """A fresh binding: nothing is known of its quality yet."""
        self._binds_ms.append(now_ms)
        self._attached_ms = now_ms
        self._wanted = None
        path.quality = Quality()

    def refused(self, retry_after_ms: int, now_ms: int) -> None:
        """A voluntary switch came to nothing: what was wrong with it may well be wrong for some time."""
        wait_ms = max(retry_after_ms, self._session.policy.stability_window_ms)
        self._refused_until_ms = now_ms + wait_ms

    def lost(self, now_ms: int) -> None:
        """The active path is dead, and about to be left."""
        if self._view.state is State.BIRTH:
            return
        decision, record = self._decide(now_ms)
        if decision.action is Action.REATTACH:
            self._tell(record)

    def window_over(self, now_ms: int) -> None:
        """The recovery window is over, and about to have its consequence."""
        decision, record = self._decide(now_ms)
        if decision.reason == Reason.RECOVERY_WINDOW_EXCEEDED:
            self._tell(record)

    # Looking

    def look(self, now_ms: int) -> None:
        """Judge all paths, move where the policy says so, and propose the quality state that follows."""
        active = self._paths.active_path
        if active is None or now_ms < self._next_ms:
            return
        self._next_ms = now_ms + LOOK_MS
        self._watch(active, now_ms)
        for path in self._paths.paths.values():
            if path is not active:
                signals = path.health.signals(now_ms * NS)
                path.quality, _, _ = judge(self._session.policy, path.quality, signals, now_ms)
        signals = active.health.signals(now_ms * NS)
        self._judge(active, signals, now_ms)
        if self._session.requester.attempt is None and self._view.state in _DELIVERING:
            self._act(now_ms)
            self._propose(active, signals, now_ms)

    def _watch(self, active: ClientPath, now_ms: int) -> None:
        """Where quality is in doubt all paths are probed often enough to be judged and compared."""
        doubtful = active.quality.bad_since_ms is not None or active.quality.broken
        watched = doubtful or self._view.state in (State.VOLATILE, State.DEGRADED)
        for path in self._paths.paths.values():
            path.health.watch(watched, now_ms * NS)

    def _judge(self, active: ClientPath, signals: Signals, now_ms: int) -> None:
        """The active path: what changes here is proposed."""
        policy, before = self._session.policy, active.quality
        below = self._view.state in (State.VOLATILE, State.DEGRADED)
        if below and not before.broken and self._wanted is not State.ATTACHED:
            # The gateway has it so, whatever was measured on the path that was there then.
            before = replace(before, broken=True)
        active.quality, proposal, beyond = judge(policy, before, signals, now_ms)
        if proposal is None:
            return
        self._wanted, self._limited, self._propose_ms = _SAYS[proposal], False, now_ms
        record = QualityRecord(policy.version, now_ms, active.id, before, signals, proposal, beyond)
        self._narrator.judged(policy, record, self._view.state_version)

    def _propose(self, active: ClientPath, signals: Signals, now_ms: int) -> None:
        wanted = self._wanted
        if wanted is None or now_ms < self._propose_ms or self._session.requester.attempt is not None:
            return
        if self._view.state is wanted or not self._view.allows(_STEP[wanted], wanted):
            self._wanted = None
            return
        self._propose_ms = now_ms + max(PROPOSE_AGAIN_MS, self._session.channel.repeat_ms)
        self._session.send_health(now_ms, wanted.number, limited=self._limited)

    # Deciding

    def _act(self, now_ms: int) -> None:
        decision, record = self._decide(now_ms)
        if decision.action is Action.DENY and decision.candidate is None:
            self._stay(decision, record, now_ms)
            return
        self._stuck_ms = None
        if decision.action is Action.SWITCH:
            self._switch(decision, record, now_ms)
        elif decision.action is Action.DENY:
            self._deny(decision, record, now_ms)
        elif decision.action is Action.DEGRADE and self._wanted is not State.DEGRADED:
            self._wanted, self._propose_ms = State.DEGRADED, now_ms
            self._limited = decision.reason == Reason.SWITCH_RATE_LIMITED
            self._tell(record)

    def _switch(self, decision: Decision, record: DecisionRecord, now_ms: int) -> None:
        target = next(path for path in self._paths.paths.values() if path.id == decision.candidate)
        self._tell(record)
        if self._session.choosing.switch(target.uplink, Cause[decision.reason], now_ms):
            self._session.switching.request(now_ms)

    def _deny(self, decision: Decision, record: DecisionRecord, now_ms: int) -> None:
        """Told once: it stays so until it may be asked for, or something else is wanted."""
        denied = (decision.reason, decision.candidate)
        if denied == self._denied and now_ms < self._denied_until_ms:
            return
        self._denied, self._denied_until_ms = denied, now_ms + decision.retry_after_ms
        self._tell(record)
        version = self._view.state_version
        reason = Reason.SWITCH_RATE_LIMITED.value
        self._narrator.denied(decision.reason, reason, version, decision.retry_after_ms)

    def _stay(self, decision: Decision, record: DecisionRecord, now_ms: int) -> None:
        """The path in use is none that the policy allows, and there is no other. Told once, when that has lasted:
        who was not allowed before has to be asked first."""
        wait_ms = self._session.policy.stability_window_ms
        self._stuck_ms = now_ms + wait_ms if self._stuck_ms is None else self._stuck_ms
        if now_ms < self._stuck_ms:
            return
        self._stuck_ms = NEVER_MS
        self._tell(record)
        self._narrator.denied(decision.reason, Reason.NO_CANDIDATE.value, self._view.state_version)
        text = (
            f"the policy does not allow the path in use ({decision.because['observed']}), and no path that it allows "
            "answers; the session stays there until one does"
        )
        self._session.do(Say(text))

    def _tell(self, record: DecisionRecord) -> None:
        self._narrator.decided(self._session.policy, record, self._view.state_version)

    def _decide(self, now_ms: int) -> tuple[Decision, DecisionRecord]:
        return decide(self._session.policy, self.candidates(now_ms), self.history(), now_ms)

    def candidates(self, now_ms: int) -> tuple[Candidate, ...]:
        """All paths as they are now, the active one among them."""
        return tuple(path.candidate(now_ms) for path in self._paths.paths.values())

    def history(self) -> History:
        """What decisions are to know of the past; for ATTACHED, VOLATILE, DEGRADED and RECOVERING only."""
        view, active = self._view, self._paths.active_path
        recovering = view.state is State.RECOVERING
        return History(
            phase=Phase[view.state.name],
            phase_since_ms=view.since_ms,
            active=None if active is None else active.id,
            attached_since_ms=self._attached_ms,
            recovering_since_ms=view.since_ms if recovering else None,
            binds_ms=tuple(self._binds_ms),
            chosen=active is not None and self._session.choosing.chosen == active.uplink.number,
            refused_until_ms=self._refused_until_ms,
        )
