"""A REATTACH_REQUEST at a node whose sessions may be another's by now, and one that makes a node doubt itself."""

from core_pair import CorePair, every_pair_is_sound
from forge import NEW, Forge, forge

from jvpn.protocol.constants import PacketType
from jvpn.protocol.reattach import Result
from jvpn.session.machine import pack_version
from jvpn.session.ownership import FENCED_RETRY_MS

__all__ = ["every_pair_is_sound", "forge"]


def test_a_fenced_node_binds_nothing_and_says_that_it_is_not_the_owner(forge: Forge) -> None:
    context = forge.pair.context
    until_ms = forge.pair.now_ns // 1_000_000 + 1000
    context.fenced = lambda now_ms: now_ms < until_ms
    bound = forge.live.bindings.active
    refused = forge.fail(forge.send(NEW, 1, 2, forge.challenge(NEW)))
    assert (refused.reason, refused.retry_after_ms) == ("NOT_OWNER", FENCED_RETRY_MS)
    assert forge.live.bindings.active == bound
    forge.pair.advance(1000)
    # The same attempt: the refusal was about the node.
    assert forge.ack(forge.send(NEW, 1, 2, forge.challenge(NEW))).result is Result.BOUND


def test_only_an_epoch_ahead_of_ours_has_the_lease_looked_at(forge: Forge) -> None:
    doubts: list[int] = []
    forge.pair.context.doubt_lease = lambda: doubts.append(1)
    forge.send(NEW, 1, 2, forge.challenge(NEW), version=pack_version(1, 999))
    assert doubts == []
    refused = forge.fail(forge.send(NEW, 2, 2, forge.challenge(NEW), version=pack_version(2, 0)))
    assert (refused.reason, doubts) == ("NOT_OWNER", [1])


def test_a_fenced_node_does_not_say_again_that_it_has_bound(forge: Forge) -> None:
    context, challenge = forge.pair.context, forge.challenge(NEW)
    assert forge.ack(forge.send(NEW, 1, 2, challenge)).result is Result.BOUND
    context.fenced = lambda _now_ms: True
    assert forge.fail(forge.send(NEW, 1, 2, challenge)).reason == "NOT_OWNER"
    assert forge.ack(forge.send(NEW, 1, 2)).result is Result.PENDING
    # That was of the fence, not of the attempt: it is bound all the same.
    context.fenced = lambda _now_ms: False
    assert forge.ack(forge.send(NEW, 1, 2, challenge)).result is Result.BOUND
    assert context.counters["reattach_bind"] == 1


def fence(pair: CorePair, fenced: bool = True) -> None:
    pair.context.fenced = lambda _now_ms: fenced


def test_a_fenced_node_begins_no_session() -> None:
    pair = CorePair()
    fence(pair)
    pair.wait_for(lambda: pair.context.counters["fenced"] > 1)
    assert not any(not flight.up for flight in pair.sent)
    assert not pair.context.sessions
    fence(pair, False)
    pair.attach()


def test_a_handshake_is_not_confirmed_at_a_node_that_was_fenced_meanwhile() -> None:
    pair = CorePair()
    answered = PacketType.HANDSHAKE_RESPONSE
    pair.wait_for(lambda: any(flight.kind is answered for flight in pair.sent))
    fence(pair)
    pair.wait_for(lambda: pair.context.counters["fenced"])
    pair.advance(500)
    assert pair.store.sessions() == []
    assert not pair.context.sessions
    # Its client says it again.
    fence(pair, False)
    pair.attach()
    assert pair.context.counters["handshakes"] == 1


def test_a_fenced_node_takes_no_stored_session_and_calls_none_gone() -> None:
    pair = CorePair().attach()
    stored = pair.store.sessions()
    pair.restart_gateway()
    fence(pair)
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.context.counters["fenced"] > 1)
    pair.context.unforgotten[stored[0].session_id] = 0
    seen = pair.context.counters["fenced"]
    pair.wait_for(lambda: pair.context.counters["fenced"] > seen)
    assert pair.store.sessions() == stored
    assert (pair.context.counters["takeovers"], pair.context.counters["resets_sent"]) == (0, 0)
    pair.context.unforgotten.clear()
    fence(pair, False)
    pair.wait_for(lambda: pair.context.counters["takeovers"] == 1)


def test_a_fence_that_falls_while_the_store_is_read_counts() -> None:
    pair = CorePair().attach()
    pair.restart_gateway()
    reads: list[int] = []

    def fenced(_now_ms: int) -> bool:
        """Not when the REQUEST comes, but when the store has answered."""
        reads.append(1)
        return len(reads) % 2 == 0

    pair.context.fenced = fenced
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.context.counters["fenced"])
    assert pair.context.counters["takeovers"] == 0
