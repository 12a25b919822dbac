"""What the store keeps, sealed, of a session beyond its record's columns: secrets, the rekey under way, its policy."""

from typing import TYPE_CHECKING

import msgspec

from jvpn.policy.model import Policy, PolicyError
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.suites import suite

if TYPE_CHECKING:
    from jvpn.supervisor.live_session import LiveSession


class NotRemembered(ValueError):
    """The stored bytes are of another version, or damaged: the session cannot be brought back."""


class Remembered(msgspec.Struct, frozen=True, array_like=True):
    """`phases` are (number, secret), oldest first; `answered` is the newest REKEY_INIT and the RESPONSE to it;
    `highest_index` the highest on which anything was authenticated; `switches_ms` are the voluntary
    switches of the last minute, in the boot that the record names; `proven_from` is the address that the handshake came
    from; `pooled`: its inner addresses are its client's out of the pool."""

    suite: int
    session: bytes
    phases: list[tuple[int, bytes]]
    answered: tuple[bytes, bytes] | None
    policy: bytes
    highest_index: int = 0
    switches_ms: list[int] = []
    proven_from: str = ""
    pooled: bool = False

    def __repr__(self) -> str:
        """Shows no secret: these end up in tracebacks."""
        return f"<Remembered, phases {[number for number, _secret in self.phases]}>"

    def secrets(self) -> list[SessionSecrets]:
        """Those of every phase, oldest first. Raises NotRemembered."""
        try:
            chosen = suite(self.suite)
            return [SessionSecrets(chosen, self.session, phase, number) for number, phase in self.phases]
        except ValueError as error:
            raise NotRemembered(str(error)) from error

    def policy_snapshot(self) -> Policy:
        """The policy that the session was given. Raises NotRemembered."""
        try:
            return Policy.from_wire(self.policy)
        except PolicyError as error:
            raise NotRemembered(str(error)) from error


def remember(session: "LiveSession") -> bytes:
    known = (session.old_secrets, session.secrets, session.next_secrets)
    newest = session.answered
    return msgspec.msgpack.encode(
        Remembered(
            suite=session.secrets.suite.number,
            session=session.secrets.session,
            phases=[(secrets.phase_number, secrets.phase) for secrets in known if secrets is not None],
            answered=None if newest is None else (newest.init_value, newest.response_value),
            policy=session.policy.to_wire(),
            highest_index=session.indexes.highest_seen,
            switches_ms=session.switches.times_ms,
            proven_from=session.proven_from,
            pooled=session.pooled,
        )
    )


def recall(stored: bytes) -> Remembered:
    """Inverse of `remember`. Raises NotRemembered."""
    try:
        found = msgspec.msgpack.decode(stored, type=Remembered)
    except msgspec.MsgspecError as error:
        raise NotRemembered(str(error)) from error
    if not found.phases:
        raise NotRemembered("no key phase is stored")
    return found
