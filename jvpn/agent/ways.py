"""Ways out: how many each device gets, and which of the gateway's endpoints each of them leads to. Pure functions."""

from collections.abc import Sequence

from jvpn.agent.paths import Uplink
from jvpn.protocol.addresses import is_ipv4
from workers.commands import Endpoint


def shares(devices: Sequence[tuple[int, int]], most: int) -> list[int]:
    """How many ways each device gets; `devices`: (preference, endpoints that it reaches).

    One each, even if that is more than `most`; the rest of `most` by turns, preferred devices first, as far as they
    have endpoints to lead to.
    """
    given = [1] * len(devices)
    order = sorted(range(len(devices)), key=lambda n: (-devices[n][0], n))
    while sum(given) < most:
        hungry = [n for n in order if given[n] < devices[n][1]]
        if not hungry:
            break
        given[min(hungry, key=lambda n: given[n])] += 1
    return given


def share_out(
    ways: Sequence[Uplink], reached: Sequence[Endpoint], wanted: int, active: Uplink | None
) -> None:
    """Give each of `wanted` ways its own part of the endpoints, `reached` best first; the others get none.

    A way keeps the endpoint that it leads to, the active one before all others; what is left goes to whoever has least,
    the address families by turns, so that they are on different ways where they can be.
    """
    serving = sorted(ways, key=lambda way: (way is not active, way.rank))[:wanted]
    parts: dict[int, list[Endpoint]] = {way.number: [] for way in serving}
    left = list(reached)
    for way in serving:
        if way.remote in left:
            left.remove(way.remote)
            parts[way.number].append(way.remote)
    by_rank = sorted(serving, key=lambda way: way.rank)
    for endpoint in _by_turns(left):
        poorest = min(by_rank, key=lambda way: len(parts[way.number]))
        parts[poorest.number].append(endpoint)
    for way in ways:
        way.remotes = tuple(sorted(parts.get(way.number, ()), key=reached.index))
        if way.remotes and way.remote not in way.remotes:
            way.remote = way.remotes[0]


def _by_turns(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """One of each address family after the other, beginning with the family of the first."""
    if not endpoints:
        return []
    first = is_ipv4(endpoints[0].address)
    same = [one for one in endpoints if is_ipv4(one.address) is first]
    other = [one for one in endpoints if is_ipv4(one.address) is not first]
    turns = max(len(same), len(other))
    return [one for n in range(turns) for one in (*same[n : n + 1], *other[n : n + 1])]
