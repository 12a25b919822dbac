"""What a client is told by its configuration, read and checked."""

from dataclasses import dataclass, field
from pathlib import Path

from jvpn.agent.handshaking import Identity
from jvpn.policy.model import Policy

RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class UplinkPlan:
    """A device to go out by. It need not exist yet. `network` is what its owner calls the network behind it."""

    device: str
    preference: int
    cost: int = 0
    network: str = ""


@dataclass(frozen=True, slots=True)
class DnsPlan:
    """Who is told of the gateway's name servers: "auto", "resolved", "resolvconf", "file" (`resolv_conf`), or "off"."""

    mode: str = "auto"
    resolv_conf: Path = RESOLV_CONF


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """`endpoints` are (host or address, port), best first; `uplinks` None: every device with a default route.

    `routes` None: what the gateway's CONFIG names. `keylog`: a file for the keys of its sessions, in a laboratory.
    """

    node_id: str
    identity: Identity
    endpoints: tuple[tuple[str, int], ...]
    uplinks: tuple[UplinkPlan, ...] | None
    policy: Policy
    tun_name: str
    routes: tuple[str, ...] | None
    run_dir: Path
    state_dir: Path
    events_path: Path | None
    dns: DnsPlan = field(default_factory=DnsPlan)
    offload: bool = True
    keylog: Path | None = None
