"""Which of the gateway's endpoints is tried over which uplink, as devices, addresses and names change.

The core decides about paths; this decides what a path leads to. A way whose path stays silent goes on to its next
endpoint, each one given longer than the last. The gateway's name is looked up again when it answers nowhere, when the
network changed, after a sleep, and when the name servers' word is over.
"""

from collections.abc import Callable, Iterable
from typing import Final

from jvpn.agent.core import ClientCore
from jvpn.agent.netlinks import AddressNews, LinkNews, LostNews, News, RouteNews
from jvpn.agent.paths import NS, Uplink
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
#: However short the name servers' word lives.
LEAST_LIFE_MS: Final = 60_000
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
        #: When the name servers' word of the gateway's addresses is over.
        self._known_until_ms = 0
        #: Of ways that do not answer: since when they lead where they do, and how long that is given.
        self._patience: dict[int, tuple[int, int]] = {}
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
        """A link that is gone is left at once; what came is looked at when all is said, and each thing once."""
        later: dict[News, None] = {}
        for one in news:
            if isinstance(one, LinkNews) and not one.up:
                later = {other: None for other in later if not _link_of(other, one.device)}
                self._on_link(one.device, one.index, one.up, now_ns)
            else:
                later[one] = None
        for one in later:
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
        if not up:
            # Before anything is looked at: recovery waits for us.
            self._core.link_event(device, False, now_ns)
        if index is None and port.index is not None:
            self._say(f"uplink {device}: the device is gone")
        elif index is not None and index != port.index:
            self._say(f"uplink {device}: the device is there")
        replaced = port.index is not None and index != port.index
        self._uplinks.link_changed(port, index, up)
        came = up and not port.uplink.link_up
        if up:
            self._uplinks.read_addresses(port)
        if replaced and port.uplink.link_up:
            # It went and came in one breath: its path is another one now.
            self._core.link_event(device, False, now_ns)
        self._settle(port, now_ns)
        if came:
            self._network_changed(now_ns)

    def _on_addresses(self, index: int, now_ns: int) -> None:
        port = self._uplinks.by_index(index)
        if port is None or not port.link:
            return
        before, sources = port.addresses, {way.number: way.local for way in port.ways if way.link_up}
        self._uplinks.read_addresses(port)
        self._settle(port, now_ns)
        if before == port.addresses:
            return
        self._network_changed(now_ns)
        went_on = [way for way in port.ways if way.link_up and way.number in sources]
        if any(way.local != sources[way.number] for way in went_on):
            self._uplinks.renew(port)
        for way in went_on:
            # A further address is no reason to leave a path that answers.
            if before - port.addresses or not self._answering(way, now_ns):
                self._core.path_event(way, now_ns)

    def _on_route(self, index: int, default: bool, now_ns: int) -> None:
        port = self._uplinks.by_index(index)
        now_ms = now_ns // NS
        if port is None:
            if default and self._any_device:
                self._add(index, now_ns)
            return
        silent = [way for way in port.ways if not self._answering(way, now_ns)]
        if silent and now_ms - port.hurried_ms >= ROUTE_EVENT_MS:
            port.hurried_ms = now_ms
            for way in silent:
                self._core.path_event(way, now_ns)

    def _add(self, index: int, now_ns: int) -> None:
        name = self._uplinks.name_of(index)
        if name is None or name == self._tun_name or self._uplinks.by_name(name) is not None:
            return
        port = self._uplinks.add(name, PREFERENCE)
        self._say(f"uplink {name}: a new device with a default route")
        self._uplinks.refresh(port)
        self._settle(port, now_ns)

    def _settle(self, port: Port, now_ns: int) -> None:
        """Bring the core's view of a device up to date. How many ways one gets depends on the others: they follow."""
        session = self._core.session
        if session is not None:
            self._uplinks.most_ways = session.policy.max_candidates + 1
        for one in (port, *(other for other in self._uplinks.ports if other is not port)):
            self._settle_ways(one, now_ns)

    def _settle_ways(self, port: Port, now_ns: int) -> None:
        before = {way.number: way.remote for way in port.ways}
        usable = self._uplinks.settle(port, self._active(port))
        for way in port.ways:
            if way not in self._core.uplinks:
                self._core.uplinks.append(way)
        down = [way for way, up in usable if not up]
        moved = [way for way in port.ways if way.link_up and way.remote != before[way.number]]
        active = self._active(port)
        if active is not None and active in moved and active not in down:
            self._core.ways_event([active], False, now_ns)
        self._core.ways_event(down, False, now_ns)
        for way in moved:
            if way is not active and way not in down:
                self._core.reroute(way, now_ns)
        self._core.ways_event([way for way, up in usable if up], True, now_ns)

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
        self._known_until_ms = now_ns // NS + 1_000 * answer.ttl_s
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
        if self._names_are_old(now_ms):
            self._ask(now_ms)
        for port in self._uplinks.ports:
            for way in port.ways:
                self._turn(way, now_ms, now_ns)

    def _names_are_old(self, now_ms: int) -> bool:
        """Nothing is known, the gateway does not answer where it was, or what is known was for a limited time."""
        if not self._uplinks.remotes:
            return now_ms - self._asked_ms >= ASK_FIRST_MS
        if self._core.unanswered >= STRUGGLING:
            return now_ms - self._asked_ms >= ASK_AGAIN_MS
        return now_ms >= self._known_until_ms and now_ms - self._asked_ms >= LEAST_LIFE_MS

    def _network_changed(self, now_ns: int) -> None:
        """Names may lead elsewhere from here."""
        if now_ns // NS - self._asked_ms >= ASK_FIRST_MS:
            self._ask(now_ns // NS)

    def on_wake(self, now_ns: int) -> None:
        """The machine has slept: nothing that was known of devices and names need be so any more."""
        self._core.woke(now_ns)
        self.on_news([LostNews()], now_ns)
        self._network_changed(now_ns)

    def _turn(self, way: Uplink, now_ms: int, now_ns: int) -> None:
        """Without a session the handshake goes through all endpoints by itself."""
        session = self._core.session
        waiting = session is not None and session.configured and way.link_up
        since_ms, patience_ms = self._patience.get(way.number, (now_ms, FIRST_PATIENCE_MS))
        active = session is not None and session.paths.active == way.number
        if not waiting or active or self._answering(way, now_ns):
            self._patience.pop(way.number, None)
        elif now_ms - since_ms >= patience_ms and self._uplinks.turn(way):
            self._patience[way.number] = now_ms, min(2 * patience_ms, LAST_PATIENCE_MS)
            self._core.reroute(way, now_ns)
        else:
            self._patience[way.number] = since_ms, patience_ms

    def _active(self, port: Port) -> Uplink | None:
        """The way over this device that DATA goes out on."""
        session = self._core.session
        if session is None:
            return None
        return next((way for way in port.ways if way.number == session.paths.active), None)

    def _answering(self, way: Uplink, now_ns: int) -> bool:
        session = self._core.session
        path = None if session is None else session.paths.paths.get(way.number)
        return path is not None and path.health.snapshot(now_ns).answering


def _link_of(news: News, device: str) -> bool:
    return isinstance(news, LinkNews) and news.device == device
