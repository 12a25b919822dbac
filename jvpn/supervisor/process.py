"""The supervisor process: sockets, clock, maps and files around the gateway core.

One thread, one selector. A turn: authenticated control first (slot 0), then workers, then strangers (slot 1), then
deadlines. The core's effects are carried out in their order after each of these; the store does its part in a thread
of its own, and what depends on it follows when it has answered.
"""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial

from msgspec import structs

from jvpn import __version__
from jvpn.clocks import NS_PER_MS, now_ms, wall_ms
from jvpn.entropy import RandomPool
from jvpn.holder.inventory import Succeeded
from jvpn.holder.notify import ready
from jvpn.holder.signals import signal_pipe
from jvpn.observability.admin import ADMIN_SOCKET, AdminError, AdminServer, make_run_dir
from jvpn.observability.keylog import open_keylog
from jvpn.observability.sink import open_sink
from jvpn.policy.source import SourceError
from jvpn.protocol.constants import TUN_MTU
from jvpn.protocol.suites import x25519_public
from jvpn.session.machine import Origin
from jvpn.session.record import SessionRecord
from jvpn.store.base import StoreError
from jvpn.store.etcd import EtcdStore
from jvpn.supervisor import fleet_news
from jvpn.supervisor.admin import GatewayAdmin
from jvpn.supervisor.adoption import Adoption, Found
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.context import GatewayContext, GatewayFacts
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.dataplane import DataPlaneError, find_holder
from jvpn.supervisor.effects import (
    Announce,
    ClearRecord,
    Effect,
    PutId,
    PutPrefix,
    RemoveId,
    RemovePrefix,
    SendDatagram,
    TellWorker,
    WriteRow,
)
from jvpn.supervisor.fence import Fence
from jvpn.supervisor.fleet import Fleet
from jvpn.supervisor.fleet_member import FleetMember
from jvpn.supervisor.instance import boot_id, instance_of
from jvpn.supervisor.keeping import Keeping
from jvpn.supervisor.ladder import SteeredDataPlane
from jvpn.supervisor.narrator import Narrator
from jvpn.supervisor.opening import open_store
from jvpn.supervisor.peers import PeerTable
from jvpn.supervisor.plan import FleetPlan, GatewayPlan
from jvpn.supervisor.policies import Applied, Mode, PolicySet, told
from jvpn.supervisor.programs import noted_pin_dir
from jvpn.supervisor.store_desk import ThreadDesk
from jvpn.supervisor.turns import Rank, Turns
from jvpn.supervisor.undo import Undo
from workers import privileges
from workers.page import TornRow

CONTROL_NICE = -10
SWITCH_INTERVAL_S = 0.0005
#: For gc.set_threshold. A session is forty objects that stay: by Python's own thresholds a storm of them has all walked
#: again and again, and everything waits for a second and more. So what is new is looked at once, for what has gone in
#: circles by then; the rest after ten million more objects, those of 200 000 sessions. Sessions that end need no
#: collector (`LiveSession.retire`).
COLLECTING = (10_000, 1_000, 2)
#: Reads from one socket before the others have their turn.
READS_PER_TURN = 64
#: A few hundred of these a turn would keep live sessions' reattaches waiting for tens of milliseconds.
READS_OF_STRANGERS = 16


class Gateway:
    """A running gateway. The constructor brings everything up or raises, having taken down what it had made.

    `reread()` reads configuration and policies again; it raises SourceError for a configuration that cannot be used.
    """

    def __init__(
        self, plan: GatewayPlan, say: Callable[[str], None], reread: Callable[[], PolicySet] | None = None
    ) -> None:
        self.plan = plan
        self._reread = reread
        self._say = say
        self._turns = Turns()
        self._undo = Undo()
        self._running = True
        self.started_ms = now_ms()
        try:
            self._bring_up()
        except BaseException:
            self.close()
            raise

    # Bringing up

    def _bring_up(self) -> None:
        plan = self.plan
        make_run_dir(plan.run_dir)
        found = find_holder(plan.run_dir)
        # Whatever goes wrong from here on: traffic that flows without us goes on.
        self._undo.leave_running = found is not None
        self.store = open_store(plan)
        self.desk = ThreadDesk(self.store)
        self._undo.add(self.desk.close)
        steered = SteeredDataPlane(plan, found, self._undo, self._say)
        self.dataplane, self.steering, self.xdp = steered.dataplane, steered.steering, steered.xdp
        # A reattach must not wait behind the bulk traffic that the workers move; they run at the usual priority.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, CONTROL_NICE)
        privileges.keep(self._capabilities())
        # The first thread starts here: what it is to lack must be gone before.
        self.sink = open_sink(plan.events_path, plan.node_id, Origin.GATEWAY)
        self._undo.add(lambda: self.sink.close(2.0))
        self.keylog = open_keylog(plan.keylog, self._say)
        if self.keylog is not None:
            self._undo.add(partial(self.keylog.close, 2.0))
        self._fence = Fence(self.dataplane.page, self.steering)
        self.core = GatewayCore(self._context())
        # From here on this node is known to live, and nobody takes what is its own.
        self.member = None if plan.fleet is None else self._join(plan.fleet)
        stored = self.store.sessions() if self.dataplane.adopted else []
        self.desk.start()
        self._keeping = Keeping(self.desk, self.core, self._say)
        if self.dataplane.adopted:
            self._adopt(stored)
        if self.member is None:
            self._fence.lift()
        else:
            self.member.caught_up()
        self.core.sweeping.begin(now_ms())
        self._watch()
        self._undo.leave_running = plan.keep_dataplane

    def _capabilities(self) -> frozenset[int]:
        """What is still needed: to write the maps, to detach from interfaces, to reach files that root does not own.

        A bpffs that had to be mounted for this gateway alone has to be unmounted at the end.
        """
        kept = {privileges.CAP_BPF, privileges.CAP_NET_ADMIN, privileges.CAP_DAC_OVERRIDE}
        plan = self.plan
        if noted_pin_dir(plan.run_dir, plan.pin_dir).is_relative_to(plan.run_dir):
            kept.add(privileges.CAP_SYS_ADMIN)
        return frozenset(kept)

    def _join(self, fleet: FleetPlan) -> FleetMember:
        plan = self.plan
        mark = self.store.mark if isinstance(self.store, EtcdStore) else None
        instance = instance_of(plan.run_dir)
        member = FleetMember(fleet, plan.node_id, instance, self._fence.moved, self._say, mark)
        # A data plane that is left running goes on under this lease, until the next supervisor keeps it.
        self._undo.add(lambda: member.stop(give_back=not self._undo.leave_running))
        member.start()
        self.core.context.doubt_lease = member.renew
        return member

    def _adopt(self, stored: list[SessionRecord]) -> None:
        """Take over the sessions of a supervisor that ended without a word."""
        page = self.dataplane.page
        rows, torn = {}, []
        for record in range(page.capacity):
            try:
                rows[record] = page.read_row(record)
            except TornRow:
                torn.append(record)
        steering = self.steering
        left = Found(rows, torn, stored, steering.steering_ids(), steering.prefixes())
        result = Adoption(self.core, now_ms()).run(left)
        self._settle()
        self._say(f"took over the data plane of holder {self.dataplane.holder_pid}: {result}")

    def _context(self) -> GatewayContext:
        plan, page = self.plan, self.dataplane.page
        facts = GatewayFacts(
            node_id=plan.node_id,
            boot_id=boot_id(),
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
            pool=plan.pool,
            dns=plan.dns,
        )
        peers = PeerTable({peer.public_key: peer for peer in plan.peers}, self.store.timestamps_us())
        narrator = Narrator(self.sink, plan.node_id, wall_ms)
        fleet = None if plan.fleet is None else Fleet(plan.node_id)
        fenced = self._fence.fenced
        context = GatewayContext(
            facts, peers, narrator, RandomPool().take, wall_ms, page, fleet=fleet, fenced=fenced
        )
        if self.keylog is not None:
            context.note_keys = self.keylog.note
        return context

    def _watch(self) -> None:
        for number, (supervised, strangers) in enumerate(self.dataplane.transports):
            first, last = Rank.AUTHENTICATED, Rank.STRANGERS
            self._turns.register(supervised.fileno(), partial(self._on_datagrams, number, 0), first)
            self._turns.register(strangers.fileno(), partial(self._on_datagrams, number, 1), last)
        for slot in self.dataplane.channels:
            self._watch_worker(slot)
        self.dataplane.register(self._turns.selector, self._on_holder)
        admin = GatewayAdmin(self)
        self._turns.register(self.desk.fileno(), lambda: None)
        if self.member is not None:
            self._turns.register(self.member.fileno(), self._on_fleet)
        self._admin = AdminServer(self.plan.run_dir / ADMIN_SOCKET, self._turns.selector, admin.handle)
        self._undo.add(self._admin.close)
        self._signals = signal_pipe(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._turns.register(self._signals, self._on_signal)

    def _watch_worker(self, slot: int) -> None:
        self._turns.register(self.dataplane.channels[slot].fileno(), lambda: self._on_worker(slot))

    # Running

    def run(self) -> None:
        """Until SIGTERM, SIGINT or `stop`."""
        # What is imported lives as long as the process: the collector is not to walk it in the middle of a reattach.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECTING)
        # Nor is the store's thread, or the sink's, to keep the interpreter for the usual 5 ms then.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        while self._running:
            self.sink.wake()
            timer = self._get_timer()
            timeout_s = None if timer is None else max(0.0, (timer - now_ms()) / 1000)
            for serve_one in self._turns.ready(timeout_s):
                serve_one()
                self._settle()
            timer = self._get_timer()
            if timer is not None and timer <= now_ms():
                self.core.handle_timer(now_ms())
                self._settle()
            self._report_worker_errors()
            for what in self.desk.found():
                self._keeping.found(what, now_ms())

    def _get_timer(self) -> int | None:
        due = (self.core.get_timer(), self._keeping.get_timer())
        return min((at for at in due if at is not None), default=None)

    def stop(self) -> None:
        self._running = False

    def _on_signal(self) -> None:
        came = set(os.read(self._signals, 64))
        if came & {signal.SIGTERM, signal.SIGINT}:
            self.stop()
        elif signal.SIGHUP in came:
            with contextlib.suppress(AdminError):
                self.reload(None, "SIGHUP")

    def reload(self, mode: Mode | None, by: str) -> Applied:
        """Take up what the policy files say now; `mode` None: as the configuration says. What came of it is said.

        Raises AdminError when the configuration cannot be read: nothing has changed then.
        """
        if self._reread is None:
            raise AdminError("this gateway was started without files to read again")
        try:
            found = self._reread()
        except SourceError as error:
            self.core.context.narrator.reload_refused(f"{error}, asked by {by}")
            self._say(f"policies are as before, the configuration cannot be used: {error}")
            raise AdminError(f"nothing has changed, the configuration cannot be used: {error}") from error
        applied = self.core.apply_policies(found, mode or found.mode, by, now_ms())
        for line in told(applied):
            self._say(line)
        return applied

    def _on_datagrams(self, listener: int, member: int) -> None:
        transport = self.dataplane.transports[listener][member]
        for _ in range(READS_OF_STRANGERS if member else READS_PER_TURN):
            received = transport.receive()
            if not received:
                return
            for data, local, remote in received:
                self.core.receive_datagram(data, Arrival(listener, local, remote), now_ms())
                self._carry_out()

    def _on_worker(self, slot: int) -> None:
        for report in self.dataplane.reports(slot):
            self.core.worker_report(slot, report, now_ms())
            self._carry_out()

    def _on_fleet(self) -> None:
        assert self.member is not None
        fleet_news.bring(self.member, self.core.others, self.plan.node_id, now_ms())

    def _on_holder(self) -> None:
        # The last words of a worker that has ended are in its channel, which goes with it.
        for slot in self.dataplane.channels:
            self._on_worker(slot)
        gone = {slot: channel.fileno() for slot, channel in self.dataplane.channels.items()}
        told = self.dataplane.holder_message()
        if told is None:
            return
        if isinstance(told, Succeeded):
            self._say(f"the data plane is held by version {told.version} now; its workers follow one by one")
            return
        slot = told.seat.slot
        self._turns.unregister(gone[slot])
        self._watch_worker(slot)
        how = "was retired" if told.retired else f"ended (status {told.exit_status})"
        self._say(f"worker {slot} {how}; pid {told.seat.pid} took its seat")
        self.core.worker_replaced(slot, now_ms())

    def _report_worker_errors(self) -> None:
        errors, self.core.context.worker_errors = self.core.context.worker_errors, []
        for error in errors:
            self._say(error)

    def _carry_out(self) -> None:
        """What waits for nothing."""
        self._keeping.carry_out(self._do)

    def _settle(self) -> None:
        """All that the turn has brought, and what the store has answered."""
        self._keeping.settle(self._do, now_ms())

    def _do(self, effects: Iterable[Effect]) -> None:
        page, steering = self.dataplane.page, self.steering
        for effect in effects:
            # The first five are each reattach's: `match` takes four times as long for one of them.
            if isinstance(effect, PutId):
                source, until_ns = effect.source, effect.drain_until_ms * NS_PER_MS
                address, port = (None, 0) if source is None else (source.address, source.port)
                steering.put_id(effect.steering_id, effect.slot, effect.role, address, port, until_ns)
            elif isinstance(effect, TellWorker):
                self.dataplane.tell(effect.slot, effect.command)
            elif isinstance(effect, WriteRow):
                page.write_row(effect.record, effect.row)
            elif isinstance(effect, SendDatagram):
                transport = self.dataplane.transports[effect.listener][0]
                transport.send(effect.data, effect.local, effect.remote)
            elif isinstance(effect, RemoveId):
                steering.remove_id(effect.steering_id)
            elif isinstance(effect, ClearRecord):
                page.clear_record(effect.record)
            elif isinstance(effect, PutPrefix):
                steering.put_prefix(effect.prefix, effect.slot)
            elif isinstance(effect, RemovePrefix):
                steering.remove_prefix(effect.prefix)
            elif isinstance(effect, Announce) and self.member is not None and self.plan.fleet is not None:
                self.member.announce(structs.replace(self.plan.fleet.about, draining=effect.draining))

    def close(self) -> None:
        """Take away everything that was made, in reverse order; where the data plane is kept, what is only ours."""
        self._undo.run()

    @property
    def version(self) -> str:
        return __version__


def serve(
    plan: GatewayPlan, say: Callable[[str], None], reread: Callable[[], PolicySet] | None = None
) -> int:
    """Run a gateway until it is told to stop; SIGHUP has it `reread` its policies. Returns an exit status."""
    try:
        gateway = Gateway(plan, say, reread)
    except (DataPlaneError, StoreError, OSError) as error:
        say(f"cannot start: {error}")
        return 1
    listening = ", ".join(f"{address}:{port}" for address, port in plan.listen)
    ready()
    say(f"gateway {plan.node_id} listens on {listening} with {len(gateway.dataplane.seats)} workers")
    try:
        gateway.run()
    except DataPlaneError as error:
        say(str(error))
        return 1
    finally:
        gateway.close()
    return 0
