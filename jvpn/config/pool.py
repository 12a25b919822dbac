"""`pool` in the gateway's configuration: where clients without `addresses` get theirs from."""

from collections.abc import Iterable
from ipaddress import ip_network

import yaml

from jvpn.config.fields import Fields, Interface, Network
from jvpn.session.pool import AddressPool, InnerPool, ranges_of


def parse_pool(
    read: Fields, node: yaml.Node | None, own: tuple[Interface, ...], fixed: Iterable[Network]
) -> InnerPool | None:
    """Prefixes within the networks of `tun.addresses`, at most one of each address family. Raises ConfigError.

    What they contain of the gateway's own addresses and of the `fixed` prefixes of peers is not given to others.
    """
    if node is None:
        return None
    networks = dict[int, Network]()
    families = []
    taken = [*fixed, *_not_for_hosts(own)]
    for where, item in read.some(node, "pool", f"[{own[0].network}]"):
        network = read.network(item, where)
        if network.version in networks:
            problem = f"{networks[network.version]} is of the same address family"
            read.fail(item, where, problem, "write one prefix for IPv4 and one for IPv6")
        networks[network.version] = network
        if not any(_within(network, a.network) for a in own if a.version == network.version):
            problem = f"{network} is not part of a network of tun.addresses, so nothing would be routed to it"
            read.fail(item, where, problem, "take a part of one, or give the gateway an address there, too")
        ranges = ranges_of(network, taken)
        if not ranges:
            problem = f"the gateway and peers with addresses have all of {network}"
            read.fail(item, where, problem, "take a larger prefix")
        families.append(AddressPool(network.version, ranges))
    return InnerPool(tuple(families))


def _within(network: Network, outer: Network) -> bool:
    return network.overlaps(outer) and network.prefixlen >= outer.prefixlen


def _not_for_hosts(own: tuple[Interface, ...]) -> Iterable[Network]:
    """The gateway's own addresses, and what its networks use for no host."""
    for address in own:
        network, length = address.network, address.max_prefixlen
        yield ip_network(f"{address.ip}/{length}")
        if network.prefixlen < length - 1:
            yield ip_network(f"{network.network_address}/{length}")
            if network.version == 4:
                yield ip_network(f"{network.broadcast_address}/{length}")
