"""The supervisor process: sockets, clock, maps and files around the gateway core.

One thread, one selector. A turn: authenticated control first (slot 0), then workers, then strangers (slot 1), then
deadlines; after each the core's effects are carried out in their order.
"""

import contextlib
import os
import selectors
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jvpn import __version__
from jvpn.holder.inventory import HolderPlan
from jvpn.holder.signals import stop_pipe
from jvpn.observability.admin import ADMIN_SOCKET, AdminServer
from jvpn.observability.sink import open_sink
from jvpn.policy.model import Policy
from jvpn.protocol.constants import SLOT_FIRST_WORKER, TUN_MTU
from jvpn.protocol.suites import x25519_public
from jvpn.session.machine import Origin
from jvpn.session.record import SessionRecord
from jvpn.store.base import OwnershipStore, StoreError
from jvpn.store.sqlite import SqliteStore
from jvpn.supervisor.admin import GatewayAdmin
from jvpn.supervisor.adoption import Adoption, Found
from jvpn.supervisor.context import GatewayContext, GatewayFacts
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.dataplane import DataPlane, DataPlaneError, find_holder
from jvpn.supervisor.effects import (
    ClearRecord,
    Effect,
    ForgetSession,
    PutId,
    PutPrefix,
    RemoveId,
    RemovePrefix,
    SaveSession,
    SendDatagram,
    TellWorker,
    WriteRow,
)
from jvpn.supervisor.interfaces import (
    XdpState,
    attach_steering,
    carriers,
    configure_tun,
    detach_steering,
)
from jvpn.supervisor.live_session import Arrival
from jvpn.supervisor.narrator import Narrator
from jvpn.supervisor.peers import Peer, PeerTable
from jvpn.supervisor.programs import load, noted_pin_dir, open_pinned, remove_pins
from jvpn.supervisor.steering import Steering
from jvpn.supervisor.steering_backend import NoSteering, SteeringBackend
from workers import privileges
from workers.page import TornRow

NS_PER_MS = 1_000_000
NOBODY = 65_534
CONTROL_NICE = -10
#: Reads from one socket before the others have their turn.
READS_PER_TURN = 64


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """Everything a gateway is told by its configuration, read and checked."""

    node_id: str
    listen: list[tuple[str, int]]
    interfaces: list[str] | None
    xdp: str
    workers: int
    tun_name: str
    addresses: list[str]
    routes: tuple[str, ...]
    private_key: bytes
    peers: list[Peer]
    default_policy: Policy
    suites: frozenset[int]
    store_path: Path
    run_dir: Path
    events_path: Path | None
    pin_dir: Path
    capacity: int
    dns: tuple[str, ...] = ()


def now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // NS_PER_MS


def wall_ms() -> int:
    return time.time_ns() // NS_PER_MS


class Gateway:
    """A running gateway. The constructor brings everything up or raises, having taken down what it had made."""

    def __init__(self, plan: GatewayPlan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._undo: list[Callable[[], object]] = []
        self._running = True
        self._leave_running = False
        self.started_ms = now_ms()
        self.xdp = XdpState()
        try:
            self._bring_up()
        except BaseException:
            self.close()
            raise

    # Bringing up

    def _bring_up(self) -> None:
        plan = self.plan
        found = find_holder(plan.run_dir)
        # Whatever goes wrong from here on: traffic that flows without us goes on.
        self._leave_running = found is not None
        plan.run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        self.store: OwnershipStore = SqliteStore(plan.store_path)
        self._undo.append(self.store.close)
        self.steering = self._open_steering(found is not None)
        workers = plan.workers
        if not self.steering.available and workers > 1:
            self._say("without the BPF programs one worker serves all sessions")
            workers = 1
        self.dataplane = DataPlane(self._holder_plan(workers), found)
        self._undo.append(lambda: self.dataplane.release() if self._leave_running else self.dataplane.close())
        self._leave_running = self.dataplane.adopted
        if self.dataplane.difference:
            self._say(f"the earlier data plane was ended: {self.dataplane.difference}")
        configure_tun(plan.tun_name, plan.addresses, TUN_MTU)
        self._fill_steering()
        self._attach_steering()
        privileges.keep(self._capabilities())
        # The first thread starts here: what it is to lack must be gone before.
        self.sink = open_sink(plan.events_path, plan.node_id, Origin.GATEWAY)
        self._undo.append(lambda: self.sink.close(2.0))
        self.core = GatewayCore(self._context(), self.store)
        if self.dataplane.adopted:
            self._adopt()
        self._watch()
        self._leave_running = False

    def _capabilities(self) -> frozenset[int]:
        """What is still needed: to write the maps, to detach from interfaces, to reach files that root does not own.

        A bpffs that had to be mounted for this gateway alone has to be unmounted at the end.
        """
        kept = {privileges.CAP_BPF, privileges.CAP_NET_ADMIN, privileges.CAP_DAC_OVERRIDE}
        plan = self.plan
        if noted_pin_dir(plan.run_dir, plan.pin_dir).is_relative_to(plan.run_dir):
            kept.add(privileges.CAP_SYS_ADMIN)
        return frozenset(kept)

    def _adopt(self) -> None:
        """Take over the sessions of a supervisor that ended without a word."""
        page = self.dataplane.page
        rows, torn = {}, []
        for record in range(page.capacity):
            try:
                rows[record] = page.read_row(record)
            except TornRow:
                torn.append(record)
        steering = self.steering
        left = Found(rows, torn, self.store.sessions(), steering.steering_ids(), steering.prefixes())
        result = Adoption(self.core, now_ms()).run(left)
        self._carry_out(self.core.effects())
        self._say(f"took over the data plane of holder {self.dataplane.holder_pid}: {result}")

    def _holder_plan(self, workers: int) -> HolderPlan:
        plan = self.plan
        return HolderPlan(
            run_dir=str(plan.run_dir),
            listen=[(address, port) for address, port in plan.listen],
            slots=workers,
            cpus=sorted(os.sched_getaffinity(0)),
            tun_name=plan.tun_name,
            tun_mtu=TUN_MTU,
            capacity=plan.capacity,
            uid=NOBODY,
            gid=NOBODY,
        )

    def _open_steering(self, running: bool) -> SteeringBackend:
        """The programs of a `running` data plane, or new ones, or none, with the reason said aloud."""
        plan = self.plan
        self._at_end(lambda: remove_pins(noted_pin_dir(plan.run_dir, plan.pin_dir), plan.run_dir))
        try:
            steering = open_pinned(plan.run_dir) if running else None
            if steering is None:
                steering = load(plan.pin_dir, plan.run_dir)
        except OSError as error:
            self.xdp.notes.append(f"no BPF programs: {error}")
            self._say(f"steering: none ({error})")
            return NoSteering()
        self._undo.append(steering.close)
        return steering

    def _at_end(self, action: Callable[[], object]) -> None:
        """Do this when closing, unless a data plane is to be left running."""
        self._undo.append(lambda: None if self._leave_running else action())

    def _fill_steering(self) -> None:
        steering = self.steering
        steering.set_ports({port for _address, port in self.plan.listen})
        for seat in self.dataplane.seats.values():
            steering.set_cpu(seat.cpu)
            steering.set_slot(seat.slot, seat.cpu, SLOT_FIRST_WORKER + seat.slot, seat.slot)

    def _attach_steering(self) -> None:
        steering, plan = self.steering, self.plan
        for supervised, _strangers in self.dataplane.sockets:
            steering.attach_reuseport(supervised)
        steering.attach_tun(self.dataplane.tun_queue)
        if isinstance(steering, Steering):
            interfaces = plan.interfaces if plan.interfaces is not None else carriers()
            attach_steering(self.xdp, steering, steering.steer_fd, interfaces, plan.xdp)
            self._at_end(lambda: detach_steering(self.xdp))
        for interface, mode in self.xdp.modes.items():
            self._say(f"steering on {interface}: {mode if mode != 'none' else 'reuseport program only'}")
        for note in self.xdp.notes:
            self._say(f"steering: {note}")

    def _context(self) -> GatewayContext:
        plan, page = self.plan, self.dataplane.page
        facts = GatewayFacts(
            node_id=plan.node_id,
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            private_key=plan.private_key,
            public_key=x25519_public(plan.private_key),
            fleet_key=self.store.fleet_key,
            suites=plan.suites,
            challenge_key=page.challenge_key,
            generation=self.dataplane.inventory.generation,
            slots=tuple(sorted(self.dataplane.seats)),
            capacity=page.capacity,
            mtu=TUN_MTU,
            routes=plan.routes,
            default_policy=plan.default_policy,
            dns=plan.dns,
        )
        peers = PeerTable({peer.public_key: peer for peer in plan.peers}, self.store.timestamps_us())
        narrator = Narrator(self.sink, plan.node_id, wall_ms)
        return GatewayContext(facts, peers, narrator, os.urandom, wall_ms, page)

    def _watch(self) -> None:
        for number, (supervised, strangers) in enumerate(self.dataplane.transports):
            self._register(supervised.fileno(), partial(self._on_datagrams, number, 0))
            self._register(strangers.fileno(), partial(self._on_datagrams, number, 1))
        for slot in self.dataplane.channels:
            self._watch_worker(slot)
        self.dataplane.register(self._selector, self._on_holder)
        admin = GatewayAdmin(self)
        self._admin = AdminServer(self.plan.run_dir / ADMIN_SOCKET, self._selector, admin.handle)
        self._undo.append(self._admin.close)
        self._register(stop_pipe(), self.stop)

    def _register(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def _watch_worker(self, slot: int) -> None:
        self._selector.register(
            self.dataplane.channels[slot], selectors.EVENT_READ, lambda: self._on_worker(slot)
        )

    # Running

    def run(self) -> None:
        """Until SIGTERM, SIGINT or `stop`."""
        # A reattach must not wait behind the bulk traffic that the workers move; they run at the usual priority.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, CONTROL_NICE)
        while self._running:
            timer = self.core.get_timer()
            timeout_s = None if timer is None else max(0.0, (timer - now_ms()) / 1000)
            ready = self._selector.select(timeout_s)
            for key, _events in ready:
                key.data()
                self._carry_out(self.core.effects())
            timer = self.core.get_timer()
            if timer is not None and timer <= now_ms():
                self.core.handle_timer(now_ms())
                self._carry_out(self.core.effects())
            self._report_worker_errors()

    def stop(self) -> None:
        self._running = False

    def _on_datagrams(self, listener: int, member: int) -> None:
        transport = self.dataplane.transports[listener][member]
        for _ in range(READS_PER_TURN):
            received = transport.receive()
            if not received:
                return
            for data, local, remote in received:
                self.core.receive_datagram(data, Arrival(listener, local, remote), now_ms())
                self._carry_out(self.core.effects())

    def _on_worker(self, slot: int) -> None:
        for report in self.dataplane.reports(slot):
            self.core.worker_report(slot, report, now_ms())
            self._carry_out(self.core.effects())

    def _on_holder(self) -> None:
        gone = dict(self.dataplane.channels)
        told = self.dataplane.holder_message()
        if told is None:
            return
        slot = told.seat.slot
        self._selector.unregister(gone[slot])
        self._watch_worker(slot)
        self._say(f"worker {slot} ended (status {told.exit_status}); pid {told.seat.pid} took its seat")
        self.core.worker_replaced(slot, now_ms())

    def _report_worker_errors(self) -> None:
        errors, self.core.context.worker_errors = self.core.context.worker_errors, []
        for error in errors:
            self._say(error)

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        page, steering = self.dataplane.page, self.steering
        for effect in effects:
            match effect:
                case SendDatagram(listener, local, remote, data):
                    self.dataplane.transports[listener][0].send(data, local, remote)
                case TellWorker(slot, command):
                    self.dataplane.tell(slot, command)
                case WriteRow(record, row):
                    page.write_row(record, row)
                case ClearRecord(record):
                    page.clear_record(record)
                case PutId(steering_id, slot, role, source, drain_until_ms):
                    address, port = (None, 0) if source is None else (source.address, source.port)
                    steering.put_id(steering_id, slot, role, address, port, drain_until_ms * NS_PER_MS)
                case RemoveId(steering_id):
                    steering.remove_id(steering_id)
                case PutPrefix(prefix, slot):
                    steering.put_prefix(prefix, slot)
                case RemovePrefix(prefix):
                    steering.remove_prefix(prefix)
                case SaveSession(record, timestamp_us):
                    self._save(record, timestamp_us)
                case ForgetSession(session_id):
                    self._forget(session_id)

    def _save(self, record: SessionRecord, timestamp_us: int) -> None:
        """Without the store there is no new ownership; a running session goes on and is said to be not durable."""
        try:
            self.store.save(record, timestamp_us)
        except StoreError as error:
            self._say(str(error))
            self.core.not_durable(record.session_id, now_ms())

    def _forget(self, session_id: bytes) -> None:
        try:
            self.store.forget(session_id)
        except StoreError as error:
            self.core.context.counters["store_errors"] += 1
            self._say(str(error))

    def close(self) -> None:
        """Tell the clients, then take away everything that was made, in reverse order."""
        while self._undo:
            try:
                self._undo.pop()()
            except OSError as error:
                print(f"while stopping: {error}", file=sys.stderr)

    @property
    def version(self) -> str:
        return __version__


def serve(plan: GatewayPlan, say: Callable[[str], None]) -> int:
    """Run a gateway until it is told to stop. Returns an exit status."""
    try:
        gateway = Gateway(plan, say)
    except (DataPlaneError, StoreError, OSError) as error:
        say(f"cannot start: {error}")
        return 1
    listening = ", ".join(f"{address}:{port}" for address, port in plan.listen)
    say(f"gateway {plan.node_id} listens on {listening} with {len(gateway.dataplane.seats)} workers")
    try:
        gateway.run()
    except DataPlaneError as error:
        say(str(error))
        return 1
    finally:
        gateway.close()
    return 0
