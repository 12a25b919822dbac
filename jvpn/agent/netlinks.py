"""Link, address and route news from the kernel (rtnetlink), and what there is now."""

import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pyroute2 import IPRoute

_IFF_UP, _IFF_LOWER_UP = 1 << 0, 1 << 16
_IFA_F_DADFAILED, _IFA_F_TENTATIVE, _IFA_F_OPTIMISTIC = 0x08, 0x40, 0x04
_SCOPE_LINK = 253
_MAIN_TABLE = 254

_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE = 16, 17, 20, 21, 24
_RTM_GETADDR = 22
_NLM_F_REQUEST, _NLM_F_DUMP, _NLMSG_ERROR, _NLMSG_DONE = 0x1, 0x300, 2, 3
_IFLA_IFNAME, _RTA_OIF = 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
#: RTMGRP_LINK, and of IPv4 and IPv6 RTMGRP_…_IFADDR and RTMGRP_…_ROUTE.
_GROUPS: Final = 0x01 | 0x10 | 0x40 | 0x100 | 0x400
_MESSAGE_BYTES: Final = 1 << 16
#: struct nlmsghdr: length and type. ifinfomsg: family, index, flags. ifaddrmsg: family, flags, scope, index. rtmsg:
#: dst_len, table.
_HEADER: Final = struct.Struct("=IH10x")
_LINK: Final = struct.Struct("=B3xiI4x")
_ADDRESS: Final = struct.Struct("=BxBBi")
_ROUTE: Final = struct.Struct("=xB2xB")
_ROUTE_BYTES: Final = 12
_LEAST: Final = {16: 16, 17: 16, 20: 8, 21: 8, 24: 12}
_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("=i")
#: A nlmsghdr in full (length, type, flags, sequence, port) and struct rtgenmsg.
_REQUEST: Final = struct.Struct("=IHHIIB3x")


@dataclass(frozen=True, slots=True)
class LinkNews:
    """`device` has interface index `index`, None when it is gone; `up`: administratively, and with carrier."""

    device: str
    index: int | None
    up: bool


@dataclass(frozen=True, slots=True)
class AddressNews:
    """The addresses of interface `index` changed."""

    index: int


@dataclass(frozen=True, slots=True)
class RouteNews:
    """A route through interface `index` was added to the main table; `default`: one to everywhere."""

    index: int
    default: bool


@dataclass(frozen=True, slots=True)
class LostNews:
    """The kernel had more to say than we could take: look at everything again."""


News = LinkNews | AddressNews | RouteNews | LostNews


def link_is_up(name: str) -> bool:
    """Administratively up and with carrier; False for a device that does not exist."""
    with IPRoute() as netlink:
        found = netlink.link_lookup(ifname=name)
        return bool(found) and _up(netlink.get_links(found[0])[0]["flags"])


def _up(flags: int) -> bool:
    return flags & (_IFF_UP | _IFF_LOWER_UP) == (_IFF_UP | _IFF_LOWER_UP)


def usable_addresses(index: int) -> frozenset[str]:
    """What can be sent from on interface `index` to other networks: neither link-local nor tentative."""
    return frozenset(_usable(_all_addresses(), index))


def _all_addresses() -> Iterator[tuple[int, bytes]]:
    """The kernel's answer to RTM_GETADDR: type and body of each message. Raises OSError."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as asking:
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        asking.send(_REQUEST.pack(_REQUEST.size, _RTM_GETADDR, flags, 1, 0, socket.AF_UNSPEC))
        while True:
            for kind, body in _messages(asking.recv(_MESSAGE_BYTES)):
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise OSError(-_NUMBER.unpack_from(body)[0], "the kernel does not list addresses")
                yield kind, body


def _usable(messages: Iterable[tuple[int, bytes]], index: int) -> Iterator[str]:
    for kind, body in messages:
        if kind != _RTM_NEWADDR or len(body) < _ADDRESS.size:
            continue
        family, brief, scope, of = _ADDRESS.unpack_from(body)
        if of != index or scope >= _SCOPE_LINK:
            continue
        attributes = _attributes(body, _ADDRESS.size)
        (flags,) = _NUMBER.unpack(attributes[_IFA_FLAGS]) if _IFA_FLAGS in attributes else (brief,)
        tentative = flags & _IFA_F_TENTATIVE and not flags & _IFA_F_OPTIMISTIC
        own = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if own and not tentative and not flags & _IFA_F_DADFAILED:
            yield socket.inet_ntop(family, own)


def default_route_devices() -> list[str]:
    """Devices of the default routes, best metric first."""
    with IPRoute() as netlink:
        found: list[tuple[int, str]] = []
        for route in netlink.get_default_routes():
            index = route.get_attr("RTA_OIF")
            if index:
                found.append((route.get_attr("RTA_PRIORITY") or 0, socket.if_indextoname(index)))
    return list(dict.fromkeys(name for _metric, name in sorted(found)))


class LinkMonitor:
    """Listens to rtnetlink(7); `fileno` becomes readable when `take` has news. Raises OSError when it may not listen.

    Read by ourselves, where all else goes by pyroute2: the news that a link is down is what recovery waits for, and
    of a message with a hundred attributes two numbers and a name are wanted.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        self._socket.bind((0, _GROUPS))

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self) -> Iterator[News]:
        """In the order of the kernel's news, each read when it is asked for: the first may be the one to hurry for."""
        while True:
            try:
                data = self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                # ENOBUFS: the kernel dropped some of it.
                yield LostNews()
                continue
            yield from understood(data)


def understood(data: bytes) -> Iterator[News]:
    """What one read of an rtnetlink socket says that concerns us (struct nlmsghdr and what follows it)."""
    for kind, body in _messages(data):
        news = _READERS[kind](kind, body) if kind in _READERS and len(body) >= _LEAST[kind] else None
        if news is not None:
            yield news


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message of one read."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += max(_HEADER.size, length + 3 & ~3)


def _link(kind: int, body: bytes) -> News | None:
    family, index, flags = _LINK.unpack_from(body)
    name = _attributes(body, _LINK.size).get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    # Of another family: what happens to it as the port of a bridge.
    if family != socket.AF_UNSPEC or not name:
        return None
    return LinkNews(name, None, False) if kind == _RTM_DELLINK else LinkNews(name, index, _up(flags))


def _address(_kind: int, body: bytes) -> News | None:
    return AddressNews(_ADDRESS.unpack_from(body)[3])


def _route(_kind: int, body: bytes) -> News | None:
    bits, table = _ROUTE.unpack_from(body)
    device = _attributes(body, _ROUTE_BYTES).get(_RTA_OIF, b"")
    if table != _MAIN_TABLE or len(device) != _NUMBER.size:
        return None
    return RouteNews(_NUMBER.unpack(device)[0], bits == 0)


def _attributes(body: bytes, at: int) -> dict[int, bytes]:
    """struct rtattr's from there on."""
    found = {}
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, length + 3 & ~3)
    return found


_READERS: Final[dict[int, Callable[[int, bytes], News | None]]] = {
    _RTM_NEWLINK: _link,
    _RTM_DELLINK: _link,
    _RTM_NEWADDR: _address,
    _RTM_DELADDR: _address,
    _RTM_NEWROUTE: _route,
}
