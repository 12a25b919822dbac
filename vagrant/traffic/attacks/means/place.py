"""Where an attack stands, on the router between client and gateway: what all of them see, send and count."""

import ipaddress
import math
import random
import select
import socket
import time
from collections.abc import Iterator
from typing import Final, Self

from jvpn.protocol.constants import PacketType
from vagrant.traffic.attacks.means.batches import BATCH, Pool, RawSender
from vagrant.traffic.attacks.means.filters import End, Network
from vagrant.traffic.attacks.means.packets import IPV4_OVERHEAD, IPV6_OVERHEAD, packet
from vagrant.traffic.attacks.means.sources import drawn, route_to
from vagrant.traffic.attacks.means.tap import Datagram, Tap
from vagrant.traffic.ours import Endpoint, guard_address, guard_device
from vagrant.traffic.script import Failed, Run

#: How long answers are waited for at the end.
LATE_S: Final = 0.3
#: What a gateway may answer; the summary counts each, if only as 0.
FROM_GATEWAY: Final = (
    PacketType.HANDSHAKE_RESPONSE,
    PacketType.COOKIE,
    PacketType.REATTACH_ACK,
    PacketType.REATTACH_FAIL,
    PacketType.DATA,
    PacketType.CONTROL,
    PacketType.PATH,
    PacketType.RESET,
)
#: Different sources of a flood that forges them.
SOURCES: Final = 1_024
#: Between two looks at what has passed.
LOOK_S: Final = 0.002


class Place:
    """One attack's sockets and counts.

    `own` is the address that the router has towards the gateway, with a port that nobody else has while this is open.
    Counted are datagrams sent, with their bytes; asked are those of them whose answers are seen, since they go to `own`
    or to a forged source.
    """

    def __init__(self, run: Run, *, forged: Network | None = None) -> None:
        """Answers that are seen are those to `own`, or to the forged sources. Raises Failed and OSError."""
        self.run = run
        self.dice = random.Random(run.options.seed)
        target: Endpoint = run.options.gateway
        self.gateway: End = (str(target.address), target.port)
        owner: Endpoint | None = getattr(run.options, "owner", None)
        #: Whom the client is seen to send to.
        self.watched: End = self.gateway if owner is None else (str(owner.address), owner.port)
        #: Whom floods are sent to.
        sink: Endpoint | None = getattr(run.options, "sink", None)
        self.goal: End = self.gateway if sink is None else (str(sink.address), sink.port)
        self.way_out, own = route_to(self.gateway[0])
        guard_device(self.way_out, run.options.i_own)
        family = socket.AF_INET6 if target.address.version == 6 else socket.AF_INET
        self.held = socket.socket(family, socket.SOCK_DGRAM)
        self.held.bind((own, 0))
        self.held.setblocking(False)
        self.own: End = (own, self.held.getsockname()[1])
        self._senders: dict[str, RawSender] = {}
        self._sources = {own}
        self._forged = forged
        self._answers = Tap(
            self.way_out, source=self.gateway, beside=forged or ipaddress.ip_network(self.own[0])
        )
        self.taps = [self._answers]
        for name in ("seen", "sent", "sent_bytes", "asked", "asked_bytes", "answered", "answered_bytes"):
            run.counters[name] = 0
        run.counters["largest_answer"] = 0
        run.refresh = self.listen

    # Seeing

    def towards_gateway(self) -> Tap:
        """A new tap on what the client sends; the caller reads it."""
        self.taps.append(Tap(self.run.options.device, destination=self.watched))
        return self.taps[-1]

    def towards_client(self) -> Tap:
        """A new tap on what the gateway sends to anybody."""
        self.taps.append(Tap(self.way_out, source=self.gateway))
        return self.taps[-1]

    def learn(self, *kinds: PacketType, patience_s: float | None = None) -> Datagram | None:
        """The next datagram of these types that the client sends; None: not in time, or the run is over before."""
        tap = Tap(self.run.options.device, destination=self.watched)
        until = None if patience_s is None else time.monotonic() + patience_s
        try:
            while self.run.wait(LOOK_S) and (until is None or time.monotonic() < until):
                for datagram in tap.take(50):
                    if datagram.data and datagram.data[0] in kinds:
                        self.run.counters["seen"] += 1
                        return datagram
        finally:
            tap.close()
        return None

    def listen(self) -> None:
        """Count the answers that have come."""
        counters = self.run.counters
        for answer in self._answers.take():
            if self._forged is None and answer.destination[1] != self.own[1]:
                continue
            counters["answered"] += 1
            counters["answered_bytes"] += len(answer.data)
            counters[f"answered_{named(answer.data)}"] += 1
            counters["largest_answer"] = max(counters["largest_answer"], len(answer.data))
        if counters["asked_bytes"]:
            counters["answered_percent"] = math.ceil(
                100 * counters["answered_bytes"] / counters["asked_bytes"]
            )

    # Sending

    def send(self, data: bytes, source: End, destination: End | None = None) -> None:
        """One datagram, to the gateway unless told otherwise. Raises Refused: it, or its answer, would go to others."""
        goal = destination or self.gateway
        if source[0] not in self._sources:
            guard_address(ipaddress.ip_address(source[0]), self.run.options.i_own)
            self._sources.add(source[0])
        sender = self._sender(goal[0])
        self._count(sender, sender.pool([packet(source, goal, data)]), 1, asked=source == self.own)

    def pool(self, packets: list[bytes]) -> Pool:
        """Whole IP packets to `goal`, for `flood`."""
        return self._sender(self.goal[0]).pool(packets)

    def from_everywhere(self, datagrams: list[bytes], network: Network) -> Pool:
        """Each of these datagrams from several forged sources."""
        number = max(len(datagrams), variety(self.run, SOURCES))
        return self.pool(
            [
                packet(drawn(self.dice, network), self.goal, datagrams[n % len(datagrams)])
                for n in range(number)
            ]
        )

    def flood(self, pool: Pool, count: int) -> None:
        """The next `count` of a pool; they come from forged sources if there are any."""
        self._count(self._sender(self.goal[0]), pool, count, asked=self._forged is not None)

    def _count(self, sender: RawSender, pool: Pool, count: int, *, asked: bool) -> None:
        try:
            packets, octets = sender.send(pool, count)
        except OSError as error:
            raise Failed(
                f"the kernel does not send: {error}; is {self.way_out} up, and is there a route?"
            ) from error
        for name in ("sent", "asked") if asked else ("sent",):
            self.run.counters[name] += packets
            self.run.counters[f"{name}_bytes"] += octets - packets * _overhead(self.gateway[0])

    def _sender(self, address: str) -> RawSender:
        if address not in self._senders:
            guard_address(ipaddress.ip_address(address), self.run.options.i_own)
            # The lab's addresses are private ones, and by another device they would be somebody else's.
            guard_device(route_to(address)[0], self.run.options.i_own)
            self._senders[address] = RawSender(address)
        return self._senders[address]

    # The end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait a moment for late answers, and say what the kernel could not keep for us."""
        until = time.monotonic() + LATE_S
        while (left := until - time.monotonic()) > 0:
            select.select([self._answers], (), (), left)
            self.listen()
        for kind in FROM_GATEWAY:
            self.run.counters.setdefault(f"answered_{kind.name}", 0)
        self.run.counters["missed"] = sum(tap.missed for tap in self.taps)
        for tap in self.taps:
            tap.close()
        for sender in self._senders.values():
            self.run.counters["refused"] += sender.refused
            sender.close()
        self.held.close()


def variety(run: Run, most: int) -> int:
    """How many different datagrams a flood needs."""
    count: int | None = run.options.count
    return most if count is None else min(most, count)


def paced(run: Run, most: int | None = None) -> Iterator[int]:
    """How many datagrams to send now, again and again, at --rate until --count; at most `most` at once."""
    rate, left = run.options.rate, run.options.count
    batch = BATCH // 4 if rate is None else max(1, min(BATCH // 4, int(rate / 200)))
    batch = min(batch, most or batch)
    for _ in run.turns(per_second=rate and rate / batch):
        size = batch if left is None else min(batch, left)
        if not size:
            return
        yield size
        if left is not None:
            left -= size


class Pace:
    """When the next datagram may go: --rate a second, --count in all."""

    def __init__(self, run: Run) -> None:
        self._rate: float | None = run.options.rate
        self._left: int | None = run.options.count
        self._begun = time.monotonic()
        self._gone = 0

    @property
    def over(self) -> bool:
        return self._left is not None and self._gone >= self._left

    def go(self) -> bool:
        """Whether one may go now; then it is counted as gone. What was not used does not add up to more than 50 ms."""
        if self.over:
            return False
        if self._rate is not None:
            now = time.monotonic()
            self._begun = max(self._begun, now - 0.05 - self._gone / self._rate)
            if (now - self._begun) * self._rate < self._gone:
                return False
        self._gone += 1
        return True


def named(data: bytes) -> str:
    """The name of a datagram's type."""
    try:
        return PacketType(data[0]).name
    except (IndexError, ValueError):
        return "unknown"


def _overhead(address: str) -> int:
    return IPV6_OVERHEAD if ":" in address else IPV4_OVERHEAD
