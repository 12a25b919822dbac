"""The gateway's configuration file."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal, cast

import yaml

from jvpn.config.fields import (
    DEFAULT_RUN_DIR,
    DEFAULT_STATE_DIR,
    DEFAULT_TUN,
    MAKE_KEY,
    Endpoint,
    Fields,
    Interface,
)
from jvpn.config.fleet import FleetConfig, parse_fleet
from jvpn.config.peers import PeerConfig, check_policy, parse_peers, policies_of
from jvpn.config.pool import parse_pool
from jvpn.session.pool import InnerPool

XdpMode = Literal["auto", "native", "generic", "off"]
PolicyMode = Literal["grace", "strict"]
POLICY_MODES: Final = ("grace", "strict")
XDP_MODES: Final = ("auto", "native", "generic", "off")
SUITES: Final = (1, 2)
MAX_WORKERS: Final = 128
AUTO: Final = "auto"

GATEWAY_FIELDS: Final = (
    "node_id",
    "listen",
    "interfaces",
    "xdp",
    "workers",
    "offload",
    "tun",
    "dns",
    "private_key_file",
    "suites",
    "policy",
    "policies",
    "policy_dir",
    "policy_change",
    "pool",
    "peers",
    "store",
    "fleet",
    "run_dir",
    "events",
)
REQUIRED: Final = ("node_id", "listen", "tun", "private_key_file")
TUN_FIELDS: Final = ("name", "addresses")


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """`interfaces` None: every one that is up. `workers` None: one per CPU. `events` None: no file.

    `policy_dir` None: the built-in default policy alone. `pool` None: every peer has addresses. `fleet` None: the
    embedded `store`, which is not in use otherwise.
    """

    node_id: str
    listen: tuple[Endpoint, ...]
    interfaces: tuple[str, ...] | None
    xdp: XdpMode
    workers: int | None
    tun_name: str
    tun_addresses: tuple[Interface, ...]
    dns: tuple[str, ...]
    private_key_file: Path
    private_key: bytes = field(repr=False)
    suites: tuple[int, ...]
    policy: str
    policies: tuple[str, ...]
    policy_dir: Path | None
    policy_change: PolicyMode
    pool: InnerPool | None
    peers: tuple[PeerConfig, ...]
    store: Path
    fleet: FleetConfig | None
    run_dir: Path
    events: Path | None
    offload: str

    def peer_by_key(self, public_key: bytes) -> PeerConfig | None:
        return next((peer for peer in self.peers if peer.public_key == public_key), None)


def parse_gateway(text: str, filename: str, directory: Path) -> GatewayConfig:
    """A gateway's configuration; relative paths are relative to `directory`. Reads the key files it names.

    Raises ConfigError.
    """
    read = Fields(filename, directory)
    root = read.root(text)
    nodes = read.mapping(root, "", GATEWAY_FIELDS, REQUIRED)
    key_file, private_key = read.key_file(nodes["private_key_file"], "private_key_file", MAKE_KEY)
    tun_name, tun_addresses = _tun(read, nodes["tun"])
    if "store" in nodes and "fleet" in nodes:
        read.fail(
            nodes["store"], "store", "the sessions of a fleet are in its etcd", "remove store, or fleet"
        )
    listen = _listen(read, nodes["listen"])
    policy = read.policy_name(nodes["policy"], "policy") if "policy" in nodes else "default"
    policy_dir = read.path(nodes["policy_dir"], "policy_dir") if "policy_dir" in nodes else None
    check_policy(read, nodes.get("policy"), "policy", policy, policy_dir)
    policies = policies_of(read, nodes.get("policies"), "policies", policy_dir)
    peers = parse_peers(
        read, nodes.get("peers"), (policy, policies), policy_dir, tun_addresses, has_pool="pool" in nodes
    )
    fixed = (prefix for peer in peers for prefix in peer.addresses)
    return GatewayConfig(
        node_id=read.node_name(nodes["node_id"], "node_id"),
        listen=listen,
        interfaces=_interfaces(read, nodes.get("interfaces")),
        xdp=cast(XdpMode, read.choice(nodes["xdp"], "xdp", XDP_MODES)) if "xdp" in nodes else "auto",
        workers=_workers(read, nodes.get("workers")),
        tun_name=tun_name,
        tun_addresses=tun_addresses,
        dns=_dns(read, nodes.get("dns")),
        private_key_file=key_file,
        private_key=private_key,
        suites=_suites(read, nodes.get("suites")),
        policy=policy,
        policies=policies,
        policy_dir=policy_dir,
        policy_change=_policy_change(read, nodes.get("policy_change")),
        pool=parse_pool(read, nodes.get("pool"), tun_addresses, fixed),
        peers=peers,
        store=read.optional_path(nodes, "store", DEFAULT_STATE_DIR / "sessions.db"),
        fleet=parse_fleet(read, nodes.get("fleet"), listen, tun_addresses),
        run_dir=read.optional_path(nodes, "run_dir", DEFAULT_RUN_DIR),
        events=read.events(nodes),
        offload=read.offload(nodes),
    )


def _listen(read: Fields, node: yaml.Node) -> tuple[Endpoint, ...]:
    return read.different(read.some(node, "listen", '["[::]:51820"]'), read.listen)


def _is_auto(node: yaml.Node | None) -> bool:
    return node is None or (isinstance(node, yaml.ScalarNode) and node.value == AUTO)


def _interfaces(read: Fields, node: yaml.Node | None) -> tuple[str, ...] | None:
    if node is None or _is_auto(node):
        return None
    return tuple(read.device(item, name) for name, item in read.some(node, "interfaces", "[eth0], or auto"))


def _workers(read: Fields, node: yaml.Node | None) -> int | None:
    return None if node is None or _is_auto(node) else read.integer(node, "workers", 1, MAX_WORKERS)


def _suites(read: Fields, node: yaml.Node | None) -> tuple[int, ...]:
    if node is None:
        return SUITES
    found = [
        read.integer(item, name, SUITES[0], SUITES[-1]) for name, item in read.some(node, "suites", "[1, 2]")
    ]
    return tuple(sorted(set(found)))


def _policy_change(read: Fields, node: yaml.Node | None) -> PolicyMode:
    return "grace" if node is None else cast(PolicyMode, read.choice(node, "policy_change", POLICY_MODES))


def _tun(read: Fields, node: yaml.Node) -> tuple[str, tuple[Interface, ...]]:
    nodes = read.mapping(node, "tun", TUN_FIELDS, ("addresses",))
    name = read.device(nodes["name"], "tun.name") if "name" in nodes else DEFAULT_TUN
    found: list[Interface] = []
    for where, item in read.some(nodes["addresses"], "tun.addresses", "[10.8.0.1/24]"):
        address = read.interface(item, where)
        if any(
            address.network.overlaps(other.network) for other in found if other.version == address.version
        ):
            read.fail(
                item, where, f"{address} overlaps another of these addresses", "give each its own network"
            )
        found.append(address)
    return name, tuple(found)


def _dns(read: Fields, node: yaml.Node | None) -> tuple[str, ...]:
    if node is None:
        return ()
    return tuple(
        str(read.parsed(item, name, ip_address, "an address", "write addresses alone, as 10.8.0.1"))
        for name, item in read.items(node, "dns")
    )
