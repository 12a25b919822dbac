"""Every attempt that the gateway judges is told once and has one result, whatever copies of it come and in what order.

A REQUEST that is only answered with a challenge, or dropped, is no attempt yet: of those nothing is told.
"""

from collections import Counter

from core_pair import CorePair, every_pair_is_sound, fast_policy
from forge import NEW, RACER, Forge, forge
from test_adoption import restart as restart_supervisor

from jvpn.observability.events import ReattachAttempt, ReattachResult
from jvpn.protocol.constants import Transport
from jvpn.protocol.reattach import Cause, Request, Result
from jvpn.session.machine import pack_version
from jvpn.session.ownership import Code, Kind, Verdict
from jvpn.supervisor.arrival import PathFact

__all__ = ["every_pair_is_sound", "forge"]

#: Attempt number and, for a result, what became of it.
Told = list[tuple[int, str]]


def told(pair: CorePair) -> Told:
    """The two kinds of events in the order that they were told in; an attempt has "" for a result."""
    kinds = (ReattachAttempt, ReattachResult)
    found = [event for event in pair.gateway_sink.events if isinstance(event, kinds)]
    return [(event.attempt, event.result if isinstance(event, ReattachResult) else "") for event in found]


def test_a_pending_attempt_is_told_when_it_is_judged(forge: Forge) -> None:
    for _ in range(3):
        assert forge.ack(forge.send(NEW, 1, 2)).result is Result.PENDING
    assert told(forge.pair) == []
    forge.send(NEW, 1, 2, forge.challenge(NEW))
    assert told(forge.pair) == [(1, ""), (1, "bound")]


def test_copies_of_an_attempt_that_was_bound_are_not_told(forge: Forge) -> None:
    data = forge.request(1, 2, forge.challenge(NEW))
    for source in (NEW, NEW, RACER):
        forge.pair.inject(data, source)
    for source in (NEW, RACER):
        forge.send(source, 1, 3, forge.challenge(source))
    assert told(forge.pair) == [(1, ""), (1, "bound")]


def test_copies_of_an_attempt_that_was_refused_are_not_told(forge: Forge) -> None:
    ahead = pack_version(1, 9)
    data = forge.request(1, 2, forge.challenge(NEW), version=ahead)
    for source in (NEW, NEW, RACER):
        forge.pair.inject(data, source)
    # What was wrong is right now, but the attempt has been refused.
    forge.send(NEW, 1, 2, forge.challenge(NEW))
    assert told(forge.pair) == [(1, ""), (1, "failed")]
    forge.send(NEW, 2, 2, forge.challenge(NEW))
    assert told(forge.pair)[2:] == [(2, ""), (2, "bound")]


def test_attempts_that_come_out_of_order_are_not_told(forge: Forge) -> None:
    forge.send(NEW, 5, 2, forge.challenge(NEW))
    forge.send(NEW, 7, 3, forge.challenge(NEW), version=pack_version(1, 20))
    for attempt in (1, 4, 5, 6, 7):
        forge.send(NEW, attempt, 4, forge.challenge(NEW))
    assert told(forge.pair) == [(5, ""), (5, "bound"), (7, ""), (7, "failed")]


def test_a_supervisor_that_takes_over_knows_what_was_told(forge: Forge) -> None:
    pair = forge.pair
    forge.send(NEW, 1, 2, forge.challenge(NEW))
    forge.send(NEW, 2, 3, forge.challenge(NEW), version=pack_version(1, 20))
    before = told(pair)
    restart_supervisor(pair)
    forge.live = pair.live
    for attempt in (1, 2, 1, 2):
        forge.send(NEW, attempt, 3, forge.challenge(NEW))
    assert told(pair) == before
    forge.send(NEW, 3, 4, forge.challenge(NEW))
    assert told(pair)[len(before) :] == [(3, ""), (3, "bound")]


def test_refused_switches_and_lost_paths_of_a_client_have_one_result_each() -> None:
    """Both cores, duplicated and lost datagrams, a switch too soon, a takeover."""
    pair = CorePair(fast_policy(switch_cooldown_ms=5_000)).attach()
    pair.rules.append(lambda flight: [[10], [10, 12, 30], [], [10, 10]][pair.random.randrange(4)])
    for round_number in range(4):
        for uplink in (1, 0):
            # The second follows the first too soon and is refused.
            pair.client.switch(("upA", "upB")[uplink], pair.now_ns)
            pair.wait_for(lambda: pair.attached)
        pair.link(1, False)
        pair.wait_for(lambda: pair.attached)
        pair.link(1, True)
        pair.advance(6_000)
        if round_number == 1:
            pair.restart_gateway()
            pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
            pair.wait_for(lambda: pair.context.sessions and pair.attached)
    attempts = Counter((e.state_version >> 40, e.attempt) for e in pair.events(ReattachAttempt))
    results = Counter((e.state_version >> 40, e.attempt) for e in pair.events(ReattachResult))
    assert set(attempts.values()) == {1}
    assert results == attempts
    assert {event.result for event in pair.events(ReattachResult)} == {"bound", "failed"}
    assert {epoch for epoch, _attempt in attempts} == {1, 2}


def test_the_narrator_itself_tells_an_attempt_once(forge: Forge) -> None:
    """Whoever calls it, and however often: the stream has to account for every attempt."""
    narrator, live = forge.pair.context.narrator, forge.live
    path = PathFact(2, Transport.UDP, "192.0.2.1:1")
    verdict = Verdict(Kind.FAIL, Code.RATE_LIMITED)
    for number, first in ((1, True), (1, False), (3, True), (3, False), (2, False)):
        request = Request(number, 2, live.machine.state_version, Cause.TRANSPORT_DEAD, Transport.UDP, 0)
        assert narrator.attempt(live, request, path) is first
        if first:
            narrator.result(live, request, verdict)
    assert told(forge.pair) == [(1, ""), (1, "failed"), (3, ""), (3, "failed")]


def test_a_refused_voluntary_switch_is_told_once(forge: Forge) -> None:
    forge.send(NEW, 1, 2, forge.challenge(NEW), cause=Cause.OPERATOR_SWITCH)
    old = forge.pair.addresses[0]
    for _ in range(3):
        forge.send(old, 2, 3, forge.challenge(old), cause=Cause.OPERATOR_SWITCH)
    assert told(forge.pair) == [(1, ""), (1, "bound"), (2, ""), (2, "failed")]
