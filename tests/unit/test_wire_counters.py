"""Counters on the wire when one of an end's processes was replaced: on under a higher generation, and delivered."""

import pytest
from core_pair import CorePair, every_pair_is_sound
from pair_worker import PairWorker

from jvpn.protocol.constants import GENERATION_SHIFT, PacketType
from jvpn.protocol.wire import Header

__all__ = ["every_pair_is_sound"]


def counters(pair: CorePair, kind: PacketType, *, up: bool) -> list[int]:
    return [Header.decode(flight.data).counter for flight in pair.of_kind(kind, up=up)]


def replace_client_worker(pair: CorePair) -> None:
    """As the agent does it when its worker has died."""
    sockets = pair.client_worker.table.sockets
    pair.client_worker.alive = False
    pair.client_worker = PairWorker(
        pair.client_page, gateway=False, sockets=sockets, say=pair.client_worker._say
    )
    pair.client.worker_replaced()
    pair.settle()


@pytest.mark.parametrize("up", [True, False], ids=["client", "gateway"])
def test_a_new_worker_counts_from_0_under_the_next_generation(up: bool) -> None:
    pair = CorePair().attach()

    def talk(text: bytes) -> None:
        assert pair.data_up(bytes(8) + text) if up else pair.data_down(bytes(8) + text)
        pair.advance(50)

    for number in range(5):
        talk(b"before %d" % number)
    if up:
        replace_client_worker(pair)
    else:
        pair.replace_worker(pair.live.slot)
    talk(b"after")
    before, after = counters(pair, PacketType.DATA, up=up)[-2:]
    assert (before >> GENERATION_SHIFT, after >> GENERATION_SHIFT) == (0, 1)
    assert after & (1 << GENERATION_SHIFT) - 1 < before
    receiver = pair.workers[pair.live.slot] if up else pair.client_worker
    assert receiver.delivered[-1] == bytes(8) + b"after"


def test_control_of_a_client_stays_in_generation_0() -> None:
    pair = CorePair().attach()
    replace_client_worker(pair)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    kinds = (PacketType.CONTROL, PacketType.REATTACH_REQUEST)
    assert {counter >> GENERATION_SHIFT for kind in kinds for counter in counters(pair, kind, up=True)} == {0}


def test_the_generation_of_a_gateways_control_is_its_supervisors() -> None:
    pair = CorePair().attach()
    sent = counters(pair, PacketType.CONTROL, up=False)
    assert {counter >> GENERATION_SHIFT for counter in sent} == {pair.context.facts.generation}
