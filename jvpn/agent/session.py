"""One session as the client holds it: keys, view of the machine, paths, control channel, the reattach in flight."""

from collections.abc import Callable

from jvpn.agent.choosing import Choosing
from jvpn.agent.configuring import Configuring
from jvpn.agent.deciding import Deciding
from jvpn.agent.effects import Effect, SendDatagram
from jvpn.agent.leaving import Leaving
from jvpn.agent.narrator import ClientNarrator
from jvpn.agent.owners import Owners
from jvpn.agent.path_mtu import MtuProbing
from jvpn.agent.paths import NS, PathTable, Uplink
from jvpn.agent.reattaching import Requester
from jvpn.agent.rekeying import ClientRekeying
from jvpn.agent.switching import Switching
from jvpn.agent.upkeep import Upkeep
from jvpn.agent.worker_side import WorkerSide
from jvpn.policy.model import Policy
from jvpn.protocol import messages, reattach
from jvpn.protocol.constants import CLOSE_REPEATS, Direction, PacketType
from jvpn.protocol.control import ControlChannel, ControlType, Message
from jvpn.protocol.handshake import HandshakeResult
from jvpn.protocol.indexes import window
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.reattach import Cause
from jvpn.protocol.sealed_control import SealedControl
from jvpn.protocol.wire import WireError
from jvpn.session.machine import Reason, State, View
from jvpn.session.ttl import TtlClock
from workers import commands
from workers.commands import Endpoint
from workers.page import Activity

#: Nobody is to wait long for a client that stops, however slow its path.
CLOSE_APART_MAX_MS = 500


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
        act: Callable[[], None],
        note_keys: Callable[[SessionSecrets, int], None],
        now_ms: int,
        asked_policy: str = "",
    ) -> None:
        self.session_id = result.session_id
        self.secrets = result.secrets
        self.epoch = result.epoch
        self.policy = policy
        #: The policy that this client asked for, by name; empty: none in particular.
        self.asked_policy = asked_policy
        self.narrator = narrator
        narrator.session_id = result.session_id
        narrator.policy_version = f"{policy.name}@{policy.version}"
        self._activity = activity
        self.do = do
        #: Has the shell carry out what was done so far, where the rest is not to be waited for.
        self.act = act
        self._note_keys = note_keys
        note_keys(result.secrets, result.epoch)
        self.view = View(result.epoch, narrator.transition)
        self.channel = ControlChannel()
        self.control = SealedControl(result.secrets, result.epoch, Direction.CLIENT_TO_GATEWAY)
        self.rekeying = ClientRekeying(result.secrets, result.kem, self.control, self.channel, random_bytes)
        self.paths = PathTable(result.secrets, policy, uplinks, window(0, policy.max_candidates)[-1])
        self.paths.open(first, now_ms, active=True)
        self.paths.active = first.number
        self.requester = Requester(result.secrets, self.paths, lambda: self.view.state_version)
        self.worker = WorkerSide(result.session_id, result.epoch, self.paths, self.rekeying, seq, do)
        self.mtu_probing = MtuProbing(lambda: self.worker.record, self.paths, seq, do)
        self.owners = Owners(self)
        self.switching = Switching(self)
        self.choosing = Choosing(self)
        self.leaving = Leaving(self)
        self.deciding = Deciding(self, now_ms)
        self.configuring = Configuring(self)
        self.upkeep = Upkeep(self, activity, now_ms)
        self.ttl = TtlClock(now_ms + policy.lifetime_ms)
        self.configured = False
        self.was_reset = False
        #: The uplink that the gateway asks for a new handshake on, before it binds anything there.
        self.anew_over: Uplink | None = None
        #: Of the change of path that asks for it.
        self.anew_by: Cause | None = None
        self.ended: Reason | None = None
        #: CLOSEs, sealed, and when each is to go.
        self.farewells: list[tuple[int, SendDatagram]] = []

    # Datagrams

    def receive(
        self, kind: PacketType, data: bytes, socket: int, now_ms: int, remote: Endpoint | None = None
    ) -> None:
        """A datagram of a known header. Raises WireError when it is refused; nothing has changed then."""
        path = self.paths.by_steering_id(data[4:12], socket, remote)
        if path is None:
            raise WireError("unknown_id")
        if kind is PacketType.CONTROL:
            opened = self.control.open(path.index, data)
            self.owners.heard(now_ms)
            self._on_messages(self.channel.receive(opened.plaintext), now_ms)
        elif kind is PacketType.REATTACH_ACK:
            self.switching.on_ack(reattach.open_ack(self.secrets, data), path, now_ms)
        elif kind is PacketType.REATTACH_FAIL:
            self.switching.on_fail(reattach.open_fail(self.secrets, data), path, now_ms)
        elif kind is PacketType.RESET:
            self.owners.on_reset(data, path, now_ms)
        else:
            raise WireError("unexpected_type")

    def _on_messages(self, messages: list[Message], now_ms: int) -> None:
        """One that is refused does not take its neighbours with it: all of them are acknowledged, once."""
        refused: WireError | None = None
        for message in messages:
            try:
                self._on_message(message, now_ms)
            except WireError as error:
                refused = error
        self.flush(now_ms)
        if refused is not None:
            raise refused

    def _on_message(self, message: Message, now_ms: int) -> None:
        if message.kind is ControlType.CONFIG:
            self.configuring.on_config(messages.decode_config(message.value), now_ms)
        elif message.kind is ControlType.STATE:
            self._on_state(messages.State.decode(message.value), now_ms)
        elif message.kind is ControlType.REKEY_RESPONSE:
            self._on_rekey_response(message.value, now_ms)
        elif message.kind is ControlType.REKEY_REQUIRED:
            self.rekeying.require(now_ms)
        elif message.kind is ControlType.SWITCH:
            self.choosing.on_switch(message.value, now_ms)
        elif message.kind is ControlType.CLOSE:
            self.end(self._reason_of_close(messages.decode_reason(message.value)), now_ms, tell=False)
        else:
            raise WireError("unexpected_control")

    def _reason_of_close(self, code: str) -> Reason:
        """What ends nothing in the table, or is not in it, ends the session all the same."""
        known = code in Reason.__members__ and self.view.allows(Reason(code), State.TERMINATED)
        return Reason(code) if known else Reason.PEER_CLOSED

    def _on_rekey_response(self, value: bytes, now_ms: int) -> None:
        self.rekeying.on_response(value, now_ms)
        self._note_keys(self.rekeying.secrets, self.epoch)
        self.schedule_rekey(now_ms)
        if self.configured:
            self.worker.add()
        # Whatever comes first under the new phase puts it in force at the gateway.
        self.send_health(now_ms)

    def schedule_rekey(self, now_ms: int) -> None:
        """The keys are new from here on."""
        seen = self._activity(self.worker.record)
        self.rekeying.schedule(now_ms, self.policy.rekey_interval_ms, self.packets())
        self.worker.begin_phase(seen.sent_packets, seen.forged)

    def packets(self) -> int:
        seen = self._activity(self.worker.record)
        return seen.sent_packets + seen.received_packets

    def reset(self, ways: int, now_ms: int) -> None:
        """No end of the gateway, of the `ways` that answer, knows the session: it is over, and that is said."""
        self.was_reset = True
        self.end(Reason.PEER_CLOSED, now_ms, tell=False, details={"reset": True, "ways": ways})

    def enter_epoch(self, epoch: int, draining: tuple[int, int] | None, now_ms: int) -> None:
        """Another owner, or the same one after a restart: new data and control keys, new messages, new counters.
        `draining`: the index that was left by choice, and until when it receives, ms."""
        self.epoch = epoch
        for secrets in (self.rekeying.old_secrets, self.rekeying.secrets):
            if secrets is not None:
                self._note_keys(secrets, epoch)
        self.channel = ControlChannel()
        self.control = SealedControl(self.rekeying.secrets, epoch, Direction.CLIENT_TO_GATEWAY)
        self.rekeying.move(self.control, self.channel, now_ms)
        self.upkeep.enter_epoch()
        # The page begins anew with the keys.
        self.rekeying.schedule(now_ms, self.policy.rekey_interval_ms, 0)
        self.worker.begin_phase(0, 0)
        self.worker.enter_epoch(epoch, draining)

    def _on_state(self, told: messages.State, now_ms: int) -> None:
        if told.reason not in Reason.__members__:
            raise WireError("bad_control")
        # While a request is in flight only its answer counts: this STATE may be older than what we have seen since.
        if self.requester.attempt is None:
            state = State.from_number(told.state)
            self.view.follow(state, told.state_version, Reason(told.reason), now_ms)
            self.clocks(now_ms)
        self.send_health(now_ms)

    def send_health(self, now_ms: int, proposed: int = 0, *, limited: bool = False) -> None:
        """What is measured of the active path, and the quality state that is proposed, 0 for none."""
        active = self.paths.active_path
        if active is None:
            # It would be old before it could go, and meanwhile be due for ever.
            return
        srtt_ns, signals = active.health.srtt_ns, active.health.signals(now_ms * NS)
        health = messages.Health(
            self.view.state_version,
            proposed,
            round((signals.loss or 0.0) * 1_000_000),
            _microseconds(None if srtt_ns is None else srtt_ns / NS),
            _microseconds(signals.latency_ms),
            _microseconds(signals.jitter_ms),
            limited,
        )
        self.channel.send(ControlType.HEALTH, health.encode(), now_ms)
        self.flush(now_ms)

    def flush(self, now_ms: int) -> None:
        for datagram in self._sealed(now_ms):
            self.do(datagram)

    def _sealed(self, now_ms: int) -> list[SendDatagram]:
        """CONTROL that is due, for the active path; without one it waits."""
        active = self.paths.active_path
        if active is None:
            return []
        self.channel.expect(active.patience_ms or 0.0)
        uplink = active.uplink
        plaintexts = self.channel.plaintexts_to_send(now_ms)
        if self.channel.take_overdue():
            active.health.on_unanswered(now_ms * NS)
        return [
            SendDatagram(
                uplink.socket, uplink.remote, self.control.seal(active.index, active.steering_id, text)
            )
            for text in plaintexts
        ]

    # Probes

    def on_probe(self, report: commands.ProbeAnswered, now_ms: int, now_ns: int) -> None:
        """An authenticated PROBE_ACK: how the path is, its challenge, and what the gateway takes it for."""
        path = self.paths.by_index(report.index, report.socket)
        if path is None:
            return
        if report.timestamp_us and not path.health.on_probe_acked(report.timestamp_us, now_ns):
            return
        if report.timestamp_us:
            path.probe_answered = True
            for outward, highest, received in (
                (True, report.peer_highest, report.peer_received),
                (False, report.highest, report.received),
            ):
                path.health.on_counters(outward=outward, highest=highest, received=received, now_ns=now_ns)
        self.owners.heard(now_ms)
        path.keep_challenge(report.challenge, now_ms)
        self.switching.installed(report.highest_installed, report.index)
        is_active = path is self.paths.active_path and self.requester.attempt is None
        if is_active and (not report.timestamp_us or report.timestamp_us > path.bound_us):
            if report.flags & 1 and not report.flags & 2:
                self.switching.lose(Cause.ADDRESS_CHANGED, now_ms, stay=True)
            elif not report.flags & 1:
                self.switching.lose(Cause.TRANSPORT_DEAD, now_ms, stay=True)

    # Time

    def get_timer(self) -> float:
        """When `handle_timer` is due."""
        return self.upkeep.get_timer()

    def handle_timer(self, now_ms: int, now_ns: int) -> None:
        self.upkeep.handle_timer(now_ms, now_ns)

    def clocks(self, now_ms: int) -> None:
        view, policy = self.view, self.policy
        self.ttl = self.ttl.entered(
            view.state, view.active_bindings, now_ms, policy.transport_loss_ttl_ms, policy.recovery_window_ms
        )

    def end(
        self, reason: Reason, now_ms: int, *, tell: bool, details: dict[str, object] | None = None
    ) -> None:
        """The session is over; `tell` the gateway with three CLOSEs, apart, if a path is left."""
        if self.view.terminated:
            return
        for number in range(CLOSE_REPEATS if tell else 0):
            self.channel.send(ControlType.CLOSE, reason.value.encode(), now_ms)
            at_ms = now_ms + number * min(self.channel.repeat_ms, CLOSE_APART_MAX_MS)
            self.farewells += [(at_ms, datagram) for datagram in self._sealed(now_ms)]
        attempt, self.requester.attempt = self.requester.attempt, None
        if attempt is not None and attempt.asked:
            self.narrator.result(attempt.number, "abandoned", reason.value, self.view.state_version)
        self.view.apply(reason, now_ms, State.TERMINATED, details)
        self.ended = reason
        self.worker.remove()


def _microseconds(ms: float | None) -> int:
    return 0xFFFFFFFF if ms is None else round(ms * 1000)
