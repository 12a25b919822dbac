"""Kinds of values that gateway and client files share: endpoints, prefixes, device names, keys, paths."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path
from typing import Final, TypeVar

import yaml

from jvpn.config.errors import ConfigError
from jvpn.config.keys import KeyFileError, parse_key, read_key_file
from jvpn.policy.model import NAME_PATTERN, NAME_RULE
from jvpn.policy.parameters import LABEL_PATTERN, LABEL_RULE
from jvpn.policy.source import Source, shown

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface
Value = TypeVar("Value")

DEFAULT_RUN_DIR: Final = Path("/run/jvpn")
DEFAULT_STATE_DIR: Final = Path("/var/lib/jvpn")
DEFAULT_EVENTS: Final = Path("/var/log/jvpn/events.jsonl")
DEFAULT_TUN: Final = "jvpn0"
DEFAULT_PORT: Final = 51820
OFFLOADS: Final = ("auto", "off")
NO_PSK: Final = bytes(32)
MAKE_KEY: Final = "jvpn keygen --out {path}"
MAKE_PSK: Final = "jvpn keygen --psk --out {path}"

#: A Linux interface name: up to 15 characters, no slash, colon or white space.
_DEVICE: Final = re.compile(r"(?!\.{1,2}$)[^\s/:]{1,15}")
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`host` is a name or an address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """ "host:port", IPv6 in brackets. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65_535:
        raise ValueError("no port")
    if host.startswith("[") and host.endswith("]"):
        return Endpoint(str(_ipv6(host[1:-1])), int(port))
    if not _HOST.fullmatch(host):
        raise ValueError("no host")
    if re.fullmatch(r"[0-9.]+", host):
        host = str(ip_address(host))
    return Endpoint(host, int(port))


def _ipv6(text: str) -> str:
    address = ip_address(text)
    if address.version != 6:
        raise ValueError("brackets are for IPv6")
    return str(address)


def parse_listen(text: str) -> Endpoint:
    """An endpoint whose host is an address. Raises ValueError."""
    endpoint = parse_endpoint(text)
    ip_address(endpoint.host)
    return endpoint


class Fields(Source):
    """A configuration file's reader; relative paths in it are relative to `directory`, the file's own."""

    def __init__(self, file: str, directory: Path) -> None:
        super().__init__(file, ConfigError)
        self.directory = directory

    def some(self, node: yaml.Node, field: str, example: str) -> list[tuple[str, yaml.Node]]:
        """The items of a list that is not empty."""
        items = self.items(node, field)
        if not items:
            self.fail(node, field, "the list is empty", f"write at least one, as {example}")
        return items

    def different(
        self, items: Iterable[tuple[str, yaml.Node]], read_one: Callable[[yaml.Node, str], Value]
    ) -> tuple[Value, ...]:
        """What `read_one(item, field)` makes of each item of a list, where none may be given twice."""
        found: list[Value] = []
        for field, item in items:
            value = read_one(item, field)
            if value in found:
                self.fail(item, field, f"{value} is given twice", "remove one of the two")
            found.append(value)
        return tuple(found)

    def path(self, node: yaml.Node, field: str) -> Path:
        return self.directory / Path(self.text(node, field)).expanduser()

    def optional_path(self, nodes: dict[str, yaml.Node], field: str, default: Path) -> Path:
        return self.path(nodes[field], field) if field in nodes else default

    def offload(self, nodes: dict[str, yaml.Node]) -> str:
        return self.choice(nodes["offload"], "offload", OFFLOADS) if "offload" in nodes else OFFLOADS[0]

    def events(self, nodes: dict[str, yaml.Node]) -> Path | None:
        """A file, or None for the word "none"."""
        if "events" not in nodes:
            return DEFAULT_EVENTS
        return (
            None if self.text(nodes["events"], "events") == "none" else self.path(nodes["events"], "events")
        )

    def endpoint(self, node: yaml.Node, field: str) -> Endpoint:
        remedy = f'write "name:{DEFAULT_PORT}" or "[2001:db8::1]:{DEFAULT_PORT}", in quotes'
        return self.parsed(node, field, parse_endpoint, "a host and port", remedy)

    def listen(self, node: yaml.Node, field: str) -> Endpoint:
        remedy = f'write "[::]:{DEFAULT_PORT}" or "192.0.2.1:{DEFAULT_PORT}", in quotes'
        return self.parsed(node, field, parse_listen, "an address and port", remedy)

    def interface(self, node: yaml.Node, field: str) -> Interface:
        """An address of our own with its prefix length."""
        remedy = "write the address with its prefix length, as 10.8.0.1/24"
        address = self.parsed(
            node, field, _with_length(ip_interface), "an address with a prefix length", remedy
        )
        if (
            address.network.prefixlen < address.max_prefixlen - 1
            and address.ip == address.network.network_address
        ):
            self.fail(
                node,
                field,
                f"{address} is a network, not one of its addresses",
                f"write {address.ip + 1}/{address.network.prefixlen}",
            )
        return address

    def network(self, node: yaml.Node, field: str) -> Network:
        """A prefix without host bits."""
        remedy = "write a prefix, as 10.8.0.2/32 or fd00:8::2/128"
        address = self.parsed(node, field, _with_length(ip_interface), "a prefix", remedy)
        if address.ip != address.network.network_address:
            alone = f"{address.ip}/{address.max_prefixlen}"
            self.fail(
                node, field, f"{address} has bits beyond its length", f"write {alone} or {address.network}"
            )
        return ip_network(address.network)

    def device(self, node: yaml.Node, field: str) -> str:
        name = self.text(node, field)
        if not _DEVICE.fullmatch(name):
            remedy = "up to 15 characters without / : or spaces; see: ip -brief link"
            self.fail(node, field, f"{shown(name)} cannot be an interface's name", remedy)
        return name

    def node_name(self, node: yaml.Node, field: str) -> str:
        name = self.text(node, field)
        if not _NODE.fullmatch(name):
            remedy = "use up to 63 letters, digits, dots, - and _"
            self.fail(node, field, f"{shown(name)} cannot be a name", remedy)
        return name

    def label(self, node: yaml.Node, field: str) -> str:
        """A word that policies may name."""
        text = self.text(node, field)
        if not LABEL_PATTERN.fullmatch(text):
            self.fail(node, field, f"{shown(text)} cannot be a label", f"use {LABEL_RULE}")
        return text

    def policy_name(self, node: yaml.Node, field: str) -> str:
        name = self.text(node, field)
        if not NAME_PATTERN.fullmatch(name):
            self.fail(node, field, f"{shown(name)} cannot be a policy's name", f"use {NAME_RULE}")
        return name

    def key(self, node: yaml.Node, field: str) -> bytes:
        """A public key. A value that is none is not repeated in the error: it may be the private one, mistyped."""
        try:
            return parse_key(self.text(node, field))
        except ValueError:
            self.fail(node, field, "not a base64 key of 32 bytes", "make one with: jvpn keygen")

    def key_file(self, node: yaml.Node, field: str, make_one: str) -> tuple[Path, bytes]:
        path = self.path(node, field)
        try:
            return path, read_key_file(path, make_one.format(path=path))
        except KeyFileError as broken:
            self.fail(node, field, f"{broken.path} {broken.problem}", broken.remedy)

    def psk(self, nodes: dict[str, yaml.Node], field: str) -> bytes:
        """The key in the file named by `psk_file`, 32 zeros without one."""
        if "psk_file" not in nodes:
            return NO_PSK
        return self.key_file(nodes["psk_file"], field, MAKE_PSK)[1]


def _with_length(parse: Callable[[str], Interface]) -> Callable[[str], Interface]:
    """`parse`, but the length must be written: an address alone is more often an omission than a /32."""

    def checked(text: str) -> Interface:
        if not re.fullmatch(r"[^/%]+/[0-9]+", text):
            raise ValueError("no prefix length")
        return parse(text)

    return checked
