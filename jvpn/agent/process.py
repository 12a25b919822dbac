"""The agent process: one worker, one socket for each uplink, netlink and the clock around the client core."""

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from multiprocess import get_context

from jvpn.agent.admin import ClientAdmin
from jvpn.agent.core import ClientCore, Shell
from jvpn.agent.effects import (
    ClearRecord,
    ConfigureTunnel,
    Effect,
    PersistTimestamp,
    SendDatagram,
    SessionOver,
    TellWorker,
)
from jvpn.agent.handshaking import Identity
from jvpn.agent.narrator import ClientNarrator
from jvpn.agent.netlinks import LinkMonitor, TunnelConfig, link_is_up
from jvpn.agent.paths import Uplink
from jvpn.holder import descriptors
from jvpn.observability.admin import ADMIN_SOCKET, AdminServer
from jvpn.observability.sink import open_sink
from jvpn.policy.model import Policy
from jvpn.protocol import addresses
from jvpn.protocol.constants import TUN_MTU
from jvpn.session.machine import Origin
from jvpn.transports.udp import UdpTransport
from workers import commands, tun, udp
from workers.commands import Endpoint
from workers.main import worker_main
from workers.page import Page

NS_PER_MS = 1_000_000
NOBODY = 65_534
WORKER_START_S = 30.0
ANY_ENDPOINT = Endpoint(addresses.ANY, 0)


@dataclass(frozen=True, slots=True)
class UplinkPlan:
    """A device to go out by; `remote` is the gateway's (address, port) as resolved for it."""

    device: str
    preference: int
    remote: tuple[str, int]


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """Everything a client is told by its configuration, read and checked."""

    node_id: str
    identity: Identity
    uplinks: list[UplinkPlan]
    policy: Policy
    tun_name: str
    routes: list[str] | None
    run_dir: Path
    events_path: Path | None
    state_path: Path


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
        try:
            self._bring_up()
        except BaseException:
            self.close()
            raise

    def _bring_up(self) -> None:
        plan = self.plan
        plan.run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        self.sink = open_sink(plan.events_path, plan.node_id, Origin.CLIENT)
        self._undo.append(lambda: self.sink.close(2.0))
        self._tun = tun.open_queue(plan.tun_name)
        self._undo.append(lambda: os.close(self._tun))
        self._tunnel = TunnelConfig(plan.tun_name)
        self._page_fd = Page.create(1, os.urandom(32))
        self._undo.append(lambda: os.close(self._page_fd))
        self.page = Page(self._page_fd)
        self._sockets = [self._open_socket(uplink.device) for uplink in plan.uplinks]
        self._transports = [UdpTransport(opened) for opened in self._sockets]
        self._start_worker()
        self.core = self._make_core()
        self._watch()

    def _open_socket(self, device: str) -> socket.socket:
        try:
            opened = udp.open_socket("::", 0, device=device)
        except OSError as error:
            raise OSError(
                error.errno, f"uplink {device}: {error.strerror}; 'ip link' lists what there is"
            ) from error
        self._undo.append(opened.close)
        return opened

    def _make_core(self) -> ClientCore:
        plan = self.plan
        uplinks = [
            Uplink(
                number,
                uplink.device,
                uplink.preference,
                Endpoint(addresses.to_bytes(uplink.remote[0]), uplink.remote[1]),
                link_is_up(uplink.device),
            )
            for number, uplink in enumerate(plan.uplinks)
        ]
        narrator = ClientNarrator(self.sink, plan.node_id, lambda: wall_us() // 1000)
        shell = Shell(os.urandom, wall_us, self.page.read_activity)
        last_us = _read_timestamp(plan.state_path)
        return ClientCore(plan.identity, uplinks, plan.policy, narrator, shell, last_us, now_ns())

    # The worker

    def _start_worker(self) -> None:
        """Start the data worker and give it everything; sequence number 0: nobody waits for the answers."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = get_context("spawn").Process(target=worker_main, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self.worker_pid: int = process.pid
        self._worker_fd = os.pidfd_open(self.worker_pid)
        self._channel = ours
        self._undo.append(self._end_worker)
        descriptors.send(ours, commands.encode(commands.AttachPage(0)), [self._page_fd])
        descriptors.send(ours, commands.encode(commands.AttachTun(0, True, TUN_MTU)), [self._tun])
        for number, opened in enumerate(self._sockets):
            attach = commands.AttachSocket(0, number, gro=True, segment=True)
            descriptors.send(ours, commands.encode(attach), [opened.fileno()])
        descriptors.send(ours, commands.encode(commands.Start(0, 0, -1, False, NOBODY, NOBODY)))
        # Only the worker reads the sockets: a handshake begun before it is ready would wait for it, and seem lost.
        ours.settimeout(WORKER_START_S)
        ours.recv(commands.MAX_MESSAGE)
        ours.settimeout(None)

    def _end_worker(self) -> None:
        try:
            signal.pidfd_send_signal(self._worker_fd, signal.SIGKILL)
            os.waitpid(self.worker_pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self._worker_fd)
        self._channel.close()

    # Running

    def _watch(self) -> None:
        self._register(self._channel.fileno(), self._on_worker)
        self._register(self._worker_fd, self._on_worker_exit)
        self._links = LinkMonitor()
        self._register(self._links.fileno(), self._on_links)
        admin = ClientAdmin(self)
        server = AdminServer(self.plan.run_dir / ADMIN_SOCKET, self._selector, admin.handle)
        self._undo.append(server.close)
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._register(reader, self.stop)

    def _register(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def run(self) -> int:
        """Until SIGTERM, SIGINT, or a session end that nothing may follow. Returns an exit status."""
        while self._running:
            timeout_s = max(0.0, self.core.get_timer() / 1000 - now_ns() / 1e9)
            for key, _events in self._selector.select(timeout_s):
                key.data()
                self._carry_out(self.core.effects())
            if self.core.get_timer() <= now_ns() // NS_PER_MS:
                self.core.handle_timer(now_ns())
                self._carry_out(self.core.effects())
        self.core.stop(now_ns())
        self._carry_out(self.core.effects())
        return self._status

    _status = 0

    def stop(self) -> None:
        self._running = False

    def _on_worker(self) -> None:
        while True:
            try:
                message = self._channel.recv(commands.MAX_MESSAGE, socket.MSG_DONTWAIT)
            except OSError:
                return
            if not message:
                return
            self.core.worker_report(commands.decode_report(message), now_ns())
            self._carry_out(self.core.effects())

    def _on_worker_exit(self) -> None:
        self._say("the data worker died; the client ends so that its supervisor can start it again")
        self._status = 1
        self.stop()

    def _on_links(self) -> None:
        for device, up in self._links.take():
            self.core.link_event(device, up, now_ns())
            self._carry_out(self.core.effects())

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendDatagram(uplink, remote, data):
                    self._transports[uplink].send(data, ANY_ENDPOINT, remote)
                case TellWorker(command):
                    self._tell(command)
                case PersistTimestamp(timestamp_us):
                    _write_timestamp(self.plan.state_path, timestamp_us)
                case ConfigureTunnel(inner, routes, mtu):
                    chosen = self.plan.routes if self.plan.routes is not None else routes
                    self._tunnel.apply(inner, chosen, mtu)
                    self._say(f"session up: {', '.join(inner)} on {self.plan.tun_name}")
                case ClearRecord(record):
                    self.page.clear_record(record)
                case SessionOver(reason, again):
                    self._say(f"session over: {reason}" + ("; shaking hands again" if again else ""))
                    if not again:
                        self._status = 0 if reason == "PEER_CLOSED" else 3
                        self.stop()

    def _tell(self, command: commands.Command) -> None:
        try:
            self._channel.send(commands.encode(command), socket.MSG_DONTWAIT)
        except OSError as error:
            self._say(f"the data worker does not take commands: {error}")

    def close(self) -> None:
        """Take away everything that was made, in reverse order; TUN, addresses and routes go together."""
        while self._undo:
            try:
                self._undo.pop()()
            except OSError as error:
                self._say(f"while stopping: {error}")


def _read_timestamp(path: Path) -> int:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _write_timestamp(path: Path, timestamp_us: int) -> None:
    """Durable: a client that crashed must not repeat a timestamp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with new.open("w") as file:
        file.write(f"{timestamp_us}\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


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
