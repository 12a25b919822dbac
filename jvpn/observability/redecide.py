"""Takes every decision of a recorded event stream again, and says where the result differs.

What it finds, each with its line:

 1. a line that is no event of this schema;
 2. a policy that is not the one that its version names, a decision by a policy that the stream does not hold;
 3. a decision that comes out otherwise from its own arguments;
 4. a switch by policy, or a quality state, without the decision that led to it (not where events are known to be lost).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from jvpn.observability import events as ev
from jvpn.policy.decisions import Action
from jvpn.policy.model import Policy, PolicyError
from jvpn.policy.replay import Record, difference
from jvpn.session.machine import Origin

#: Causes of a REQUEST, and reasons of a transition, that stand for a decision by policy.
SWITCHES: Final = frozenset({"QUALITY_SWITCH", "PREFERENCE_SWITCH", "TRANSPORT_RETURNED"})
COMMITS: Final = frozenset(
    {"QUALITY_FLOOR_VIOLATION", "QUALITY_RESTORED", "VOLATILITY_PERSISTED", "SWITCH_RATE_LIMITED"}
)


@dataclass(frozen=True, slots=True)
class Difference:
    """`line` counts from 1."""

    line: int
    session_id: str
    problem: str

    def __str__(self) -> str:
        session = f" session {self.session_id}:" if self.session_id else ""
        return f"line {self.line}:{session} {self.problem}"


@dataclass(slots=True)
class Replay:
    """Feed it lines, in order. `policies`: those known without the stream, by version; the stream adds its own."""

    policies: dict[str, Policy] = field(default_factory=dict)
    #: Decisions taken again.
    decisions: int = 0
    differences: list[Difference] = field(default_factory=list)
    _line: int = 0
    _lost: bool = False
    #: By session: the switch that its client decided last, the quality state that its gateway is about to enter.
    _switch: dict[str, str] = field(default_factory=dict)
    _commit: dict[str, str] = field(default_factory=dict)

    def feed(self, line: bytes | str) -> None:
        """One line of a stream. Blank lines count as lines and are skipped."""
        self._line += 1
        if not line.strip():
            return
        try:
            event = ev.decode(line)
        except ev.EventError as error:
            self._differs("", f"not an event: {error}")
            return
        match event:
            case ev.TelemetryLoss():
                self._lost = True
            case ev.PolicySnapshot():
                self._learn(event)
            case ev.DecisionEvent():
                self._again(event, event.record)
                if event.record.decision.action is Action.SWITCH:
                    self._switch[event.session_id] = event.record.decision.reason
            case ev.QualityEvent():
                self._again(event, event.record)
            case ev.CommitEvent():
                self._again(event, event.record)
                self._commit[event.session_id] = event.record.commitment.reason
            case ev.ReattachAttempt(origin=Origin.CLIENT, cause=cause) if cause in SWITCHES:
                if self._switch.get(event.session_id) != cause and not self._lost:
                    self._differs(event.session_id, f"{cause} was asked for, and no decision says so")
            case ev.StateChange(origin=Origin.GATEWAY, reason_code=reason) if reason in COMMITS:
                said = self._commit.pop(event.session_id, "")
                if said != reason and event.from_ != "RECOVERING" and not self._lost:
                    self._differs(event.session_id, f"{event.to} by {reason}, and no decision says so")

    def begin_file(self) -> None:
        """What follows is another file: lines count from 1 again."""
        self._line = 0

    def _learn(self, event: ev.PolicySnapshot) -> None:
        try:
            policy = Policy.from_wire(json.dumps(event.policy, separators=(",", ":")).encode())
        except PolicyError as error:
            self._differs(event.session_id, f"not a policy: {error}")
            return
        if event.policy_version != f"{policy.name}@{policy.version}":
            problem = f"the policy is {policy.name}@{policy.version}, not {event.policy_version}"
            self._differs(event.session_id, problem)
            return
        self.policies[policy.version] = policy

    def _again(self, event: ev.Event, record: Record) -> None:
        self.decisions += 1
        version = event.policy_version.rpartition("@")[2]
        policy = self.policies.get(record.policy_version)
        if version != record.policy_version:
            problem = f"an event of policy version {version} with a decision by {record.policy_version}"
        elif policy is None:
            problem = f"the policy of version {version} is not in the stream before this line"
        else:
            problem = difference(policy, record)
        if problem:
            self._differs(event.session_id, problem)

    def _differs(self, session_id: str, problem: str) -> None:
        self.differences.append(Difference(self._line, session_id, problem))


def replay(lines: Iterable[bytes | str], policies: Mapping[str, Policy] | None = None) -> Replay:
    """All of one stream."""
    made = Replay(dict(policies or {}))
    for line in lines:
        made.feed(line)
    return made
