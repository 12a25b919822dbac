"""CONFIG after a takeover: at once where few sessions come back, each in its turn in a storm."""

import pytest
from core_pair import CorePair, every_pair_is_sound
from test_takeover import attached_in_epoch, send_traffic

from jvpn.supervisor.controlling import CONFIG_TURN_MS, CONFIGS_AT_ONCE

__all__ = ["every_pair_is_sound"]

STORM = 50_000


@pytest.fixture
def pair() -> CorePair:
    pair = CorePair(uplinks=2)
    pair.attach()
    pair.advance(500)
    return pair


def back_from_the_store(pair: CorePair, *, behind: int) -> None:
    """The gateway has begun anew, and so many sessions have come back before the client's."""
    pair.restart_gateway()
    pair.gateway._controlling._turns_over_ms = pair.now_ms + behind * CONFIG_TURN_MS
    send_traffic(pair)
    pair.wait_for(lambda: attached_in_epoch(pair, 2))


def configs(pair: CorePair) -> list[int]:
    """The epoch of each CONFIG that the client takes from now on."""
    session, taken = pair.client.session, list[int]()
    assert session is not None
    take = session.configuring.on_config

    def on_config(config: object, now_ms: int) -> None:
        taken.append(session.epoch)
        take(config, now_ms)  # type: ignore[arg-type]

    session.configuring.on_config = on_config  # type: ignore[method-assign]
    return taken


def test_one_of_a_few_is_configured_as_it_is_bound(pair: CorePair) -> None:
    taken = configs(pair)
    back_from_the_store(pair, behind=CONFIGS_AT_ONCE // 2)
    pair.advance(100)
    assert taken == [2]


def test_one_of_many_is_bound_first_and_configured_in_its_turn(pair: CorePair) -> None:
    taken = configs(pair)
    back_from_the_store(pair, behind=CONFIGS_AT_ONCE + STORM)
    pair.advance(100)
    assert taken == []
    assert pair.data_up(b"up")
    assert pair.data_down(b"down")
    pair.wait_for(lambda: taken, within_ms=2 * STORM * CONFIG_TURN_MS)
    assert taken == [2]
    assert pair.client.handshakes_done == 1


def test_who_waits_for_config_finds_the_next_node_by_the_tickets_it_has(pair: CorePair) -> None:
    taken = configs(pair)
    session = pair.client.session
    assert session is not None
    back_from_the_store(pair, behind=CONFIGS_AT_ONCE + STORM)
    pair.restart_gateway()
    pair.data_up(b"up")
    pair.wait_for(lambda: attached_in_epoch(pair, 3))
    pair.advance(100)
    assert taken == [3]
    assert pair.client.session is session
