"""NAT rebinding: the client's datagrams come from another port, another address, as when a home router restarts.

One mapping after the other, --every so many seconds; the last one stays until the end, then there is none again. With
each, the router forgets this uplink's flows to the gateway's port and no others. What arrives for a client without a
mapping is dropped silently. An address has to be one that the gateways' routes lead to this router for.
"""

import argparse
import sys
from itertools import islice, zip_longest

from vagrant.traffic.faults.means import conntrack, kernel, ledger
from vagrant.traffic.faults.means.nft import Table, chain, through
from vagrant.traffic.faults.means.where import add_where, check_device, port_number
from vagrant.traffic.ours import DEFAULT_PORT, Address, Refused, address, guard_address
from vagrant.traffic.script import Run, main, positive

Mapping = tuple[Address | None, int | None]


def arguments(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    parser.add_argument(
        "--port", type=_ports, default=[], metavar="PORT,…", help="source ports, one after the other"
    )
    parser.add_argument(
        "--address",
        type=_addresses,
        default=[],
        metavar="ADDRESS,…",
        help="source addresses, one after the other",
    )
    parser.add_argument(
        "--every", type=positive, default=5.0, metavar="SECONDS", help="how long each (default 5)"
    )
    parser.add_argument(
        "--gateway-port",
        type=port_number,
        default=DEFAULT_PORT,
        help=f"the flows' destination (default {DEFAULT_PORT})",
    )


def check(options: argparse.Namespace) -> None:
    check_device(options)
    if not options.port and not options.address:
        raise Refused("say what datagrams shall come from: --port PORT,… or --address ADDRESS,… or both")
    for one in options.address:
        guard_address(one, options.i_own)


def work(run: Run) -> None:
    options = run.options
    device, port = options.device, options.gateway_port
    clients = kernel.networks(device)
    forgetting = conntrack.command(clients, port)
    ledger.will_undo(forgetting)
    with Table(["up_mapped", "down_dropped"]) as table:

        def rebind(mapping: Mapping) -> None:
            table.load(rules(device, port, mapping))
            run.counters["forgotten"] += conntrack.forget(clients, port)
            run.counters["mappings"] += 1

        every = mappings(options.address, options.port)
        rebind(every[0])
        run.refresh = lambda: run.show(table.counters())
        run.in_force()
        for mapping in islice(every, 1, None):
            if not run.wait(options.every):
                break
            rebind(mapping)
        run.wait()
        run.refresh()
        table.load([])
        conntrack.forget(clients, port)
        ledger.undone(forgetting)


def mappings(addresses: list[Address], ports: list[int]) -> list[Mapping]:
    """Address and port of each in turn; the last of the shorter list stays."""
    found: list[Mapping] = []
    for one, port in zip_longest(addresses, ports):
        before = found[-1] if found else (None, None)
        found.append((one or before[0], port or before[1]))
    return found


def rules(device: str, gateway_port: int, mapping: Mapping) -> list[str]:
    """The chains of one mapping. What it has no address of the family for keeps its own."""
    source, port = mapping
    flow = f"{through(device, 'up')} udp dport {gateway_port} counter name up_mapped"
    translations = [f"{flow} snat to :{port}"] if port else []
    if source is not None:
        family, host = (
            ("ip", f"{source}") if source.version == 4 else ("ip6", f"[{source}]" if port else f"{source}")
        )
        translations.insert(0, f"{flow} snat {family} to {host}{f':{port}' if port else ''}")
    unmapped = (
        f"{through(device, 'down')} udp sport {gateway_port} ct state new counter name down_dropped drop"
    )
    return [chain("postrouting", translations, "nat", "srcnat"), chain("forward", [unmapped])]


def _ports(text: str) -> list[int]:
    return [port_number(one) for one in text.split(",")]


def _addresses(text: str) -> list[Address]:
    return [address(one) for one in text.split(",")]


if __name__ == "__main__":
    sys.exit(main("fault", "nat_rebind", __doc__, arguments, work, check))
