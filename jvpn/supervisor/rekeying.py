"""Rekey at the gateway, which only ever answers.

REKEY_INIT → secrets of the next phase → store → worker (receives under both, sends under the old) → REKEY_RESPONSE.
The first datagram that opens under the new phase, CONTROL here or DATA and PATH at the worker, proves that the client
has it: then everything is sent under the new, and the old one is accepted for OLD_PHASE_MS more. Until that is over no
other rekey begins. The same REKEY_INIT gets the same REKEY_RESPONSE.

A store that cannot be written holds no rekey up, unless it is a fleet's: another node may take the session over then,
and has no other keys than the stored ones. So there a rekey that is not kept is none, and the client asks for it again.
"""

from functools import partial

from jvpn.protocol import rekey
from jvpn.protocol.constants import KEY_SIZE, OLD_PHASE_MS
from jvpn.protocol.control import ControlType
from jvpn.protocol.wire import WireError
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.history import Answered
from jvpn.supervisor.live_session import LiveSession


class Rekeying:
    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        #: Sessions whose next phase is with the store.
        self._saving: set[bytes] = set()

    def begin(self, session: LiveSession, init_value: bytes, now_ms: int) -> bool:
        """Make the next phase from a REKEY_INIT; False when there is nothing new to tell the worker.

        Raises WireError `bad_rekey`, or `rekey_too_soon` while the last one is not over.
        """
        newest = session.answered
        if newest is not None and newest.init_value == init_value:
            session.channel.send(ControlType.REKEY_RESPONSE, newest.response_value, now_ms)
            return False
        if session.next_secrets is not None or session.old_secrets is not None:
            raise WireError("rekey_too_soon")
        private = self._context.random_bytes(KEY_SIZE)
        made = rekey.answer(session.secrets, session.demanded_kem, init_value, private)
        session.answered = Answered(init_value, made.response_value)
        session.next_secrets = made.secrets
        session.control.add_phase(made.secrets)
        self._context.note_keys(made.secrets, session.epoch)
        return True

    def on_init(self, session: LiveSession, init_value: bytes, now_ms: int) -> None:
        """A REKEY_INIT of an attached session. Raises WireError: its birth is still with the store, among others."""
        if session.pooled and not session.prefixes:
            raise WireError("rekey_too_soon")
        if session.session_id in self._saving or not self.begin(session, init_value, now_ms):
            return
        self._saving.add(session.session_id)
        self._context.save(session, now_ms, 0, partial(self._stored, session))

    def _stored(self, session: LiveSession, kept: bool, now_ms: int) -> None:
        context = self._context
        self._saving.discard(session.session_id)
        if session.machine.terminated:
            return
        if not kept and context.fleet is not None:
            context.counters["rekey_not_kept"] += 1
            self._take_back(session)
            return
        context.save_again_unless(kept, session, now_ms)
        self._tell_worker(session, respond=True)

    @staticmethod
    def _take_back(session: LiveSession) -> None:
        """Neither worker nor client have heard of the next phase."""
        if session.next_secrets is not None:
            session.control.drop_phase(session.next_secrets.phase_number)
        session.next_secrets = session.answered = None

    def respond(self, session: LiveSession, now_ms: int) -> None:
        """The worker has the new phase: the client may be told."""
        if session.answered is not None:
            session.channel.send(ControlType.REKEY_RESPONSE, session.answered.response_value, now_ms)

    def on_opened(self, session: LiveSession, phase_number: int, now_ms: int) -> bool:
        """Something authentic came under this phase. Returns whether that has put it in force just now."""
        new = session.next_secrets
        if new is None or phase_number != new.phase_number:
            return False
        session.old_secrets, session.secrets, session.next_secrets = session.secrets, new, None
        session.old_until_ms = now_ms + OLD_PHASE_MS
        session.control.send_under(new.phase_number)
        session.rekeyed_ms = now_ms
        seen = self._context.activity.read_activity(session.record)
        session.sent_at_rekey, session.received_at_rekey = seen.sent_packets, seen.received_packets
        session.forged_at_rekey = seen.forged
        session.look_at_keys_ms = now_ms
        self._context.narrator.rekeyed(session)
        self._context.write_row(session)
        if session.given_to_worker:
            self._tell_worker(session, respond=False)
        return True

    def handle_timer(self, session: LiveSession, now_ms: int) -> None:
        """Retire the old phase when its time is over."""
        if session.old_secrets is None or now_ms < session.old_until_ms:
            return
        session.control.drop_phase(session.old_secrets.phase_number)
        session.old_secrets = None
        self._context.save_changes(session, now_ms)
        self._tell_worker(session, respond=False)

    def get_timer(self, session: LiveSession) -> int | None:
        return session.old_until_ms if session.old_secrets is not None else None

    def _tell_worker(self, session: LiveSession, *, respond: bool) -> None:
        context = self._context
        add = session.add_command(context.next_seq())
        if respond:
            context.tell(session.slot, add, lambda done_ms: self._respond_and_flush(session, done_ms))
        else:
            context.tell(session.slot, add)

    def _respond_and_flush(self, session: LiveSession, now_ms: int) -> None:
        self.respond(session, now_ms)
        self._context.flush(session, now_ms)
