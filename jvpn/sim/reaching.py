"""Which endpoint each of the client's uplinks leads to: the product's reach and ways, over devices that do not exist.

Every device has a link or none and one address of the endpoints' family; names lead to all gateways at once.
"""

from collections.abc import Sequence
from typing import Final

from jvpn.agent.core import ClientCore
from jvpn.agent.netlinks import LinkNews
from jvpn.agent.paths import NS
from jvpn.agent.reach import Reach
from jvpn.agent.resolver import Resolved
from jvpn.agent.uplinks import Port, Uplinks
from jvpn.protocol.addresses import to_text
from workers.commands import Endpoint

_EVER_S: Final = 1_000_000


class _Devices(Uplinks):
    """Uplinks whose sockets are the simulator's."""

    def __init__(
        self,
        devices: Sequence[tuple[str, int]],
        own: Sequence[Endpoint],
        links: Sequence[bool],
        most_ways: int,
    ) -> None:
        super().__init__(devices, lambda _number, _socket: None, most_ways=most_ways)
        for index, (port, link) in enumerate(zip(self.ports, links, strict=True)):
            port.index, port.link = index, link
            port.addresses = frozenset({to_text(own[index].address)})

    def link_changed(self, port: Port, index: int | None, link: bool) -> None:
        port.link = link

    @staticmethod
    def read_addresses(port: Port) -> None:
        """It keeps its address."""


class _Names:
    """What the reach asks of a resolver: everything is known."""

    def __init__(self, gateways: tuple[Endpoint, ...]) -> None:
        self._gateways = gateways

    def known(self) -> tuple[Endpoint, ...]:
        return self._gateways

    def ask(self, _devices: Sequence[str]) -> None:
        return

    def take(self) -> Resolved:
        return Resolved(self._gateways, (), _EVER_S)


class Reaching:
    """`core.uplinks` are to be `ways`, those that there are to begin with."""

    def __init__(
        self,
        devices: Sequence[tuple[str, int]],
        own: Sequence[Endpoint],
        links: Sequence[bool],
        gateways: tuple[Endpoint, ...],
        most_ways: int,
    ) -> None:
        self._devices = _Devices(devices, own, links, most_ways)
        self._names = _Names(gateways)
        for port in self._devices.ports:
            port.uplink.remote = gateways[0]
        self.ways = [port.uplink for port in self._devices.ports]
        self._reach: Reach | None = None

    def begin(self, core: ClientCore, now_ns: int) -> None:
        names: object = self._names
        self._reach = Reach(core, self._devices, names, "tun", False, lambda _text: None)  # type: ignore[arg-type]
        self._reach.start(now_ns)
        self._reach.on_resolved(now_ns)
        self._reach.next_ms = now_ns // NS

    @property
    def next_ms(self) -> int:
        assert self._reach is not None
        return self._reach.next_ms

    def look(self, now_ns: int) -> None:
        assert self._reach is not None
        if now_ns // NS >= self._reach.next_ms:
            self._reach.look(now_ns)

    def link(self, device: str, up: bool, now_ns: int) -> None:
        assert self._reach is not None
        port = self._devices.by_name(device)
        assert port is not None
        self._reach.on_news([LinkNews(device, port.index, up)], now_ns)
