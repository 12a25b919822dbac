"""Link and route news from the kernel (rtnetlink, by pyroute2), and what the client configures through it."""

import ipaddress
import os
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

_IFF_UP, _IFF_LOWER_UP = 1 << 0, 1 << 16


def link_is_up(name: str) -> bool:
    """Administratively up and with carrier; False for a device that does not exist."""
    with IPRoute() as netlink:
        found = netlink.link_lookup(ifname=name)
        return bool(found) and _up(netlink.get_links(found[0])[0]["flags"])


def _up(flags: int) -> bool:
    return flags & (_IFF_UP | _IFF_LOWER_UP) == (_IFF_UP | _IFF_LOWER_UP)


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
    """A thread that listens; `fileno` becomes readable when `take` has news of links."""

    def __init__(self) -> None:
        self._news: deque[tuple[str, bool]] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._listening = threading.Event()
        # The thread ends with the process: nothing interrupts its read.
        self._thread = threading.Thread(target=self._run, name="jvpn-links", daemon=True)
        self._thread.start()
        self._listening.wait()

    def fileno(self) -> int:
        return self._event

    def _run(self) -> None:
        # pyroute2 ties a socket to the thread that makes it.
        with IPRoute() as netlink:
            netlink.bind()
            self._listening.set()
            while True:
                for message in netlink.get():
                    self._take_in(message)

    def _take_in(self, message: Any) -> None:
        if message.get("event") not in ("RTM_NEWLINK", "RTM_DELLINK"):
            return
        up = message["event"] == "RTM_NEWLINK" and _up(message["flags"])
        self._news.append((message.get_attr("IFLA_IFNAME"), up))
        os.eventfd_write(self._event, 1)

    def take(self) -> list[tuple[str, bool]]:
        """(device, up) in the order of the kernel's news."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        news = []
        while self._news:
            news.append(self._news.popleft())
        return news


class TunnelConfig:
    """Addresses, routes and MTU of the client's TUN; all of it goes away with the TUN."""

    def __init__(self, name: str) -> None:
        self._name = name
        with IPRoute() as netlink:
            self._index: int = netlink.link_lookup(ifname=name)[0]

    def apply(self, addresses: Sequence[str], routes: Sequence[str], mtu: int) -> None:
        """Raises OSError when the kernel refuses."""
        with IPRoute() as netlink:
            try:
                for address in addresses:
                    interface = ipaddress.ip_interface(address)
                    netlink.addr(
                        "replace",
                        index=self._index,
                        address=str(interface.ip),
                        prefixlen=interface.network.prefixlen,
                    )
                netlink.link("set", index=self._index, mtu=mtu, state="up")
                for route in routes:
                    network = ipaddress.ip_network(route)
                    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
                    netlink.route("replace", dst=str(network), oif=self._index, family=family)
            except NetlinkError as error:
                raise OSError(error.code, f"TUN {self._name}: {error}") from error
