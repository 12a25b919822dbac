"""GatewayCore: the gateway's decisions without sockets or clocks.

    receive_datagram(data, arrival, now_ms)     what came to the supervisor's two slots
    worker_report(slot, report, now_ms)         what a worker said
    worker_replaced(slot, now_ms)               a fresh process works as `slot`: give it its sessions again
    get_timer() / handle_timer(now_ms)          deadlines
    effects()                                   what is to be done now, in order

Times are CLOCK_BOOTTIME milliseconds. Everything unauthenticated ends in a counter and changes nothing else.
"""

from collections.abc import Sequence

from jvpn.protocol.constants import PacketType
from jvpn.protocol.wire import Header, WireError
from jvpn.session.machine import Reason, State
from jvpn.supervisor import departing
from jvpn.supervisor.agenda import Agenda
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.controlling import Controlling
from jvpn.supervisor.effects import Effect, ForgetOthers
from jvpn.supervisor.handshakes import Handshakes
from jvpn.supervisor.live_session import LiveSession
from jvpn.supervisor.node_drain import NodeDrain
from jvpn.supervisor.other_nodes import OtherNodes
from jvpn.supervisor.peers import Peer
from jvpn.supervisor.policies import Applied, Mode, Policies, PolicySet
from jvpn.supervisor.reattaching import Reattaching
from jvpn.supervisor.rekeying import Rekeying
from jvpn.supervisor.sweeping import Sweeping
from jvpn.supervisor.takeover import Takeover
from jvpn.supervisor.upkeep import Upkeep
from workers import commands

#: Sessions whose deadlines one turn looks after: when thousands come at once, sockets are looked at in between.
DEADLINES_A_TURN = 256


class GatewayCore:
    def __init__(self, context: GatewayContext) -> None:
        self.context = context
        self._agenda = Agenda[LiveSession]()
        self._handshakes = Handshakes(context, self._on_attached, self._not_born)
        self._reattaching = Reattaching(context)
        self._takeover = Takeover(context, self._reattaching, self._on_taken)
        #: What nobody comes back for leaves the store, once `begin` was called.
        self.sweeping = Sweeping(context, self._takeover.claiming)
        self._rekeying = Rekeying(context)
        self._controlling = Controlling(context, self._handshakes, self._rekeying, self.terminate)
        self._policies = Policies(context, self._handshakes, self._controlling, self.terminate)
        #: What the other nodes of a fleet do to sessions of this one.
        self.others = OtherNodes(context, self.terminate)
        self.drain = NodeDrain(context, self.switch)
        self._upkeep = Upkeep(context, self._controlling, self._rekeying, self.terminate)

    def effects(self) -> list[Effect]:
        """What is to be done, in order; the list is the caller's from now on."""
        return self.context.take_effects()

    # Datagrams

    def receive_datagram(self, data: bytes, arrival: Arrival, now_ms: int) -> None:
        counters = self.context.counters
        try:
            header = Header.decode(data)
        except WireError as error:
            counters[error.reason] += 1
            return
        if header.type is PacketType.HANDSHAKE_INIT:
            self._handshakes.receive_init(data, arrival, now_ms)
            return
        found = self.context.by_steering_id.get(header.steering_id)
        if found is None:
            if header.type is PacketType.REATTACH_REQUEST:
                self._takeover.receive_request(data, arrival, now_ms)
            else:
                counters["unknown_id"] += 1
            return
        session, index = found
        if header.type is PacketType.REATTACH_REQUEST:
            self._on_request(session, index, data, arrival, now_ms)
        elif header.type is PacketType.CONTROL:
            self._controlling.receive(session, index, data, arrival, now_ms)
        else:
            counters["unexpected_type"] += 1

    def _on_taken(self, session: LiveSession, now_ms: int) -> None:
        self._controlling.configure_in_turn(session, now_ms)
        self._controlling.after_transition(session, now_ms)

    def _on_request(
        self, session: LiveSession, index: int, data: bytes, arrival: Arrival, now_ms: int
    ) -> None:
        if session.record < 0:
            self.context.counters["not_attached"] += 1
            return
        reason = self._reattaching.receive_request(session, index, data, arrival, now_ms)
        failures = session.policy.security_failures_before_terminate
        if reason is None and failures and session.security_failures >= failures:
            reason = Reason.SECURITY_TERMINATED
        if reason is not None:
            self.terminate(session, reason, now_ms)
        else:
            self._controlling.renew(session, now_ms)

    # Attaching, ending

    def _on_attached(self, session: LiveSession, older: LiveSession | None, now_ms: int) -> None:
        if older is not None:
            self.terminate(older, Reason.SUPERSEDED, now_ms, {"by": session.hex_id})
        self.context.do(ForgetOthers(session.peer.public_key, session.session_id))
        self._controlling.attached(session, now_ms)

    def terminate(
        self, session: LiveSession, reason: Reason, now_ms: int, details: dict[str, object] | None = None
    ) -> None:
        """End a session for good: tell the client, then take it out of the maps, the worker and the store."""
        context = self.context
        if session.machine.terminated:
            return
        context.close(session, reason.value, now_ms)
        session.machine.apply(reason, now_ms, State.TERMINATED, details)
        session.bindings = session.bindings.drop()
        context.close_indexes(session)
        unborn = context.confirming.pop(session.session_id, None) is not None
        if session.given_to_worker:
            context.write_row(session)
            context.tell(session.slot, commands.RemoveSession(context.next_seq(), session.record))
            self._leave_prefixes(session, unborn)
        context.dismiss(session)
        context.forget(session.session_id, session.machine.state_version)
        context.free_records.append(session.record)

    def switch(self, session: LiveSession, reason: Reason, now_ms: int) -> None:
        """Ask the client to move to another path; it is the client who does, by a REQUEST of that cause."""
        self._controlling.ask_to_switch(session, reason, now_ms)

    def resume(self, session: LiveSession, now_ms: int) -> None:
        """A session of an earlier supervisor, in force at its worker: its client is told everything once more."""
        if not session.configured:
            self._controlling.configure(session, now_ms)
        if session.next_secrets is not None:
            self._rekeying.respond(session, now_ms)
        self._controlling.announce(session, now_ms)

    def _leave_prefixes(self, session: LiveSession, unborn: bool) -> None:
        """Return traffic goes to the peer's other session if there is one, else nowhere."""
        context = self.context
        context.cede_peer(session)
        other = context.hand_prefixes(session)
        if other is not None and unborn:
            # It had taken the older session's routes in the worker already.
            context.tell(other.slot, other.add_command(context.next_seq()))

    def _not_born(self, session: LiveSession, why: str, now_ms: int) -> None:
        """The store would not keep a new session: fail closed."""
        self.terminate(session, Reason.HANDSHAKE_FAIL, now_ms, {"why": why})

    def apply_policies(self, found: PolicySet, mode: Mode, by: str, now_ms: int) -> Applied:
        """Configuration and policy files have been read again: what they say now holds for new sessions, and with
        `strict` for those that there are."""
        return self._policies.apply(found, mode, by, now_ms)

    def reset_clock(self, peer: Peer, by: str) -> None:
        """An operator has had the store forget the peer's handshake timestamp: so does this gateway."""
        forgot_us = self.context.peers.newest_us(peer.public_key)
        self._handshakes.forget_clock(peer)
        self.context.narrator.clock_reset(peer, forgot_us, by)

    def find(self, hex_prefix: str) -> list[LiveSession]:
        """Sessions whose id begins with these hex digits."""
        return [s for s in self.context.sessions.values() if s.hex_id.startswith(hex_prefix.lower())]

    def in_force(
        self, session: LiveSession, seq: int, reports: Sequence[commands.IndexReport], now_ms: int
    ) -> None:
        """The worker has carried out the bind of command `seq`: ACK to the REQUESTs of its attempt that came before."""
        self._reattaching.in_force(session, seq, reports, now_ms)

    # Workers

    def worker_report(self, slot: int, report: commands.Report, now_ms: int) -> None:
        if isinstance(report, commands.Done):
            waiting = self.context.awaiting.pop(report.seq, None)
            if report.error:
                self.context.counters["worker_refused"] += 1
                self.context.worker_errors.append(f"worker {slot}: {report.error}")
            elif waiting is not None:
                waiting[1](now_ms, report.reports)
        elif isinstance(report, commands.Datagram):
            arrival = Arrival(report.socket, report.local, report.remote)
            self.receive_datagram(report.data, arrival, now_ms)
        elif isinstance(report, commands.IndexSeen):
            self._on_index_seen(report, now_ms)
        elif isinstance(report, commands.PhaseSeen):
            self._on_phase_seen(report, now_ms)

    def _on_phase_seen(self, report: commands.PhaseSeen, now_ms: int) -> None:
        session = self.context.by_record.get(report.record)
        if session is not None:
            self._controlling.opened_under(session, report.phase, now_ms)
            self.context.flush(session, now_ms)

    def _on_index_seen(self, report: commands.IndexSeen, now_ms: int) -> None:
        session = self.context.by_record.get(report.record)
        if session is not None and session.indexes.saw(report.index):
            # A supervisor that takes over must not close what the client is probing on.
            self.context.write_row(session)
            self.context.refresh_indexes(session)
            self._controlling.renew(session, now_ms)

    def worker_replaced(self, slot: int, now_ms: int) -> None:
        """A new process works as `slot`. Its sessions get a higher generation, so no nonce repeats, and go on."""
        context = self.context
        orphaned = [then for of, then in context.awaiting.values() if of == slot]
        context.awaiting = {seq: entry for seq, entry in context.awaiting.items() if entry[0] != slot}
        last_seq = 0
        unborn = [session for session, _expires_ms in context.confirming.values()]
        for session in [*context.sessions.values(), *unborn]:
            if session.slot != slot or not session.given_to_worker:
                continue
            session.generation += 1
            context.write_row(session)
            last_seq = context.next_seq()
            context.tell(slot, session.add_command(last_seq))
            if session not in unborn:
                context.narrator.transferred(session, slot)
        context.tell(slot, commands.Serve(context.next_seq()))

        def catch_up(done_ms: int, _reports: Sequence[commands.IndexReport]) -> None:
            for then in orphaned:
                then(done_ms, [])

        if last_seq and orphaned:
            context.awaiting[last_seq] = (slot, catch_up)
        else:
            catch_up(now_ms, [])

    # Time

    def get_timer(self) -> int | None:
        """When `handle_timer` is due, ms; None: nothing waits."""
        touched, self.context.touched = self.context.touched, set()
        for session in touched:
            if self.context.sessions.get(session.session_id) is session:
                self._agenda.put(session, self._upkeep.due_ms(session))
            else:
                self._agenda.forget(session)
        due = [self._handshakes.get_timer(), self._agenda.next_ms(), self.sweeping.get_timer()]
        due += [expires_ms for _session, expires_ms in self.context.confirming.values()]
        due += [due_ms for due_ms, _datagram in self.context.farewells]
        due += [departing.get_timer(self.context), self.drain.get_timer(), self.context.moves.get_timer()]
        return min((at for at in due if at is not None), default=None)

    def handle_timer(self, now_ms: int) -> None:
        self._handshakes.handle_timer(now_ms)
        self._takeover.handle_timer(now_ms)
        self.sweeping.handle_timer(now_ms)
        self.context.say_farewells(now_ms)
        departing.handle_timer(self.context, now_ms)
        self.drain.handle_timer(now_ms)
        self.context.worker_errors += self.context.moves.lines(now_ms)
        for session, expires_ms in list(self.context.confirming.values()):
            if expires_ms <= now_ms:
                self.context.counters["worker_timeout"] += 1
                self.terminate(session, Reason.HANDSHAKE_TIMEOUT, now_ms)
        self.get_timer()
        for session in self._agenda.take(now_ms, DEADLINES_A_TURN):
            self.context.touched.add(session)
            if self.context.sessions.get(session.session_id) is session:
                self._upkeep.handle_timer(session, now_ms)
