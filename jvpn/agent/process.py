"""The agent process: one worker, one socket for each uplink, netlink and the clock around the client core."""

import contextlib
import errno
import gc
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from jvpn.agent import timestamp
from jvpn.agent.admin import ClientAdmin
from jvpn.agent.core import ClientCore, Shell
from jvpn.agent.data_worker import DataWorker
from jvpn.agent.dns import Dns, DnsThread
from jvpn.agent.effects import (
    ClearRecord,
    ConfigureTunnel,
    PersistTimestamp,
    Say,
    SendDatagram,
    SessionOver,
    TellWorker,
)
from jvpn.agent.narrator import ClientNarrator
from jvpn.agent.netlinks import LinkMonitor, LinkNews, News, default_route_devices
from jvpn.agent.pidfile import PidFile
from jvpn.agent.plan import ClientPlan
from jvpn.agent.reach import Reach
from jvpn.agent.resolver import Resolver
from jvpn.agent.sleeping import Sleeping
from jvpn.agent.tunnel_config import TunnelConfig
from jvpn.agent.uplinks import Uplinks
from jvpn.agent.worker_side import RECORDS
from jvpn.holder.signals import stop_pipe
from jvpn.observability.admin import ADMIN_SOCKET, AdminServer, make_run_dir
from jvpn.observability.keylog import open_keylog
from jvpn.observability.sink import open_sink
from jvpn.session.machine import Origin
from workers import commands, offload, tun
from workers.page import Page

NS_PER_MS = 1_000_000
#: INITs without an answer before the client says so: about three seconds.
UNANSWERED_TO_COMPLAIN = 5
TUN_WAIT_S = 2.0
TUN_POLL_S = 0.05
#: Recovery must not wait behind bulk traffic; the worker, which carries that, keeps the ordinary priority.
NICE = -10
DEFAULT_PREFERENCE = 100
#: So many deaths of the data worker in this time have a cause that a restart does not mend.
MAX_DEATHS = 4
DEATHS_WITHIN_S = 30.0


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_us() -> int:
    return time.time_ns() // 1000


class Agent:
    """A running client. The constructor brings everything up or raises, having taken down what it had made."""

    def __init__(self, plan: ClientPlan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._undo: list[Callable[[], object]] = []
        self._running = True
        self._complained = False
        self._status = 0
        self._worker: DataWorker | None = None
        self._deaths_s: list[float] = []
        self._sleeping = Sleeping()
        try:
            self._bring_up()
        except BaseException:
            self.close()
            raise

    def _bring_up(self) -> None:
        plan = self.plan
        make_run_dir(plan.run_dir)
        pid_file = PidFile(plan.run_dir)
        self._undo.append(pid_file.close)
        self.sink = open_sink(plan.events_path, plan.node_id, Origin.CLIENT)
        self._undo.append(lambda: self.sink.close(2.0))
        self.keylog = open_keylog(plan.keylog, self._say)
        if self.keylog is not None:
            self._undo.append(partial(self.keylog.close, 2.0))
        self._tun = _open_tun(plan.tun_name, plan.offload)
        self._undo.append(lambda: os.close(self._tun))
        self.offload = offload.find(self._tun) if plan.offload else offload.Offload()
        self._tunnel = TunnelConfig(plan.tun_name, self._say)
        self._name_servers()
        self._page_fd = Page.create(RECORDS, os.urandom(32))
        self._undo.append(lambda: os.close(self._page_fd))
        self.page = Page(self._page_fd)
        # Before it looks at the links, so that no change falls between.
        self._links = LinkMonitor()
        self._make_uplinks()
        self._worker = self._start_worker()
        self._undo.append(self._end_worker)
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
        self._make_core()
        # What is imported lives as long as the process: the collector is not to walk it in the middle of a recovery.
        gc.collect()
        gc.freeze()
        self._watch_worker(self._worker)
        self._watch()

    def _name_servers(self) -> None:
        plan = self.plan
        dns = Dns(plan.dns, plan.state_dir, plan.tun_name)
        if dns.restore():
            self._say("put back the name servers that a client left behind when it was killed")
        self._dns = DnsThread(dns, self._say)
        self._undo.append(self._dns.close)
        self._resolver = Resolver(plan.endpoints, dns.servers_outside)
        self._undo.append(self._resolver.close)

    def _make_uplinks(self) -> None:
        planned = self.plan.uplinks
        if planned is None:
            own = self.plan.tun_name
            devices = [(name, DEFAULT_PREFERENCE) for name in default_route_devices() if name != own]
        else:
            devices = [(uplink.device, uplink.preference) for uplink in planned]
        most_ways = self.plan.policy.max_candidates + 1
        labels = {uplink.device: (uplink.cost, uplink.network) for uplink in planned or ()}
        self.uplinks = Uplinks(devices, self._attach, self.offload.gro, most_ways, labels)
        self._undo.append(self.uplinks.close)
        for port in self.uplinks.ports:
            self.uplinks.refresh(port)
            if port.index is None:
                self._say(f"uplink {port.name}: there is no such device yet; it is used from when it comes")
        if not devices:
            self._say("no device has a default route yet; waiting for one")

    def _make_core(self) -> None:
        plan, uplinks = self.plan, self.uplinks
        narrator = ClientNarrator(self.sink, plan.node_id, lambda: wall_us() // 1000)
        shell = Shell(os.urandom, wall_us, self.page.read_activity, self._act)
        if self.keylog is not None:
            shell = replace(shell, note_keys=self.keylog.note)
        last_us = timestamp.read(plan.state_dir)
        known = [port.uplink for port in uplinks.ports]
        self.core = ClientCore(plan.identity, known, plan.policy, narrator, shell, last_us, now_ns())
        own_devices = plan.uplinks is None
        self.reach = Reach(self.core, uplinks, self._resolver, plan.tun_name, own_devices, self._say)
        self.reach.start(now_ns())

    def _attach(self, number: int, opened: socket.socket | None) -> None:
        """A socket came or went; before there is a worker, it is given all of them at its start."""
        if self._worker is None:
            return
        try:
            if opened is None:
                self._worker.detach(number)
            else:
                self._worker.attach(number, opened)
        except OSError as error:
            self._say(f"the data worker does not take commands: {error}")

    # Running

    def _watch_worker(self, worker: DataWorker) -> None:
        self._register(worker.fileno(), lambda: self._on_worker(worker))
        self._register(worker.pidfd, lambda: self._on_worker_exit(worker))

    def _watch(self) -> None:
        self._register(self._links.fileno(), lambda: self.reach.on_news(self._news(), now_ns()))
        self._register(self._resolver.fileno(), lambda: self.reach.on_resolved(now_ns()))
        admin = ClientAdmin(self)
        server = AdminServer(self.plan.run_dir / ADMIN_SOCKET, self._selector, admin.handle)
        self._undo.append(server.close)
        self._register(stop_pipe(), self.stop)

    def _news(self) -> Iterator[News]:
        """What the kernel says. When a link has ended, the worker has been asked what has arrived, and may have
        said it by now: the REQUEST waits for that, and not for the kernel's other news."""
        for one in self._links.take():
            yield one
            if isinstance(one, LinkNews) and not one.up and self._worker is not None:
                self._act()
                self._on_worker(self._worker)

    def _register(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def run(self) -> int:
        """Until SIGTERM, SIGINT, or a session end that nothing may follow. Returns an exit status."""
        while self._running:
            self.sink.wake()
            due_ms = min(self.core.get_timer(), self.reach.next_ms)
            ready = self._selector.select(max(0.0, due_ms / 1000 - now_ns() / 1e9))
            if self._sleeping.slept_ns():
                self.reach.on_wake(now_ns())
                self._act()
            for key, _events in ready:
                key.data()
                self._act()
            if self.core.get_timer() <= now_ns() // NS_PER_MS:
                self.core.handle_timer(now_ns())
                self._act()
            if self.reach.next_ms <= now_ns() // NS_PER_MS:
                self.reach.look(now_ns())
                self._act()
            self._complain()
        self.core.stop(now_ns())
        self._act()
        self._take_leave()
        return self._status

    def _take_leave(self) -> None:
        """CLOSE is said three times, apart: loss comes in bursts."""
        while (due_ms := self.core.closing_ms) is not None:
            time.sleep(max(0.0, due_ms / 1000 - now_ns() / 1e9))
            self.core.handle_timer(now_ns())
            self._act()

    def stop(self) -> None:
        self._running = False

    def _complain(self) -> None:
        """Say once that nobody answers: a gateway is silent towards keys that it does not know."""
        if self.core.session is not None:
            self._complained = False
        elif self.core.unanswered >= UNANSWERED_TO_COMPLAIN and not self._complained:
            self._complained = True
            self._say(
                f"no answer from the gateway to {UNANSWERED_TO_COMPLAIN} handshakes; still trying. Does it run and can "
                "it be reached, does it know this client's public key, is gateway.public_key its own, and "
                "is this machine's clock right?"
            )

    def _on_worker(self, worker: DataWorker) -> None:
        for report in worker.reports():
            self.core.worker_report(report, now_ns())
            self._act()

    def _on_worker_exit(self, dead: DataWorker) -> None:
        """Another takes its place, and the session goes on; unless that happens again and again."""
        for descriptor in (dead.fileno(), dead.pidfd):
            self._selector.unregister(descriptor)
        self._end_worker()
        self._deaths_s = [*self._deaths_s[1 - MAX_DEATHS :], time.monotonic()]
        if len(self._deaths_s) == MAX_DEATHS and self._deaths_s[-1] - self._deaths_s[0] < DEATHS_WITHIN_S:
            self._say(f"the data worker died {MAX_DEATHS} times in {DEATHS_WITHIN_S:g} s; the client ends")
            self._status = 1
            self.stop()
            return
        try:
            self._worker = self._start_worker()
        except OSError as error:
            self._say(f"the data worker died, and another does not start: {error}; the client ends")
            self._status = 1
            self.stop()
            return
        self._say("the data worker died; another goes on in its place")
        self._watch_worker(self._worker)
        self.core.worker_replaced()

    def _start_worker(self) -> DataWorker:
        return DataWorker(self._page_fd, self._tun, self.uplinks.sockets(), self.offload)

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _act(self) -> None:
        """Carry out what the core asks for."""
        for effect in self.core.effects():
            match effect:
                case SendDatagram(uplink, remote, data):
                    self.uplinks.send(uplink, remote, data)
                case TellWorker(command):
                    self._tell(command)
                case PersistTimestamp(timestamp_us):
                    timestamp.write(self.plan.state_dir, timestamp_us)
                case ConfigureTunnel():
                    self._configure(effect)
                case ClearRecord(record):
                    self.page.clear_record(record)
                case Say(text):
                    self._say(text)
                case SessionOver(reason, again, note):
                    why = f"{reason} ({note})" if note else reason
                    if self._running:
                        self._say(f"session over: {why}" + ("; shaking hands again" if again else ""))
                    else:
                        self._say("session closed, as asked; the gateway is told")
                    if not again:
                        self._status = 0 if reason == "PEER_CLOSED" else 3
                        self.stop()

    def _configure(self, given: ConfigureTunnel) -> None:
        routes = given.routes if self.plan.routes is None else self.plan.routes
        self._tunnel.apply(given.addresses, routes, given.mtu)
        self.reach.tunnel_stands = True
        if self.plan.dns.mode != "off":
            self._dns.use(given.dns)
        self._say(f"session up: {', '.join(given.addresses)} on {self.plan.tun_name}")

    def _tell(self, command: commands.Command) -> None:
        if self._worker is None:
            return
        try:
            self._worker.tell(command)
        except OSError as error:
            self._say(f"the data worker does not take commands: {error}")

    def close(self) -> None:
        """Take away everything that was made, in reverse order; TUN, addresses and routes go together."""
        while self._undo:
            try:
                self._undo.pop()()
            except OSError as error:
                self._say(f"while stopping: {error}")


def _open_tun(name: str, offload: bool) -> int:
    """Raises OSError. A client that was killed leaves the TUN to its worker for a moment."""
    until = time.monotonic() + TUN_WAIT_S
    while True:
        try:
            return tun.open_queue(name, offload=offload)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > until:
                problem = f"TUN {name} is in use by another process; stop that, or set another tun.name"
                raise OSError(problem) from error
            time.sleep(TUN_POLL_S)


def connect(plan: ClientPlan, say: Callable[[str], None]) -> int:
    """Run a client until it is told to stop. Returns an exit status."""
    try:
        agent = Agent(plan, say)
    except OSError as error:
        say(f"cannot start: {error}")
        return 1
    try:
        return agent.run()
    finally:
        agent.close()
