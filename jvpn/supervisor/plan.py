"""What a gateway is told by its configuration."""

import os
from dataclasses import dataclass
from pathlib import Path

from jvpn.holder.inventory import HolderPlan
from jvpn.policy.model import Policy
from jvpn.protocol.constants import TUN_MTU
from jvpn.session.pool import InnerPool
from jvpn.store.etcd_client import EtcdAccess
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.peers import Peer

NOBODY = 65_534


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The etcd that a fleet's nodes share, and what this one says of itself there."""

    access: EtcdAccess
    key_file: Path
    prefix: str
    lease_ttl_ms: int
    about: NodeAbout


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """Everything a gateway is told by its configuration, read and checked.

    With `fleet` there is no `store_path`. `keep_dataplane`: the holder is a service of its own; find it running, and
    leave it and the sessions at the end. `keylog`: a file for the keys of all sessions, in a laboratory.
    """

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
    pool: InnerPool | None = None
    fleet: FleetPlan | None = None
    offload: bool = True
    keep_dataplane: bool = False
    keylog: Path | None = None

    def for_holder(self, workers: int) -> HolderPlan:
        """The same for the process that keeps sockets and TUN, with as many workers as can be steered to."""
        return HolderPlan(
            run_dir=str(self.run_dir),
            listen=[(address, port) for address, port in self.listen],
            slots=workers,
            cpus=sorted(os.sched_getaffinity(0)),
            tun_name=self.tun_name,
            tun_mtu=TUN_MTU,
            capacity=self.capacity,
            uid=NOBODY,
            gid=NOBODY,
            offload=self.offload,
        )
