"""The gateway's configuration file."""

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, Literal, TypeVar, cast

import yaml

from jvpn.config.fields import (
    DEFAULT_RUN_DIR,
    DEFAULT_STATE_DIR,
    DEFAULT_TUN,
    MAKE_KEY,
    Endpoint,
    Fields,
    Interface,
    Network,
)
from jvpn.config.fleet import FleetConfig, parse_fleet

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
    "peers",
    "store",
    "fleet",
    "run_dir",
    "events",
)
REQUIRED: Final = ("node_id", "listen", "tun", "private_key_file")
TUN_FIELDS: Final = ("name", "addresses")
PEER_FIELDS: Final = ("name", "public_key", "psk_file", "addresses", "policy", "policies")


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """A client that may connect. `addresses` are the inner prefixes it may send from and is reached at.

    `policies`: others than `policy` that it may ask for.
    """

    name: str
    public_key: bytes
    psk: bytes = field(repr=False)
    addresses: tuple[Network, ...]
    policy: str
    policies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """`interfaces` None: every one that is up. `workers` None: one per CPU. `events` None: no file.

    `policy_dir` None: the built-in default policy alone. `fleet` None: the embedded `store`, which is not in use
    otherwise.
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
    _policy_exists(read, nodes.get("policy"), "policy", policy, policy_dir)
    policies = _policies(read, nodes.get("policies"), "policies", policy_dir)
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
        peers=_peers(read, nodes.get("peers"), (policy, policies), policy_dir, tun_addresses),
        store=read.optional_path(nodes, "store", DEFAULT_STATE_DIR / "sessions.db"),
        fleet=parse_fleet(read, nodes.get("fleet"), listen, tun_addresses),
        run_dir=read.optional_path(nodes, "run_dir", DEFAULT_RUN_DIR),
        events=read.events(nodes),
        offload=read.offload(nodes),
    )


def _some(read: Fields, node: yaml.Node, name: str, example: str) -> list[tuple[str, yaml.Node]]:
    items = read.items(node, name)
    if not items:
        read.fail(node, name, "the list is empty", f"write at least one, as {example}")
    return items


def _listen(read: Fields, node: yaml.Node) -> tuple[Endpoint, ...]:
    found: list[Endpoint] = []
    for name, item in _some(read, node, "listen", '["[::]:51820"]'):
        endpoint = read.listen(item, name)
        if endpoint in found:
            read.fail(item, name, f"{endpoint} is given twice", "remove one of the two")
        found.append(endpoint)
    return tuple(found)


def _is_auto(node: yaml.Node | None) -> bool:
    return node is None or (isinstance(node, yaml.ScalarNode) and node.value == AUTO)


def _interfaces(read: Fields, node: yaml.Node | None) -> tuple[str, ...] | None:
    if node is None or _is_auto(node):
        return None
    return tuple(read.device(item, name) for name, item in _some(read, node, "interfaces", "[eth0], or auto"))


def _workers(read: Fields, node: yaml.Node | None) -> int | None:
    return None if node is None or _is_auto(node) else read.integer(node, "workers", 1, MAX_WORKERS)


def _suites(read: Fields, node: yaml.Node | None) -> tuple[int, ...]:
    if node is None:
        return SUITES
    found = [
        read.integer(item, name, SUITES[0], SUITES[-1])
        for name, item in _some(read, node, "suites", "[1, 2]")
    ]
    return tuple(sorted(set(found)))


def _policy_change(read: Fields, node: yaml.Node | None) -> PolicyMode:
    return "grace" if node is None else cast(PolicyMode, read.choice(node, "policy_change", POLICY_MODES))


def _tun(read: Fields, node: yaml.Node) -> tuple[str, tuple[Interface, ...]]:
    nodes = read.mapping(node, "tun", TUN_FIELDS, ("addresses",))
    name = read.device(nodes["name"], "tun.name") if "name" in nodes else DEFAULT_TUN
    found: list[Interface] = []
    for where, item in _some(read, nodes["addresses"], "tun.addresses", "[10.8.0.1/24]"):
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


def _policy_exists(
    read: Fields, node: yaml.Node | None, where: str, policy: str, policy_dir: Path | None
) -> None:
    if policy_dir is None:
        if policy != "default":
            remedy = "set policy_dir to the directory of the policy files"
            read.fail(node, where, f"there is no built-in policy {policy}", remedy)
    elif not (policy_dir / f"{policy}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in policy_dir.glob("*.yaml"))) or "none"
        read.fail(node, where, f"{policy_dir / policy}.yaml does not exist", f"there are: {known}")


def _policies(read: Fields, node: yaml.Node | None, where: str, policy_dir: Path | None) -> tuple[str, ...]:
    if node is None:
        return ()
    names: list[str] = []
    for place, item in read.items(node, where):
        name = read.policy_name(item, place)
        _policy_exists(read, item, place, name, policy_dir)
        if name in names:
            read.fail(item, place, f"{name} is given twice", "remove one of the two")
        names.append(name)
    return tuple(names)


def _peers(
    read: Fields,
    node: yaml.Node | None,
    usual: tuple[str, tuple[str, ...]],
    policy_dir: Path | None,
    own: tuple[Interface, ...],
) -> tuple[PeerConfig, ...]:
    if node is None:
        return ()
    names: dict[str, str] = {}
    keys: dict[bytes, str] = {}
    claims = [_Claim(_alone(address), "the gateway") for address in own]
    peers = []
    for where, item in read.items(node, "peers"):
        nodes = read.mapping(item, where, PEER_FIELDS, ("name", "public_key", "addresses"))
        name = read.node_name(nodes["name"], f"{where}.name")
        _once(read, nodes["name"], f"{where}.name", names, name, name)
        key = read.key(nodes["public_key"], f"{where}.public_key")
        _once(read, nodes["public_key"], f"{where}.public_key", keys, key, name)
        addresses = []
        for place, address_node in _some(read, nodes["addresses"], f"{where}.addresses", "[10.8.0.2/32]"):
            addresses.append(read.network(address_node, place))
            claims.append(_Claim(addresses[-1], f"peer {name}", address_node, place))
        own_policy, others = usual
        if "policies" in nodes:
            others = _policies(read, nodes["policies"], f"{where}.policies", policy_dir)
        if "policy" in nodes:
            own_policy = read.policy_name(nodes["policy"], f"{where}.policy")
            _policy_exists(read, nodes["policy"], f"{where}.policy", own_policy, policy_dir)
        psk = read.psk(nodes, f"{where}.psk_file")
        peers.append(PeerConfig(name, key, psk, tuple(addresses), own_policy, others))
    _refuse_overlaps(read, claims)
    return tuple(peers)


Taken = TypeVar("Taken")


def _once(
    read: Fields, node: yaml.Node, where: str, taken: dict[Taken, str], value: Taken, owner: str
) -> None:
    """Each value belongs to one peer."""
    if value in taken:
        field_name = where.rpartition(".")[2]
        remedy = f"give each peer its own {field_name}"
        read.fail(node, where, f"peer {taken[value]} has the same {field_name}", remedy)
    taken[value] = owner


@dataclass(frozen=True, slots=True)
class _Claim:
    """Who has which inner prefix, and where the file says so (the gateway's own are judged elsewhere)."""

    network: Network
    owner: str
    node: yaml.Node | None = None
    where: str = ""

    @property
    def order(self) -> tuple[int, int, int]:
        return self.network.version, int(self.network.network_address), self.network.prefixlen


def _refuse_overlaps(read: Fields, claims: list[_Claim]) -> None:
    """Prefixes overlap only by nesting, so in order of their first address it is enough to look at the last widest."""
    positions = {id(claim): position for position, claim in enumerate(claims)}
    widest: _Claim | None = None
    for claim in sorted(claims, key=lambda claim: claim.order):
        if widest is not None and claim.network.overlaps(widest.network):
            first, later = sorted((widest, claim), key=lambda one: positions[id(one)])
            problem = f"{first.owner} has {first.network} already"
            read.fail(later.node, later.where, problem, "give each peer its own addresses")
        widest = claim


def _alone(address: Interface) -> Network:
    return ip_network(f"{address.ip}/{address.max_prefixlen}")
