"""The `fleet` section of a gateway's configuration: the etcd that its nodes share, and where they reach this one."""

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import yaml

from jvpn.config.fields import DEFAULT_PORT, Endpoint, Fields, Interface
from jvpn.config.keys import KEY_BYTES, KeyFileError, read_private_file

Address = IPv4Address | IPv6Address

FLEET_FIELDS: Final = (
    "etcd",
    "key_file",
    "ca",
    "certificate",
    "key",
    "user",
    "password_file",
    "prefix",
    "lease_ttl_ms",
    "return_addresses",
    "advertise",
)
REQUIRED: Final = ("etcd", "key_file")
DEFAULT_PREFIX: Final = "/jvpn"
DEFAULT_LEASE_TTL_MS: Final = 3_000
#: etcd gives no lease shorter than one and a half of its election timeouts, 1 s unless it is told otherwise.
LEAST_LEASE_TTL_MS: Final = 2_000
MOST_LEASE_TTL_MS: Final = 60_000
#: etcd counts leases in whole seconds.
_LEASE_STEP_MS: Final = 1_000
_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._-]+)+")
_MAKE_KEY: Final = (
    "once for the whole fleet (umask 077; head -c 32 /dev/urandom > {path}), then copy it to every node"
)
_MAKE_PASSWORD: Final = "write the password of fleet.user into {path} and run: chmod 600 {path}"


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """`etcd`: URLs of its members. `key_file`: 32 bytes that seal the records, the same on all nodes. `ca` None: the
    system's. `user` None: etcd asks for no password. `return_addresses`: at most one of each version, where the other
    gateways send what is for a client of this one. `advertise`: endpoints by which clients reach this node."""

    etcd: tuple[str, ...]
    key_file: Path
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str | None = None
    password: str = field(default="", repr=False)
    prefix: str = DEFAULT_PREFIX
    lease_ttl_ms: int = DEFAULT_LEASE_TTL_MS
    return_addresses: tuple[Address, ...] = ()
    advertise: tuple[Endpoint, ...] = ()

    def return_address(self, version: int) -> Address | None:
        return next((address for address in self.return_addresses if address.version == version), None)


def parse_fleet(
    read: Fields, node: yaml.Node | None, listen: tuple[Endpoint, ...], own: tuple[Interface, ...]
) -> FleetConfig | None:
    """None without the section. `own`: the gateway's inner addresses. Raises ConfigError."""
    if node is None:
        return None
    nodes = read.mapping(node, "fleet", FLEET_FIELDS, REQUIRED)
    ca, certificate, key = (_file(read, nodes, name) for name in ("ca", "certificate", "key"))
    if (certificate is None) != (key is None):
        given, other = ("key", "certificate") if certificate is None else ("certificate", "key")
        read.fail(nodes[given], f"fleet.{given}", f"there is no fleet.{other} for it", f"add fleet.{other}")
    user, password = _login(read, nodes)
    return FleetConfig(
        etcd=_members(read, nodes["etcd"]),
        key_file=_key_file(read, nodes["key_file"]),
        ca=ca,
        certificate=certificate,
        key=key,
        user=user,
        password=password,
        prefix=_prefix(read, nodes.get("prefix")),
        lease_ttl_ms=_lease_ttl_ms(read, nodes.get("lease_ttl_ms")),
        return_addresses=_return_addresses(read, nodes.get("return_addresses"), own),
        advertise=_advertise(read, nodes.get("advertise"), listen),
    )


def parse_member(text: str) -> str:
    """`http[s]://address:port`, as it is written. Raises ValueError: a name would be waited for in DNS."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.port or parts.path not in ("", "/"):
        raise ValueError("no member's URL")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("more than scheme, address and port")
    ip_address(parts.hostname or "")
    return text


def _members(read: Fields, node: yaml.Node) -> tuple[str, ...]:
    remedy = 'write the address of a member and its client port, as "https://192.0.2.1:2379"'

    def member(item: yaml.Node, where: str) -> str:
        return read.parsed(item, where, parse_member, "http[s]://address:port", remedy)

    found = read.different(read.items(node, "fleet.etcd"), member)
    if not found:
        read.fail(node, "fleet.etcd", "the list is empty", "name all members of etcd, so that one may fail")
    return found


def _file(read: Fields, nodes: dict[str, yaml.Node], name: str) -> Path | None:
    """What OpenSSL reads; None where it is not named."""
    if name not in nodes:
        return None
    path = read.path(nodes[name], f"fleet.{name}")
    if not path.is_file():
        read.fail(nodes[name], f"fleet.{name}", f"{path} is no file", "name a PEM file")
    return path


def _private(read: Fields, node: yaml.Node, where: str, make_one: str) -> tuple[Path, bytes]:
    path = read.path(node, where)
    remedy = make_one.format(path=path)
    try:
        return path, read_private_file(path, remedy)
    except KeyFileError as broken:
        read.fail(node, where, f"{path} {broken.problem}", broken.remedy)


def _key_file(read: Fields, node: yaml.Node) -> Path:
    where = "fleet.key_file"
    path, data = _private(read, node, where, _MAKE_KEY)
    if len(data) != KEY_BYTES:
        problem = f"{path} has {len(data)} bytes instead of {KEY_BYTES}"
        read.fail(node, where, problem, f"make one {_MAKE_KEY.format(path=path)}")
    return path


def _login(read: Fields, nodes: dict[str, yaml.Node]) -> tuple[str | None, str]:
    """User and password of etcd."""
    if "user" not in nodes:
        if "password_file" in nodes:
            remedy = "add fleet.user, or remove this line"
            read.fail(nodes["password_file"], "fleet.password_file", "there is no fleet.user for it", remedy)
        return None, ""
    user, where = read.text(nodes["user"], "fleet.user"), "fleet.password_file"
    if "password_file" not in nodes:
        read.fail(nodes["user"], where, "missing", "add it: a user of etcd has a password")
    path, data = _private(read, nodes["password_file"], where, _MAKE_PASSWORD)
    try:
        password = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        password = ""
    if not password or not password.isprintable():
        remedy = _MAKE_PASSWORD.format(path=path)
        read.fail(nodes["password_file"], where, f"{path} does not hold one line of text", remedy)
    return user, password


def _prefix(read: Fields, node: yaml.Node | None) -> str:
    if node is None:
        return DEFAULT_PREFIX
    prefix = read.text(node, "fleet.prefix")
    if not _PREFIX.fullmatch(prefix):
        remedy = f"write it as {DEFAULT_PREFIX}: letters, digits, . _ - after each slash, and none at the end"
        read.fail(node, "fleet.prefix", f"{prefix!r} cannot be a prefix of keys", remedy)
    return prefix


def _lease_ttl_ms(read: Fields, node: yaml.Node | None) -> int:
    if node is None:
        return DEFAULT_LEASE_TTL_MS
    ttl_ms = read.integer(node, "fleet.lease_ttl_ms", LEAST_LEASE_TTL_MS, MOST_LEASE_TTL_MS)
    if ttl_ms % _LEASE_STEP_MS:
        remedy = f"give a multiple of {_LEASE_STEP_MS}"
        read.fail(node, "fleet.lease_ttl_ms", f"etcd counts leases in seconds, not in {ttl_ms} ms", remedy)
    return ttl_ms


def _return_addresses(
    read: Fields, node: yaml.Node | None, own: tuple[Interface, ...]
) -> tuple[Address, ...]:
    if node is None:
        return ()
    found: dict[int, Address] = {}
    remedy = "write an address of this machine that the other gateways reach without a router, as 192.0.2.11"
    for where, item in read.items(node, "fleet.return_addresses"):
        address = read.parsed(item, where, ip_address, "an address", remedy)
        if address.is_unspecified or address.is_multicast or address.is_loopback:
            read.fail(item, where, f"{address} reaches no other machine", remedy)
        if address.version == 6 and address.is_link_local:
            read.fail(item, where, f"{address} says not on which link", "write an address of a wider scope")
        if any(inner.version == address.version and address in inner.network for inner in own):
            # What is sent there would be looked for behind the TUN.
            read.fail(item, where, f"{address} is an address inside the tunnel", remedy)
        if address.version in found:
            problem = f"{found[address.version]} is the one for IPv{address.version} already"
            read.fail(item, where, problem, "name one of each version")
        found[address.version] = address
    return tuple(found.values())


def _advertise(read: Fields, node: yaml.Node | None, listen: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    if node is None:
        return tuple(end for end in listen if not ip_address(end.host).is_unspecified)

    def reachable(item: yaml.Node, where: str) -> Endpoint:
        endpoint = read.listen(item, where)
        if ip_address(endpoint.host).is_unspecified:
            remedy = f'write the address by which clients reach this node, as "192.0.2.1:{DEFAULT_PORT}"'
            read.fail(item, where, f"{endpoint} is no address that a client could send to", remedy)
        return endpoint

    return read.different(read.items(node, "fleet.advertise"), reachable)
