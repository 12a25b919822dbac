"""What attackers have of real datagrams: those that pass while they watch, or those of a capture file."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from vagrant.traffic.attacks.means.place import LOOK_S, Place
from vagrant.traffic.attacks.means.tap import Datagram, Tap, read_capture
from vagrant.traffic.script import Failed

UP, DOWN = "up", "down"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--capture", type=Path, metavar="FILE",
        help="take datagrams from this capture (pcap, pcapng), once over, and not from DEV as they pass",
    )  # fmt: skip
    parser.add_argument(
        "--direction", choices=(UP, DOWN, "both"), default=UP,
        help="what to take, and whom to send it to: up what the client sends, to the gateway (default); down the rest",
    )  # fmt: skip


class Captured:
    """Datagrams one after the other; `seen` counts them."""

    def __init__(self, place: Place) -> None:
        """Raises Failed when there is a capture file and it cannot be read."""
        options = place.run.options
        self._run = place.run
        self._own = place.own
        self._taps: list[Tap] = []
        self._read: list[Datagram] | None = None
        if options.capture is not None:
            self._read = self._of_file(place)
            return
        if options.direction != DOWN:
            self._taps.append(place.towards_gateway())
        if options.direction != UP:
            self._taps.append(place.towards_client())

    def _of_file(self, place: Place) -> list[Datagram]:
        options = place.run.options
        try:
            found, joined = read_capture(options.capture, place.gateway)
        except (OSError, ValueError) as error:
            raise Failed(
                f"the capture cannot be used: {error}; name one with --capture, or leave it out"
            ) from None
        wanted = {UP: (True,), DOWN: (False,), "both": (True, False)}[options.direction]
        kept = [datagram for datagram in found if (datagram.destination == place.gateway) in wanted]
        if not kept:
            raise Failed(
                f"{options.capture} has no datagrams of that direction from or to {options.gateway}: was it made "
                "between client and gateway?"
            )
        self._run.counters["joined"] = joined
        return kept

    @property
    def ended(self) -> bool:
        """Whether all that there is has been given: of a file, that is."""
        return self._read is not None and not self._read

    def __iter__(self) -> Iterator[list[Datagram]]:
        """What there is by now, again and again, with a moment between, until the run is over."""
        while self._run.wait(LOOK_S):
            if self._read is not None:
                new, self._read = self._read, []
            else:
                new = [
                    seen
                    for tap in self._taps
                    for seen in tap.take()
                    if self._own not in (seen.source, seen.destination)
                ]
            self._run.counters["seen"] += len(new)
            yield new
