"""Was there one owner per version? A checker of recorded claims and reads of one session.

The session is a register with compare-and-swap in which no value comes twice, so the order of granted claims is that of
what each has seen, and whether the history is linearizable is decided by giving every operation in that order the
earliest moment that it allows. (Herlihy and Wing, "Linearizability", 1990.)

Of a refused claim it is checked that there was a moment at which the session was not as it had seen it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

#: Version and owner.
State = tuple[int, str]


@dataclass(frozen=True)
class Claim:
    """`granted` is None when the store could not say."""

    seen: State
    wrote: State
    granted: bool | None
    began: float
    ended: float


@dataclass(frozen=True)
class Read:
    found: State
    began: float
    ended: float


class BadHistory(AssertionError):
    pass


def check(first: State, claims: Sequence[Claim], reads: Sequence[Read]) -> list[State]:
    """The owners in their order, beginning with `first`. Raises BadHistory."""
    known = _with_applied(claims, reads)
    by_seen: dict[State, Claim] = {}
    for claim in known:
        if claim.wrote[0] <= claim.seen[0]:
            raise BadHistory(f"the version did not grow: {claim}")
        other = by_seen.setdefault(claim.seen, claim)
        if other is not claim:
            raise BadHistory(f"two owners after {claim.seen}: {other} and {claim}")
    chain = []
    state = first
    while state in by_seen:
        chain.append(by_seen.pop(state))
        state = chain[-1].wrote
    if by_seen:
        raise BadHistory(f"granted on what never was: {list(by_seen.values())}")
    _check_order(first, chain, reads)
    _check_refused(first, chain, [claim for claim in claims if claim.granted is False])
    return [first, *(claim.wrote for claim in chain)]


def _with_applied(claims: Sequence[Claim], reads: Sequence[Read]) -> list[Claim]:
    """Granted claims, and those without an answer whose trace somebody has seen: they took place at any time since."""
    traces = {read.found for read in reads} | {claim.seen for claim in claims if claim.granted}
    granted = [claim for claim in claims if claim.granted]
    unknown = [claim for claim in claims if claim.granted is None]
    while applied := [claim for claim in unknown if claim.wrote in traces]:
        granted += [replace(claim, ended=math.inf) for claim in applied]
        traces |= {claim.seen for claim in applied}
        unknown = [claim for claim in unknown if claim not in applied]
    return granted


def _check_order(first: State, chain: Sequence[Claim], reads: Sequence[Read]) -> None:
    reads_of: dict[State, list[Read]] = {first: [], **{claim.wrote: [] for claim in chain}}
    for read in reads:
        if read.found not in reads_of:
            raise BadHistory(f"read what nobody wrote: {read}")
        reads_of[read.found].append(read)
    moment = -math.inf
    for state, claim in zip([first, *(c.wrote for c in chain)], [None, *chain], strict=True):
        if claim is not None:
            moment = max(moment, claim.began)
            if moment > claim.ended:
                raise BadHistory(f"granted after its answer: {claim}")
        late = [read for read in reads_of[state] if read.ended < moment]
        if late:
            raise BadHistory(f"read before it was so: {late[0]}")
        moment = max([moment, *(read.began for read in reads_of[state])])


def _check_refused(first: State, chain: Sequence[Claim], refused: Sequence[Claim]) -> None:
    since = {first: -math.inf, **{claim.wrote: claim.ended for claim in chain}}
    until = {claim.seen: claim.began for claim in chain}
    for claim in refused:
        was_so = claim.seen in since and since[claim.seen] < claim.began
        if was_so and claim.ended < until.get(claim.seen, math.inf):
            raise BadHistory(f"refused although nothing had changed: {claim}")
