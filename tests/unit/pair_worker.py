"""A worker without process: the real session table, judgement and probe answers; sockets and TUN are replaced."""

from collections.abc import Callable
from typing import Any

from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType
from workers import commands
from workers.answers import Answers
from workers.commands import Endpoint
from workers.counters import Counter
from workers.page import COUNTERS_PER_SLOT, Page
from workers.reports import session_reports
from workers.sessions import Session
from workers.singles import Singles
from workers.table import SessionTable, TableError
from workers.udp import Received, UdpSocket, socket_address


class PairUdp(UdpSocket):
    """A socket that hands what is sent to the network, with the local address that it is sent from, if that is set."""

    def __init__(
        self, number: int, port: int, send: Callable[[bytes, Endpoint, Endpoint | None], None]
    ) -> None:
        self.number, self.port = number, port
        self._to = send

    def send(self, data: Any, segment: int, destination: Any, ancillary: Any) -> Counter | None:
        local = Endpoint(ancillary[0][2][:16], self.port) if ancillary else None
        self._to(bytes(data), Endpoint(to_bytes(destination[0]), destination[1]), local)
        return None


class PairWorker:
    """A worker without process: carries out commands, judges datagrams one by one, keeps what it delivered."""

    def __init__(
        self,
        page: Page,
        *,
        gateway: bool,
        sockets: dict[int, UdpSocket],
        say: Callable[[commands.Report], None],
    ) -> None:
        self.table = SessionTable(page, gateway=gateway)
        self.table.sockets = sockets
        self.values = memoryview(bytearray(8 * COUNTERS_PER_SLOT)).cast("Q")
        self.delivered: list[bytes] = []
        self.commands: list[commands.Command] = []
        self.refused: list[str] = []
        self.alive = True
        self._page = page
        self._say = say
        self._answers = Answers(self.table, self._offer, self.values)
        self._singles = Singles(self.table, self, self._answers, self._offer, self.values)  # type: ignore[arg-type]

    def _offer(self, report: commands.Report) -> bool:
        self._say(report)
        return True

    def deliver(self, session: Session, plaintexts: list[memoryview]) -> None:
        self.delivered += [bytes(plaintext) for plaintext in plaintexts]

    def count(self, counter: Counter) -> int:
        return self.values[counter]

    def tell(self, command: commands.Command, now_ns: int) -> None:
        if not self.alive:
            return
        self.commands.append(command)
        error, reports = "", []
        try:
            reports = self._apply(command, now_ns)
        except TableError as refused:
            error = str(refused)
            self.refused.append(f"{type(command).__name__}: {error}")
        self._say(commands.Done(command.seq, error, reports))

    def _apply(self, command: commands.Command, now_ns: int) -> list[commands.IndexReport]:
        match command:
            case commands.AddSession():
                self.table.add(command)
            case commands.InstallIndexes():
                self.table.install(command)
            case commands.Rebind():
                session = self.table.rebind(command)
                self._singles.bound(session, now_ns)
                return session_reports(session) if command.report else []
            case commands.RemoveSession():
                self.table.remove(command.record)
            case commands.SendProbe():
                self._answers.send_probe(command)
            case commands.SendMtuProbe():
                self._answers.send_mtu_probe(command)
            case commands.SetPathMtu():
                self.table.set_path_mtu(command)
            case commands.Serve():  # it has read all along
                pass
            case _:
                raise AssertionError(f"no core sends {command}")
        return []

    def receive(self, number: int, data: bytes, source: Endpoint, local: bytes, now_ns: int) -> None:
        if not self.alive:
            return
        received = Received(len(data), max(1, len(data)), socket_address(source.address, source.port), local)
        udp = self.table.sockets[number]
        self._singles.handle(udp, received, memoryview(bytearray(data)), now_ns)

    def send_data(self, record: int, plaintext: bytes, now_ns: int) -> bool:
        """One DATA on the active path; False when there is none, or it may not be used."""
        session = self.table.by_record.get(record)
        if session is None or session.direct is None:
            if session is not None and session.path is None:
                session.waits(now_ns)
            return False
        path = session.direct
        datagram = session.seal(PacketType.DATA, path.entry, plaintext)
        path.socket.send(memoryview(datagram), len(datagram), path.destination, [])
        session.sent(now_ns, len(datagram), 1)
        return True
