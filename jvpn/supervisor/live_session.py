"""One session as the gateway holds it while it lives: keys, machine, bindings, control channel, limits.

It decides nothing about reattach or handshakes (reattaching.py, handshakes.py); it keeps what belongs together together
and turns itself into a worker's AddSession, a page row, a store record and a snapshot.
"""

from jvpn.policy.model import Policy
from jvpn.protocol import keys
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import MIN_MTU, Direction, Role, Transport
from jvpn.protocol.control import ControlChannel
from jvpn.protocol.handshake import Kem
from jvpn.protocol.indexes import IndexTable
from jvpn.protocol.key_limits import KeyLimits
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.reattach import Fail, Report, Request
from jvpn.protocol.sealed_control import SealedControl
from jvpn.session.bucket import BIND_RATE, DATAGRAM_RATE, TokenBucket
from jvpn.session.machine import Machine, Reason, State
from jvpn.session.ownership import Code
from jvpn.session.record import Bindings, SessionRecord
from jvpn.session.ttl import TtlClock
from jvpn.session.walker import Hook, untold
from jvpn.supervisor.arrival import Arrival, Fresh, endpoint
from jvpn.supervisor.history import Answered, LastSwitch, SwitchHistory
from jvpn.supervisor.peers import Peer
from jvpn.supervisor.remembered import remember
from jvpn.supervisor.round_trips import RoundTrips
from workers import commands
from workers.page import SessionRow

#: Reason codes by the number that stands for them in the shared page.
REASONS = tuple(reason.value for reason in Reason)
#: Why an attempt was refused, likewise.
CODES = tuple(code.value for code in Code)
_REASON_NUMBERS = {reason: number for number, reason in enumerate(REASONS)}
_CODE_NUMBERS = {code: number for number, code in enumerate(CODES)}
UNKNOWN = ("::", 0)


class Asked:
    """One REQUEST with its proof: of which session, on which index, how it came, and its path's challenge by then."""

    __slots__ = ("arrival", "fresh", "index", "request", "session")

    def __init__(
        self, session: "LiveSession", index: int, request: Request, arrival: Arrival, fresh: Fresh
    ) -> None:
        self.session = session
        self.index = index
        self.request = request
        self.arrival = arrival
        self.fresh = fresh

    @property
    def way(self) -> tuple[int, commands.Endpoint]:
        """What tells the paths of one attempt apart: index and source."""
        return self.index, self.arrival.remote


class LiveSession:
    """A session between HANDSHAKE and TERMINATED. `record` is its row of the shared page, `slot` its worker."""

    # A dict for each session would take 1.1 KB more.
    __slots__ = (
        "_datagrams", "answered", "asking", "bind_seq", "bindings", "binds", "bound_in_epoch", "bound_reports",
        "channel", "client_version", "config_due_ms", "config_id", "configured", "control", "created_ms",
        "dirty_ms", "epoch", "forged_at_rekey", "generation", "given_to_worker", "heard_ms", "indexes",
        "key_limits", "last_attempt", "last_reason", "last_switch", "last_told_attempt", "listeners",
        "look_at_keys_ms", "machine", "machine_hook", "next_secrets", "old_secrets", "old_until_ms", "peer",
        "policy", "pooled", "prefixes", "proven_from", "received_at_rekey", "record", "refused",
        "refused_policy", "rekey_ask_id", "rekeyed_ms", "round_trips", "secrets", "security_failures",
        "sent_at_rekey", "session_id", "slot", "state_repeat_ms", "stored_ms", "switch_id", "switches",
        "ticketed", "told_policy", "ttl", "uncommitted",
    )  # fmt: skip

    def __init__(
        self,
        *,
        session_id: bytes,
        peer: Peer,
        policy: Policy,
        secrets: SessionSecrets,
        machine_epoch: int,
        hook: Hook,
        record: int,
        slot: int,
        supervisor_generation: int,
        created_ms: int,
        key_limits: KeyLimits,
        highest_seen: int = 0,
    ) -> None:
        self.session_id = session_id
        self.peer = peer
        #: Inner prefixes that it may send from and is reached at. None yet where they are `pooled` and it is not born.
        self.prefixes = peer.addresses
        #: They come from the pool, and are kept for its client.
        self.pooled = not peer.addresses
        self.policy = policy
        self.secrets = secrets
        self.epoch = machine_epoch
        self.record = record
        self.slot = slot
        self.machine_hook = hook
        self.machine = Machine(machine_epoch, hook)
        self.bindings = Bindings()
        #: The address that its handshake came from; empty when that is not known any more.
        self.proven_from = ""
        self.listeners: dict[int, int] = {}
        self.indexes = IndexTable(secrets, policy.max_candidates, highest_seen)
        self.channel = ControlChannel(supervisor_generation)
        self.control = SealedControl(
            secrets, machine_epoch, Direction.GATEWAY_TO_CLIENT, supervisor_generation
        )
        #: A rekey under way: the phase the client may use already, the one it may still use, and what was answered.
        self.next_secrets: SessionSecrets | None = None
        self.old_secrets: SessionSecrets | None = None
        self.old_until_ms = 0
        self.answered: Answered | None = None
        self.rekeyed_ms = created_ms
        self.sent_at_rekey = self.received_at_rekey = self.forged_at_rekey = 0
        self.key_limits = key_limits
        #: When the use of the keys is looked at next, and the message id of the newest REKEY_REQUIRED.
        self.look_at_keys_ms = created_ms
        self.rekey_ask_id: int | None = None
        self.given_to_worker = False
        #: The policy that the client asked for and may not have; empty when there is none such.
        self.refused_policy = ""
        self.configured = False
        #: When it is told CONFIG in its turn, if that is to come; the message id of the newest one.
        self.config_due_ms: int | None = None
        self.config_id: int | None = None
        #: The highest index that the client has been given a ticket for.
        self.ticketed = -1
        #: Changed since the store has it, since when.
        self.dirty_ms: int | None = None
        #: When it was brought to the store last.
        self.stored_ms = created_ms
        self.ttl = TtlClock(created_ms + policy.lifetime_ms)
        self.created_ms = created_ms
        self.generation = 0
        self.last_attempt = 0
        #: False after a takeover until the first bind: until then the challenge alone is the freshness.
        self.bound_in_epoch = True
        self.refused: Fail | None = None
        #: Of the last bind: the worker's command, and what had arrived by then, which every copy of its ACK says.
        self.bind_seq = 0
        self.bound_reports: tuple[Report, ...] = ()
        #: REQUESTs of its attempt that came before it was in force, the one that bound among them, by their ways.
        self.asking: dict[tuple[int, commands.Endpoint], Asked] = {}
        self._datagrams: dict[int, TokenBucket] = {}
        self.binds = TokenBucket(BIND_RATE)
        self.switches = SwitchHistory()
        self.round_trips = RoundTrips()
        #: The message id of the newest SWITCH.
        self.switch_id: int | None = None
        self.security_failures = 0
        self.last_switch: LastSwitch | None = None
        self.last_reason = ""
        self.last_told_attempt = 0
        self.client_version = 0
        #: The policy's version that the event stream has the policy itself of.
        self.told_policy = ""
        #: The newest proposal of a quality state that was not committed, and at which version: it is told once.
        self.uncommitted: tuple[int, State] | None = None
        self.state_repeat_ms: int | None = None
        self.heard_ms = created_ms

    def retire(self) -> None:
        """It lives here no more. Its machine, its hook and what was asked held it in circles, which the garbage
        collector would not look at for a long time (`COLLECTING` in supervisor/process.py)."""
        self.machine.retire()
        self.machine_hook = untold
        self.asking = {}

    @property
    def demanded_kem(self) -> Kem:
        """What every rekey of this session must bring, by its policy."""
        return Kem.MLKEM768 if self.policy.kem == "mlkem768" else Kem.NONE

    def work_by(self, policy: Policy, now_ms: int) -> None:
        """Another policy from now on. Keys are as they are: whoever calls sees to it that `kem` is the same."""
        old, self.policy = self.policy, policy
        self.ttl = self.ttl.moved(
            policy.lifetime_ms - old.lifetime_ms,
            policy.transport_loss_ttl_ms - old.transport_loss_ttl_ms,
            policy.recovery_window_ms - old.recovery_window_ms,
        )
        self.indexes.widen(policy.max_candidates)
        self.look_at_keys_ms = now_ms
        self.note_change(now_ms)

    def note_change(self, now_ms: int) -> None:
        """The store is to have it soon, counted from the first change that it has not."""
        if self.dirty_ms is None:
            self.dirty_ms = now_ms

    @property
    def hex_id(self) -> str:
        return self.session_id.hex()

    # Indexes

    def role_of(self, index: int) -> Role:
        if self.bindings.active is not None and self.bindings.active.index == index:
            return Role.ACTIVE
        if self.bindings.draining is not None and self.bindings.draining.index == index:
            return Role.DRAINING
        return Role.INSTALLED

    def admits(self, index: int, now_ms: int) -> bool:
        """The bucket of an id, before any cryptography. One each: a flood on an id that somebody has seen must not
        hold back the client on the others."""
        bucket = self._datagrams.get(index)
        if bucket is None:
            installed = self.indexes.ids
            self._datagrams = {n: one for n, one in self._datagrams.items() if n in installed}
            bucket = self._datagrams[index] = TokenBucket(DATAGRAM_RATE)
        return bucket.take(now_ms)

    def pinned_indexes(self) -> tuple[int, ...]:
        """Indexes that stay installed whatever the window does."""
        active, draining = self.bindings.active, self.bindings.draining
        if draining is None:
            return () if active is None else (active.index,)
        return (draining.index,) if active is None else (active.index, draining.index)

    def measured(self, index: int, round_trip_ms: float) -> None:
        """A round trip on `index` is known: CONTROL on the active one is repeated by it."""
        self.round_trips.sample(index, round_trip_ms)
        active = self.bindings.active
        if active is not None and active.index == index:
            self.channel.expect(self.round_trips.patience_ms(index))

    # Faces of the session for others

    def worker_binding(self) -> commands.Binding | None:
        active = self.bindings.active
        if active is None:
            return None
        listener = self.listeners[active.index]
        local, source = endpoint(active.local), endpoint(active.source)
        # What the path really carries the client finds out, and tells the worker by its probes.
        return commands.Binding(active.index, listener, local, source, MIN_MTU)

    def installed(self) -> list[commands.InstalledIndex]:
        return [commands.InstalledIndex(n, steering_id) for n, steering_id in self.indexes.ids.items()]

    def phases_for_worker(self) -> list[SessionSecrets]:
        """Phases the worker opens under, the one to send under last."""
        known = (self.old_secrets, self.next_secrets, self.secrets)
        # With a KEM no user traffic ever has the keys of phase 0, which are not post-quantum.
        first = 1 if self.demanded_kem is Kem.MLKEM768 else 0
        return [secrets for secrets in known if secrets is not None and secrets.phase_number >= first]

    def _phase_keys(self, secrets: SessionSecrets) -> commands.PhaseKeys:
        return commands.PhaseKeys(
            secrets.phase_number,
            keys.data_key(secrets, Direction.GATEWAY_TO_CLIENT, self.epoch),
            keys.data_key(secrets, Direction.CLIENT_TO_GATEWAY, self.epoch),
        )

    def add_command(self, seq: int) -> commands.AddSession:
        inner = list(self.prefixes)
        return commands.AddSession(
            seq=seq,
            record=self.record,
            session_id=self.session_id,
            suite=self.secrets.suite.number,
            generation=self.generation,
            phases=[self._phase_keys(secrets) for secrets in self.phases_for_worker()],
            allowed_sources=inner,
            routes=inner,
            indexes=self.installed(),
            binding=self.worker_binding(),
            resend_window_ms=self.policy.resend_window_ms,
            resend_bytes=self.policy.resend_bytes,
            send_until=self.sent_at_rekey + self.key_limits.stop_sent,
            forged_until=self.forged_at_rekey + self.key_limits.forged,
        )

    def rebind_command(
        self, seq: int, resend: list[commands.IndexReport] | None = None, report: bool = False
    ) -> commands.Rebind:
        draining = self.bindings.draining
        return commands.Rebind(
            seq=seq,
            record=self.record,
            binding=self.worker_binding(),
            draining=None if draining is None else draining.index,
            drain_until_ns=self.bindings.drain_until_ms * 1_000_000,
            accept=[],
            resend=resend,
            report=report,
        )

    def page_row(self) -> SessionRow:
        active, draining, ttl = self.bindings.active, self.bindings.draining, self.ttl
        source, source_port = UNKNOWN if active is None else active.source
        local, local_port = UNKNOWN if active is None else active.local
        drained, drained_port = UNKNOWN if draining is None else draining.source
        before = self.machine.state_before
        control_index, control_counter = self.control.newest_opened
        return SessionRow(
            generation=self.generation,
            state=self.machine.state.number,
            state_version=self.machine.state_version,
            session_id=self.session_id,
            last_attempt=self.last_attempt,
            active_index=0 if active is None else active.index,
            draining_index=-1 if draining is None else draining.index,
            drain_until_ns=self.bindings.drain_until_ms * 1_000_000,
            source=to_bytes(source),
            source_port=source_port,
            transport=Transport.UDP if active is None else active.transport,
            phase=self.secrets.phase_number & 15,
            epoch=self.epoch,
            local=to_bytes(local),
            local_port=local_port,
            listener=0 if active is None else self.listeners[active.index],
            slot=self.slot,
            before=0 if before is None else before.number,
            bindings=self.bindings.count,
            highest_index=self.indexes.highest_seen,
            draining_source=to_bytes(drained),
            draining_port=drained_port,
            loss_deadline_ms=ttl.loss_deadline_ms or 0,
            window_deadline_ms=ttl.window_deadline_ms or 0,
            since_ms=self.machine.since_ms,
            rekeyed_ms=self.rekeyed_ms,
            sent_at_rekey=self.sent_at_rekey,
            received_at_rekey=self.received_at_rekey,
            forged_at_rekey=self.forged_at_rekey,
            control_index=control_index,
            control_counter=control_counter,
            refused_attempt=0 if self.refused is None else self.refused.attempt,
            refused_code=0 if self.refused is None else _CODE_NUMBERS[self.refused.reason],
            security_failures=min(self.security_failures, 0xFFFF),
            reason=_REASON_NUMBERS[self.last_reason] if self.last_reason else 0,
        )

    def store_record(
        self, node_id: str, wall_ms: int, now_ms: int, boot_id: str, *, binds: int = 0
    ) -> SessionRecord:
        """`binds`: as it will be when this attempt has been bound, which is the next step of a recovering session."""
        left_ms = self.ttl.session_deadline_ms - now_ms
        inner = [address.removesuffix("/128" if ":" in address else "/32") for address in self.prefixes]
        return SessionRecord(
            session_id=self.session_id,
            client_public=self.peer.public_key,
            policy_name=self.policy.name,
            policy_version=self.policy.version,
            owner_node=node_id,
            state=State.ATTACHED if binds else self.machine.state,
            state_version=self.machine.state_version + (1 if binds else 0),
            secrets=remember(self),
            inner_v4=" ".join(address for address in inner if ":" not in address) or None,
            inner_v6=" ".join(address for address in inner if ":" in address) or None,
            created_wall_ms=wall_ms - (now_ms - self.created_ms),
            expires_wall_ms=wall_ms + left_ms,
            expires_boot_ms=self.ttl.session_deadline_ms,
            boot_id=boot_id,
            stored_wall_ms=wall_ms,
            last_bound_attempt=binds or self.last_attempt,
        )
