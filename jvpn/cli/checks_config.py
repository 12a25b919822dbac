"""What `jvpn doctor` looks at because a configuration names it: interfaces, ports, routes, names."""

import errno
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from jvpn.agent.netlinks import default_route_devices, link_is_up
from jvpn.cli.checks import Check
from jvpn.config import ClientConfig, GatewayConfig
from jvpn.holder import xdp
from jvpn.holder.inventory import SOCKET_NAME
from jvpn.observability.admin import AdminError, ask
from jvpn.protocol import addresses
from jvpn.supervisor.interfaces import carriers

#: Drivers that are known to take XDP, for kernels before 6.3, which do not say.
_XDP_DRIVERS: Final = frozenset(
    (
        "bnxt_en",
        "ena",
        "gve",
        "hv_netvsc",
        "i40e",
        "ice",
        "igb",
        "igc",
        "ixgbe",
        "ixgbevf",
        "mlx4_en",
        "mlx5_core",
        "mvneta",
        "nfp",
        "sfc",
        "veth",
        "virtio_net",
    )
)
_XDP_BASIC: Final = 1


class _DeviceMessage(genlmsg):  # type: ignore[misc]
    """Documentation/netlink/specs/netdev.yaml, dev-get."""

    prefix = "NETDEV_A_DEV_"
    nla_map = (
        ("NETDEV_A_DEV_NONE", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


def native_xdp(interface: str) -> bool | None:
    """Whether the driver takes XDP, without attaching: what it declares (Linux 6.3), else by its name; None unknown."""
    index = socket.if_nametoindex(interface)
    request = _DeviceMessage()
    request["cmd"], request["version"] = 1, 1
    try:
        with GenericNetlinkSocket() as netlink:
            netlink.bind("netdev", _DeviceMessage)
            flags = NLM_F_REQUEST | NLM_F_DUMP
            for answer in netlink.nlm_request(request, msg_type=netlink.prid, msg_flags=flags):
                if answer.get_attr("NETDEV_A_DEV_IFINDEX") == index:
                    return bool((answer.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0) & _XDP_BASIC)
    except (NetlinkError, OSError):
        pass
    driver = Path(f"/sys/class/net/{interface}/device/driver")
    return True if driver.exists() and driver.resolve().name in _XDP_DRIVERS else None


def running(run_dir: Path) -> dict[str, Any] | None:
    """The status of what runs in `run_dir`, None when nothing does."""
    try:
        answer = ask(run_dir, {"command": "status"}, timeout_s=2.0)
    except (AdminError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def key_log(status: dict[str, Any] | None) -> list[Check]:
    """A warning while what runs writes its keys down; otherwise there is nothing to say."""
    told = "" if status is None else status.get("keylog", "")
    remedy = "start it without --keylog, and destroy the file"
    return [Check("key log", "warning", told, remedy)] if told else []


def gateway_interfaces(config: GatewayConfig | None) -> list[str]:
    """Those that the gateway would attach its program to."""
    if config is not None and config.interfaces is not None:
        return list(config.interfaces)
    return carriers()


def interface(name: str, status: dict[str, Any] | None) -> tuple[Check, str]:
    """The check, and the best mode to expect there: native, maybe native, generic, none."""
    label = f"interface {name}"
    try:
        attached = xdp.current(name)
    except OSError:
        remedy = "name one of: " + " ".join(known for _index, known in socket.if_nameindex())
        return Check(label, "warning", "there is no such interface", remedy), "none"
    if attached is not None and attached.program_name != xdp.PROGRAM_NAME:
        who = f"{attached.program_name or 'an unnamed program'} (id {attached.program_id}, {attached.mode})"
        remedy = f"it stays; to steer here, its owner removes it: ip link set {name} xdp off"
        return Check(label, "warning", f"another XDP program holds it: {who}", remedy), "none"
    driver = native_xdp(name)
    can = {True: "driver takes native XDP", False: "driver has no native XDP", None: "driver unknown"}[driver]
    expected = {True: "native", False: "generic", None: "maybe native"}[driver]
    if attached is None:
        return Check(label, "ok", f"{can}, no program attached"), expected
    found = f"{can}, our program attached (id {attached.program_id}, {attached.mode})"
    if status is not None:
        return Check(label, "ok", found), expected
    remedy = f"the next start replaces it; without a next start: ip link set {name} xdp off"
    return Check(label, "warning", f"{found}, no gateway in run_dir", remedy), expected


def listen_ports(config: GatewayConfig, status: dict[str, Any] | None) -> list[Check]:
    return [_listen_port(end.host, end.port, status, config.run_dir) for end in config.listen]


def _data_plane_alone(run_dir: Path) -> bool:
    """A data plane without a supervisor listens there; asking it would make us its supervisor."""
    return f" {run_dir / SOCKET_NAME}\n" in Path("/proc/net/unix").read_text()


def _listen_port(host: str, port: int, status: dict[str, Any] | None, run_dir: Path) -> Check:
    """Binds for a moment, as the holder does but without SO_REUSEPORT, so that every other user of the port shows."""
    label = f"listen [{host}]:{port}" if ":" in host else f"listen {host}:{port}"
    if status is not None:
        return Check(label, "ok", f"held by the running gateway {status.get('node_id', '')}".rstrip())
    try:
        address = addresses.for_socket(addresses.to_bytes(host))
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((address, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _data_plane_alone(run_dir):
            return Check(
                label, "ok", "held by the data plane of an earlier start, which the next one takes over"
            )
        remedies = {
            errno.EADDRINUSE: f"see who has it: ss -lunp 'sport = :{port}'",
            errno.EAFNOSUPPORT: "start the kernel without ipv6.disable=1: every socket is an IPv6 one, for IPv4 too",
        }
        remedy = remedies.get(error.errno or 0, "listen on an address of this machine")
        return Check(label, "problem", f"cannot be bound: {error.strerror}", remedy)
    return Check(label, "ok", "free")


def offload(wanted: str, status: Mapping[str, Any] | None) -> Check:
    """What the kernel may take over and, while it runs, what of that was found."""
    if wanted == "off":
        remedy = "write offload: auto, or leave it out, unless a network driver is at fault"
        return Check("offload", "warning", "off by configuration: every packet passes singly", remedy)
    if status is None or "offload" not in status:
        return Check("offload", "ok", "auto: found out at the start")
    return Check("offload", "ok", f"in use: {status['offload']}")


def tun_name(name: str, status: dict[str, Any] | None) -> Check:
    if status is not None or name not in {known for _index, known in socket.if_nameindex()}:
        return Check(f"tun {name}", "ok", "free" if status is None else "held by the running process")
    remedy = "set another tun.name, or remove it: ip link delete " + name
    return Check(f"tun {name}", "warning", "an interface of this name exists", remedy)


def forwarding(config: GatewayConfig) -> list[Check]:
    """Needed where a peer is a network, not only a host."""
    networks = [n for peer in config.peers for n in peer.addresses if n.num_addresses > 1]
    checks = []
    for version, sysctl in ((4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding")):
        path = Path("/proc/sys") / sysctl.replace(".", "/")
        if not path.exists():
            continue
        is_on = path.read_text().strip() != "0"
        routed = [str(network) for network in networks if network.version == version]
        if is_on:
            checks.append(Check(f"forwarding v{version}", "ok", "on"))
        elif routed:
            remedy = f"sysctl -w {sysctl}=1"
            found = f"off, and peers have networks: {', '.join(routed[:4])}"
            checks.append(Check(f"forwarding v{version}", "warning", found, remedy))
        else:
            found = "off: clients reach the gateway itself, not each other or beyond"
            checks.append(Check(f"forwarding v{version}", "ok", found))
    return checks


def inner_pool(config: GatewayConfig) -> list[Check]:
    """Whether all peers without addresses can have a session at the same time."""
    if config.pool is None:
        return []
    peers = sum(not peer.addresses for peer in config.peers)
    sizes = ", ".join(f"{family.size:,} of IPv{family.version}" for family in config.pool.families)
    found = f"{sizes} for {peers} peers without addresses"
    if min(family.size for family in config.pool.families) >= peers:
        return [Check("pool", "ok", found)]
    remedy = "write a larger prefix: whoever comes when all are in use is refused"
    return [Check("pool", "warning", found, remedy)]


def writable(label: str, directory: Path) -> Check:
    """Whether `directory`, or the nearest that exists above it, can be written."""
    existing = next((d for d in (directory, *directory.parents) if d.exists()), Path("/"))
    if existing.is_dir() and os.access(existing, os.W_OK):
        return Check(label, "ok", str(directory))
    remedy = f"name another directory, or make {existing} writable"
    return Check(label, "problem", f"{directory} cannot be written", remedy)


def gateway_folders(config: GatewayConfig) -> list[Check]:
    checks = [writable("run_dir", config.run_dir)]
    if config.fleet is None:
        checks.append(writable("store", config.store.parent))
    return checks + ([] if config.events is None else [writable("events", config.events.parent)])


def client_folders(config: ClientConfig) -> list[Check]:
    checks = [writable("run_dir", config.run_dir), writable("state_dir", config.state_dir)]
    return checks + ([] if config.events is None else [writable("events", config.events.parent)])


def uplinks(config: ClientConfig) -> list[Check]:
    if config.uplinks is not None:
        return [_uplink(uplink.device) for uplink in config.uplinks]
    devices = [device for device in default_route_devices() if device != config.tun_name]
    if not devices:
        remedy = "list the devices under uplinks"
        return [Check("uplinks", "problem", "no device has a default route", remedy)]
    return [_uplink(device) for device in devices]


def _uplink(device: str) -> Check:
    label = f"uplink {device}"
    if device not in {known for _index, known in socket.if_nameindex()}:
        known = " ".join(known for _index, known in socket.if_nameindex())
        return Check(
            label, "problem", "there is no such device; the client waits for it", f"name one of: {known}"
        )
    if not link_is_up(device):
        return Check(label, "warning", "down or without carrier", "it is used from when it comes up")
    strict = any(
        path.exists() and path.read_text().strip() == "1"
        for path in (Path("/proc/sys/net/ipv4/conf") / name / "rp_filter" for name in ("all", device))
    )
    if strict:
        remedy = f"sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{device}.rp_filter=2"
        found = (
            "up, with strict reverse-path filter: answers on a path that is not the best route are dropped"
        )
        return Check(label, "warning", found, remedy)
    return Check(label, "ok", "up")


def endpoints(config: ClientConfig) -> list[Check]:
    return [_endpoint(end.host, end.port) for end in config.gateway.endpoints]


def _endpoint(host: str, port: int) -> Check:
    label = f"gateway {host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        return Check(label, "warning", error.strerror or str(error), "check the name, or write an address")
    return Check(label, "ok", str(found[0][4][0]))
