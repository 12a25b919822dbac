"""What treats single frames: the lab's emulator, or netem in the kernel. Same parameters, same counters."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from jvpn.lab.link_model import LinkParams
from vagrant.traffic.faults.means import ledger, netem
from vagrant.traffic.faults.means.where import directions
from vagrant.traffic.faults.means.wire import Wire
from vagrant.traffic.ours import Refused
from vagrant.traffic.script import Run


class Medium(Protocol):
    """One link."""

    @property
    def seeded(self) -> bool:
        """Whether chance follows the seed."""

    def impair(self, changes: Mapping[str, LinkParams]) -> None:
        """Put *changes* in force by direction, in place of those before. Raises Failed."""

    def counters(self) -> dict[str, int]:
        """By "DIRECTION_NAME": offered, dropped, and what else is known."""


class Kernel:
    """The queueing disciplines of *device*."""

    def __init__(self, device: str, seed: int) -> None:
        self._device, self._seed = device, seed
        self.seeded = netem.takes_seed()
        self._before: dict[str, dict[str, int]] = {}

    def impair(self, changes: Mapping[str, LinkParams]) -> None:
        ledger.impair({f"{way}/{self._device}": params for way, params in changes.items()}, self._seed)
        for way in changes:
            self._before.setdefault(way, netem.counters(self._device, way))

    def counters(self) -> dict[str, int]:
        return {
            f"{way}_{key}": value - before[key]
            for way, before in self._before.items()
            for key, value in netem.counters(self._device, way).items()
        }


@contextlib.contextmanager
def chosen(options: argparse.Namespace) -> Iterator[Medium]:
    """The emulator when there is one, else the kernel; what it did is taken back when the context ends."""
    if options.wire:
        wire = Wire(options.wire, options.link, options.seed)
        try:
            yield wire
        finally:
            wire.close()
        return
    try:
        yield Kernel(options.device, options.seed)
    finally:
        ledger.undo_mine()


def params(**changes: Any) -> LinkParams:
    """Raises Refused, with the field's name, when a value is out of range."""
    try:
        return LinkParams(**changes)
    except ValueError as error:
        raise Refused(str(error)) from error


def hold(run: Run, wanted: LinkParams) -> None:
    """Have *wanted* in force, in the directions of the options, until the run ends."""
    with chosen(run.options) as medium:
        medium.impair(dict.fromkeys(directions(run.options), wanted))
        run.seeded = medium.seeded
        run.refresh = lambda: run.show(medium.counters())
        run.in_force()
        run.wait()
        run.refresh()
