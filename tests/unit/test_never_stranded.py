"""Whatever the networks do for however long: when one of them works again, the client gets through by itself."""

import itertools
import random

import pytest
from core_pair import DELAY_MS, CorePair, Flight, every_pair_is_sound, lose, silent

from jvpn.agent.core import CONFIRM_TIMEOUT_MS
from jvpn.agent.handshaking import FIRST_RETRY_MS, LAST_RETRY_MS
from jvpn.agent.reattaching import RETRY_MAX_MS
from jvpn.agent.session import ClientSession
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]


def ours(pair: CorePair) -> ClientSession:
    assert pair.client.session is not None
    return pair.client.session


def assert_same_session(pair: CorePair, session_id: bytes) -> None:
    assert ours(pair).session_id == pair.live.session_id == session_id
    assert pair.client.handshakes_done == 1
    for _ in range(20):
        pair.data_up(b"it delivers")
        pair.advance(2 * DELAY_MS)
    assert b"it delivers" in pair.workers[pair.live.slot].delivered


# Handshake


@pytest.mark.parametrize("uplinks", [1, 2, 4])
@pytest.mark.parametrize("one_way_ms", [10, 350, 700])
def test_a_handshake_gets_through_on_the_only_network_that_works(uplinks: int, one_way_ms: int) -> None:
    pair = CorePair(uplinks=uplinks)
    pair.rules += [silent(uplink) for uplink in range(uplinks - 1)]
    pair.rules.append(lambda _flight: [one_way_ms])
    pair.wait_for(lambda: pair.attached, 30_000)
    assert ours(pair).paths.active == uplinks - 1


@pytest.mark.parametrize(
    "kind", [PacketType.HANDSHAKE_INIT, PacketType.HANDSHAKE_RESPONSE, PacketType.CONTROL]
)
def test_a_handshake_survives_the_loss_of_many_of_its_datagrams(kind: PacketType) -> None:
    pair = CorePair(uplinks=1)
    pair.rules.append(lose(kind, 12))
    pair.wait_for(lambda: pair.attached, 60_000)


def test_unanswered_inits_slow_down_but_never_end_and_a_link_hurries_them() -> None:
    pair = CorePair(uplinks=1)
    times: list[int] = []

    def gone(flight: Flight) -> list[int]:
        if flight.kind is PacketType.HANDSHAKE_INIT:
            times.append(pair.now_ms)
        return []

    pair.rules.append(gone)
    pair.advance(120_000)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] == FIRST_RETRY_MS
    assert gaps == sorted(gaps)
    assert set(gaps[8:]) == {LAST_RETRY_MS}
    pair.link(0, False)
    pair.advance(30_000)
    pair.rules.clear()
    up_ms = pair.now_ms
    pair.link(0, True)
    pair.wait_for(lambda: pair.attached)
    assert pair.now_ms - up_ms < FIRST_RETRY_MS


def test_a_link_that_goes_before_there_is_a_configuration_is_not_waited_for() -> None:
    pair = CorePair()
    pair.wait_for(lambda: pair.client.session)
    assert not ours(pair).configured
    pair.link(0, False)
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached)
    assert ours(pair).paths.active == 1
    assert pair.now_ms - began_ms < CONFIRM_TIMEOUT_MS / 2


@pytest.mark.parametrize("seed", range(4))
def test_a_handshake_gets_through_sixty_per_cent_of_loss(seed: int) -> None:
    pair = CorePair(seed=seed)
    dice = random.Random(seed)
    pair.rules.append(lambda _flight: [] if dice.random() < 0.6 else [dice.randrange(5, 60)])
    pair.wait_for(lambda: ours(pair).configured if pair.client.session else False, 120_000)
    pair.rules.clear()
    pair.wait_for(lambda: pair.attached, 10_000)


# Networks


def moved(pair: CorePair, uplink: int, number: int) -> None:
    """The uplink is on another network now: another address, and the kernel says so."""
    pair.addresses[uplink] = Endpoint(to_bytes(f"10.20{uplink}.{number}.2"), 50_000 + number)
    pair.client.uplinks[uplink].sources = (pair.addresses[uplink].address,)
    pair.client.path_event(pair.client.uplinks[uplink], pair.now_ns)
    pair.settle()


@pytest.mark.parametrize("uplinks", [1, 2, 3])
@pytest.mark.parametrize("pause_ms", [0, 40, 400, 3_000])
@pytest.mark.parametrize("up", [None, True, False], ids=["cut off", "nothing arrives", "no answer"])
def test_five_networks_in_a_row_that_do_not_reach_the_gateway(
    uplinks: int, pause_ms: int, up: bool | None
) -> None:
    pair = CorePair(uplinks=uplinks).attach()
    session_id = pair.live.session_id
    pair.rules += [silent(uplink, up=up) for uplink in range(uplinks)]
    pair.link(0, False)
    for number in range(5):
        pair.link(0, True)
        for uplink in range(uplinks):
            moved(pair, uplink, number)
        pair.advance(pause_ms)
        pair.link(0, False)
    pair.link(0, True)
    moved(pair, 0, 9)
    pair.rules.clear()
    pair.wait_for(lambda: pair.attached, RETRY_MAX_MS + 1_000)
    assert_same_session(pair, session_id)


@pytest.mark.parametrize("pause_ms", [0, 3, 15, 60])
def test_a_candidate_that_flaps_fifty_times_disturbs_nothing_and_is_good_afterwards(pause_ms: int) -> None:
    pair = CorePair().attach()
    pair.advance(100)
    session_id, version = pair.live.session_id, pair.version
    for number in range(50):
        pair.link(1, False)
        pair.advance(pause_ms)
        pair.link(1, True)
        pair.advance(pause_ms)
        if number % 10 == 0:
            pair.data_up(b"steady")
    pair.advance(2_000)
    assert (pair.version, ours(pair).paths.active) == (version, 0)
    assert pair.workers[pair.live.slot].delivered == [b"steady"] * 5
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached, 500)
    assert ours(pair).paths.active == 1
    assert_same_session(pair, session_id)


@pytest.mark.parametrize("pause_ms", [0, 3, 15, 60])
def test_the_only_uplink_may_flap_fifty_times(pause_ms: int) -> None:
    pair = CorePair(uplinks=1).attach()
    session_id = pair.live.session_id
    for _ in range(50):
        pair.link(0, False)
        pair.advance(pause_ms)
        pair.link(0, True)
        pair.advance(pause_ms)
    pair.wait_for(lambda: pair.attached, 5_000)
    assert_same_session(pair, session_id)


@pytest.mark.parametrize("seed", range(6))
def test_a_day_of_weather_and_then_one_network_that_works(seed: int) -> None:
    pair = CorePair(seed=seed, uplinks=3).attach()
    session_id = pair.live.session_id
    dice = random.Random(seed)
    dark: set[int] = set()
    pair.rules.append(lambda flight: [] if flight.uplink in dark else None)
    for number in range(40):
        uplink = dice.randrange(3)
        match dice.randrange(4):
            case 0:
                pair.link(uplink, not pair.client.uplinks[uplink].link_up)
            case 1:
                dark.symmetric_difference_update({uplink})
            case 2:
                moved(pair, uplink, number)
            case _:
                pair.data_up(b"traffic")
        pair.advance(dice.choice((0, 20, 200, 2_000)))
    works = dice.randrange(3)
    dark.update({0, 1, 2} - {works})
    dark.discard(works)
    pair.link(works, True)
    # Traffic shows that the path it goes on is dead; a client without any finds out by its idle probes.
    for _ in range(600):
        if pair.attached and ours(pair).paths.active == works:
            break
        pair.data_up(b"traffic")
        pair.advance(DELAY_MS)
    assert pair.attached
    assert ours(pair).paths.active == works
    assert_same_session(pair, session_id)
