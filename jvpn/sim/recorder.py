"""What the nodes of a fleet asked their store for, and what it said, for the checker of histories (owner_history.py).

Each state that a session's record has had in the store has a number, so that none comes twice. What a node saves is
told as a claim that has seen the state before it. All times are those at which the store did it.
"""

from dataclasses import dataclass, field

from jvpn.session.record import SessionRecord
from jvpn.sim.clock import NS, Agenda
from jvpn.sim.owner_history import Claim, Read, State, check
from jvpn.store.base import StoreError
from jvpn.supervisor.effects import ClaimSession
from jvpn.supervisor.store_desk import Answers, Batch

Key = tuple[int, str]


@dataclass(slots=True)
class _Session:
    """`numbers`: of the states that there have been, by version and owner, the newest of each."""

    first: State
    last: State
    numbers: dict[Key, int]
    claims: list[Claim] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)


class Recorder:
    """`changed` for every change of a record, then `served` with the batch that brought it."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._sessions: dict[bytes, _Session] = {}
        #: What the batch under way has changed, by session: the state before and the one after.
        self._changed: dict[bytes, tuple[State, State]] = {}

    def changed(self, session_id: bytes, now: SessionRecord | None) -> None:
        key = (-1, "") if now is None else (now.state_version, now.owner_node)
        session = self._sessions.get(session_id)
        if session is None:
            first = (0, key[1])
            self._sessions[session_id] = _Session(first, first, {key: 0})
        elif session.numbers.get(key) != session.last[0]:
            number = session.last[0] + 1
            self._changed[session_id] = session.last, (number, key[1])
            session.numbers[key] = number
            session.last = (number, key[1])

    def served(self, batch: Batch, answers: Answers) -> None:
        now_ms = self._agenda.now_ns / NS
        for found in answers.loaded:
            if isinstance(found, SessionRecord):
                session = self._sessions[found.session_id]
                state = session.numbers[found.state_version, found.owner_node], found.owner_node
                session.reads.append(Read(state, now_ms, now_ms))
        if not isinstance(answers.written, StoreError):
            for write, said in zip(batch.writes, answers.written, strict=True):
                if isinstance(write, ClaimSession):
                    self._claimed(write, said is True, now_ms)
        for session_id, (seen, wrote) in self._changed.items():
            self._sessions[session_id].claims.append(Claim(seen, wrote, True, now_ms, now_ms))
        self._changed.clear()

    def _claimed(self, write: ClaimSession, granted: bool, now_ms: float) -> None:
        session = self._sessions.get(write.record.session_id)
        seen = None if session is None else session.numbers.get((write.seen_version, write.seen_owner))
        # One that is refused because the owner's lease goes on says nothing of the record.
        if session is None or seen is None or (write.owner_gone and not granted):
            return
        made = self._changed.pop(write.record.session_id, None) if granted else None
        wrote = (session.last[0] + 1, write.record.owner_node) if made is None else made[1]
        session.claims.append(Claim((seen, write.seen_owner), wrote, granted, now_ms, now_ms))

    def check(self) -> None:
        """Raises BadHistory."""
        for session in self._sessions.values():
            check(session.first, session.claims, session.reads)
