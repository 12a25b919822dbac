"""Numbered datagrams between client and gateway of a routed lab, as they went and as they came."""

from __future__ import annotations

import secrets
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from routed import CLIENT, GATEWAY, PORT, Routed

from jvpn.lab.running import wait_for

_STAMP = struct.Struct("!IQ")
#: Nothing of ours is under way any more when nothing has come for so long.
QUIET_S = 0.3


@dataclass(frozen=True)
class Came:
    """One datagram that arrived; the times are CLOCK_MONOTONIC."""

    number: int
    left_ns: int
    came_ns: int

    @property
    def ms(self) -> float:
        return (self.came_ns - self.left_ns) / 1e6


class Datagrams:
    """A flow from the client's socket to the gateway's and back; a context manager."""

    def __init__(
        self, routed: Routed, client: str = CLIENT, gateway: str = GATEWAY, port: int = PORT
    ) -> None:
        self._routed = routed
        self._there = (gateway, port)
        self.source = (client, 0)
        with ExitStack() as stack:
            self.client = stack.enter_context(routed.socket(routed.client, client))
            self.gateway = stack.enter_context(routed.socket(routed.gateway, gateway, port))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        self.greet()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def greet(self) -> tuple[str, int]:
        """A datagram to the gateway, again until one comes; where from, which is where ``down`` sends to."""
        wait_for("a datagram to come through", self._greeted)
        return self.source

    def up(self, count: int = 100, size: int = 100, pause_s: float = 0.0) -> list[Came]:
        """What came of *count* to the gateway, in order of arrival."""
        return self._through(self._send_up, self.gateway, "up", count, size, pause_s)

    def down(self, count: int = 100, size: int = 100, pause_s: float = 0.0) -> list[Came]:
        """What came back to the client, of as many from the gateway."""
        return self._through(self._send_down, self.client, "down", count, size, pause_s)

    def _send_up(self, data: bytes) -> None:
        self.client.sendto(data, self._there)

    def _send_down(self, data: bytes) -> None:
        self.gateway.sendto(data, self.source)

    def _greeted(self) -> bool:
        token = secrets.token_bytes(8)
        self._send_up(token)
        self.gateway.settimeout(QUIET_S)
        try:
            while True:
                data, self.source = self.gateway.recvfrom(100)
                if data == token:
                    return True
        except TimeoutError:
            return False

    def _through(
        self,
        send: Callable[[bytes], None],
        to: socket.socket,
        way: str,
        count: int,
        size: int,
        pause_s: float,
    ) -> list[Came]:
        before = self._routed.counters("up")["offered"]
        for number in range(count):
            send(_STAMP.pack(number, time.monotonic_ns()) + bytes(size - _STAMP.size))
            time.sleep(pause_s)
        if way == "up":
            wait_for("the wire to see all", lambda: self._routed.counters("up")["offered"] >= before + count)
        found: list[Came] = []
        to.settimeout(QUIET_S)
        while True:
            try:
                data = to.recv(65_536)
            except TimeoutError:
                return found
            if len(data) >= _STAMP.size:
                number, left_ns = _STAMP.unpack_from(data)
                found.append(Came(number, left_ns, time.monotonic_ns()))


def numbers(came: list[Came]) -> list[int]:
    return [one.number for one in came]


def missing(came: list[Came], count: int = 100) -> list[int]:
    """The numbers that did not come."""
    return sorted(set(range(count)) - set(numbers(came)))
