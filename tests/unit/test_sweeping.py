"""Stored sessions whose clients never come back leave the store; whatever may live stays, whatever clocks say."""

from dataclasses import replace

import pytest
from core_pair import WALL_MS, CorePair, every_pair_is_sound
from fleet_pair import FleetPair

from jvpn.observability.events import OwnershipEvent
from jvpn.session.machine import pack_version
from jvpn.session.record import SessionRecord
from jvpn.supervisor.sweeping import EVERY_MS, FIRST_MS, MARGIN_MS, Sweeping

__all__ = ["every_pair_is_sound"]

DAY_MS = 86_400_000
LONG_AGO_MS = WALL_MS - MARGIN_MS - DAY_MS


@pytest.fixture
def pair() -> CorePair:
    return CorePair().attach()


def abandoned(pair: CorePair, number: int = 1, **changes: object) -> SessionRecord:
    """The session of another client, in the store alone and long over."""
    mine = next(iter(pair.store.sessions()))
    record = replace(
        mine,
        session_id=number.to_bytes(16, "big"),
        client_public=number.to_bytes(32, "big"),
        created_wall_ms=LONG_AGO_MS - DAY_MS,
        expires_wall_ms=LONG_AGO_MS,
        boot_id="an earlier boot",
    )
    record = replace(record, **changes)  # type: ignore[arg-type]
    pair.store.save(record, 1)
    return record


def sweep(pair: CorePair) -> None:
    """Begin, and look once."""
    pair.gateway.sweeping.begin(pair.now_ms)
    look(pair, FIRST_MS)


def look(pair: CorePair, later_ms: int) -> None:
    """As if it were so much later for sweeping alone: nothing else is to end by that."""
    at_ms = pair.now_ms + later_ms
    assert pair.gateway.sweeping.get_timer() == at_ms
    pair.gateway.sweeping.handle_timer(at_ms)
    pair.settle()


def stored(pair: CorePair) -> set[bytes]:
    return {record.session_id for record in pair.store.sessions()}


def test_what_nobody_came_back_for_is_forgotten_and_told(pair: CorePair) -> None:
    gone = abandoned(pair)
    sweep(pair)
    assert stored(pair) == {pair.live.session_id}
    assert pair.context.counters["swept"] == 1
    assert pair.context.unforgotten == {}
    (told,) = [event for event in pair.events(OwnershipEvent) if event.action == "released"]
    assert (told.session_id, told.reason_code) == (gone.session_id.hex(), "SESSION_TTL_EXPIRED")
    # The client's timestamp never falls.
    assert gone.client_public in pair.store.timestamps_us()


def test_it_is_looked_for_again_and_again(pair: CorePair) -> None:
    sweep(pair)
    assert pair.context.counters["swept"] == 0
    abandoned(pair)
    at_ms = pair.gateway.sweeping.get_timer()
    assert at_ms == pair.now_ms + FIRST_MS + EVERY_MS
    pair.gateway.sweeping.handle_timer(at_ms - 1)
    assert pair.gateway.sweeping.get_timer() == at_ms
    look(pair, FIRST_MS + EVERY_MS)
    assert pair.context.counters["swept"] == 1


def test_a_wall_clock_that_is_days_ahead_ends_nothing(pair: CorePair) -> None:
    kept = abandoned(pair, expires_wall_ms=LONG_AGO_MS + 2 * DAY_MS)
    sweep(pair)
    assert kept.session_id in stored(pair)


def test_within_a_boot_the_wall_clock_does_not_matter(pair: CorePair) -> None:
    boot_id = pair.context.facts.boot_id
    kept = abandoned(pair, boot_id=boot_id, expires_boot_ms=pair.now_ms + 1)
    sweep(pair)
    assert kept.session_id in stored(pair)
    over = replace(kept, expires_boot_ms=pair.now_ms - MARGIN_MS - 1)
    pair.store.save(over, 1)
    look(pair, FIRST_MS + EVERY_MS)
    assert over.session_id not in stored(pair)


def test_a_session_that_lives_here_stays_whatever_its_record_says(pair: CorePair) -> None:
    lives = abandoned(pair, session_id=pair.live.session_id)
    sweep(pair)
    assert stored(pair) == {lives.session_id}
    assert pair.context.counters["swept"] == 0


def test_a_session_that_was_taken_over_since_it_was_read_stays(pair: CorePair) -> None:
    seen = abandoned(pair)
    taken = replace(seen, state_version=pack_version(seen.epoch + 1, 0))
    pair.gateway.sweeping._found([seen], pair.now_ms)
    pair.store.save(taken, 1)
    pair.settle()
    assert pair.store.load(seen.session_id) == taken


def test_a_session_on_its_way_here_stays(pair: CorePair) -> None:
    """A batch that claims it and forgets what was read before would leave nothing of it."""
    seen = abandoned(pair)
    pair.gateway.sweeping = Sweeping(pair.context, claiming=lambda session_id: session_id == seen.session_id)
    sweep(pair)
    assert seen.session_id in stored(pair)


def test_a_store_that_cannot_be_read_is_read_later(pair: CorePair) -> None:
    gone = abandoned(pair)
    pair.store.broken = True
    sweep(pair)
    pair.store.broken = False
    assert gone.session_id in stored(pair)
    look(pair, FIRST_MS + EVERY_MS)
    assert gone.session_id not in stored(pair)


def test_of_a_fleets_sessions_those_of_living_owners_and_of_a_fenced_node_stay() -> None:
    pair = FleetPair()
    pair.wait_for(lambda: pair.owned_by(pair))
    theirs = abandoned(pair, 1, owner_node="gw2")
    nobodys = abandoned(pair, 2, owner_node="a node that is gone")
    pair.context.fenced = lambda _now_ms: True
    sweep(pair)
    assert {theirs.session_id, nobodys.session_id} <= stored(pair)
    pair.context.fenced = lambda _now_ms: False
    look(pair, FIRST_MS + EVERY_MS)
    assert theirs.session_id in stored(pair)
    assert nobodys.session_id not in stored(pair)
