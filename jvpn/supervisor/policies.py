"""Policies that change while the gateway runs: what the files say now, and what becomes of the sessions that there are.

`grace`: a session keeps the policy of its handshake until it ends. `strict`: it has the new one now, or, where that
cannot be changed in a session, ends as if its time were over, and its client shakes hands anew. Sans-I/O.

A policy whose file is broken is given to no new session; sessions that have it keep the last valid one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import msgspec

from jvpn.policy.model import Policy
from jvpn.session.machine import Reason
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.controlling import Controlling, Terminate
from jvpn.supervisor.handshakes import Handshakes
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.peers import Peer

Mode = Literal["grace", "strict"]
MODES: tuple[Mode, ...] = ("grace", "strict")


@dataclass(frozen=True, slots=True)
class PolicySet:
    """What configuration and policy files say at one moment.

    `assigned`: by public key, the name of a peer's own policy and of the others that it may ask for. `broken`: what
    is wrong with a policy's file, by its name. `waiting`: fields of the configuration that have changed, too, and that
    only a restart takes up.
    """

    default: str
    policies: Mapping[str, Policy]
    broken: Mapping[str, str]
    assigned: Mapping[bytes, tuple[str, tuple[str, ...]]]
    mode: Mode = "grace"
    waiting: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One policy that is another than before. `old` None: it is new, `new` None: its file is broken (`problem`).

    `fields`: "name: old → new" of each parameter that differs.
    """

    name: str
    old: str | None
    new: str | None
    fields: list[str] = []
    problem: str = ""


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. Sessions: `changed` have the new policy, `ended` could not be changed, `kept` go on by one that
    new sessions would not get."""

    mode: Mode
    changes: list[Change]
    sessions: int
    changed: int
    ended: int
    kept: int
    waiting: list[str]


@dataclass(slots=True)
class _Count:
    changed: int = 0
    ended: int = 0
    kept: int = 0
    by_name: dict[str, int] = field(default_factory=dict)


class Policies:
    """A part of the gateway's core. `terminate(session, reason, now_ms, details)` ends a session for good."""

    def __init__(
        self, context: GatewayContext, handshakes: Handshakes, controlling: Controlling, terminate: Terminate
    ) -> None:
        self._context = context
        self._handshakes = handshakes
        self._controlling = controlling
        self._terminate = terminate

    def apply(self, found: PolicySet, mode: Mode, by: str, now_ms: int) -> Applied:
        """Take up what the files say. `by`: who asked, for the events."""
        context = self._context
        before = context.known_policies()
        mended = {name for peer in context.peers.peers.values() for name in peer.broken} - found.broken.keys()
        for key, peer in list(context.peers.peers.items()):
            if key in found.assigned:
                context.peers.peers[key] = _assigned(peer, *found.assigned[key], found)
        changes = _changes(before, found, mended)
        if mode == "strict":
            self._handshakes.forget_pending()
        count = _Count()
        for session in [
            *context.sessions.values(),
            *(session for session, _ms in context.confirming.values()),
        ]:
            self._settle(session, mode, by, count, now_ms)
        sessions = len(context.sessions)
        for change in changes:
            context.narrator.policy_file(
                change.name, _told(change, mode, count, by), broken=bool(change.problem)
            )
        return Applied(
            mode=mode,
            changes=changes,
            sessions=sessions,
            changed=count.changed,
            ended=count.ended,
            kept=count.kept,
            waiting=list(found.waiting),
        )

    def _settle(self, session: LiveSession, mode: Mode, by: str, count: _Count, now_ms: int) -> None:
        """One session: does it keep its policy, get another, or end?"""
        context = self._context
        session.peer = context.peers.find(session.peer.public_key) or session.peer
        old, new = session.policy, session.peer.policy_for(session.policy.name) or session.peer.policy
        count.by_name[old.name] = count.by_name.get(old.name, 0) + 1
        if new == old:
            return
        if mode == "grace" or new.name in session.peer.broken:
            count.kept += 1
            return
        because = f"policy {named(old)} → {named(new)}"
        if session.session_id in context.confirming:
            self._terminate(session, Reason.HANDSHAKE_FAIL, now_ms, {"why": because})
            count.ended += 1
        elif not _changeable(session, new):
            context.narrator.policy_changed(session, old, new, by)
            self._terminate(
                session, Reason.SESSION_TTL_EXPIRED, now_ms, {"why": f"{because} needs a new handshake"}
            )
            count.ended += 1
        else:
            self._change(session, new, by, now_ms)
            count.changed += 1

    def _change(self, session: LiveSession, new: Policy, by: str, now_ms: int) -> None:
        """In this order: the page and the worker know it, the store soon after, the client is told until it has it."""
        context, old = self._context, session.policy
        session.work_by(new, now_ms)
        context.narrator.policy_changed(session, old, new, by)
        context.write_row(session)
        context.refresh_indexes(session)
        if session.given_to_worker:
            context.tell(session.slot, session.add_command(context.next_seq()))
        if session.configured:
            self._controlling.configure(session, now_ms, again=True)
            context.flush(session, now_ms)


def named(policy: Policy) -> str:
    return f"{policy.name}@{policy.version}"


def _changeable(session: LiveSession, new: Policy) -> bool:
    """Keys are made by a handshake's KEM, and a binding is over a transport: neither changes under a session."""
    active = session.bindings.active
    carried = active is None or active.transport.name.lower() in new.allowed_transports
    return carried and new.kem == session.policy.kem


def _assigned(peer: Peer, own: str, others: tuple[str, ...], found: PolicySet) -> Peer:
    """The peer as configured now. While the file of its own policy is broken the last valid one stays in its place."""
    return replace(
        peer,
        own=own,
        policy=found.policies.get(own, peer.policy),
        others=tuple(found.policies[name] for name in others if name in found.policies),
        broken={name: found.broken[name] for name in (own, *others) if name in found.broken},
    )


def _changes(before: Mapping[str, Policy], found: PolicySet, mended: set[str]) -> list[Change]:
    wanted = {name for own, others in found.assigned.values() for name in (own, *others)}
    changes = []
    for name in sorted(wanted | before.keys()):
        old, new = before.get(name), found.policies.get(name) if name in wanted else None
        if name in found.broken and name in wanted:
            text = found.broken[name]
            changes.append(
                Change(name=name, old=None if old is None else old.version, new=None, problem=text)
            )
        elif new is not None and new != old:
            was = None if old is None else old.version
            changes.append(Change(name=name, old=was, new=new.version, fields=differences(old, new)))
        elif new is not None and name in mended:
            changes.append(Change(name=name, old=new.version, new=new.version))
    return changes


def differences(old: Policy | None, new: Policy) -> list[str]:
    """ "name: old → new" of each parameter."""
    if old is None:
        return []
    was, now = asdict(old), asdict(new)
    return [f"{name}: {_shown(was[name])} → {_shown(now[name])}" for name in now if was[name] != now[name]]


def _shown(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _told(change: Change, mode: Mode, count: _Count, by: str) -> str:
    have = count.by_name.get(change.name, 0)
    if change.problem:
        return f"{change.problem} (no new session gets it; sessions that keep the last valid one: {have})"
    was = "new" if change.old is None else f"{change.name}@{change.old}"
    asked = f"asked by {by or 'nobody by name'}"
    return f"{was} → {change.name}@{change.new}, {mode}, sessions that had it: {have}, {asked}"


def told(applied: Applied) -> list[str]:
    """What came of it, for people: one line for each policy, then the sessions, then what waits for a restart."""
    lines = []
    for change in applied.changes:
        if change.problem:
            lines.append(f"policy {change.name}: broken, no new session gets it: {change.problem}")
        elif change.old is None:
            lines.append(f"policy {change.name}: new, {change.name}@{change.new}")
        elif change.old == change.new:
            lines.append(f"policy {change.name}: sound again, {change.name}@{change.new} as before")
        else:
            lines.append(f"policy {change.name}: {change.name}@{change.old} → {change.name}@{change.new}")
            lines += [f"  {text}" for text in change.fields]
    if not lines:
        lines.append("no policy has changed")
    lines.append(_sessions_told(applied))
    if applied.waiting:
        lines.append(f"changed too, and taken up by a restart alone: {', '.join(applied.waiting)}")
    return lines


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def _sessions_told(applied: Applied) -> str:
    running = _many(applied.sessions, "session")
    if applied.mode == "grace":
        kept = "as they were"
        if applied.kept:
            kept = f"{applied.kept} of them by a policy that new ones would not get"
        return f"grace: {running} running, {kept}"
    counts = f"{applied.changed} changed, {applied.ended} ended for a new handshake"
    if applied.kept:
        counts += f", {applied.kept} with the last valid version of a broken policy"
    return f"strict: {running} running, {counts}"
