"""CONTROL at the gateway: what a client's authenticated messages do, and what it is told.

Key confirmation is here too: the first CONTROL of a pending session (with a KEM: its whole REKEY_INIT) turns the
pending entry into a session. CONFIG goes out under the keys that DATA has: with a KEM only after the client's first
packet under the first rekeyed phase.
"""

import binascii
from collections.abc import Callable

from jvpn.policy.quality import TOLD, Claim, Signals, commit
from jvpn.policy.replay import CommitRecord
from jvpn.protocol import messages, tickets
from jvpn.protocol.constants import CONTROL_STATE_REPEAT_MS, NONCE_SIZE
from jvpn.protocol.control import ControlType, Message
from jvpn.protocol.handshake import Kem
from jvpn.protocol.wire import WireError
from jvpn.session.machine import Reason, State, split_version
from jvpn.supervisor import draining
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.handshakes import Handshakes, Pending
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.rekeying import Rekeying
from jvpn.supervisor.round_trips import NOT_MEASURED_US

#: CONFIG has tickets for so many indexes above those that are installed: it need not follow each move of the window,
#: of which it would be the dearest part.
TICKETS_AHEAD = 8
#: Sessions that come back from the store are told CONFIG at once while they are few. Of many each has its turn, so that
#: the last of a storm is bound sooner: clients lack nothing meanwhile, for tickets serve any owner.
CONFIGS_AT_ONCE = 256
CONFIG_TURN_MS = 1

#: The step of the table that leads to a state that HEALTH may propose.
_STEP = {
    State.VOLATILE: Reason.QUALITY_FLOOR_VIOLATION,
    State.ATTACHED: Reason.QUALITY_RESTORED,
    State.DEGRADED: Reason.VOLATILITY_PERSISTED,
}

Terminate = Callable[[LiveSession, Reason, int, dict[str, object] | None], None]


class Controlling:
    """`terminate(session, reason, now_ms, details)` ends a session for good."""

    def __init__(
        self, context: GatewayContext, handshakes: Handshakes, rekeying: Rekeying, terminate: Terminate
    ) -> None:
        self._context = context
        self._handshakes = handshakes
        self._rekeying = rekeying
        self._terminate = terminate
        #: When all turns that were given are over.
        self._turns_over_ms = 0

    def receive(self, session: LiveSession, index: int, data: bytes, arrival: Arrival, now_ms: int) -> None:
        counters = self._context.counters
        pending = self._handshakes.pending_of(session)
        if pending is not None and arrival.remote != pending.arrival.remote:
            counters["wrong_source"] += 1
            return
        if pending is None and index not in session.pinned_indexes():
            counters["control_not_bound"] += 1
            return
        try:
            opened = session.control.open(index, data)
            received = session.channel.receive(opened.plaintext, now_ms)
        except WireError as error:
            counters[error.reason] += 1
            return
        session.heard_ms = now_ms
        self._measure(session, now_ms)
        if session.record >= 0:
            # A supervisor that takes over must know this datagram for seen.
            self._context.write_row(session)
        if pending is not None:
            self._confirm(session, pending, received, now_ms)
            return
        self.opened_under(session, opened.phase_number, now_ms)
        for message in received:
            self._on_message(session, index, message, now_ms)
        self._context.flush(session, now_ms)

    def _confirm(self, session: LiveSession, pending: Pending, received: list[Message], now_ms: int) -> None:
        """The keys are proven. Without KEM that is enough; with one the session begins with its first rekey."""
        if session.demanded_kem is Kem.MLKEM768:
            inits = [message.value for message in received if message.kind is ControlType.REKEY_INIT]
            self._acknowledge_pending(session, pending, now_ms)
            if not inits:
                return
            try:
                if session.next_secrets is None:
                    self._rekeying.begin(session, inits[0], now_ms)
            except WireError as error:
                self._context.counters[error.reason] += 1
                return
            received = [message for message in received if message.kind is not ControlType.REKEY_INIT]
        if not self._handshakes.confirm(pending, now_ms):
            return
        session.measured(0, now_ms - pending.answered_ms)
        for message in received:
            self._on_message(session, 0, message, now_ms)

    def opened_under(self, session: LiveSession, phase_number: int, now_ms: int) -> None:
        """Something authentic came under a phase: the client has it, so what waited for that alone goes out."""
        if self._rekeying.on_opened(session, phase_number, now_ms) and session.config_due_ms is None:
            self.configure(session, now_ms)

    def _acknowledge_pending(self, session: LiveSession, pending: Pending, now_ms: int) -> None:
        """ACKs of chunks go where the RESPONSE went: there is no binding yet."""
        for plaintext in session.channel.plaintexts_to_send(now_ms):
            datagram = session.control.seal(0, session.indexes.ids[0], plaintext)
            self._context.send(pending.arrival, datagram)

    @staticmethod
    def _measure(session: LiveSession, now_ms: int) -> None:
        """What was acknowledged went out on the active path: a bind makes what was said before tell nothing."""
        active = session.bindings.active
        for round_trip_ms in session.channel.take_round_trips():
            if active is not None:
                session.measured(active.index, round_trip_ms)

    def _on_message(self, session: LiveSession, index: int, message: Message, now_ms: int) -> None:
        try:
            if message.kind is ControlType.HEALTH:
                self._on_health(session, index, messages.Health.decode(message.value), now_ms)
            elif message.kind is ControlType.REKEY_INIT and session.machine.state is not State.BIRTH:
                self._rekeying.on_init(session, message.value, now_ms)
            elif message.kind is ControlType.CLOSE:
                reason = messages.decode_reason(message.value)
                self._terminate(session, Reason.PEER_CLOSED, now_ms, {"client_reason": reason})
            else:
                self._context.counters["unexpected_control"] += 1
        except WireError as error:
            self._context.counters[error.reason] += 1

    def _on_health(self, session: LiveSession, index: int, health: messages.Health, now_ms: int) -> None:
        machine, active = session.machine, session.bindings.active
        version = machine.state_version
        session.client_version = health.state_version
        if health.rtt_us != NOT_MEASURED_US and active is not None and active.index == index:
            session.measured(index, health.rtt_us / 1000)
            draining.settle(self._context, session)
        ours = active is not None and active.index == index
        if health.proposed and ours and split_version(health.state_version).epoch == session.epoch:
            self._commit_quality(session, State.from_number(health.proposed), health, now_ms)
        if machine.state is State.BIRTH:
            return
        if health.state_version == machine.state_version:
            session.state_repeat_ms = None
        elif machine.state_version == version:
            self.announce(session, now_ms)

    def _commit_quality(
        self, session: LiveSession, proposed: State, health: messages.Health, now_ms: int
    ) -> None:
        """The client proposes a quality state; the gateway commits it if the policy and the table have the step."""
        machine, policy = session.machine, session.policy
        if machine.state is proposed or not machine.allows(_STEP.get(proposed, Reason.PEER_CLOSED), proposed):
            return
        signals = Signals(
            loss=health.loss_ppm / 1_000_000,
            loss_samples=TOLD,
            latency_ms=_milliseconds(health.rtt_p95_us),
            jitter_ms=_milliseconds(health.jitter_us),
        )
        claim = Claim(proposed.value, signals, health.limited)
        before, since_ms = machine.state.value, machine.since_ms
        commitment = commit(policy, claim, before, since_ms, now_ms)
        if not commitment.reason:
            self._context.counters["health_not_committed"] += 1
            if session.uncommitted == (machine.state_version, proposed):
                return
            session.uncommitted = (machine.state_version, proposed)
        record = CommitRecord(policy.version, now_ms, before, since_ms, claim, commitment)
        self._context.narrator.committed(session, record)
        if commitment.reason:
            details = {"loss_ppm": health.loss_ppm, "rtt_us": health.rtt_us, "jitter_us": health.jitter_us}
            machine.apply(Reason(commitment.reason), now_ms, proposed, details)
            self.after_transition(session, now_ms)

    # What the client is told

    def attached(self, session: LiveSession, now_ms: int) -> None:
        """HANDSHAKE_OK: answer the first rekey if there was one, or configure at once."""
        if session.demanded_kem is Kem.MLKEM768:
            self._rekeying.respond(session, now_ms)
        else:
            self.configure(session, now_ms)
        self.after_transition(session, now_ms)

    def configure_in_turn(self, session: LiveSession, now_ms: int) -> None:
        """CONFIG for a session out of the store: now, or when `handle_timer` finds it due."""
        self._turns_over_ms = max(self._turns_over_ms, now_ms) + CONFIG_TURN_MS
        due_ms = self._turns_over_ms - CONFIGS_AT_ONCE * CONFIG_TURN_MS
        if due_ms <= now_ms:
            self.configure(session, now_ms)
        else:
            session.config_due_ms, session.ticketed = due_ms, session.indexes.highest_installed

    def handle_timer(self, session: LiveSession, now_ms: int) -> None:
        if session.config_due_ms is not None and now_ms >= session.config_due_ms:
            self.configure(session, now_ms)
        if session.state_repeat_ms is not None and now_ms >= session.state_repeat_ms:
            self.announce(session, now_ms)

    def configure(self, session: LiveSession, now_ms: int, *, again: bool = False) -> None:
        """CONFIG: what the client is given; again when it lacks a ticket for an installed index, or when something else
        in it has changed (`again`)."""
        indexes = session.indexes
        if session.configured and not again and indexes.highest_installed <= session.ticketed:
            return
        if session.config_id is not None:
            # In place of the last one, which may not have arrived yet.
            session.channel.withdraw(session.config_id)
        session.config_due_ms = None
        ticketed = indexes.ids | indexes.above(TICKETS_AHEAD)
        session.configured, session.ticketed = True, max(ticketed)
        facts = self._context.facts
        config = messages.Config(
            addresses=list(session.prefixes),
            routes=list(facts.routes),
            mtu=facts.mtu,
            policy=messages.raw_json(session.policy.to_wire()),
            dns=list(facts.dns),
            tickets={str(index): self._ticket(session, its_id) for index, its_id in ticketed.items()},
            reset_token=_base64(tickets.reset_token(facts.fleet_key, session.session_id)),
        )
        session.config_id = session.channel.send(ControlType.CONFIG, messages.encode_config(config), now_ms)

    def renew(self, session: LiveSession, now_ms: int) -> None:
        """The window of indexes may have moved: a client that lacks tickets gets them. One whose turn is still to come
        has those that it came with."""
        moved = session.indexes.highest_installed - session.ticketed
        waits = session.config_due_ms is not None and moved <= TICKETS_AHEAD
        configured = session.configured or session.config_due_ms is not None
        if configured and not waits and session.bindings.active is not None:
            self.configure(session, now_ms)
            self._context.flush(session, now_ms)

    def ask_to_switch(self, session: LiveSession, reason: Reason, now_ms: int) -> None:
        """SWITCH: the client is to move to another path; `reason` is the cause of the REQUEST that is wished for."""
        session.switch_id = session.channel.send(ControlType.SWITCH, reason.value.encode(), now_ms)
        self._context.narrator.asked_to_switch(session, reason)
        self._context.flush(session, now_ms)

    def _ticket(self, session: LiveSession, steering_id: bytes) -> str:
        context = self._context
        nonce = context.random_bytes(NONCE_SIZE)
        return _base64(tickets.seal_ticket(context.facts.fleet_key, steering_id, session.session_id, nonce))

    def after_transition(self, session: LiveSession, now_ms: int) -> None:
        """Every step: the page knows it, the clocks run by it, the client is told."""
        policy, machine = session.policy, session.machine
        session.ttl = session.ttl.entered(
            machine.state,
            machine.active_bindings,
            now_ms,
            policy.transport_loss_ttl_ms,
            policy.recovery_window_ms,
        )
        self._context.write_row(session)
        self.announce(session, now_ms)

    def announce(self, session: LiveSession, now_ms: int) -> None:
        machine = session.machine
        if session.bindings.active is None:
            # Nowhere to send it, and the ACK of the next bind says it: waiting, it would be due for ever.
            session.state_repeat_ms = None
            return
        state = messages.State(machine.state_version, machine.state.number, session.last_reason)
        session.channel.send(ControlType.STATE, state.encode(), now_ms)
        session.state_repeat_ms = now_ms + CONTROL_STATE_REPEAT_MS
        self._context.flush(session, now_ms)


def _milliseconds(us: int) -> float | None:
    return None if us == NOT_MEASURED_US else us / 1000


def _base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode()
