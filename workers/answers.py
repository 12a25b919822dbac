"""PATH: probes answered, probes sent, answers reported. None of it counts as traffic of the session."""

from collections.abc import Callable

from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import (
    OFFLOAD_HEADER_SIZE,
    OVERHEAD_IPV4,
    OVERHEAD_IPV6,
    PacketType,
    Role,
    Transport,
)
from jvpn.protocol.paths import (
    INDEX_ACTIVE,
    SOURCE_BOUND,
    UNSOLICITED,
    MtuAck,
    MtuProbe,
    PathError,
    Probe,
    ProbeAck,
    challenge,
    challenge_slot,
    decode,
)
from workers.commands import (
    Endpoint,
    IndexSeen,
    MtuAnswered,
    PhaseSeen,
    ProbeAnswered,
    SendMtuProbe,
    SendProbe,
)
from workers.counters import Counter
from workers.keys import Phase
from workers.paths import PathEntry
from workers.sessions import Session
from workers.table import SessionTable
from workers.udp import Received, UdpSocket, pktinfo, socket_address


class Answers:
    """`report` gives a report to the supervisor or agent; False when that would have to wait."""

    def __init__(
        self,
        table: SessionTable,
        report: Callable[[ProbeAnswered | MtuAnswered | IndexSeen | PhaseSeen], bool],
        counters: "memoryview[int]",
    ) -> None:
        self._table = table
        self._report = report
        self._counters = counters

    def handle(
        self,
        udp: UdpSocket,
        received: Received,
        plaintext: bytes,
        counter: int,
        entry: PathEntry,
        now_ns: int,
    ) -> None:
        """One authenticated PATH plaintext that came under `counter`."""
        try:
            message = decode(plaintext)
        except PathError:
            self._counters[Counter.BAD_PATH] += 1
            return
        # Only a counter above all others of PATH is new for certain; replays must not look like received packets.
        new = counter > entry.path_highest
        if new:
            entry.path_highest = counter
            entry.count(counter, 1)
        if isinstance(message, MtuProbe):
            self._answer_mtu(udp, received, entry, message, len(plaintext))
        elif isinstance(message, MtuAck):
            if new and not self._report(
                MtuAnswered(entry.session.record, entry.index, udp.number, message.timestamp_us)
            ):
                self._counters[Counter.CHANNEL_FULL] += 1
        elif isinstance(message, Probe):
            self._answer(udp, received, entry, message.timestamp_us, now_ns)
        elif message.timestamp_us == UNSOLICITED and not new:
            self._counters[Counter.REPLAYED] += 1
        else:
            self._answered(udp, received, entry, message)

    def heard(self, entry: PathEntry, phase: Phase, now_ns: int) -> None:
        """Something authenticated came on this index: the page learns when, a gateway's supervisor of a new index or
        key phase."""
        session = entry.session
        session.heard(now_ns)
        if phase is not session.phase and self._table.gateway:
            self._newer(session, phase.keys.phase)
        if entry.index > session.highest_seen and (
            not self._table.gateway or self._report(IndexSeen(session.record, entry.index))
        ):
            session.highest_seen = entry.index

    def _newer(self, session: Session, phase: int) -> None:
        known = max(session.phase_told, session.phase.keys.phase)
        if phase > known and self._report(PhaseSeen(session.record, phase)):
            session.phase_told = phase

    def unsolicited(self, udp: UdpSocket, received: Received, entry: PathEntry, now_ns: int) -> None:
        """Tell a source that its index is active but bound to another source."""
        self._answer(udp, received, entry, UNSOLICITED, now_ns)

    def send_probe(self, command: SendProbe) -> None:
        """Raises TableError when the path does not exist. A send that fails is counted, as on the wire."""
        entry, udp = self._table.probe_path(command)
        probe = Probe(command.timestamp_us, entry.received, entry.highest)
        remote = command.path.remote
        sent = self._send(
            entry,
            udp,
            probe.encode(),
            command.path.local.address,
            socket_address(remote.address, remote.port),
        )
        self._counters[Counter.PROBES_SENT] += sent

    def send_mtu_probe(self, command: SendMtuProbe) -> None:
        """Raises TableError when the path does not exist."""
        entry, udp = self._table.probe_path(command)
        path = command.path
        remote = socket_address(path.remote.address, path.remote.port)
        outer = OVERHEAD_IPV4 if remote[0].startswith("::ffff:") else OVERHEAD_IPV6
        probe = MtuProbe(command.timestamp_us, command.size, path.mtu, path.settled)
        plaintext = probe.encode(command.size - outer + OFFLOAD_HEADER_SIZE)
        self._send(entry, udp, plaintext, path.local.address, remote)

    def _answer_mtu(
        self, udp: UdpSocket, received: Received, entry: PathEntry, probe: MtuProbe, length: int
    ) -> None:
        """An answer as long as the probe; what the client knows of the bound path is taken over."""
        path = entry.session.path
        bound = path is not None and path.entry is entry and path.destination == received.source
        if self._table.gateway and path is not None and bound and probe.confirmed:
            path.limit(probe.confirmed, probe.settled)
        self._send(entry, udp, MtuAck(*probe).encode(length), received.local, received.source)

    def _answer(
        self, udp: UdpSocket, received: Received, entry: PathEntry, timestamp_us: int, now_ns: int
    ) -> None:
        session = entry.session
        source = to_bytes(received.source[0])
        proof = challenge(
            self._table.page.challenge_key,
            session.session_id,
            source,
            received.source[1],
            received.local,
            udp.port,
            Transport.UDP,
            challenge_slot(now_ns),
        )
        flags = INDEX_ACTIVE if entry.role is Role.ACTIVE else 0
        if session.path is not None and session.path.destination == received.source:
            flags |= SOURCE_BOUND
        ack = ProbeAck(flags, timestamp_us, entry.received, entry.highest, proof, session.highest_installed())
        sent = self._send(entry, udp, ack.encode(), received.local, received.source)
        self._counters[Counter.PROBES_ANSWERED] += sent

    def _answered(self, udp: UdpSocket, received: Received, entry: PathEntry, ack: ProbeAck) -> None:
        self._counters[Counter.PROBE_ACKS] += 1
        report = ProbeAnswered(
            entry.session.record,
            entry.index,
            udp.number,
            ack.timestamp_us,
            ack.flags,
            ack.challenge,
            ack.highest_installed,
            ack.received,
            ack.highest,
            Endpoint(to_bytes(received.source[0]), received.source[1]),
            entry.received,
            entry.highest,
        )
        if not self._report(report):
            self._counters[Counter.CHANNEL_FULL] += 1

    def _send(
        self, entry: PathEntry, udp: UdpSocket, plaintext: bytes, local: bytes, remote: tuple[str, int]
    ) -> bool:
        if not entry.session.may_send_on(entry.index):
            self._counters[Counter.SEND_ERROR] += 1
            return False
        datagram = memoryview(entry.session.seal(PacketType.PATH, entry, plaintext))
        refused = udp.send(datagram, len(datagram), remote, pktinfo(local))
        if refused is not None:
            self._counters[refused] += 1
            return False
        self._counters[Counter.DATAGRAMS_SENT] += 1
        return True
