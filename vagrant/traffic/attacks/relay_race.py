"""A racer on the path: copies of the client's REATTACH_REQUESTs and probes come first, from the router's address.

The client's own are held back meanwhile (nft drops them in the router, this script sends them on --hold later, as they
were), and what the gateway answers the racer is only counted.

Must hold while it runs: the path that can echo its challenge is bound, which is the client's. The genuine datagram is
not taken for a replay of its copy. The racer gets no reply larger than what it sent and never DATA.
"""

import argparse
import heapq
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from jvpn.protocol.constants import PacketType
from vagrant.traffic.attacks import options
from vagrant.traffic.attacks.filters import End
from vagrant.traffic.attacks.place import Pace, Place, named
from vagrant.traffic.attacks.tap import Datagram
from vagrant.traffic.script import Failed, Run, main

#: Of its own, so that what a killed racer has left is found and removed.
TABLE: Final = "inet jvpn_relay_race"
LOOK_S: Final = 0.001


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=None)
    parser.add_argument("--types", **options.one_of(PacketType.REATTACH_REQUEST, PacketType.PATH))
    parser.add_argument(
        "--hold", type=float, default=0.005, metavar="SECONDS",
        help="by how much the genuine ones are late (default 0.005)",
    )  # fmt: skip


def work(run: Run) -> None:
    kinds = {int(kind) for kind in run.options.types}
    with Place(run) as place, held_back(run.options.device, place.gateway, kinds):
        tap, pace = place.towards_gateway(), Pace(run)
        late: list[tuple[float, int, Datagram]] = []
        run.in_force()
        while run.wait(LOOK_S) and not pace.over:
            for frame in tap.frames():
                if frame and frame[0].data and frame[0].data[0] in kinds:
                    race(place, pace, frame, kinds, late)
            send_on(place, late, time.monotonic())
        # What has been held back when the race ends arrives all the same.
        send_on(place, late, float("inf"))


def race(
    place: Place, pace: Pace, frame: list[Datagram], kinds: set[int], late: list[tuple[float, int, Datagram]]
) -> None:
    """All of a frame is held back with its first datagram, so all of it is sent on."""
    due_s = time.monotonic() + place.run.options.hold
    counters = place.run.counters
    for seen in frame:
        counters["seen"] += 1
        if seen.data[0] in kinds and pace.go():
            place.send(seen.data, place.own)
            counters[f"sent_{named(seen.data)}"] += 1
            counters["largest_sent"] = max(counters["largest_sent"], len(seen.data))
        heapq.heappush(late, (due_s, counters["seen"], seen))


def send_on(place: Place, late: list[tuple[float, int, Datagram]], until_s: float) -> None:
    while late and late[0][0] <= until_s:
        _, _, seen = heapq.heappop(late)
        place.send(seen.data, seen.source)
        place.run.counters["sent_on"] += 1


@contextmanager
def held_back(device: str, gateway: End, kinds: set[int]) -> Iterator[None]:
    """While it lasts the kernel forwards none of these types from this device to the gateway. Raises Failed."""
    family = "ip6" if ":" in gateway[0] else "ip"
    types = ", ".join(map(str, sorted(kinds)))
    rules = f"""
        add table {TABLE}
        delete table {TABLE}
        table {TABLE} {{
            chain forward {{
                type filter hook forward priority -10;
                iifname "{device}" {family} daddr {gateway[0]} udp dport {gateway[1]} @th,64,8 {{ {types} }} drop
            }}
        }}
    """
    _nft(rules)
    try:
        yield
    finally:
        _nft(f"delete table {TABLE}")


def _nft(rules: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(
            f"nft does not hold datagrams back: {done.stderr.strip()}; install nftables in the router"
        )


if __name__ == "__main__":
    sys.exit(main("attack", "relay_race", __doc__, arguments, work, options.check))
