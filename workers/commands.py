"""What a worker is told and what it tells, as typed messages (msgpack over a SEQPACKET Unix socket, never pickles).

The other end is the supervisor on a gateway, the agent on a client. Descriptors travel beside a message as SCM_RIGHTS:
exactly one with AttachPage, AttachTun and AttachSocket. Every command carries `seq` and is answered by Done{seq};
the same AddSession or Rebind twice has the effect of one.

Addresses are 16 bytes (IPv4 as ::ffff:a.b.c.d) with a port; times are CLOCK_BOOTTIME nanoseconds.
"""

from typing import Final

import msgspec

MAX_MESSAGE: Final = 192 * 1024


class Endpoint(msgspec.Struct, frozen=True, array_like=True):
    """One end of a path. A zero address as `local` lets the kernel choose the source address."""

    address: bytes
    port: int


class Binding(msgspec.Struct, frozen=True, array_like=True):
    """The path that DATA goes out on: which index, through which socket, from where to where.

    `mtu`: the longest outer IP packet that it carries, as far as is known; 0: no limit. `settled`: that is certain.
    What is known of a path stays known when it is bound again.
    """

    index: int
    socket: int
    local: Endpoint
    remote: Endpoint
    mtu: int = 0
    settled: bool = False


class InstalledIndex(msgspec.Struct, frozen=True, array_like=True):
    index: int
    steering_id: bytes


class PhaseKeys(msgspec.Struct, frozen=True, array_like=True):
    """Data keys of one key phase, 32 bytes each."""

    phase: int
    send_key: bytes
    receive_key: bytes


class IndexReport(msgspec.Struct, frozen=True, array_like=True):
    """What of one index arrived, for the peer to resend the rest (docs/protocol.md, "Lossless reattach").

    `next_counter`: one above the highest counter received; 0: nothing was received; all ones: unknown, resend
    nothing. `missing`, 32 bytes: bit k % 8 (1 << k % 8) of byte k // 8 is set when counter next_counter - 1 - k was
    not received, k in 0 … 255; so bit 0 of byte 0 stands for next_counter - 1. Counters of an earlier generation than
    next_counter - 1 are never missing: a jump of the generation is no loss.
    """

    index: int
    next_counter: int
    missing: bytes


# --- to the worker ----------------------------------------------------------------------------------------------


class AttachPage(msgspec.Struct, frozen=True, tag=True):
    """The shared page (one descriptor beside)."""

    seq: int


class AttachTun(msgspec.Struct, frozen=True, tag=True):
    """One TUN queue (one descriptor beside); `vnet_header`: whether it has a virtio_net_hdr (`workers.tun`)."""

    seq: int
    vnet_header: bool
    mtu: int


class AttachSocket(msgspec.Struct, frozen=True, tag=True):
    """A UDP socket (one descriptor beside), known as `socket` from now on; replaces one of the same number.

    `gro`, `segment`: whether it reads, and sends, many datagrams at once.
    """

    seq: int
    socket: int
    gro: bool
    segment: bool


class DetachSocket(msgspec.Struct, frozen=True, tag=True):
    seq: int
    socket: int


class Start(msgspec.Struct, frozen=True, tag=True):
    """Begin to work as `slot`, pinned to `cpu` (-1: not pinned); drops privileges to `uid`/`gid` first (-1: keep).

    `bulk`: seal and open whole runs by libipsec-mb (`workers.bulk`). `waits`: read nothing until Serve, because what
    has come for its sessions would be refused before they are added; it stays in sockets and TUN queue.
    """

    seq: int
    slot: int
    cpu: int
    gateway: bool
    uid: int
    gid: int
    bulk: bool = False
    waits: bool = False


class Serve(msgspec.Struct, frozen=True, tag=True):
    """The sessions are there: read what comes, if Start had it wait."""

    seq: int


class AddSession(msgspec.Struct, frozen=True, tag=True):
    """All that a worker knows of a session. Sent whole and again after any restart; `record` is its row of the page.

    `allowed_sources` are inner prefixes ("10.8.0.2/32") that the peer may send from; `routes` are the inner prefixes
    whose traffic goes into this session. `binding` None: no path yet, nothing is sent. What was sent in the last
    `resend_window_ms`, and what comes from the TUN while there is no path, is kept, in `resend_bytes` each; 0: not.

    `send_until` and `forged_until`: where the keys are used up, as the session's `Activity.sent_packets` and `forged`.
    From the one on nothing more is sent, from the other on nothing more is opened, until there are other keys; 0: no
    limit.
    """

    seq: int
    record: int
    session_id: bytes
    suite: int
    generation: int
    phases: list[PhaseKeys]
    allowed_sources: list[str]
    routes: list[str]
    indexes: list[InstalledIndex]
    binding: Binding | None
    resend_window_ms: int = 500
    resend_bytes: int = 4 << 20
    send_until: int = 0
    forged_until: int = 0


class InstallIndexes(msgspec.Struct, frozen=True, tag=True):
    """Replace the whole set of installed indexes of a session."""

    seq: int
    record: int
    indexes: list[InstalledIndex]


class Rebind(msgspec.Struct, frozen=True, tag=True):
    """Make `binding` the active path; `draining`: index still received on from its old source until `drain_until_ns`.

    `accept` (client only): further indexes on which authenticated DATA is delivered, because a bind was asked for.

    `resend`: the peer's reports; what they do not have is sent again on `binding`. None (a voluntary switch): nothing.
    `early` (client, without a binding): a path on which at most 64 datagrams may go before the bind, and four more each
    time that it is said. `report`: Done is to have the reports for the peer.
    """

    seq: int
    record: int
    binding: Binding | None
    draining: int | None
    drain_until_ns: int
    accept: list[int]
    resend: list[IndexReport] | None = None
    report: bool = False
    early: Binding | None = None


class RemoveSession(msgspec.Struct, frozen=True, tag=True):
    seq: int
    record: int


class SendProbe(msgspec.Struct, frozen=True, tag=True):
    """Send one PROBE on a path of a session, active or candidate; `timestamp_us` comes back in ProbeAnswered."""

    seq: int
    record: int
    path: Binding
    timestamp_us: int


class SendMtuProbe(msgspec.Struct, frozen=True, tag=True):
    """Send an MTU_PROBE of `size` bytes (outer IP packet), saying what `path.mtu` is; answered by MtuAnswered."""

    seq: int
    record: int
    path: Binding
    size: int
    timestamp_us: int


class SetPathMtu(msgspec.Struct, frozen=True, tag=True):
    """What the active path carries, if it is still the one on `index`."""

    seq: int
    record: int
    index: int
    mtu: int
    settled: bool


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Read nothing more, send what has been read, and end."""

    seq: int


Command = (
    AttachPage
    | AttachTun
    | AttachSocket
    | DetachSocket
    | Start
    | Serve
    | AddSession
    | InstallIndexes
    | Rebind
    | RemoveSession
    | SendProbe
    | SendMtuProbe
    | SetPathMtu
    | Stop
)


# --- from the worker --------------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Imports are done; the worker waits to be given its slot."""

    pid: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """Command `seq` is in force; `error` is empty or says in one line why it is not.

    `reports`: to a Rebind that asked for them, at most 3, newest index first.
    """

    seq: int
    error: str = ""
    reports: list[IndexReport] = []


class Datagram(msgspec.Struct, frozen=True, tag=True):
    """A datagram that is not for the data plane (handshake, reattach, control), unread, as it came."""

    socket: int
    local: Endpoint
    remote: Endpoint
    data: bytes


class ProbeAnswered(msgspec.Struct, frozen=True, tag=True):
    """An authenticated PROBE_ACK. `timestamp_us` 0: unsolicited (the gateway saw DATA from another source).

    `peer_received` and `peer_highest` are the other end's counters of this index, `received` and `highest` this end's;
    `flags` as in docs/protocol.md: 1 this index is active, 2 this source is the bound one. `remote` is where it came
    from.
    """

    record: int
    index: int
    socket: int
    timestamp_us: int
    flags: int
    challenge: bytes
    highest_installed: int
    peer_received: int
    peer_highest: int
    remote: Endpoint
    received: int = 0
    highest: int = 0


class MtuAnswered(msgspec.Struct, frozen=True, tag=True):
    """An authenticated MTU_ACK: its probe passed, and as long an answer."""

    record: int
    index: int
    socket: int
    timestamp_us: int


class IndexSeen(msgspec.Struct, frozen=True, tag=True):
    """Something authenticated came on an index higher than any before (gateway: the installed window moves on)."""

    record: int
    index: int


class PhaseSeen(msgspec.Struct, frozen=True, tag=True):
    """Something authenticated came under a newer phase than this gateway sends under."""

    record: int
    phase: int


Report = Ready | Done | Datagram | ProbeAnswered | MtuAnswered | IndexSeen | PhaseSeen

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
