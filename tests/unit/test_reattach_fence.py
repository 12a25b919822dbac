"""A REATTACH_REQUEST at a node whose sessions may be another's by now, and one that makes a node doubt itself."""

from core_pair import every_pair_is_sound
from forge import NEW, Forge, forge

from jvpn.protocol.reattach import Result
from jvpn.session.machine import pack_version

__all__ = ["every_pair_is_sound", "forge"]


def test_a_fenced_node_binds_nothing_and_says_that_it_is_not_the_owner(forge: Forge) -> None:
    context = forge.pair.context
    until_ms = forge.pair.now_ns // 1_000_000 + 1000
    context.fenced = lambda now_ms: now_ms < until_ms
    bound = forge.live.bindings.active
    refused = forge.fail(forge.send(NEW, 1, 2, forge.challenge(NEW)))
    assert refused.reason == "NOT_OWNER"
    assert forge.live.bindings.active == bound
    forge.pair.advance(1000)
    assert forge.ack(forge.send(NEW, 2, 2, forge.challenge(NEW))).result is Result.BOUND


def test_only_an_epoch_ahead_of_ours_has_the_lease_looked_at(forge: Forge) -> None:
    doubts: list[int] = []
    forge.pair.context.doubt_lease = lambda: doubts.append(1)
    forge.send(NEW, 1, 2, forge.challenge(NEW), version=pack_version(1, 999))
    assert doubts == []
    refused = forge.fail(forge.send(NEW, 2, 2, forge.challenge(NEW), version=pack_version(2, 0)))
    assert (refused.reason, doubts) == ("NOT_OWNER", [1])
