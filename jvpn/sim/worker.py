"""A worker without process: the real table and pipelines; its sockets, TUN and loop are the simulator's."""

import os
import socket
from collections.abc import Callable

from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import SLOT_FIRST_WORKER, TUN_MTU
from jvpn.sim.clock import NS, Agenda, MachineClock
from workers import commands
from workers.commands import Endpoint
from workers.counters import Counter
from workers.fakes import FakeSocket, FakeTun
from workers.page import Page
from workers.pipelines import Pipelines
from workers.table import SessionTable, TableError
from workers.tun import VNET_HEADER_BYTES
from workers.udp import Address, UdpSocket

#: (socket number, destination, datagram)
Send = Callable[[int, Endpoint, bytes], None]


def make_page(capacity: int, challenge_key: bytes) -> Page:
    """A shared page that lives as long as it is used."""
    descriptor = Page.create(capacity, challenge_key)
    try:
        return Page(descriptor)
    finally:
        os.close(descriptor)


class Outlet:
    """What a FakeSocket takes for its network: cuts a run into datagrams and hands them on."""

    def __init__(self, number: int, send: Send) -> None:
        self._number = number
        self._send = send
        self._destinations: dict[Address, Endpoint] = {}

    def carry(self, data: bytes, segment: int, source: Address, destination: Address) -> None:
        to = self._destinations.get(destination)
        if to is None:
            to = self._destinations[destination] = Endpoint(to_bytes(destination[0]), destination[1])
        for at in range(0, len(data), segment):
            self._send(self._number, to, data[at : at + segment])


class SimWorker:
    """Carries out commands, takes datagrams and packets, and tells `say` its reports and `deliver` what it wrote.

    `sockets` are number → own endpoint. `alive` False: killed, it does nothing any more. `paused`: it does nothing now.
    """

    def __init__(
        self,
        page: Page,
        clock: MachineClock,
        agenda: Agenda,
        *,
        slot: int,
        gateway: bool,
        sockets: dict[int, Endpoint],
        send: Send,
        say: Callable[[commands.Report], None],
        deliver: Callable[[bytes], None],
    ) -> None:
        self.alive = True
        self.paused = False
        self.commands: list[commands.Command] = []
        self.refused: list[str] = []
        self.page = page
        self._clock = clock
        self._agenda = agenda
        self._say = say
        self._deliver = deliver
        self._send = send
        self._tick_ns: int | None = None
        self.table = SessionTable(page, gateway=gateway)
        self._sockets = {number: self._socket(number, own) for number, own in sockets.items()}
        self.table.sockets = {
            number: UdpSocket(number, opened, segment=True) for number, opened in self._sockets.items()
        }
        self.tun = FakeTun()
        self.values = page.counters(SLOT_FIRST_WORKER + slot)
        self.pipelines = Pipelines(self.table, self.tun, TUN_MTU, self._offer, self.values)
        self._addresses: dict[Endpoint, Address] = {}

    def _socket(self, number: int, own: Endpoint) -> FakeSocket:
        address = socket.inet_ntop(socket.AF_INET6, own.address), own.port
        return FakeSocket(Outlet(number, self._out), address, own.address)  # type: ignore[arg-type]

    def _out(self, number: int, destination: Endpoint, data: bytes) -> None:
        self._send(number, destination, data)

    def _offer(self, report: commands.Report) -> bool:
        self._say(report)
        return True

    def count(self, counter: Counter) -> int:
        return self.values[counter]

    # What comes in

    def tell(self, command: commands.Command) -> None:
        if not self.alive:
            return
        self.commands.append(command)
        error, reports = "", []
        try:
            reports = self._apply(command)
        except TableError as refused:
            error = str(refused)
            self.refused.append(f"{type(command).__name__}: {error}")
        self._settle()
        self._say(commands.Done(command.seq, error, reports))

    def _apply(self, command: commands.Command) -> list[commands.IndexReport]:
        now_ns = self._clock.now_ns
        match command:
            case commands.AddSession():
                self.pipelines.add(command, now_ns)
            case commands.InstallIndexes():
                self.table.install(command)
            case commands.Rebind():
                return self.pipelines.rebind(command, now_ns)
            case commands.RemoveSession():
                self.table.remove(command.record)
            case commands.SendProbe():
                self.pipelines.answers.send_probe(command)
            case commands.SendMtuProbe():
                self.pipelines.answers.send_mtu_probe(command)
            case commands.SetPathMtu():
                self.table.set_path_mtu(command)
            case commands.Serve():  # it has read all along
                pass
            case _:
                raise AssertionError(f"no core sends {command}")
        return []

    def receive(self, number: int, data: bytes, source: Endpoint) -> None:
        """A datagram arrived on socket `number`."""
        if not self.alive:
            return
        address = self._addresses.get(source)
        if address is None:
            address = self._addresses[source] = (
                socket.inet_ntop(socket.AF_INET6, source.address),
                source.port,
            )
        self._sockets[number].arrived.append((data, max(1, len(data)), address))
        assert self.pipelines.decryptor is not None
        self.pipelines.decryptor.turn(self.table.sockets[number], self._clock.now_ns)
        self._settle()

    def packet(self, packet: bytes) -> None:
        """The machine sends an inner IP packet into the TUN."""
        if not self.alive:
            return
        self.tun.pending.append(bytes(VNET_HEADER_BYTES) + packet)
        assert self.pipelines.encryptor is not None
        self.pipelines.encryptor.turn(self._clock.now_ns)
        self._settle()

    # The loop

    def _settle(self) -> None:
        written = self.tun.written
        if written:
            self.tun.written = []
            for packet in written:
                self._deliver(packet[VNET_HEADER_BYTES:])
        if self._tick_ns is None:
            timeout_s = self.pipelines.timeout_s()
            if timeout_s is not None:
                self._tick_ns = self._agenda.now_ns + max(NS, round(timeout_s * 1e9))
                self._agenda.at(self._tick_ns, self._tick)

    def go_on(self) -> None:
        """It was paused; what should have been done meanwhile is done now."""
        self.paused = False
        if self._tick_ns is not None and self._tick_ns <= self._agenda.now_ns:
            self._tick()

    def _tick(self) -> None:
        if self.paused:
            return
        self._tick_ns = None
        if self.alive:
            self.pipelines.tick(self._clock.now_ns)
            self._settle()
