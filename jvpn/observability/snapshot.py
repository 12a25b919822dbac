"""What `jvpn status`, `jvpn sessions` and the web view render: frozen values, made in one place, shown in many.

They travel over the admin socket as JSON (`msgspec.json`). Durations are milliseconds, measured by the process
that made the snapshot, so no reader has to share its clock. Inner addresses appear here, for the operator's
eyes, and never in events.
"""

import msgspec

from jvpn.session.machine import State


class WorkerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A data-plane worker. `state`: starting, running, spare, draining, dead. `cpu` is -1 when it is not pinned."""

    slot: int
    pid: int
    cpu: int
    state: str
    sessions: int
    counters: dict[str, int] = {}


class FleetSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway's fleet as that gateway knows it. `nodes`: those whose lease goes on, None before that is known;
    `draining`: those of them whose sessions are to go elsewhere. `lease_ms`: how long its own lease lasts if it is not
    renewed, 0 when it has ended, and the gateway carries nothing. `routes`: how many the kernel has of it to clients of
    the other gateways, one for each of their inner addresses."""

    nodes: list[str] | None
    draining: list[str]
    lease_ms: int
    routes: int = 0


class StayingSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A session that is still at a node which drains. `asked`: how often; `read`: its client has read the last wish."""

    session_id: str
    peer: str
    path: str
    asked: int
    read: bool


class DrainSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A node that is to be left. `announced`: its fleet has heard of it. Sessions that have `moved`, are `left` with a
    path, and are `away`, without one. `nodes`: where they may go. `staying`: some of those left, by name."""

    node_id: str
    for_ms: int
    announced: bool
    moved: int
    left: int
    away: int
    nodes: list[str]
    staying: list[StayingSnapshot]


class GatewaySnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway node. `xdp_mode`: interface → native, generic, none. `steering`: one sentence on who picks the worker;
    `steering_notes`: why nothing better does.

    `offload`: what the kernel takes off the workers' hands. `counters` holds every reason to drop, by name. `store`:
    where sessions are kept, and whether they can be. `fleet`: None where the store is this gateway's alone.
    `drain`: set while it is to be left. `keylog`: the warning that its sessions can be read; empty: no key log.
    """

    node_id: str
    version: str
    uptime_ms: int
    listeners: list[str]
    xdp_mode: dict[str, str]
    steering: str
    workers: list[WorkerSnapshot]
    sessions: int
    counters: dict[str, int]
    policy: str
    offload: str
    steering_notes: list[str] = []
    store: str = ""
    fleet: FleetSnapshot | None = None
    drain: DrainSnapshot | None = None
    keylog: str = ""


class SwitchSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A session's last change of path."""

    ago_ms: int
    reason_code: str
    old_transport: str
    new_transport: str
    gap_ms: float | None = None
    detect_ms: float | None = None
    reattach_ms: float | None = None


class SessionSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One session as its gateway sees it. `index`, `transport` and `source` are None without an active binding.

    `age_ms` counts from the handshake, `since_ms` from the entry into `state`. `peer` is the configured name of
    the client's key. `policy` is name@version.
    """

    session_id: str
    peer: str
    state: State
    state_version: int
    epoch: int
    index: int | None
    transport: str | None
    source: str | None
    inner_addresses: list[str]
    age_ms: int
    since_ms: int
    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    policy: str = ""
    last_switch: SwitchSnapshot | None = None


class PeerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A configured peer of a gateway. `public_key` is base64; `sessions` are SessionIDs in hexadecimal.

    `last_handshake_us`: the timestamp of its last confirmed handshake, microseconds since 1970 by the client's clock;
    None without one. `stale_inits`: INITs not newer than that, since the gateway started. `addresses`: prefixes out
    of the configuration; `pool_addresses`: what it was given out of the pool, when there are none.
    """

    name: str
    public_key: str
    addresses: list[str]
    pool_addresses: list[str] = []
    policy: str
    last_handshake_us: int | None
    stale_inits: int
    sessions: list[str]


class PathSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate of a client. `state`: active, candidate, probing, dead; standby for one that leads to another
    endpoint than the active one and has answered no PROBE: another node of a fleet does not, before it has the session,
    nor would anybody who is not there. None where nothing was measured yet."""

    name: str
    device: str
    index: int | None
    state: str
    validated: bool
    rtt_ms: float | None
    loss: float | None
    last_ack_ago_ms: int | None
    source: str | None


class ClientSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A client. `session` is the SessionID in hexadecimal, `active` the name of the path in use; None without one.

    `policy` is the session's, name@version; `asked_policy` the name that the configuration asks for, empty for none.
    `keylog` as a gateway's.
    """

    session: str | None
    state: State
    state_version: int
    active: str | None
    paths: list[PathSnapshot]
    offload: str
    policy: str = ""
    asked_policy: str = ""
    keylog: str = ""
    counters: dict[str, int] = {}
