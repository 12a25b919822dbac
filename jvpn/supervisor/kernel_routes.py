"""Routes of the main table that are this product's, told by their protocol number, put and taken by the hundred.

Written as rtnetlink(7) messages by ourselves, where all else goes by pyroute2: with each of thousands of routes as a
tree of objects the thread would keep the interpreter from the supervisor's loop for seconds.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

#: `proto` of `ip route`: not one of those in use by the kernel, routing daemons or managers of networks (rt_protos).
ROUTE_PROTOCOL: Final = 74
#: Part of what tells a route apart: one of another metric is never replaced by these. Lower is wanted more.
ROUTE_METRIC: Final = 74

_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_MAIN_TABLE, _UNICAST, _ANYWHERE, _ANY_SCOPE = 254, 1, 0, 255
_RTA_DST, _RTA_GATEWAY, _RTA_PRIORITY = 1, 5, 6
_SOL_NETLINK, _CAP_ACK, _STRICT_CHECK = 270, 10, 12
#: struct nlmsghdr: length, type, flags, sequence, port. struct rtmsg: family, dst_len, src_len, tos, table, protocol,
#: scope, type, flags.
_HEADER: Final = struct.Struct("=IHHII")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("=i")
#: Messages in one call: should all of them fail, the answers still fit the socket's buffer.
_AT_ONCE: Final = 128
_READ_BYTES: Final = 1 << 17
#: The kernel answers within the call; what does not come then, never will.
_PATIENCE_S: Final = 5.0
#: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR.
_NEWS: Final = 0x1 | 0x10 | 0x100
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
#: What a kernel without the family, or without one route of it, answers when its routes are asked for.
_NONE_THERE: Final = frozenset((errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP))
_GONE: Final = frozenset((errno.ESRCH, errno.ENOENT))


class KernelRoutes:
    """For one thread. Needs CAP_NET_ADMIN. Raises OSError."""

    def __init__(self) -> None:
        self._socket = _netlink(0)
        self._socket.settimeout(_PATIENCE_S)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        self._news = _netlink(_NEWS)
        self._news.setblocking(False)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()
        self._news.close()

    def news(self) -> bool:
        """Whether links or addresses have changed since this was called last: with them the kernel takes routes away,
        and says nothing."""
        changed = False
        while True:
            try:
                changed = bool(self._news.recv(_READ_BYTES)) or changed
            except BlockingIOError:
                return changed
            except OSError:
                # ENOBUFS: more than we could take.
                changed = True

    def installed(self) -> dict[str, str]:
        """Next hops of our routes, by prefix; a single address has no length."""
        return {prefix: hop for family in _FAMILIES for prefix, hop in self._listed(family)}

    def apply(self, changes: Mapping[str, str | None]) -> dict[str, int]:
        """Put a route to each prefix by way of its next hop, in the place of the one of ours that is there; or take it,
        where there is none. Returns the errno of those that the kernel refused."""
        refused: dict[str, int] = {}
        waiting = iter(changes.items())
        while some := list(islice(waiting, _AT_ONCE)):
            refused |= self._apply(some)
        return refused

    def _apply(self, changes: list[tuple[str, str | None]]) -> dict[str, int]:
        refused: dict[str, int] = {}
        sent: dict[int, tuple[str, str | None]] = {}
        messages = []
        for prefix, hop in changes:
            try:
                body = _change(prefix, hop)
            except (OSError, ValueError):
                refused[prefix] = errno.EINVAL
                continue
            self._sequence += 1
            sent[self._sequence] = (prefix, hop)
            messages.append((_RTM_DELROUTE if hop is None else _RTM_NEWROUTE, hop, body))
        if not messages:
            return refused
        first = self._sequence - len(messages) + 1
        data = bytearray()
        for sequence, (kind, hop, body) in enumerate(messages, first):
            flags = _REQUEST | (0 if hop is None else _CREATE | _REPLACE)
            # The kernel answers for each that it refuses, and for the last one in any case.
            flags |= _ACK if sequence == self._sequence else 0
            data += _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body
        self._socket.send(data)
        for sequence, code in self._answers(self._sequence):
            prefix, hop = sent[sequence]
            if code and not (hop is None and code in _GONE):
                refused[prefix] = code
        return refused

    def _answers(self, last: int) -> Iterator[tuple[int, int]]:
        """Sequence and errno, up to that of the last message."""
        while True:
            for kind, sequence, body in _messages(self._socket.recv(_READ_BYTES)):
                if kind == _NLMSG_ERROR and last - _AT_ONCE < sequence <= last:
                    yield sequence, -_NUMBER.unpack_from(body)[0]
                    if sequence == last:
                        return

    def _listed(self, family: int) -> Iterator[tuple[str, str]]:
        self._sequence += 1
        body = _ROUTE.pack(family, 0, 0, 0, _MAIN_TABLE, ROUTE_PROTOCOL, 0, 0, 0)
        header = _HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _REQUEST | _DUMP, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            for kind, sequence, answer in _messages(self._socket.recv(_READ_BYTES)):
                if sequence != self._sequence:
                    continue
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    code = -_NUMBER.unpack_from(answer)[0]
                    if code not in _NONE_THERE and code:
                        raise OSError(code, f"the kernel does not list its routes: {os.strerror(code)}")
                    return
                if kind == _RTM_NEWROUTE and (route := _understood(family, answer)) is not None:
                    yield route


def _netlink(groups: int) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    made.bind((0, groups))
    return made


def _change(prefix: str, hop: str | None) -> bytes:
    """struct rtmsg and its attributes. Raises OSError, ValueError for what is no prefix or no next hop."""
    address, _, length = prefix.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    bits = int(length) if length else 8 * len(packed)
    if not 0 < bits <= 8 * len(packed):
        # Also not for everything: that is the way to the other gateways themselves.
        raise ValueError(prefix)
    kind, scope = (0, _ANY_SCOPE) if hop is None else (_UNICAST, _ANYWHERE)
    message = _ROUTE.pack(family, bits, 0, 0, _MAIN_TABLE, ROUTE_PROTOCOL, scope, kind, 0)
    message += _attribute(_RTA_DST, packed) + _attribute(_RTA_PRIORITY, _NUMBER.pack(ROUTE_METRIC))
    return message if hop is None else message + _attribute(_RTA_GATEWAY, socket.inet_pton(family, hop))


def _attribute(kind: int, value: bytes) -> bytes:
    """All of them are multiples of 4 bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence and body of each message of one read."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        yield kind, sequence, data[at + _HEADER.size : at + length]
        at += max(_HEADER.size, length + 3 & ~3)


def _understood(family: int, body: bytes) -> tuple[str, str] | None:
    """Prefix and next hop of a route of ours; None of one of another metric."""
    _, bits, _, _, table, protocol, _, _, _ = _ROUTE.unpack_from(body)
    found, at = {}, _ROUTE.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, length + 3 & ~3)
    if (table, protocol, found.get(_RTA_PRIORITY)) != (
        _MAIN_TABLE,
        ROUTE_PROTOCOL,
        _NUMBER.pack(ROUTE_METRIC),
    ):
        return None
    if _RTA_DST not in found or _RTA_GATEWAY not in found:
        return None
    address, hop = (socket.inet_ntop(family, found[kind]) for kind in (_RTA_DST, _RTA_GATEWAY))
    return (address if bits == 8 * len(found[_RTA_DST]) else f"{address}/{bits}"), hop
