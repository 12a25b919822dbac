"""A decision with its arguments, as one JSON object, and the same decision taken again from it."""

from dataclasses import dataclass

import msgspec

from jvpn.policy.decisions import Candidate, Decision, History, choose
from jvpn.policy.model import Policy


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """All that `choose` was given, and what it said; the policy by its version."""

    policy_version: str
    now_ms: int
    history: History
    candidates: tuple[Candidate, ...]
    decision: Decision


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
    if policy.version != record.policy_version:
        raise ValueError(f"recorded under policy version {record.policy_version}, not {policy.version}")
    return choose(policy, record.candidates, record.history, record.now_ms)
