"""Keeps the kernel's routes to the clients of the other gateways as the fleet's watch tells."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Final

from jvpn.store.etcd_watch import Change
from jvpn.supervisor.fleet_routes import RouteTable
from jvpn.supervisor.kernel_routes import ROUTE_PROTOCOL, KernelRoutes

#: The kernel's table is compared with what is wanted: after a refusal, and otherwise, since others have their hands in
#: it, too (systemd-networkd takes away routes that are not its own).
_RETRY_S: Final = 2.0
_COMPARE_S: Final = 30.0
#: Comparing is to take no more than this share of the time.
_COMPARE_SHARE: Final = 0.01


class ReturnRoutes:
    """`apply` each change of a FleetWatch and `tend` often, at least every second. One thread at a time.

    `say(text)`: what does not work, once, and once more when it works again. `routes_installed`: those of ours that the
    kernel has. `route_errors`: refusals so far.
    """

    def __init__(self, node_id: str, say: Callable[[str], None]) -> None:
        self.routes_installed = 0
        self.route_errors = 0
        self._say = say
        self._table = RouteTable(node_id)
        self._kernel: KernelRoutes | None = None
        self._refused: dict[str, int] = {}
        self._earliest_s = self._compare_at_s = 0.0
        self._failing: dict[str, int] = {}
        self._mute: set[tuple[str, int]] = set()
        self._broken = ""

    def counters(self) -> dict[str, int]:
        """For any thread."""
        return {"route_errors": self.route_errors} if self.route_errors else {}

    def apply(self, change: Change) -> None:
        self._table.apply(change)

    def tend(self, now_s: float) -> None:
        """`now_s`: time.monotonic(). Nothing before all is known: what a former process has left goes on till then."""
        table = self._table
        if not table.complete:
            return
        changes = table.take(now_s)
        try:
            if self._kernel is None:
                self._kernel = KernelRoutes()
                self._compare_at_s = now_s
            if self._kernel.news():
                self._compare_at_s = min(self._compare_at_s, max(now_s, self._earliest_s))
            if now_s >= self._compare_at_s:
                self._compare(self._kernel, now_s)
            elif changes:
                self._apply(self._kernel, changes)
                self._report()
        except OSError as error:
            # What was taken from the table and did not get there is found by comparing.
            self.route_errors += 1
            self.close()
            if not self._broken:
                self._say(f"routes to the other gateways cannot be kept: {error}; they are tried again")
            self._broken = str(error)
        else:
            self._broken = ""
        self.routes_installed = len(table.wanted) - len(self._refused)
        if self._refused:
            self._compare_at_s = min(self._compare_at_s, max(now_s + _RETRY_S, self._earliest_s))

    def _compare(self, kernel: KernelRoutes, now_s: float) -> None:
        began_s = time.monotonic()
        present, wanted = kernel.installed(), self._table.wanted
        changes: dict[str, str | None] = dict.fromkeys(present.keys() - wanted.keys())
        changes |= {prefix: hop for prefix, hop in wanted.items() if present.get(prefix) != hop}
        changes = {prefix: hop for prefix, hop in changes.items() if prefix not in self._table.held}
        self._refused.clear()
        self._apply(kernel, changes)
        took_s = time.monotonic() - began_s
        self._earliest_s = now_s + took_s / _COMPARE_SHARE
        self._compare_at_s = max(now_s + _COMPARE_S, self._earliest_s)
        self._report()

    def _apply(self, kernel: KernelRoutes, changes: Mapping[str, str | None]) -> None:
        refused = kernel.apply(changes)
        for prefix in changes:
            self._refused.pop(prefix, None)
        self._refused |= {prefix: code for prefix, code in refused.items() if changes[prefix] is not None}
        self.route_errors += len(refused)

    def _report(self) -> None:
        table = self._table
        failing = {table.wanted[prefix]: code for prefix, code in self._refused.items()}
        for hop, code in failing.items():
            if self._failing.get(hop) != code:
                nodes = ", ".join(table.nodes_at(hop))
                self._say(
                    f"no way to the clients of {nodes}: the kernel refuses routes by way of {hop} "
                    f"({os.strerror(code)}); fleet.return_addresses of {nodes} must be on a network that this machine "
                    "has an address in"
                )
        for hop in self._failing.keys() - failing.keys():
            self._say(f"the clients of {', '.join(table.nodes_at(hop))} are reached by way of {hop} again")
        mute = table.without_hop()
        for node, version in sorted(mute - self._mute):
            self._say(
                f"no way to the IPv{version} addresses of {node}'s clients: it names no IPv{version} return address; "
                f"set fleet.return_addresses at {node}"
            )
        self._failing, self._mute = failing, mute

    def remove(self) -> None:
        """Takes away all that is ours."""
        try:
            self._kernel = self._kernel or KernelRoutes()
            self._kernel.apply(dict.fromkeys(self._kernel.installed()))
        except OSError as error:
            remedy = f"remove them: ip route flush proto {ROUTE_PROTOCOL}; ip -6 route flush proto {ROUTE_PROTOCOL}"
            self._say(f"routes to the other gateways remain: {error}; {remedy}")
        self.routes_installed = 0
        self.close()

    def close(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
