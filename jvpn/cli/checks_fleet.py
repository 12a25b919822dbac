"""What `jvpn doctor` looks at because a gateway is one of a fleet: its etcd, and the way of return traffic."""

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pyroute2 import IPRoute

from jvpn.cli.checks import Check
from jvpn.cli.plans import etcd_access
from jvpn.config import FleetConfig, GatewayConfig
from jvpn.config.fleet import Address
from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdClient

_SYSCTLS: Final = Path("/proc/sys")
_FORWARDING: Final = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def fleet(config: GatewayConfig) -> list[Check]:
    """Nothing for a gateway that is alone."""
    if config.fleet is None:
        return []
    checks = [_etcd(config.fleet), *_plain(config.fleet), _advertise(config.fleet)]
    for version in sorted({address.version for address in config.tun_addresses}):
        address = config.fleet.return_address(version)
        if address is None:
            found = "none: what arrives for this node's clients at another gateway is lost"
            remedy = "name an address in fleet.return_addresses that the others reach without a router"
            checks.append(Check(f"return address v{version}", "warning", found, remedy))
        else:
            checks += _return_way(address)
        if not _is_set(_FORWARDING[version]):
            found = "off: what arrives here for clients of other gateways goes no further"
            remedy = f"sysctl -w {_FORWARDING[version].replace('/', '.')}=1"
            checks.append(Check(f"fleet forwarding v{version}", "warning", found, remedy))
    return checks


def _etcd(fleet: FleetConfig) -> Check:
    """Whether a majority answers us."""
    try:
        client = EtcdClient(etcd_access(fleet))
        try:
            client.read("/v3/kv/range", {"key": "AA==", "count_only": True})
        finally:
            client.close()
    except StoreError as error:
        remedy = "a majority of the members must be up and reachable: etcdctl endpoint status --cluster"
        return Check("etcd", "problem", str(error), remedy)
    return Check("etcd", "ok", f"a majority answers, at {client.member}")


def _plain(fleet: FleetConfig) -> list[Check]:
    """Whoever is on the way to such a member can make himself the owner of sessions, or take their keys' seal."""
    members = [urlsplit(url) for url in fleet.etcd]
    plain = [str(member.hostname) for member in members if member.scheme == "http"]
    exposed = [host for host in plain if not ip_address(host).is_loopback]
    if not exposed:
        return []
    remedy = "use https, with fleet.ca, or keep them on a network of their own"
    return [Check("etcd's links", "warning", f"without TLS: {', '.join(exposed)}", remedy)]


def _advertise(fleet: FleetConfig) -> Check:
    if fleet.advertise:
        return Check("advertise", "ok", ", ".join(str(endpoint) for endpoint in fleet.advertise))
    found = "nothing: other gateways cannot tell clients where their session is"
    return Check("advertise", "warning", found, "name the endpoints of this node in fleet.advertise")


def _return_way(address: Address) -> list[Check]:
    label = f"return address v{address.version}"
    device = _device_of(address)
    if device is None:
        remedy = "name an address that one of this machine's interfaces has: ip -brief address"
        return [Check(label, "warning", f"{address} is not this machine's", remedy)]
    checks = [Check(label, "ok", f"{address} on {device}")]
    if address.version == 4:
        checks += _way_in(device) + _redirects(device)
    return checks


def _way_in(device: str) -> list[Check]:
    """The greater of the two settings counts (Documentation/networking/ip-sysctl.rst)."""
    modes = [_value(f"net/ipv4/conf/{name}/rp_filter") for name in ("all", device)]
    if max(modes) != "1":
        return []
    found = (
        "strict: what another gateway hands on is dropped, unless its sender is reached by the same interface"
    )
    remedy = f"sysctl -w net.ipv4.conf.{device}.rp_filter=2"
    return [Check(f"rp_filter {device}", "warning", found, remedy)]


def _redirects(device: str) -> list[Check]:
    """Either setting is enough to send them."""
    if not any(_is_set(f"net/ipv4/conf/{name}/send_redirects") for name in ("all", device)):
        return []
    found = "on: hosts are told to send to a session's owner of the moment, and go on when it is another one"
    remedy = f"sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.{device}.send_redirects=0"
    return [Check(f"send_redirects {device}", "warning", found, remedy)]


def _device_of(address: Address) -> str | None:
    with IPRoute() as netlink:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        for known in netlink.get_addr(family=family):
            own = known.get_attr("IFA_LOCAL") or known.get_attr("IFA_ADDRESS")
            if own is not None and ip_address(own) == address:
                return socket.if_indextoname(known["index"])
    return None


def _value(sysctl: str) -> str:
    path = _SYSCTLS / sysctl
    return path.read_text().strip() if path.exists() else "0"


def _is_set(sysctl: str) -> bool:
    return _value(sysctl) != "0"
