"""One session as the client holds it: keys, view of the machine, paths, control channel, the reattach in flight."""

import base64
from collections.abc import Callable

from jvpn.agent.effects import ClearRecord, ConfigureTunnel, Effect, SendDatagram, TellWorker
from jvpn.agent.narrator import ClientNarrator, path_ref
from jvpn.agent.path_mtu import MtuProbing
from jvpn.agent.paths import NS, ClientPath, PathTable, Uplink
from jvpn.agent.reattaching import Attempt, Requester
from jvpn.agent.rekeying import ClientRekeying
from jvpn.policy.model import Policy, PolicyError
from jvpn.protocol import keys, messages, reattach
from jvpn.protocol.constants import CLOSE_REPEATS, TICKET_SIZE, Direction, PacketType
from jvpn.protocol.control import ControlChannel, ControlType, Message
from jvpn.protocol.handshake import HandshakeResult, Kem
from jvpn.protocol.indexes import window
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.reattach import Ack, Cause, Report, Result
from jvpn.protocol.sealed_control import SealedControl
from jvpn.protocol.tickets import is_reset
from jvpn.protocol.wire import WireError
from jvpn.session.machine import Reason, State, View, split_version
from jvpn.session.ttl import TtlClock
from workers import commands
from workers.page import Activity

CONFIRM_REPEAT_MS = 100
#: The shared page of a client has one record.
RECORD = 0
#: How often the page is read for traffic while a path is active: the grain of "DATA was sent".
ACTIVITY_TICK_MS = 20
#: How long a REQUEST waits for the worker's word of what has arrived; then it goes without: "unknown".
REPORT_WAIT_MS = 5


class ClientSession:
    """From the RESPONSE to TERMINATED. `seq()` numbers commands, `do` takes effects; times are CLOCK_BOOTTIME ms."""

    def __init__(
        self,
        result: HandshakeResult,
        uplinks: list[Uplink],
        first: Uplink,
        policy: Policy,
        narrator: ClientNarrator,
        activity: Callable[[int], Activity],
        random_bytes: Callable[[int], bytes],
        seq: Callable[[], int],
        do: Callable[[Effect], None],
        now_ms: int,
    ) -> None:
        self.session_id = result.session_id
        self.secrets = result.secrets
        self.epoch = result.epoch
        self.policy = policy
        self._narrator = narrator
        narrator.session_id = result.session_id
        narrator.policy_version = f"{policy.name}@{policy.version}"
        self._activity = activity
        self._seq = seq
        self._do = do
        self.view = View(result.epoch, narrator.transition)
        self.channel = ControlChannel()
        self.control = SealedControl(result.secrets, result.epoch, Direction.CLIENT_TO_GATEWAY)
        self.rekeying = ClientRekeying(result.secrets, result.kem, self.control, self.channel, random_bytes)
        self.paths = PathTable(result.secrets, policy, uplinks, window(0, policy.max_candidates)[-1])
        self.paths.open(first, now_ms, active=True)
        self.paths.active = first.number
        self.requester = Requester(result.secrets, self.paths, lambda: self.view.state_version)
        self.mtu_probing = MtuProbing(RECORD, self.paths, seq, do)
        self.ttl = TtlClock(now_ms + policy.session_ttl_ms)
        #: What had arrived when the path was lost, and the command whose Done will say so.
        self._reports: tuple[Report, ...] = ()
        self._report_seq = -1
        self.configured = False
        self.reset = False
        self._reset_token = b""
        self._tunnel: ConfigureTunnel | None = None
        self.ended: Reason | None = None
        self._next_confirm_ms = now_ms
        self._next_tick_ms = now_ms
        self._health_repeat_ms: int | None = None
        self._last_sent_ns = self._last_received_ns = 0
        self._last_probe_us = 0
        #: Of the data counters: one for each worker that has served this session.
        self._generation = 0
        #: Uplink number that the operator switched to: preference leaves it alone until that path is lost.
        self._chosen: int | None = None
        #: Why the gateway refused the last attempt, "" when it did not.
        self.refused = ""
        self._handled_ns = now_ms * NS

    # Datagrams

    def receive(self, kind: PacketType, data: bytes, uplink: int, now_ms: int) -> None:
        """A datagram of a known header. Raises WireError when it is refused; nothing has changed then."""
        path = self.paths.by_steering_id(data[4:12], uplink)
        if path is None:
            raise WireError("unknown_id")
        if kind is PacketType.CONTROL:
            opened = self.control.open(path.index, data)
            for message in self.channel.receive(opened.plaintext):
                self._on_message(message, now_ms)
            self._flush(now_ms)
        elif kind is PacketType.REATTACH_ACK:
            self._on_ack(reattach.open_ack(self.secrets, data), path, now_ms)
        elif kind is PacketType.REATTACH_FAIL:
            self._on_fail(reattach.open_fail(self.secrets, data), now_ms)
        elif kind is PacketType.RESET:
            self._on_reset(data, now_ms)
        else:
            raise WireError("unexpected_type")

    def _on_message(self, message: Message, now_ms: int) -> None:
        if message.kind is ControlType.CONFIG:
            self._on_config(messages.decode_config(message.value), now_ms)
        elif message.kind is ControlType.STATE:
            self._on_state(messages.State.decode(message.value), now_ms)
        elif message.kind is ControlType.REKEY_RESPONSE:
            self._on_rekey_response(message.value, now_ms)
        elif message.kind is ControlType.REKEY_REQUIRED:
            self.rekeying.begin(now_ms)
        elif message.kind is ControlType.CLOSE:
            code = messages.decode_reason(message.value)
            reason = Reason(code) if code in Reason.__members__ else Reason.PEER_CLOSED
            self.end(reason, now_ms, tell=False)
        else:
            raise WireError("unexpected_control")

    def _on_rekey_response(self, value: bytes, now_ms: int) -> None:
        self.rekeying.on_response(value, now_ms)
        self._schedule_rekey(now_ms)
        if self.configured:
            self._do(TellWorker(self._add_command()))
        # Whatever comes first under the new phase puts it in force at the gateway.
        self._send_health(now_ms)

    def _schedule_rekey(self, now_ms: int) -> None:
        self.rekeying.schedule(now_ms, self.policy.rekey_interval_ms, self._packets())

    def _packets(self) -> int:
        seen = self._activity(RECORD)
        return seen.sent_packets + seen.received_packets

    def _on_config(self, config: messages.Config, now_ms: int) -> None:
        try:
            self.policy = self.paths.policy = Policy.from_wire(bytes(config.policy))
        except PolicyError as error:
            raise WireError("bad_control") from error
        self._narrator.policy_version = f"{self.policy.name}@{self.policy.version}"
        self._take_tickets(config)
        tunnel = ConfigureTunnel(tuple(config.addresses), tuple(config.routes), config.mtu, tuple(config.dns))
        if tunnel != self._tunnel:
            self._tunnel = tunnel
            self._do(tunnel)
        if self.configured:
            return
        self.configured = True
        self._schedule_rekey(now_ms)
        self._do(TellWorker(self._add_command()))
        for uplink in self.paths.uplinks:
            if uplink.number not in self.paths.paths:
                self.paths.open(uplink, now_ms)
        self._tell_indexes()

    def _take_tickets(self, config: messages.Config) -> None:
        """Raises WireError when one is no ticket; nothing has changed then."""
        try:
            tickets = {int(n): base64.b64decode(text, validate=True) for n, text in config.tickets.items()}
            token = base64.b64decode(config.reset_token, validate=True)
        except ValueError as error:
            raise WireError("bad_control") from error
        if any(len(ticket) != TICKET_SIZE for ticket in tickets.values()):
            raise WireError("bad_control")
        self.requester.tickets, self._reset_token = tickets, token

    def _on_reset(self, data: bytes, now_ms: int) -> None:
        """The gateway's store does not know the session: an explicit end, unless something authentic still comes."""
        if not is_reset(data, self._reset_token):
            raise WireError("bad_proof")
        if self.requester.attempt is None:
            raise WireError("unexpected_type")
        self.reset = True
        self.end(Reason.PEER_CLOSED, now_ms, tell=False)

    def _enter_epoch(self, epoch: int, now_ms: int) -> None:
        """Another owner, or the same one after a restart: new data and control keys, new messages, new counters.

        The worker forgets the session and gets it anew: the new owner's counters begin at zero.
        """
        self.epoch = epoch
        self.channel = ControlChannel()
        self.control = SealedControl(self.rekeying.secrets, epoch, Direction.CLIENT_TO_GATEWAY)
        self.rekeying.move(self.control, self.channel, now_ms)
        self._do(TellWorker(commands.RemoveSession(self._seq(), RECORD)))
        self._do(ClearRecord(RECORD))
        self._last_sent_ns = self._last_received_ns = 0
        self._schedule_rekey(now_ms)
        self._do(TellWorker(self._add_command()))

    def _phase_keys(self, secrets: SessionSecrets) -> commands.PhaseKeys:
        return commands.PhaseKeys(
            secrets.phase_number,
            keys.data_key(secrets, Direction.CLIENT_TO_GATEWAY, self.epoch),
            keys.data_key(secrets, Direction.GATEWAY_TO_CLIENT, self.epoch),
        )

    def _add_command(self) -> commands.AddSession:
        active = self.paths.active_path
        return commands.AddSession(
            seq=self._seq(),
            record=RECORD,
            session_id=self.session_id,
            suite=self.secrets.suite.number,
            generation=self._generation,
            phases=[self._phase_keys(secrets) for secrets in self.rekeying.phases()],
            allowed_sources=["0.0.0.0/0", "::/0"],
            routes=["0.0.0.0/0", "::/0"],
            indexes=self._installed(),
            binding=None if active is None else active.worker_binding(),
            resend_window_ms=self.policy.resend_window_ms,
            resend_bytes=self.policy.resend_bytes,
        )

    def worker_replaced(self) -> None:
        """A new worker serves in place of one that died: under a higher generation, so that no nonce repeats."""
        self._generation += 1
        if self.configured:
            self._do(TellWorker(self._add_command()))

    def _installed(self) -> list[commands.InstalledIndex]:
        known = self.paths.left | {path.index: path.steering_id for path in self.paths.paths.values()}
        return [commands.InstalledIndex(index, known[index]) for index in sorted(known)]

    def _tell_indexes(self) -> None:
        self._do(TellWorker(commands.InstallIndexes(self._seq(), RECORD, self._installed())))

    def _on_state(self, told: messages.State, now_ms: int) -> None:
        if told.reason not in Reason.__members__:
            raise WireError("bad_control")
        # While a request is in flight only its answer counts: this STATE may be older than what we have seen since.
        if self.requester.attempt is None:
            state = State.from_number(told.state)
            self.view.follow(state, told.state_version, Reason(told.reason), now_ms)
            self._clocks(now_ms)
        self._send_health(now_ms)

    def _send_health(self, now_ms: int, proposed: int = 0) -> None:
        active = self.paths.active_path
        if active is None:
            # It would be old before it could go, and meanwhile be due for ever.
            return
        seen = active.health.snapshot(now_ms * NS)
        health = messages.Health(
            self.view.state_version,
            proposed,
            round(seen.loss * 1_000_000),
            _microseconds(seen.latency_ms),
            _microseconds(seen.p95_ms),
            _microseconds(seen.jitter_ms),
        )
        self.channel.send(ControlType.HEALTH, health.encode(), now_ms)
        self._flush(now_ms)

    def _flush(self, now_ms: int) -> None:
        active = self.paths.active_path
        if active is None:
            return
        for plaintext in self.channel.plaintexts_to_send(now_ms):
            datagram = self.control.seal(active.index, active.steering_id, plaintext)
            self._do(SendDatagram(active.uplink.number, active.uplink.remote, datagram))

    # Probes

    def on_probe(self, report: commands.ProbeAnswered, now_ms: int, now_ns: int) -> None:
        """An authenticated PROBE_ACK: how the path is, its challenge, and what the gateway takes it for."""
        path = self.paths.by_index(report.index, report.socket)
        if path is None:
            return
        if report.timestamp_us and not path.health.on_probe_acked(report.timestamp_us, now_ns):
            return
        path.keep_challenge(report.challenge, now_ms)
        self.paths.installed(report.highest_installed)
        is_active = path is self.paths.active_path and self.requester.attempt is None
        if is_active and (not report.timestamp_us or report.timestamp_us > path.bound_us):
            if report.flags & 1 and not report.flags & 2:
                self._lose(Cause.ADDRESS_CHANGED, now_ms, stay=True)
            elif not report.flags & 1:
                self._lose(Cause.TRANSPORT_DEAD, now_ms, stay=True)

    def _probe(self, path: ClientPath, now_ms: int, now_ns: int) -> None:
        self._last_probe_us = max(now_ns // 1000, self._last_probe_us + 1)
        path.health.on_probe_sent(self._last_probe_us, now_ns)
        probe = commands.SendProbe(self._seq(), RECORD, path.worker_binding(), self._last_probe_us)
        self._do(TellWorker(probe))

    # Losing a path, switching

    def on_link(self, uplink: Uplink, up: bool, now_ms: int) -> None:
        """A link event: a dead active path is left at once; a link that came (back) gets a fresh index and a probe."""
        if not self.configured:
            return
        if not up:
            if self.paths.active == uplink.number:
                self._lose(Cause.TRANSPORT_DEAD, now_ms)
            self.requester.hurry(now_ms)
            return
        if self.paths.active != uplink.number:
            self.paths.open(uplink, now_ms)
            self._tell_indexes()
        path = self.paths.paths[uplink.number]
        path.health.on_link_event(now_ms * NS)
        self.requester.hurry(now_ms)

    def reroute(self, uplink: Uplink, now_ms: int) -> None:
        """Its `remote` changed: a fresh path, unless DATA goes out on it."""
        if self.configured and self.paths.active != uplink.number:
            self.paths.open(uplink, now_ms)
            self._tell_indexes()

    def switch(self, uplink: Uplink, cause: Cause, now_ms: int) -> bool:
        """Ask to move to `uplink` while the present path still delivers. False when that makes no sense now."""
        if not self.configured or self.requester.attempt is not None or self.paths.active == uplink.number:
            return False
        if uplink.number not in self.paths.paths or not self.view.allows(Reason[cause.name]):
            return False
        active = self.paths.active_path
        old = None if active is None else path_ref(active)
        self.requester.begin(cause, now_ms, 0.0, old, self.paths.active, uplink.number)
        self.refused = ""
        self.view.apply(Reason[cause.name], now_ms)
        self._clocks(now_ms)
        return True

    def _lose(self, cause: Cause, now_ms: int, *, stay: bool = False) -> None:
        """The active path is no path any more. `stay`: the same uplink is the best candidate (its source changed)."""
        active = self.paths.active_path
        if active is None:
            return
        seen = active.health.snapshot(now_ms * NS)
        detect_ms = 0.0
        if not stay and active.uplink.link_up and seen.last_answer_ms is not None:
            detect_ms = now_ms - max(seen.last_answer_ms, self._last_received_ns // NS)
        self._give_up_switch(cause)
        reason = Reason[cause.name]
        if not self.view.allows(reason):
            reason = Reason.REATTACH_REQUESTED
        old, number = path_ref(active), active.uplink.number
        challenge = (active.challenge, active.challenge_ms)
        self.paths.active = None
        fresh = self.paths.open(active.uplink, now_ms)
        if stay:
            fresh.keep_challenge(*challenge)
            fresh.health.on_round_trip(active.health.srtt_ns or 0, now_ms * NS)
        self.requester.begin(cause, now_ms, detect_ms, old, None if stay else number, None)
        # Now, not at the first REQUEST: without a candidate that may be late, and the index will be forgotten.
        self._ask_for_reports([old.index], now_ms)
        if self.view.allows(reason):
            self.view.apply(reason, now_ms, details={"old": f"{old.device} #{old.index}"})
        self._clocks(now_ms)
        self._request(now_ms)

    def _give_up_switch(self, cause: Cause) -> None:
        """A switch was in flight when the path it was leaving died: now any path will do, not only its target."""
        attempt, self.requester.attempt = self.requester.attempt, None
        if attempt is None:
            return
        if attempt.sent_ns:
            version = self.view.state_version
            self._narrator.result(attempt.number, "abandoned", cause.name, version)
        if self.view.state is State.RECOVERING:
            self.view.lose_binding()

    def _request(self, now_ms: int) -> None:
        attempt = self.requester.attempt
        if attempt is None or now_ms < attempt.next_ms:
            return
        path = self.requester.choose(now_ms)
        if path is None:
            self.requester.wait(now_ms)
            return
        first, fresh = not attempt.sent_ns, path.index not in attempt.sent_ns
        if first:
            self._narrator.attempt(attempt.number, attempt.cause.name, path, self.view.state_version)
        self._do(self.requester.request(path, now_ms, () if attempt.voluntary else self._reports))
        if fresh:
            # Some DATA may follow the first REQUEST at once: the gateway holds it until the bind.
            early = path.worker_binding() if first and self.paths.active is None else None
            self._rebind(self._awaited(attempt), early=early)

    @staticmethod
    def _awaited(attempt: Attempt) -> list[int]:
        """Indexes on which DATA may come before the ACK: the gateway binds first, and perhaps the old path died in one
        direction only."""
        old = [] if attempt.old is None else [attempt.old.index]
        return [*old, *attempt.sent_ns]

    def _rebind(
        self,
        accept: list[int],
        draining: int | None = None,
        drain_ms: int = 0,
        *,
        resend: list[commands.IndexReport] | None = None,
        report: bool = False,
        early: commands.Binding | None = None,
    ) -> int:
        """Tell the worker the active path, if there is one; returns the command's number."""
        self._tell_indexes()
        active = self.paths.active_path
        binding = None if active is None else active.worker_binding()
        seq, until = self._seq(), drain_ms * NS
        self._do(
            TellWorker(commands.Rebind(seq, RECORD, binding, draining, until, accept, resend, report, early))
        )
        return seq

    def _ask_for_reports(self, accept: list[int], now_ms: int) -> None:
        """The REQUEST of the attempt just begun says what has arrived, as soon as the worker has said so."""
        attempt = self.requester.attempt
        assert attempt is not None
        self._reports = ()
        self._report_seq = self._rebind(accept, report=True)
        attempt.next_ms = attempt.not_before_ms = now_ms + REPORT_WAIT_MS

    def on_done(self, done: commands.Done, now_ms: int) -> None:
        """The worker has carried out, or refused, a command."""
        if done.seq != self._report_seq:
            return
        self._reports = tuple(Report(r.index, r.next_counter, r.missing) for r in done.reports)
        attempt = self.requester.attempt
        if attempt is not None and not attempt.sent_ns:
            attempt.not_before_ms = attempt.next_ms = now_ms
            self._request(now_ms)

    def _on_ack(self, ack: Ack, path: ClientPath, now_ms: int) -> None:
        attempt = self.requester.attempt
        if attempt is None or ack.attempt != attempt.number:
            # A copy from an earlier attempt: its challenge may be one that the gateway takes no more.
            return
        if split_version(ack.state_version).epoch < self.epoch:
            return
        self.paths.installed(ack.highest_installed)
        path.keep_challenge(ack.challenge, now_ms)
        if path.index in attempt.sent_ns and attempt.tries == 1:
            path.health.on_round_trip(now_ms * NS - attempt.sent_ns[path.index], now_ms * NS)
        if ack.result is Result.PENDING:
            attempt.next_ms = now_ms
            attempt.on_candidate = max(0, attempt.on_candidate - 1)
            self._request(now_ms)
            return
        bound = next((p for p in (path, *self.paths.paths.values()) if p.index == ack.bound_index), None)
        if bound is None or not bound.uplink.link_up:
            self._request_again(attempt, now_ms)
        else:
            self._bind(bound, ack, now_ms)

    def _request_again(self, attempt: Attempt, now_ms: int) -> None:
        """What was bound was left, or lost its link, before the ACK came: only a new attempt can bind another."""
        version = self.view.state_version
        self._narrator.result(attempt.number, "abandoned", "PATH_CHANGED", version)
        # The gateway has left the old path too, so this is no choice any more and no limit of choices holds it back.
        cause = Cause.TRANSPORT_DEAD if attempt.voluntary else attempt.cause
        self.requester.begin(cause, attempt.started_ms, attempt.detect_ms, attempt.old, None, None)
        self._ask_for_reports(self._awaited(attempt), now_ms)

    def _bind(self, bound: ClientPath, ack: Ack, now_ms: int) -> None:
        attempt, self.requester.attempt = self.requester.attempt, None
        assert attempt is not None
        previous = self.paths.active_path
        self.paths.active = bound.uplink.number
        bound.health.set_active(True, now_ms * NS)
        bound.bound_us = now_ms * 1000
        if attempt.cause is Cause.OPERATOR_SWITCH:
            self._chosen = bound.uplink.number
        elif bound.uplink.number != self._chosen:
            self._chosen = None
        draining = None
        if attempt.voluntary and previous is not None and previous.index != bound.index:
            draining = previous.index
        if draining is not None and previous is not None:
            # Before the worker is told its indexes: it must know the new one to probe on it.
            self.paths.open(previous.uplink, now_ms)
        resend = None
        epoch = split_version(ack.state_version).epoch
        if epoch > self.epoch:
            # Another node, or one that began anew: it has never seen what was sent before.
            self._enter_epoch(epoch, now_ms)
        elif not attempt.voluntary:
            resend = [commands.IndexReport(*report) for report in ack.reports]
        self._reports = ()
        self._rebind([], draining, now_ms + max(self.policy.drain_window_ms, 250), resend=resend)
        self.view.follow(State.ATTACHED, ack.state_version, Reason.REATTACH_OK, now_ms)
        self._clocks(now_ms)
        self._narrator.result(attempt.number, "bound", "REATTACH_OK", ack.state_version)
        self._narrator.switched(
            attempt.cause.name,
            ack.state_version,
            old=attempt.old,
            new=bound,
            explicit=attempt.voluntary,
            detect_ms=attempt.detect_ms,
            reattach_ms=now_ms - attempt.started_ms,
        )
        self._send_health(now_ms)

    def _on_fail(self, fail: reattach.Fail, now_ms: int) -> None:
        attempt = self.requester.attempt
        if attempt is None or fail.attempt != attempt.number:
            return
        self.requester.attempt = None
        self.refused = fail.reason
        version = self.view.state_version
        self._narrator.result(attempt.number, "failed", fail.reason, version, fail.retry_after_ms)
        if fail.reason in ("SESSION_OVER", "SESSION_TTL_EXPIRED", "TRANSPORT_LOSS_TTL_EXPIRED"):
            reason = Reason(fail.reason) if fail.reason in Reason.__members__ else Reason.PEER_CLOSED
            self.end(reason, now_ms, tell=False)
            return
        if attempt.voluntary and self.paths.active is not None:
            self.view.apply(Reason.REATTACH_FAIL, now_ms, details={"fail": fail.reason})
        else:
            again = self.requester.begin(
                attempt.cause, attempt.started_ms, attempt.detect_ms, attempt.old, attempt.leave, None
            )
            again.next_ms = now_ms + max(fail.retry_after_ms, 50)
        self._clocks(now_ms)

    # Time

    def get_timer(self) -> float:
        if not self.configured:
            return self._next_confirm_ms
        due: list[float | None] = [self._next_tick_ms, self.requester.get_timer(), self._health_repeat_ms]
        due += [self.ttl.next_deadline_ms(), self.rekeying.get_timer()]
        if self.paths.active is not None:
            due.append(self.channel.get_timer())
        due += [self._probe_due_ns(path) / NS for path in self._probed()]
        return min(at for at in due if at is not None)

    def _probe_due_ns(self, path: ClientPath) -> int:
        """Only the active path has a verdict to wait for; a candidate's, once over, would be due for ever."""
        if path is self.paths.active_path:
            return path.health.get_timer()
        return path.health.next_probe_at(self._handled_ns)

    def _probed(self) -> list[ClientPath]:
        return [path for path in self.paths.paths.values() if path.uplink.link_up]

    def handle_timer(self, now_ms: int, now_ns: int) -> None:
        self._handled_ns = now_ns
        self._expire(now_ms)
        if self.ended is not None:
            return
        if not self.configured:
            if now_ms >= self._next_confirm_ms:
                self._next_confirm_ms = now_ms + CONFIRM_REPEAT_MS
                self._confirm(now_ms)
            return
        if self.rekeying.handle_timer(now_ms, self._packets()):
            self._do(TellWorker(self._add_command()))
        self._read_activity(now_ms)
        active = self.paths.active_path
        if active is not None and active.health.dead(now_ns):
            self._lose(Cause.TRANSPORT_DEAD, now_ms)
        for path in self._probed():
            if path.health.next_probe_at(now_ns) <= now_ns:
                self._probe(path, now_ms, now_ns)
        self._request(now_ms)
        self.mtu_probing.handle_timer(now_ns, self._last_sent_ns)
        due = self.channel.get_timer()
        if due is not None and due <= now_ms:
            self._flush(now_ms)
        self._fail_back(now_ms)

    def _confirm(self, now_ms: int) -> None:
        """Prove the keys until CONFIG comes: by the first rekey where there is a KEM, else by any CONTROL."""
        if self.rekeying.kem is Kem.MLKEM768 and self.rekeying.secrets.phase_number == 0:
            self.rekeying.begin(now_ms)
            self._flush(now_ms)
        else:
            self._send_health(now_ms)

    def _read_activity(self, now_ms: int) -> None:
        if now_ms < self._next_tick_ms:
            return
        self._next_tick_ms = now_ms + ACTIVITY_TICK_MS
        active, seen = self.paths.active_path, self._activity(RECORD)
        if active is None:
            return
        if seen.sent_ns > self._last_sent_ns:
            active.health.on_data_sent(min(seen.sent_ns, now_ms * NS))
        if seen.received_ns > self._last_received_ns:
            active.health.on_data_received(min(seen.received_ns, now_ms * NS))
        self._last_sent_ns, self._last_received_ns = seen.sent_ns, seen.received_ns

    def _fail_back(self, now_ms: int) -> None:
        """Return to a preferred uplink once it has been steady for the stability window."""
        active = self.paths.active_path
        if active is None or self.requester.attempt is not None or self.paths.active == self._chosen:
            return
        for path in self.paths.candidates(now_ms, without=self.paths.active):
            steady = path.health.snapshot(now_ms * NS).steady_since_ms
            if path.uplink.preference <= active.uplink.preference or steady is None:
                continue
            if now_ms - steady >= self.policy.stability_window_ms and path.validated(now_ms):
                self.switch(path.uplink, Cause.PREFERENCE_SWITCH, now_ms)
                return

    def _expire(self, now_ms: int) -> None:
        terminates = self.policy.on_recovery_window_exceeded == "terminate"
        fired = self.ttl.fired(self.view.state, self.view.active_bindings, now_ms, terminates)
        if fired is None:
            return
        # Both ends of a recovery window are in the table: where the policy names one, that is the one meant.
        if fired.to is State.TERMINATED or (fired.to is None and fired.reason is not Reason.REATTACH_FAIL):
            self.end(fired.reason, now_ms, tell=True)
            return
        if fired.reason is Reason.REATTACH_FAIL:
            attempt, self.requester.attempt = self.requester.attempt, None
            if attempt is not None:
                version = self.view.state_version
                self._narrator.result(attempt.number, "abandoned", "RECOVERY_WINDOW_EXCEEDED", version)
        self.view.apply(fired.reason, now_ms, fired.to)
        self._clocks(now_ms)

    def _clocks(self, now_ms: int) -> None:
        view, policy = self.view, self.policy
        self.ttl = self.ttl.entered(
            view.state, view.active_bindings, now_ms, policy.transport_loss_ttl_ms, policy.recovery_window_ms
        )

    def end(self, reason: Reason, now_ms: int, *, tell: bool) -> None:
        """The session is over; `tell` the gateway with three CLOSEs if a path is left."""
        if self.view.terminated:
            return
        if tell:
            for _ in range(CLOSE_REPEATS):
                self.channel.send(ControlType.CLOSE, reason.value.encode(), now_ms)
            self._flush(now_ms)
        attempt, self.requester.attempt = self.requester.attempt, None
        if attempt is not None and attempt.sent_ns:
            self._narrator.result(attempt.number, "abandoned", reason.value, self.view.state_version)
        self.view.apply(reason, now_ms, State.TERMINATED)
        self.ended = reason
        if self.configured:
            self._do(TellWorker(commands.RemoveSession(self._seq(), RECORD)))


def _microseconds(ms: float | None) -> int:
    return 0xFFFFFFFF if ms is None else round(ms * 1000)
