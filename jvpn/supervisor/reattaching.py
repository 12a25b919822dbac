"""REATTACH_REQUEST at the gateway: judge it, bind, answer.

The judgement is `jvpn.session.ownership.judge`; here its facts are gathered and its verdict carried out. At a bind the
order is: shared page → steering entry → worker REBIND → ACK, so that no ACK promises a path that is not there yet.
"""

import hmac
from collections.abc import Sequence

from jvpn.policy.reauthentication import must_prove_anew
from jvpn.protocol import paths, reattach
from jvpn.protocol.addresses import endpoint_text, to_text
from jvpn.protocol.constants import NO_INDEX
from jvpn.protocol.reattach import NO_CHALLENGE, Ack, Cause, Fail, Report, Request, Result
from jvpn.protocol.wire import WireError
from jvpn.session.machine import LOSS_CAUSES, VOLUNTARY_CAUSES, Reason
from jvpn.session.ownership import (
    ALLOWED,
    Code,
    Kind,
    NodeFacts,
    PolicyFacts,
    RequestFacts,
    SessionFacts,
    Verdict,
    judge,
)
from jvpn.session.record import Binding
from jvpn.supervisor.arrival import Arrival, Fresh, PathFact, path_fact
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.draining import drain_ms_of
from jvpn.supervisor.history import LastSwitch
from jvpn.supervisor.live_session import Asked, LiveSession
from workers.commands import AddSession, IndexReport, Rebind

NS_PER_MS = 1_000_000
#: What the policy's limits of switches are for; who leaves a node that drains was asked to.
CHOICES = VOLUNTARY_CAUSES - {Reason.NODE_DRAIN}

_REASONS = {cause: Reason[cause.name] for cause in Cause}
_COUNTERS = {kind: f"reattach_{kind.value}" for kind in Kind}


class Reattaching:
    def __init__(self, context: GatewayContext) -> None:
        self._context = context

    def receive_request(
        self, session: LiveSession, index: int, datagram: bytes, arrival: Arrival, now_ms: int
    ) -> Reason | None:
        """Judge one REQUEST on `index`. Returns the reason to terminate the session with, if the verdict has one."""
        if not session.admits(index, now_ms):
            self._context.counters["reattach_rate"] += 1
            return None
        try:
            request = reattach.open_request(session.secrets, index, datagram)
        except WireError as error:
            self._context.counters[error.reason] += 1
            self._context.narrator.security(session, "BAD_PROOF", remote_text(arrival), now_ms)
            return None
        if session.indexes.saw(index):
            self._context.refresh_indexes(session)
        asked = Asked(session, index, request, arrival, self.fresh(session.session_id, arrival, now_ms))
        return self.receive_proven(asked, now_ms)

    def receive_proven(self, asked: Asked, now_ms: int) -> Reason | None:
        """The rest of `receive_request`: of a REQUEST that has opened, on an index of the window."""
        if self._refused_before(asked):
            return None
        verdict = self._judge(asked, now_ms)
        self._carry_out(asked, verdict, now_ms)
        return verdict.terminate

    def _refused_before(self, asked: Asked) -> bool:
        """A refusal is final for its attempt: a copy that comes later neither binds nor counts a second time."""
        session, attempt = asked.session, asked.request.attempt
        refused = session.refused
        if refused is None or not session.last_attempt < attempt <= refused.attempt:
            return False
        self._context.counters["reattach_refused_before"] += 1
        if attempt == refused.attempt:
            self._send_fail(asked, refused)
        return True

    def _judge(self, asked: Asked, now_ms: int) -> Verdict:
        session, request = asked.session, asked.request
        machine, ttl = session.machine, session.ttl
        node_id = self._context.facts.node_id
        return judge(
            RequestFacts(
                admitted=True,
                known=True,
                proven=True,
                challenged=self.challenged(session.session_id, request, asked.arrival, asked.fresh),
                attempt=request.attempt,
                version=request.state_version,
                cause=_REASONS[request.cause],
            ),
            SessionFacts(
                state=machine.state,
                version=machine.state_version,
                bindings=machine.active_bindings,
                owner_node=node_id,
                last_bound_attempt=session.last_attempt,
                bound_in_epoch=session.bound_in_epoch,
                session_deadline_ms=ttl.session_deadline_ms,
                loss_deadline_ms=ttl.loss_deadline_ms,
            ),
            NodeFacts(node_id, self._context.fenced(now_ms)),
            now_ms,
            self._policy_facts(asked, now_ms),
        )

    def fresh(self, session_id: bytes, arrival: Arrival, now_ms: int) -> Fresh:
        """The challenge of the path that something came over, valid for as long as two slots."""
        slot = paths.challenge_slot(now_ms * NS_PER_MS)
        return Fresh(slot, self._challenge(session_id, arrival, slot))

    def challenged(self, session_id: bytes, request: Request, arrival: Arrival, fresh: Fresh) -> bool:
        """Whether the REQUEST echoes `fresh` or the challenge before it of the path that it came over."""
        if hmac.compare_digest(request.challenge, fresh.challenge):
            return True
        if request.challenge == NO_CHALLENGE or not fresh.slot:
            return False
        before = self._challenge(session_id, arrival, fresh.slot - 1)
        return hmac.compare_digest(request.challenge, before)

    def _challenge(self, session_id: bytes, arrival: Arrival, slot: int) -> bytes:
        remote, local = arrival.remote, arrival.local
        ends = (remote.address, remote.port, local.address, local.port)
        return paths.challenge(self._context.facts.challenge_key, session_id, *ends, arrival.transport, slot)

    def _policy_facts(self, asked: Asked, now_ms: int) -> PolicyFacts:
        session, request, arrival = asked.session, asked.request, asked.arrival
        if request.transport is not arrival.transport or not arrival.allowed_by(session.policy):
            return PolicyFacts(Code.TRANSPORT_NOT_ALLOWED)
        if self._context.draining and request.cause is Cause.NODE_DRAIN:
            return PolicyFacts(Code.SAME_NODE)
        if must_prove_anew(session.policy, session.proven_from, to_text(arrival.remote.address)):
            return PolicyFacts(Code.REAUTHENTICATE)
        if _REASONS[request.cause] in CHOICES:
            wait_ms = session.switches.wait_ms(session.policy, now_ms)
            return PolicyFacts(Code.SWITCH_RATE_LIMITED, wait_ms) if wait_ms else ALLOWED
        wait_ms = session.binds.wait_ms(now_ms)
        return PolicyFacts(Code.RATE_LIMITED, wait_ms) if wait_ms else ALLOWED

    # Carrying out a verdict

    def _carry_out(self, asked: Asked, verdict: Verdict, now_ms: int) -> None:
        context, session = self._context, asked.session
        context.counters[_COUNTERS[verdict.kind]] += 1
        if verdict.security_event is not None:
            violation = verdict.security_event.value
            context.narrator.security(session, violation, remote_text(asked.arrival), now_ms)
        if verdict.counts_against_session:
            session.security_failures += 1
            context.write_row(session)
        if verdict.check_fence:
            context.doubt_lease()
        if verdict.kind is Kind.PENDING:
            self.acknowledge(asked, Result.PENDING, now_ms)
        elif verdict.kind is Kind.SAME_ACK:
            self._same_ack(asked, now_ms)
        elif verdict.kind is Kind.FAIL:
            self._fail(asked, verdict)
        elif verdict.kind is Kind.BIND:
            self._bind(asked, verdict, now_ms)

    def _same_ack(self, asked: Asked, now_ms: int) -> None:
        """Until the worker has carried the bind out there is nothing to promise: each path that asks has its answer
        then, at most `max_candidates` of them."""
        session = asked.session
        if session.bind_seq not in self._context.awaiting:
            self.acknowledge(asked, Result.BOUND, now_ms)
        elif len(session.asking) < session.policy.max_candidates:
            session.asking.setdefault(asked.way, asked)

    def in_force(self, session: LiveSession, seq: int, reports: Sequence[IndexReport], now_ms: int) -> None:
        """The worker has carried out the bind of command `seq`: ACK(BOUND) to all paths that have asked for it."""
        if session.bind_seq != seq:
            return
        session.bound_reports = tuple(Report(r.index, r.next_counter, r.missing) for r in reports)
        asking, session.asking = session.asking, {}
        for asked in asking.values():
            self.acknowledge(asked, Result.BOUND, now_ms)

    def _fail(self, asked: Asked, verdict: Verdict) -> None:
        context, session, request = self._context, asked.session, asked.request
        if verdict.reason_code is Code.NOT_OWNER and verdict.retry_after_ms:
            # It decides nothing about the attempt: the fence may move yet, and another node may bind it.
            self._send_fail(asked, self._made(asked, verdict))
            return
        path = PathFact(asked.index, asked.arrival.transport, remote_text(asked.arrival))
        if context.narrator.attempt(session, request, path):
            context.narrator.result(session, request, verdict)
            if verdict.denied_switch:
                context.narrator.denied(session, request, verdict)
        session.refused = self._made(asked, verdict)
        context.write_row(session)
        self._send_fail(asked, session.refused)

    @staticmethod
    def _made(asked: Asked, verdict: Verdict) -> Fail:
        version = asked.session.machine.state_version
        return Fail(asked.request.attempt, version, verdict.retry_after_ms, verdict.reason_code.value)

    def _send_fail(self, asked: Asked, fail: Fail) -> None:
        session, salt = asked.session, self._context.random_bytes(16)
        steering_id = session.indexes.ids[asked.index]
        self._context.send(asked.arrival, reattach.seal_fail(session.secrets, salt, steering_id, fail))

    def _bind(self, asked: Asked, verdict: Verdict, now_ms: int) -> None:
        session, index, request, arrival = asked.session, asked.index, asked.request, asked.arrival
        context, machine = self._context, session.machine
        old = session.bindings.active
        lost = (verdict.enter or _REASONS[request.cause]) in LOSS_CAUSES
        source = (to_text(arrival.remote.address), arrival.remote.port)
        local = (to_text(arrival.local.address), arrival.local.port)
        new = Binding(index, source, local, arrival.transport, now_ms)
        path, before = path_fact(new), None if old is None else path_fact(old)
        old_text, new_text = "" if before is None else before.text, path.text
        context.narrator.attempt(session, request, path)
        gap_ms = self._gap_ms(session, now_ms)
        if verdict.enter is not None:
            machine.apply(verdict.enter, now_ms, details={"old": old_text, "attempt": request.attempt})
        drain_ms = None if lost or old is None else drain_ms_of(session, old.index, index)
        same_path = old is not None and (old.index, old.source) == (new.index, new.source)
        if not same_path:
            session.bindings = session.bindings.bind(new, now_ms, drain_ms)
        pinned, listeners = session.pinned_indexes(), session.listeners
        session.listeners = {b: listeners[b] for b in pinned if b in listeners}
        session.listeners[index] = arrival.listener
        session.round_trips.keep(pinned)
        session.channel.expect(session.round_trips.patience_ms(index))
        session.last_attempt = request.attempt
        session.bound_in_epoch = True
        session.note_change(now_ms)
        session.heard_ms = now_ms
        if _REASONS[request.cause] in CHOICES:
            session.switches.times_ms.append(now_ms)
        else:
            session.binds.take(now_ms)
        machine.apply(Reason.REATTACH_OK, now_ms, details={"new": new_text, "attempt": request.attempt})
        session.ttl = session.ttl.entered(machine.state, machine.active_bindings, now_ms, 0, 0)
        session.last_switch = LastSwitch(now_ms, request.cause._name_, old_text, new_text, gap_ms)
        context.narrator.result(session, request, verdict)
        context.narrator.switched(session, request, before, path, gap_ms, lost)
        # Page first, then the steering entry, then the worker; the old path closes after the new one has opened.
        context.write_row(session)
        context.put_id(session, index)
        command: AddSession | Rebind
        if session.given_to_worker:
            resend = [IndexReport(*report) for report in request.reports] if lost else None
            command = session.rebind_command(context.next_seq(), resend, report=True)
        else:
            # It comes from the store: its worker is given it as it is bound, and has nothing to report or to resend.
            command, session.given_to_worker = session.add_command(context.next_seq()), True
        session.bind_seq, session.bound_reports = command.seq, ()
        session.asking = {asked.way: asked}

        def in_force(done_ms: int, reports: Sequence[IndexReport]) -> None:
            self.in_force(session, command.seq, reports, done_ms)
            # What was said to the old path, and what has waited for this ACK.
            session.channel.move(done_ms)
            context.flush(session, done_ms)

        context.tell_and_ask(session.slot, command, in_force)
        if old is not None and old.index != index and old.index in session.indexes.ids:
            context.put_id(session, old.index)
        # Only now: the worker refuses to forget the index that it is bound to.
        context.refresh_indexes(session)

    def _gap_ms(self, session: LiveSession, now_ms: int) -> int | None:
        """Since when nothing has come of the session's DATA; None where none has come yet at this node."""
        if not session.given_to_worker:
            # Its record may still say what came for the session that had it before.
            return None
        received_ms = self._context.activity.read_activity(session.record).received_ns // 1_000_000
        return now_ms - received_ms if received_ms else None

    def acknowledge(self, asked: Asked, result: Result, now_ms: int) -> None:
        session, index, request, arrival = asked.session, asked.index, asked.request, asked.arrival
        context, active = self._context, session.bindings.active
        if session.machine.terminated or index not in session.indexes.ids:
            return
        fresh = asked.fresh
        if fresh.slot != paths.challenge_slot(now_ms * NS_PER_MS):
            fresh = self.fresh(session.session_id, arrival, now_ms)
        ack = Ack(
            attempt=request.attempt,
            result=result,
            bound_index=active.index if active is not None else NO_INDEX,
            state_version=session.machine.state_version,
            highest_installed=session.indexes.highest_installed,
            observed_address=arrival.remote.address,
            observed_port=arrival.remote.port,
            challenge=fresh.challenge,
            reports=session.bound_reports if result is Result.BOUND else (),
        )
        salt = context.random_bytes(16)
        steering_id = session.indexes.ids[index]
        context.send(arrival, reattach.seal_ack(session.secrets, salt, steering_id, ack))


def remote_text(arrival: Arrival) -> str:
    return endpoint_text(arrival.remote.address, arrival.remote.port)
