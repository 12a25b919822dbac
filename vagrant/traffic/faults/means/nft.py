"""What the router's nftables does: a table of a script's own, with counters, that goes when the script goes."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from vagrant.traffic.faults.means import kernel, ledger
from vagrant.traffic.script import Failed

#: Before everybody's ordinary filters, after connection tracking and address translation.
PRIORITY = -5


class Table:
    """`inet jvpn_fault_PID`. A context manager; ``load`` puts rules in force, in one transaction. Raises Failed."""

    def __init__(self, counters: Sequence[str]) -> None:
        self.name = f"inet jvpn_fault_{os.getpid()}"
        self._counters = counters
        self._loaded: set[str] = set()

    def __enter__(self) -> Table:
        ledger.will_undo(["nft", "delete", "table", *self.name.split()])
        try:
            kernel.run(["nft", "-f", "-"], table(self.name, self._counters, ()))
        except Failed:
            ledger.undo_mine()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        ledger.undo_mine()

    def load(self, chains: Sequence[str]) -> None:
        """*chains* in place of those before; counters go on."""
        kernel.run(["nft", "-f", "-"], reloaded(self.name, chains, self._loaded))
        self._loaded |= {one.split()[1] for one in chains}

    def counters(self) -> dict[str, int]:
        """Packets so far by counter."""
        rows = kernel.shown(["nft", "-j", "list", "counters", "table", *self.name.split()])["nftables"]
        return {row["counter"]["name"]: row["counter"]["packets"] for row in rows if "counter" in row}


def table(name: str, counters: Sequence[str], chains: Sequence[str]) -> str:
    """The input of `nft -f` that makes a table."""
    lines = [*(f"counter {counter} {{ }}" for counter in counters), *chains]
    return "\n".join([f"table {name} {{", *lines, "}", ""])


def reloaded(name: str, chains: Sequence[str], before: Collection[str]) -> str:
    """The input of `nft -f` that puts *chains* in place of those named in *before*."""
    return "".join(f"flush chain {name} {one}\n" for one in sorted(before)) + table(name, (), chains)


def chain(hook: str, rules: Sequence[str], kind: str = "filter", priority: str | int = PRIORITY) -> str:
    """A base chain named after its hook."""
    return "\n".join(
        [f"chain {hook} {{", f"type {kind} hook {hook} priority {priority}; policy accept;", *rules, "}"]
    )


def through(device: str, direction: str) -> str:
    """What passes the router from (up) or to (down) *device*."""
    return f'{"iifname" if direction == "up" else "oifname"} "{device}"'
