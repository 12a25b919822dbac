"""Decisions with their arguments, as records that JSON carries, and the same decisions taken again from them.

Three kinds: which path (`choose`), what a path's signals show (`judge`), and whether the gateway commits a quality
state that its client proposes (`commit`). The policy is named by its version; `again` wants the policy itself.
"""

from dataclasses import dataclass

import msgspec

from jvpn.policy.decisions import Candidate, Decision, History, choose
from jvpn.policy.model import Policy
from jvpn.policy.quality import Breach, Claim, Commitment, Proposal, Quality, Signals, commit, judge


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """All that `choose` was given, and what it said."""

    policy_version: str
    now_ms: int
    history: History
    candidates: tuple[Candidate, ...]
    decision: Decision


@dataclass(frozen=True, slots=True)
class QualityRecord:
    """All that `judge` was given for the path `path`, and what it said."""

    policy_version: str
    now_ms: int
    path: str
    before: Quality
    signals: Signals
    proposal: Proposal
    breaches: tuple[Breach, ...]


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """All that `commit` was given, and what it said."""

    policy_version: str
    now_ms: int
    state: str
    since_ms: int
    claim: Claim
    commitment: Commitment


Record = DecisionRecord | QualityRecord | CommitRecord


def to_json(record: DecisionRecord) -> bytes:
    return msgspec.json.encode(record)


def from_json(data: bytes) -> DecisionRecord:
    """Raises ValueError (msgspec.ValidationError, msgspec.DecodeError) for anything that is not a record."""
    return msgspec.json.decode(data, type=DecisionRecord)


def decide(
    policy: Policy, candidates: tuple[Candidate, ...], history: History, now_ms: int
) -> tuple[Decision, DecisionRecord]:
    """`choose`, with the record that lets it be taken again."""
    decision = choose(policy, candidates, history, now_ms)
    return decision, DecisionRecord(policy.version, now_ms, history, candidates, decision)


def again(policy: Policy, record: DecisionRecord) -> Decision:
    """The decision that the record's arguments give now; equal to the recorded one, or the record is not genuine.

    Raises ValueError if `policy` is another version than the recorded one.
    """
    _same_version(policy, record)
    return choose(policy, record.candidates, record.history, record.now_ms)


def difference(policy: Policy, record: Record) -> str:
    """What is otherwise when the decision is taken again; empty when nothing is.

    Raises ValueError if `policy` is another version than the recorded one.
    """
    _same_version(policy, record)
    match record:
        case DecisionRecord():
            said, says = _plain(record.decision), _plain(again(policy, record))
        case QualityRecord():
            _, proposal, beyond = judge(policy, record.before, record.signals, record.now_ms)
            said, says = _plain((record.proposal, record.breaches)), _plain((proposal, beyond))
        case CommitRecord():
            made = commit(policy, record.claim, record.state, record.since_ms, record.now_ms)
            said, says = _plain(record.commitment), _plain(made)
    return "" if said == says else f"recorded {_shown(said)}, now {_shown(says)}"


def _same_version(policy: Policy, record: Record) -> None:
    if policy.version != record.policy_version:
        raise ValueError(f"recorded under policy version {record.policy_version}, not {policy.version}")


def _plain(value: object) -> object:
    """As JSON has it: what a reader cannot tell apart is no difference."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _shown(value: object) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()
