"""Datagrams of the client that the kernel is kept from forwarding (nft), so that an attack can send them on later."""

import heapq
import subprocess
import time
from collections.abc import Iterator
from typing import Final, Self

from jvpn.protocol.constants import PacketType
from vagrant.traffic.attacks.means.place import Place
from vagrant.traffic.attacks.means.tap import Datagram
from vagrant.traffic.script import Failed

#: Of its own, so that what a killed script has left is found and removed.
TABLE: Final = "inet jvpn_held_back"


class Holding:
    """What the client sends of these types, each sent on as it was `hold_s` after it came; 0: nothing is held back.

    Use as a context manager. A superpacket that begins with one of these types is held back, and sent on, as a whole.
    """

    def __init__(self, place: Place, kinds: list[PacketType], hold_s: float) -> None:
        self._place = place
        self._kinds = frozenset(map(int, kinds))
        self._hold_s = hold_s
        self._tap = place.towards_gateway()
        self._late: list[tuple[float, int, Datagram]] = []

    def __enter__(self) -> Self:
        """Raises Failed when nft does not."""
        if self._hold_s:
            _nft(self._rules())
        return self

    def __exit__(self, *_: object) -> None:
        if self._hold_s:
            self._send(float("inf"))
            _nft(f"delete table {TABLE}")

    def _rules(self) -> str:
        device, (address, port) = self._place.run.options.device, self._place.watched
        family = "ip6" if ":" in address else "ip"
        types = ", ".join(map(str, sorted(self._kinds)))
        return f"""
            add table {TABLE}
            delete table {TABLE}
            table {TABLE} {{
                chain forward {{
                    type filter hook forward priority -10;
                    iifname "{device}" {family} daddr {address} udp dport {port} @th,64,8 {{ {types} }} drop
                }}
            }}
        """

    def passing(self) -> Iterator[Datagram]:
        """Those of these types that have come since the last time."""
        counters = self._place.run.counters
        for frame in self._tap.frames():
            if not frame or not frame[0].data or frame[0].data[0] not in self._kinds:
                continue
            due_s = time.monotonic() + self._hold_s
            for seen in frame:
                counters["seen"] += 1
                if seen.data[0] in self._kinds:
                    yield seen
                if self._hold_s:
                    heapq.heappush(self._late, (due_s, counters["seen"], seen))

    def send_on(self) -> None:
        """Those whose time has come."""
        self._send(time.monotonic())

    def _send(self, until_s: float) -> None:
        while self._late and self._late[0][0] <= until_s:
            _, _, seen = heapq.heappop(self._late)
            self._place.send(seen.data, seen.source, self._place.watched)
            self._place.run.counters["sent_on"] += 1


def _nft(rules: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(
            f"nft does not hold datagrams back: {done.stderr.strip()}; install nftables in the router"
        )
