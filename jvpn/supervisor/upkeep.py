"""The deadlines of one session: lifetimes, silence, repeats, draining, keys, what the store is to have."""

from collections.abc import Callable

from jvpn.policy.health import silent_at_gateway_ms
from jvpn.session.machine import Reason, State
from jvpn.session.ttl import store_heartbeat_ms
from jvpn.supervisor import draining
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.controlling import Controlling
from jvpn.supervisor.key_use import KeyUse
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.rekeying import Rekeying

#: Store records follow a bind within this.
STORE_LAG_MS = 50


class Upkeep:
    """`terminate(session, reason, now_ms)` ends a session for good."""

    def __init__(
        self,
        context: GatewayContext,
        controlling: Controlling,
        rekeying: Rekeying,
        terminate: Callable[[LiveSession, Reason, int], None],
    ) -> None:
        self._context = context
        self._controlling = controlling
        self._rekeying = rekeying
        self._key_use = KeyUse(context)
        self._terminate = terminate

    def due_ms(self, session: LiveSession) -> int:
        """The earliest deadline of one session."""
        due_ms = session.ttl.next_deadline_ms()
        for at_ms in (
            session.state_repeat_ms,
            session.config_due_ms,
            None if self._context.holds(session) else session.channel.get_timer(),
            session.bindings.drain_until_ms or None,
            self._silence_deadline_ms(session),
            self._rekeying.get_timer(session),
            self._key_use.get_timer(session),
            self._store_deadline_ms(session),
        ):
            if at_ms is not None and at_ms < due_ms:
                due_ms = at_ms
        return due_ms

    def handle_timer(self, session: LiveSession, now_ms: int) -> None:
        """Do what is due by now."""
        self._expire(session, now_ms)
        if session.machine.terminated:
            return
        self._controlling.handle_timer(session, now_ms)
        due = session.channel.get_timer()
        if due is not None and due <= now_ms:
            self._context.flush(session, now_ms)
        draining.finish(self._context, session, now_ms)
        self._rekeying.handle_timer(session, now_ms)
        self._key_use.handle_timer(session, now_ms)
        self._store_changes(session, now_ms)

    def _expire(self, session: LiveSession, now_ms: int) -> None:
        machine, policy = session.machine, session.policy
        if machine.active_bindings and now_ms >= (self._silence_deadline_ms(session) or now_ms + 1):
            heard_ms = self._heard_ms(session)
            if now_ms >= silent_at_gateway_ms(policy, heard_ms):
                machine.apply(Reason.TRANSPORT_DEAD, now_ms, details={"silent_ms": now_ms - heard_ms})
                self._drop_binding(session, now_ms)
            else:
                session.heard_ms = heard_ms
        terminates = policy.on_recovery_window_exceeded == "terminate"
        fired = session.ttl.fired(machine.state, machine.active_bindings, now_ms, terminates)
        if fired is None:
            return
        # Both ends of a recovery window are in the table: where the policy names one, that is the one meant.
        if fired.to is State.TERMINATED or (fired.to is None and fired.reason is not Reason.REATTACH_FAIL):
            self._terminate(session, fired.reason, now_ms)
            return
        machine.apply(fired.reason, now_ms, fired.to)
        self._controlling.after_transition(session, now_ms)

    def _store_deadline_ms(self, session: LiveSession) -> int | None:
        """A change is due soon; without one, that a session with a binding lives."""
        if session.dirty_ms is not None:
            return session.dirty_ms + STORE_LAG_MS
        if not session.machine.active_bindings:
            return None
        return session.stored_ms + store_heartbeat_ms(session.policy.transport_loss_ttl_ms)

    def _store_changes(self, session: LiveSession, now_ms: int) -> None:
        """What a bind changed is durable soon after, never before its ACK: nothing is lost but a version count."""
        due_ms = self._store_deadline_ms(session)
        if due_ms is None or now_ms < due_ms:
            return
        session.dirty_ms = None
        self._context.save_changes(session, now_ms)

    def _heard_ms(self, session: LiveSession) -> int:
        """When anything authenticated last came from the client, at the supervisor or at its worker."""
        activity = self._context.activity.read_activity(session.record)
        return max(session.heard_ms, activity.heard_ns // 1_000_000)

    def _silence_deadline_ms(self, session: LiveSession) -> int | None:
        if not session.machine.active_bindings:
            return None
        return silent_at_gateway_ms(session.policy, session.heard_ms)

    def _drop_binding(self, session: LiveSession, now_ms: int) -> None:
        context, old = self._context, session.bindings.active
        session.bindings = session.bindings.drop()
        # From now on counts what the store is to count too, should this host die.
        session.note_change(now_ms)
        self._controlling.after_transition(session, now_ms)
        if old is not None and old.index in session.indexes.ids:
            context.put_id(session, old.index)
        context.tell(session.slot, session.rebind_command(context.next_seq()))
