"""A client's counters after the death of its worker: no nonce twice, and nothing that links its next network."""

import msgspec
from test_worker_table import HERE, indexes, session

from jvpn.protocol.constants import GENERATION_SHIFT
from workers.commands import InstallIndexes
from workers.fakes import FakeNetwork, FakeWorker


def worker(*, gateway: bool = False) -> FakeWorker:
    return FakeWorker(FakeNetwork(), HERE, gateway=gateway)


def test_an_index_that_no_worker_has_used_begins_with_generation_0() -> None:
    second = worker()
    known = second.table.add(session(second, generation=1))
    assert [known.take_counters(index, 1) for index in (0, 2)] == [1 << GENERATION_SHIFT] * 2
    second.table.install(InstallIndexes(2, 0, indexes(0, 1, 2, 3)))
    assert [known.take_counters(3, 2), known.take_counters(3, 1)] == [0, 2]


def test_the_same_session_told_again_leaves_the_counters_alone() -> None:
    second = worker()
    known = second.table.add(session(second, generation=1))
    again = session(second, generation=1, indexes=indexes(0, 1, 2, 3))
    second.table.add(again)
    assert known.take_counters(3, 1) == 0
    second.table.add(msgspec.structs.replace(again, indexes=indexes(0, 1, 2, 3, 4)))
    assert known.take_counters(3, 1) == 1


def test_no_nonce_comes_twice_whoever_dies_on_whatever_index() -> None:
    used: set[tuple[int, int]] = set()
    opened = 3
    for generation in range(4):
        one = worker()
        known = one.table.add(session(one, generation=generation, indexes=indexes(*range(opened))))
        opened += generation % 2 + 1
        one.table.install(InstallIndexes(2, 0, indexes(*range(opened))))
        for index in range(opened):
            nonce = (index, known.take_counters(index, 1))
            assert nonce not in used
            used.add(nonce)


def test_a_gateway_s_worker_has_its_generation_on_every_index() -> None:
    """Its supervisor may have died with the worker before, and not know every index that was installed there."""
    second = worker(gateway=True)
    known = second.table.add(session(second, generation=1))
    second.table.install(InstallIndexes(2, 0, indexes(0, 1, 2, 3)))
    assert known.take_counters(3, 1) == 1 << GENERATION_SHIFT
