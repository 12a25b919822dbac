"""What a gateway's log says of sessions that come and go, and that nobody waits for whoever reads it."""

import os
from collections.abc import Iterator

import pytest
from core_pair import CorePair
from fleet_pair import FleetPair
from test_takeover import attached_in_epoch, send_traffic

from jvpn.cli.saying import MOST_WAITING, Voice
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.fleet import Fleet
from jvpn.supervisor.moves import EVERY_MS, Move, Moves


def test_one_session_is_named_and_many_are_counted_a_line_a_second() -> None:
    moves = Moves()
    assert moves.get_timer() is None
    moves.note(Move.TAKEN, "gw1", "alice")
    assert moves.get_timer() == 0
    assert moves.lines(5_000) == ["took over the session of alice from gw1, whose lease has ended"]
    assert moves.get_timer() is None
    for _ in range(10_000):
        moves.note(Move.TAKEN, "gw1", "bob")
    moves.note(Move.LEFT, "gw3", "carol")
    assert moves.get_timer() == 5_000 + EVERY_MS
    assert moves.lines(5_000 + EVERY_MS - 1) == []
    assert moves.lines(5_000 + EVERY_MS) == [
        "took over the session of carol from gw3, which drains; "
        "took over 10000 sessions from gw1, whose lease has ended"
    ]


def taken(fleet: Fleet, owner: str) -> Move:
    return fleet.settled(bytes(16), owner)


def test_what_is_said_of_a_session_is_how_it_came() -> None:
    fleet = Fleet("gw1")
    fleet.nodes = {"gw1": NodeAbout(), "gw2": NodeAbout(draining=True)}
    assert (taken(fleet, "gw1"), taken(fleet, "gw2"), taken(fleet, "gw3")) == (
        Move.REVIVED,
        Move.LEFT,
        Move.TAKEN,
    )
    # Its client was sent to the owner, and came back: by now the store says that it is this node's.
    fleet.referred(bytes(16), 1, 0)
    assert [taken(fleet, "gw1"), taken(fleet, "gw1")] == [Move.GIVEN, Move.REVIVED]


def test_an_owner_that_is_asked_says_what_it_hands_over() -> None:
    pair = CorePair().attach()
    pair.gateway.others.asked_for(pair.live.session_id, "gw2", pair.live.last_attempt + 1, pair.now_ms)
    pair.advance(EVERY_MS)
    assert pair.context.worker_errors == ["handed over the session of laptop to gw2, on its request"]


def test_a_gateway_that_began_anew_says_what_comes_back() -> None:
    pair = CorePair().attach()
    pair.advance(500)
    pair.restart_gateway()
    send_traffic(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2))
    pair.wait_for(lambda: pair.context.worker_errors)
    assert pair.context.worker_errors == ["brought back the session of laptop out of the store"]


def test_both_nodes_say_where_a_session_of_a_drain_went() -> None:
    pair = FleetPair()
    pair.wait_for(lambda: pair.owned_by(pair))
    pair.gateway.drain.begin(50, "somebody", pair.now_ms)
    pair.wait_for(lambda: pair.owned_by(pair.second))
    pair.advance(2 * EVERY_MS)
    assert pair.second.context.worker_errors == ["took over the session of laptop from gw, which drains"]
    begun, went, ended = pair.context.worker_errors
    assert begun.startswith("drain begun, asked by somebody: ")
    assert begun.endswith("(0 moved, 1 here)")
    assert went == "the session of laptop went to gw2"
    assert ended == "drain ended: 1 moved, 0 without a path are taken when they come back"
    pair.gateway.drain.undo("somebody")
    assert pair.context.worker_errors[-1].startswith("drain undone")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_nobody_waits_for_a_log_that_is_not_read(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    voice = Voice("jvpn", writer)
    voice.say("first")
    os.set_blocking(reader, False)
    assert os.read(reader, 100) == b"jvpn: first\n"
    for _ in range(200):
        voice.say("x" * 1_000)
    for number in range(MOST_WAITING + 10):
        voice.say(f"line {number}")
    read = b""
    while read.count(b"\n") < 200 or b"line" not in read:
        read += os.read(reader, 1 << 20)
        voice.say("more")
    assert b"could not be written" in read
    said = read.splitlines()
    assert set(said[:20]) == {b"jvpn: " + b"x" * 1_000}


def test_a_log_that_has_gone_away_is_nobodys_loss() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    Voice("jvpn", writer).say("to nobody")
    os.close(writer)
