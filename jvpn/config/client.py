"""The client's configuration file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import yaml

from jvpn.config.fields import (
    DEFAULT_RUN_DIR,
    DEFAULT_STATE_DIR,
    DEFAULT_TUN,
    MAKE_KEY,
    Endpoint,
    Fields,
    Network,
)
from jvpn.config.gateway import SUITES
from jvpn.protocol.constants import CARRIED

CLIENT_FIELDS: Final = (
    "private_key_file",
    "gateway",
    "uplinks",
    "routes",
    "dns",
    "tun",
    "policy",
    "suite",
    "kem",
    "offload",
    "state_dir",
    "run_dir",
    "events",
)
REQUIRED: Final = ("private_key_file", "gateway")
GATEWAY_FIELDS: Final = ("public_key", "endpoints", "psk_file")
UPLINK_FIELDS: Final = ("device", "preference", "cost", "metered", "network", "transport")
TUN_FIELDS: Final = ("name",)
DNS_FIELDS: Final = ("mode", "resolv_conf")

DNS_MODES: Final = ("auto", "resolved", "resolvconf", "file", "off")
DEFAULT_RESOLV_CONF: Final = Path("/etc/resolv.conf")

#: What the client demands of the gateway, the stricter first.
KEMS: Final = ("mlkem768", "none")
DEFAULT_PREFERENCE: Final = 100
MAX_PREFERENCE: Final = 1_000
#: REATTACH_REQUEST carries the cost in 16 bits.
MAX_COST: Final = 65_535
#: Added to a metered uplink's cost when none is given, so that it is the dearer one among equals.
METERED_COST: Final = 100


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """A device that carries the tunnel. Higher preference is wanted more; among equals the lower cost. `network`: what
    its owner calls the network behind it, for policies to go by."""

    device: str
    preference: int = DEFAULT_PREFERENCE
    cost: int = 0
    metered: bool = False
    network: str = ""


@dataclass(frozen=True, slots=True)
class GatewayPeer:
    """The gateway as the client knows it; endpoints are tried in this order."""

    public_key: bytes
    endpoints: tuple[Endpoint, ...]
    psk: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Routes:
    """What goes through the tunnel: "full" everything; "split" `prefixes`, or the gateway's inner network if empty."""

    mode: Literal["split", "full"] = "split"
    prefixes: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """How the gateway's name servers are put to use; `resolv_conf` is the file that "file" writes."""

    mode: str = DNS_MODES[0]
    resolv_conf: Path = DEFAULT_RESOLV_CONF


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """`uplinks` None: every device that has a default route. `events` None: no file. `policy`: the one to ask the
    gateway for; empty: whichever it gives."""

    private_key_file: Path
    private_key: bytes = field(repr=False)
    gateway: GatewayPeer
    uplinks: tuple[UplinkConfig, ...] | None
    routes: Routes
    dns: DnsConfig
    tun_name: str
    policy: str
    suite: int
    kem: str
    state_dir: Path
    run_dir: Path
    events: Path | None
    offload: str


def parse_client(text: str, filename: str, directory: Path) -> ClientConfig:
    """A client's configuration; relative paths are relative to `directory`. Reads the key files it names.

    Raises ConfigError.
    """
    read = Fields(filename, directory)
    root = read.root(text)
    nodes = read.mapping(root, "", CLIENT_FIELDS, REQUIRED)
    key_file, private_key = read.key_file(nodes["private_key_file"], "private_key_file", MAKE_KEY)
    tun_name = _tun_name(read, nodes.get("tun"))
    return ClientConfig(
        private_key_file=key_file,
        private_key=private_key,
        gateway=_gateway(read, nodes["gateway"]),
        uplinks=_uplinks(read, nodes.get("uplinks"), tun_name),
        routes=_routes(read, nodes.get("routes")),
        dns=_dns(read, nodes.get("dns")),
        tun_name=tun_name,
        policy=read.policy_name(nodes["policy"], "policy") if "policy" in nodes else "",
        suite=read.integer(nodes["suite"], "suite", SUITES[0], SUITES[-1]) if "suite" in nodes else SUITES[0],
        kem=read.choice(nodes["kem"], "kem", KEMS) if "kem" in nodes else KEMS[0],
        state_dir=read.optional_path(nodes, "state_dir", DEFAULT_STATE_DIR),
        run_dir=read.optional_path(nodes, "run_dir", DEFAULT_RUN_DIR),
        events=read.events(nodes),
        offload=read.offload(nodes),
    )


def _tun_name(read: Fields, node: yaml.Node | None) -> str:
    if node is None:
        return DEFAULT_TUN
    nodes = read.mapping(node, "tun", TUN_FIELDS)
    return read.device(nodes["name"], "tun.name") if "name" in nodes else DEFAULT_TUN


def _dns(read: Fields, node: yaml.Node | None) -> DnsConfig:
    """A mode alone, or a mapping."""
    if node is None:
        return DnsConfig()
    if isinstance(node, yaml.ScalarNode):
        return DnsConfig(read.choice(node, "dns", DNS_MODES))
    nodes = read.mapping(node, "dns", DNS_FIELDS)
    mode = read.choice(nodes["mode"], "dns.mode", DNS_MODES) if "mode" in nodes else DNS_MODES[0]
    path = read.path(nodes["resolv_conf"], "dns.resolv_conf") if "resolv_conf" in nodes else None
    return DnsConfig(mode, path or DEFAULT_RESOLV_CONF)


def _gateway(read: Fields, node: yaml.Node) -> GatewayPeer:
    nodes = read.mapping(node, "gateway", GATEWAY_FIELDS, ("public_key", "endpoints"))
    given = read.some(nodes["endpoints"], "gateway.endpoints", '["vpn.example.net:51820"]')
    endpoints = read.different(given, read.endpoint)
    key = read.key(nodes["public_key"], "gateway.public_key")
    return GatewayPeer(key, endpoints, read.psk(nodes, "gateway.psk_file"))


def _uplinks(read: Fields, node: yaml.Node | None, tun_name: str) -> tuple[UplinkConfig, ...] | None:
    if node is None or (isinstance(node, yaml.ScalarNode) and node.value == "auto"):
        return None
    found: dict[str, UplinkConfig] = {}
    for where, item in read.items(node, "uplinks"):
        nodes = read.mapping(item, where, UPLINK_FIELDS, ("device",))
        device = read.device(nodes["device"], f"{where}.device")
        if device in found:
            read.fail(nodes["device"], f"{where}.device", f"{device} is given twice", "remove one of the two")
        if device == tun_name:
            remedy = "name the device that reaches the internet, or another tun.name"
            read.fail(nodes["device"], f"{where}.device", f"{device} is the tunnel itself", remedy)
        found[device] = _uplink(read, nodes, device, where)
    if not found:
        read.fail(node, "uplinks", "the list is empty", "name at least one device, or write auto")
    return tuple(found.values())


def _uplink(read: Fields, nodes: dict[str, yaml.Node], device: str, where: str) -> UplinkConfig:
    metered = read.boolean(nodes["metered"], f"{where}.metered") if "metered" in nodes else False
    preference, cost = DEFAULT_PREFERENCE, METERED_COST if metered else 0
    if "preference" in nodes:
        preference = read.integer(nodes["preference"], f"{where}.preference", 0, MAX_PREFERENCE)
    if "cost" in nodes:
        cost = read.integer(nodes["cost"], f"{where}.cost", 0, MAX_COST)
    network = read.label(nodes["network"], f"{where}.network") if "network" in nodes else ""
    if "transport" in nodes:
        read.choice(nodes["transport"], f"{where}.transport", sorted(CARRIED))
    return UplinkConfig(device, preference, cost, metered, network)


def _routes(read: Fields, node: yaml.Node | None) -> Routes:
    if node is None:
        return Routes()
    if isinstance(node, yaml.ScalarNode):
        mode = read.choice(node, "routes", ("split", "full"))
        return Routes("full") if mode == "full" else Routes()
    found = read.different(read.items(node, "routes"), read.network)
    if not found:
        read.fail(node, "routes", "the list is empty", "write split, full, or a list of prefixes")
    return Routes("split", found)
