"""`reauthenticate_on`: from which sources a session may be bound without a new handshake.

Measured against the source of the session's own handshake, as the gateway saw it: what stands behind a NAT is known by
the NAT's address. Ports do not count, so a NAT that gives the flow another one changes nothing.
"""

from ipaddress import ip_address, ip_network
from typing import Final

from jvpn.policy.model import Policy

#: What counts as one network: bits of the prefix, by IP version.
NETWORK_BITS: Final = {4: 24, 6: 64}


def must_prove_anew(policy: Policy, proven_from: str, source: str) -> bool:
    """Does the policy ask for a new handshake before the session is bound to `source`?

    Both are addresses in text, IPv4 unmapped. An empty `proven_from` is one that nobody knows any more: any source may
    be another.
    """
    if not policy.reauthenticate_on or source == proven_from:
        return False
    if "address" in policy.reauthenticate_on or not proven_from:
        return True
    first, other = ip_address(proven_from), ip_address(source)
    if first.version != other.version:
        return True
    return other not in ip_network(f"{first}/{NETWORK_BITS[first.version]}", strict=False)
