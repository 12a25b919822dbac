"""One uplink and everything that can happen to it: cable pulled, device switched off, holes, loss, slow lines.

Changes are in force when a method returns. ``direction`` is "up" (client to gateway), "down" or "both".
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from jvpn.lab.link_model import LinkParams, merge
from jvpn.lab.namespaces import Namespace
from jvpn.lab.wire import Wire

DIRECTIONS = ("up", "down")
SEGMENTATION = ("tso", "gso", "tx-udp-segmentation")


def _ways(direction: str) -> Sequence[str]:
    if direction == "both":
        return DIRECTIONS
    if direction in DIRECTIONS:
        return (direction,)
    raise ValueError(f'direction must be "up", "down" or "both", not {direction!r}')


def packet_sockets_carry_udp_gso() -> bool:
    """Whether PACKET_VNET_HDR knows VIRTIO_NET_HDR_GSO_UDP_L4: Linux 6.2 and later; earlier ones drop such frames."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (6, 2)


class Uplink:
    """A client's uplink: ``upX`` at the client, ``netX`` at the gateway, and the cable between.

    *far_device* in *far_namespace* is the other end of the client's cable: it is set down to pull the plug.
    """

    def __init__(
        self, name: str, number: int, client: Namespace, gateway: Namespace,
        far_device: str, far_namespace: Namespace,
    ) -> None:  # fmt: skip
        self.name = name
        self.number = number
        self.client = client
        self.gateway = gateway
        self.client_device = f"up{name}"
        self.gateway_device = f"net{name}"
        self.client_ip = f"10.201.{number}.2"
        self.client_ip6 = f"fd00:201:{number}::2"
        self.spare_ip = f"10.201.{number}.102"
        self.spare_ip6 = f"fd00:201:{number}::102"
        self.gateway_ip = f"10.201.{number}.1"
        self.gateway_ip6 = f"fd00:201:{number}::1"
        self._far_device = far_device
        self._far_namespace = far_namespace

    def address(self) -> None:
        """Give both ends their addresses and the client its routes, and set them up."""
        near, far = self.client_device, self.gateway_device
        self.gateway.ip(
            f"addr add {self.gateway_ip}/24 dev {far}",
            f"addr add {self.gateway_ip6}/64 dev {far} nodad",
            f"link set {far} up",
        )
        self.client.ip(
            f"addr add {self.client_ip}/24 dev {near}",
            f"addr add {self.spare_ip}/24 dev {near}",
            f"addr add {self.client_ip6}/64 dev {near} nodad",
            f"addr add {self.spare_ip6}/64 dev {near} nodad preferred_lft 0",
            f"link set {near} up",
        )
        self._add_routes()

    def _add_routes(self) -> None:
        metric = 100 * self.number
        self.client.ip(
            f"route replace 203.0.113.1/32 via {self.gateway_ip} dev {self.client_device} metric {metric}",
            f"route replace 2001:db8:113::1/128 via {self.gateway_ip6} dev {self.client_device} "
            f"metric {metric}",
        )

    def carrier_down(self) -> None:
        """Pull the cable: the client's device stays up, loses carrier, and a link event tells so."""
        self._far_namespace.ip(f"link set {self._far_device} down")

    def carrier_up(self) -> None:
        """Plug the cable in again; routes outlive a loss of carrier."""
        self._far_namespace.ip(f"link set {self._far_device} up")

    def admin_down(self) -> None:
        """Switch the client's device off; the kernel removes its routes."""
        self.client.ip(f"link set {self.client_device} down")

    def admin_up(self) -> None:
        """Switch it on again, with its addresses and routes."""
        self.client.ip(f"link set {self.client_device} up")
        self._add_routes()

    def down(self) -> None:
        """Same as ``carrier_down``: what happens when somebody trips over the cable."""
        self.carrier_down()

    def up(self) -> None:
        """Undo ``down``, ``carrier_down`` and ``admin_down``, whichever was used."""
        self.carrier_up()
        self.admin_up()


class DirectLink(Uplink):
    """A veth pair from client to gateway. The far end of the cable is the gateway's own device."""


class EmulatedLink(Uplink):
    """A link through the emulator, starting with *base*, to which ``heal`` returns."""

    def __init__(
        self, name: str, number: int, client: Namespace, gateway: Namespace,
        far_device: str, far_namespace: Namespace, wire: Wire, base: LinkParams,
    ) -> None:  # fmt: skip
        super().__init__(name, number, client, gateway, far_device, far_namespace)
        self._wire = wire
        self._base = base
        self._params = dict.fromkeys(DIRECTIONS, base)
        self._features: dict[str, tuple[bool, bool]] = {}

    def params(self, direction: str) -> LinkParams:
        """What is in force for "up" or "down"."""
        return self._params[direction]

    def impair(self, *, direction: str = "both", **changes: Any) -> None:
        """Change some properties (fields of ``LinkParams``), keep the others.

        TypeError or ValueError for a wrong name or value; nothing is changed then.
        """
        merged = {way: merge(self._params[way], changes) for way in _ways(direction)}
        for way, params in merged.items():
            self._apply(way, params)

    set = impair

    def blackhole(self, direction: str = "both") -> None:
        """Swallow every frame silently. Frames already under way still arrive."""
        self.impair(direction=direction, drop=True)

    def rate(self, mbit: float, *, queue_ms: float = 50.0, direction: str = "both") -> None:
        """A bottleneck of *mbit* Mbit/s whose queue holds *queue_ms* of traffic; 0 takes it away."""
        self.impair(direction=direction, rate_mbit=mbit, queue_ms=queue_ms)

    def heal(self, direction: str = "both") -> None:
        """Back to the properties the link was built with."""
        for way in _ways(direction):
            self._apply(way, self._base)

    def counters(self) -> dict[str, dict[str, int]]:
        """The emulator's counters for this link, by direction."""
        counts = self._wire.counters()
        return {way: counts[f"{self.name}/{way}"] for way in DIRECTIONS}

    def _apply(self, way: str, params: LinkParams) -> None:
        # Senders segment before frames are treated singly, and only stop segmenting afterwards.
        if params.needs_single_frames:
            self._segment(way, False)
        self._wire.set(self.name, way, params)
        self._params[way] = params
        if not params.needs_single_frames:
            self._segment(way, True)

    def _segment(self, way: str, superpackets: bool) -> None:
        wanted = (superpackets, superpackets and packet_sockets_carry_udp_gso())
        if self._features.get(way) == wanted:
            return
        namespace, device = (
            (self.client, self.client_device) if way == "up" else (self.gateway, self.gateway_device)
        )
        states = (wanted[0], wanted[0], wanted[1])
        switches = [
            word
            for name, on in zip(SEGMENTATION, states, strict=True)
            for word in (name, "on" if on else "off")
        ]
        namespace.run(["ethtool", "-K", device, *switches])
        self._features[way] = wanted
