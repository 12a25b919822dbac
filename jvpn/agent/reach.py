"""Which of the gateway's endpoints is tried over which uplink, as devices, addresses and names change.

The core decides about paths; this decides what a path leads to. An uplink whose path stays silent goes on to its next
endpoint, each one given longer than the last; a gateway that answers nowhere is looked up again by name.
"""

from collections.abc import Callable, Iterable
from typing import Final

from jvpn.agent.core import ClientCore
from jvpn.agent.netlinks import AddressNews, LinkNews, LostNews, News, RouteNews
from jvpn.agent.paths import NS
from jvpn.agent.resolver import Resolver
from jvpn.agent.uplinks import Port, Uplinks

#: How often silent paths are looked at.
LOOK_MS: Final = 1_000
FIRST_PATIENCE_MS: Final = 3_000
LAST_PATIENCE_MS: Final = 60_000
#: Unanswered INITs or REQUESTs after which the name may lead elsewhere by now.
STRUGGLING: Final = 5
ASK_AGAIN_MS: Final = 10_000
#: While no address is known at all.
ASK_FIRST_MS: Final = 3_000
#: A router's table may change all the time.
ROUTE_EVENT_MS: Final = 1_000
#: Of an uplink that is found by its default route.
PREFERENCE: Final = 100


class Reach:
    """`any_device`: whatever device gets a default route becomes an uplink, but for the tunnel's own."""

    def __init__(
        self,
        core: ClientCore,
        uplinks: Uplinks,
        resolver: Resolver,
        tun_name: str,
        any_device: bool,
        say: Callable[[str], None],
    ) -> None:
        self._core = core
        self._uplinks = uplinks
        self._resolver = resolver
        self._tun_name = tun_name
        self._any_device = any_device
        self._say = say
        self._asked_ms = 0
        self._said: tuple[str, ...] = ()
        self.next_ms = 0
        #: From then on the system's resolver may lead into the tunnel.
        self.tunnel_stands = False

    def start(self, now_ns: int) -> None:
        self._uplinks.remotes = self._resolver.known()
        self._ask(now_ns // NS)
        for port in self._uplinks.ports:
            self._settle(port, now_ns)

    # What the kernel says

    def on_news(self, news: Iterable[News], now_ns: int) -> None:
        for one in news:
            match one:
                case LinkNews(device, index, up):
                    self._on_link(device, index, up, now_ns)
                case AddressNews(index):
                    self._on_addresses(index, now_ns)
                case RouteNews(index, default):
                    self._on_route(index, default, now_ns)
                case LostNews():
                    for port in self._uplinks.ports:
                        self._uplinks.refresh(port)
                        self._settle(port, now_ns)

    def _on_link(self, device: str, index: int | None, up: bool, now_ns: int) -> None:
        port = self._uplinks.by_name(device)
        if port is None:
            return
        if index is None and port.index is not None:
            self._say(f"uplink {device}: the device is gone")
        elif index is not None and index != port.index:
            self._say(f"uplink {device}: the device is there")
        replaced = port.index is not None and index != port.index
        self._uplinks.link_changed(port, index, up)
        if up:
            # Not when it goes down: then recovery waits for us.
            self._uplinks.read_addresses(port)
        if replaced and port.uplink.link_up:
            # It went and came in one breath: its path is another one now.
            self._core.link_event(device, False, now_ns)
        self._settle(port, now_ns)

    def _on_addresses(self, index: int, now_ns: int) -> None:
        port = self._uplinks.by_index(index)
        if port is None or not port.link:
            return
        before, was_usable, source = port.addresses, port.uplink.link_up, port.uplink.local
        self._uplinks.read_addresses(port)
        self._settle(port, now_ns)
        if not was_usable or not port.uplink.link_up or before == port.addresses:
            return
        if port.uplink.local != source:
            self._uplinks.renew(port)
        # A further address is no reason to leave a path that answers.
        if before - port.addresses or not self._answering(port, now_ns):
            self._core.path_event(port.uplink, now_ns)

    def _on_route(self, index: int, default: bool, now_ns: int) -> None:
        port = self._uplinks.by_index(index)
        now_ms = now_ns // NS
        if port is None:
            if default and self._any_device:
                self._add(index, now_ns)
        elif now_ms - port.hurried_ms >= ROUTE_EVENT_MS and not self._answering(port, now_ns):
            port.hurried_ms = now_ms
            self._core.path_event(port.uplink, now_ns)

    def _add(self, index: int, now_ns: int) -> None:
        name = self._uplinks.name_of(index)
        if name is None or name == self._tun_name or self._uplinks.by_name(name) is not None:
            return
        port = self._uplinks.add(name, PREFERENCE)
        self._core.uplinks.append(port.uplink)
        self._say(f"uplink {name}: a new device with a default route")
        self._uplinks.refresh(port)
        self._settle(port, now_ns)

    def _settle(self, port: Port, now_ns: int) -> None:
        """Bring the core's view of an uplink up to date."""
        uplink, before = port.uplink, port.uplink.remote
        active = self._active(port)
        usable = self._uplinks.settle(port, keep=active)
        if uplink.link_up and uplink.remote != before:
            if active:
                self._core.link_event(uplink.name, False, now_ns)
            else:
                self._core.reroute(uplink, now_ns)
        self._core.link_event(uplink.name, usable, now_ns)

    # What the name servers say

    def on_resolved(self, now_ns: int) -> None:
        answer = self._resolver.take()
        if answer is None:
            return
        if answer.problems != self._said:
            self._said = answer.problems
            for problem in answer.problems:
                self._say(f"gateway {problem}; asking again")
        self._uplinks.remotes = answer.remotes
        for port in self._uplinks.ports:
            self._settle(port, now_ns)

    def _ask(self, now_ms: int) -> None:
        self._asked_ms = now_ms
        outside = [port.name for port in self._uplinks.ports if port.link] if self.tunnel_stands else []
        self._resolver.ask(outside)

    # Time

    def look(self, now_ns: int) -> None:
        """Due at `next_ms`, CLOCK_BOOTTIME milliseconds."""
        now_ms = now_ns // NS
        self.next_ms = now_ms + LOOK_MS
        wait_ms = ASK_AGAIN_MS if self._uplinks.remotes else ASK_FIRST_MS
        if now_ms - self._asked_ms >= wait_ms and (
            not self._uplinks.remotes or self._core.unanswered >= STRUGGLING
        ):
            self._ask(now_ms)
        for port in self._uplinks.ports:
            self._turn(port, now_ms, now_ns)

    def _turn(self, port: Port, now_ms: int, now_ns: int) -> None:
        """Without a session the handshake goes through all endpoints by itself."""
        session = self._core.session
        waiting = session is not None and session.configured and port.uplink.link_up
        if not waiting or self._active(port) or self._answering(port, now_ns):
            port.turned_ms, port.patience_ms = now_ms, FIRST_PATIENCE_MS
        elif now_ms - port.turned_ms >= port.patience_ms and self._uplinks.turn(port):
            port.turned_ms, port.patience_ms = now_ms, min(2 * port.patience_ms, LAST_PATIENCE_MS)
            self._core.reroute(port.uplink, now_ns)

    def _active(self, port: Port) -> bool:
        session = self._core.session
        return session is not None and session.paths.active == port.uplink.number

    def _answering(self, port: Port, now_ns: int) -> bool:
        session = self._core.session
        path = None if session is None else session.paths.paths.get(port.uplink.number)
        return path is not None and path.health.snapshot(now_ns).answering
