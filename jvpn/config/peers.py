"""`peers` in the gateway's configuration: who may connect, under which policy, with which inner prefixes."""

from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Final, TypeVar

import yaml

from jvpn.config.fields import Fields, Interface, Network

PEER_FIELDS: Final = ("name", "public_key", "psk_file", "addresses", "policy", "policies")


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """A client that may connect. `addresses` are the inner prefixes it may send from and is reached at; with none, it
    is given one of each family out of the gateway's pool.

    `policies`: others than `policy` that it may ask for.
    """

    name: str
    public_key: bytes
    psk: bytes = field(repr=False)
    addresses: tuple[Network, ...]
    policy: str
    policies: tuple[str, ...] = ()


def check_policy(
    read: Fields, node: yaml.Node | None, where: str, policy: str, policy_dir: Path | None
) -> None:
    """Raises ConfigError when there is no such policy."""
    if policy_dir is None:
        if policy != "default":
            remedy = "set policy_dir to the directory of the policy files"
            read.fail(node, where, f"there is no built-in policy {policy}", remedy)
    elif not (policy_dir / f"{policy}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in policy_dir.glob("*.yaml"))) or "none"
        read.fail(node, where, f"{policy_dir / policy}.yaml does not exist", f"there are: {known}")


def policies_of(read: Fields, node: yaml.Node | None, where: str, policy_dir: Path | None) -> tuple[str, ...]:
    """The names of a list of policies that there are. Raises ConfigError."""
    if node is None:
        return ()

    def policy(item: yaml.Node, place: str) -> str:
        name = read.policy_name(item, place)
        check_policy(read, item, place, name, policy_dir)
        return name

    return read.different(read.items(node, where), policy)


def parse_peers(
    read: Fields,
    node: yaml.Node | None,
    usual: tuple[str, tuple[str, ...]],
    policy_dir: Path | None,
    own: tuple[Interface, ...],
    has_pool: bool,
) -> tuple[PeerConfig, ...]:
    """`usual`: policy, and others to ask for, of peers that name none. `own`: the gateway's inner addresses.

    Raises ConfigError.
    """
    if node is None:
        return ()
    names: dict[str, str] = {}
    keys: dict[bytes, str] = {}
    claims = [_Claim(_alone(address), "the gateway") for address in own]
    peers = []
    for where, item in read.items(node, "peers"):
        nodes = read.mapping(item, where, PEER_FIELDS, ("name", "public_key"))
        name = read.node_name(nodes["name"], f"{where}.name")
        _once(read, nodes["name"], f"{where}.name", names, name, name)
        key = read.key(nodes["public_key"], f"{where}.public_key")
        _once(read, nodes["public_key"], f"{where}.public_key", keys, key, name)
        addresses = []
        for place, address_node in _addresses(read, item, nodes, f"{where}.addresses", has_pool):
            addresses.append(read.network(address_node, place))
            claims.append(_Claim(addresses[-1], f"peer {name}", address_node, place))
        own_policy, others = usual
        if "policies" in nodes:
            others = policies_of(read, nodes["policies"], f"{where}.policies", policy_dir)
        if "policy" in nodes:
            own_policy = read.policy_name(nodes["policy"], f"{where}.policy")
            check_policy(read, nodes["policy"], f"{where}.policy", own_policy, policy_dir)
        psk = read.psk(nodes, f"{where}.psk_file")
        peers.append(PeerConfig(name, key, psk, tuple(addresses), own_policy, others))
    _refuse_overlaps(read, claims)
    return tuple(peers)


def _addresses(
    read: Fields, peer: yaml.Node, nodes: dict[str, yaml.Node], where: str, has_pool: bool
) -> list[tuple[str, yaml.Node]]:
    if "addresses" in nodes:
        return read.some(nodes["addresses"], where, "[10.8.0.2/32]")
    if not has_pool:
        remedy = "add addresses, as [10.8.0.2/32], or give the gateway a pool"
        read.fail(peer, where, "missing, and there is no pool", remedy)
    return []


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
