"""Link, address and route news from the kernel (rtnetlink, by pyroute2), and what there is now."""

import os
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

_IFF_UP, _IFF_LOWER_UP = 1 << 0, 1 << 16
_IFA_F_DADFAILED, _IFA_F_TENTATIVE, _IFA_F_OPTIMISTIC = 0x08, 0x40, 0x04
_SCOPE_LINK = 253
_MAIN_TABLE = 254
_RELISTEN_S = 0.2


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
    found = set()
    with IPRoute() as netlink:
        for message in netlink.get_addr(index=index):
            flags = message.get_attr("IFA_FLAGS") or message["flags"]
            tentative = flags & _IFA_F_TENTATIVE and not flags & _IFA_F_OPTIMISTIC
            if message["scope"] < _SCOPE_LINK and not tentative and not flags & _IFA_F_DADFAILED:
                found.add(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
    return frozenset(found)


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
    """A thread that listens; `fileno` becomes readable when `take` has news."""

    def __init__(self) -> None:
        self._news: deque[News] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._listening = threading.Event()
        # The thread ends with the process: nothing interrupts its read.
        self._thread = threading.Thread(target=self._run, name="jvpn-links", daemon=True)
        self._thread.start()
        self._listening.wait()

    def fileno(self) -> int:
        return self._event

    def _run(self) -> None:
        while True:
            try:
                self._listen()
            except (OSError, NetlinkError):
                # ENOBUFS: the kernel dropped some of it.
                time.sleep(_RELISTEN_S)

    def _listen(self) -> None:
        # pyroute2 ties a socket to the thread that makes it.
        with IPRoute() as netlink:
            netlink.bind()
            if self._listening.is_set():
                self._tell(LostNews())
            self._listening.set()
            while True:
                for message in netlink.get():
                    news = _understood(message)
                    if news is not None:
                        self._tell(news)

    def _tell(self, news: News) -> None:
        self._news.append(news)
        os.eventfd_write(self._event, 1)

    def take(self) -> list[News]:
        """In the order of the kernel's news."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        news = []
        while self._news:
            news.append(self._news.popleft())
        return news


def _understood(message: Any) -> News | None:
    event = message.get("event")
    if event == "RTM_NEWLINK":
        return LinkNews(message.get_attr("IFLA_IFNAME"), message["index"], _up(message["flags"]))
    if event == "RTM_DELLINK":
        return LinkNews(message.get_attr("IFLA_IFNAME"), None, False)
    if event in ("RTM_NEWADDR", "RTM_DELADDR"):
        return AddressNews(message["index"])
    if event == "RTM_NEWROUTE" and message["table"] == _MAIN_TABLE and message.get_attr("RTA_OIF"):
        return RouteNews(message.get_attr("RTA_OIF"), message["dst_len"] == 0)
    return None
