"""Rekey at the client, which alone initiates: at once after a handshake with a KEM, then every rekey_interval_ms.

The new phase is used for sending as soon as REKEY_RESPONSE is here; the old one is accepted for OLD_PHASE_MS more, and
until then no other rekey begins. Without an answer the same REKEY_INIT is said again: it gets the same answer.
"""

from collections.abc import Callable

from jvpn.protocol.constants import OLD_PHASE_MS
from jvpn.protocol.control import ControlChannel, ControlType
from jvpn.protocol.handshake import Kem
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.rekey import INITIATOR_RANDOM_SIZE, RekeyInitiator
from jvpn.protocol.sealed_control import SealedControl
from jvpn.protocol.wire import WireError

AGAIN_MS = 1_000
#: Packets under one key that make a rekey due before its time; AES-GCM's own limit is twice that
#: (2^28: docs/protocol.md, "Rekey").
PACKETS_PER_PHASE = 1 << 27


class ClientRekeying:
    """Secrets of the present phase, of the one before while it is accepted, and the rekey under way."""

    def __init__(
        self,
        secrets: SessionSecrets,
        kem: Kem,
        control: SealedControl,
        channel: ControlChannel,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.secrets = secrets
        self.kem = kem
        self.old_secrets: SessionSecrets | None = None
        self._control = control
        self._channel = channel
        self._random_bytes = random_bytes
        self._initiator: RekeyInitiator | None = None
        self._old_until_ms = 0
        self._again_ms = 0
        self._message_id: int | None = None
        self._due_ms: int | None = None
        self._packets_at_start = 0

    def move(self, control: SealedControl, channel: ControlChannel, now_ms: int) -> None:
        """A new epoch has its own keys and messages; a rekey under way is asked for again there."""
        self._control, self._channel = control, channel
        self._message_id = None
        if self.old_secrets is not None:
            control.add_phase(self.old_secrets)
        if self._initiator is not None:
            self._say(now_ms)

    @property
    def under_way(self) -> bool:
        return self._initiator is not None

    def schedule(self, now_ms: int, interval_ms: int, packets: int) -> None:
        """A phase begins: the next rekey is due after `interval_ms`. `packets` were sent and received until now."""
        self._due_ms = now_ms + interval_ms
        self._packets_at_start = packets

    def begin(self, now_ms: int) -> None:
        """Send a REKEY_INIT, unless one is under way or the last one is not over."""
        if self._initiator is not None or self.old_secrets is not None:
            return
        self._initiator = RekeyInitiator(self.secrets, self.kem, self._random_bytes(INITIATOR_RANDOM_SIZE))
        self._say(now_ms)

    def require(self, now_ms: int) -> None:
        """The gateway wants a rekey: now, or as soon as the last one is over."""
        if self.old_secrets is not None:
            self._due_ms = self._old_until_ms
        self.begin(now_ms)

    def _say(self, now_ms: int) -> None:
        assert self._initiator is not None
        # In place of the last one: without a path they would pile up, and all go at once when one returns.
        if self._message_id is not None:
            self._channel.withdraw(self._message_id)
        self._message_id = self._channel.send(ControlType.REKEY_INIT, self._initiator.init_value, now_ms)
        self._again_ms = now_ms + AGAIN_MS

    def on_response(self, value: bytes, now_ms: int) -> None:
        """Take REKEY_RESPONSE into force. Raises WireError `bad_rekey`, having changed nothing."""
        if self._initiator is None:
            raise WireError("bad_rekey")
        new = self._initiator.finish(value)
        self._initiator = None
        self.old_secrets, self.secrets = self.secrets, new
        self._old_until_ms = now_ms + OLD_PHASE_MS
        self._control.add_phase(new)
        self._control.send_under(new.phase_number)

    def phases(self) -> list[SessionSecrets]:
        """Phases to receive user traffic under, the one to send under last."""
        first = 1 if self.kem is Kem.MLKEM768 else 0
        known = (self.old_secrets, self.secrets)
        return [s for s in known if s is not None and s.phase_number >= first]

    def get_timer(self) -> int | None:
        due = [
            self._again_ms if self._initiator is not None else self._due_ms,
            self._old_until_ms if self.old_secrets is not None else None,
        ]
        return min((at for at in due if at is not None), default=None)

    def handle_timer(self, now_ms: int, packets: int) -> bool:
        """Returns whether the old phase was retired just now, so that the worker has to be told."""
        retired = False
        if self.old_secrets is not None and now_ms >= self._old_until_ms:
            self._control.drop_phase(self.old_secrets.phase_number)
            self.old_secrets = None
            retired = True
        if self._initiator is not None:
            if now_ms >= self._again_ms:
                self._say(now_ms)
        elif self._due_ms is not None and (
            now_ms >= self._due_ms or packets - self._packets_at_start >= PACKETS_PER_PHASE
        ):
            self.begin(now_ms)
        return retired
