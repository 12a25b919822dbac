"""The shared page: what one process writes another reads, whole, and each record is its own."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from workers import page as page_module
from workers.page import (
    COUNTER_SLOTS,
    COUNTERS_PER_SLOT,
    HIGHEST_ENTRIES,
    RECORD_BYTES,
    RECORDS,
    Activity,
    Page,
    SessionRow,
)

KEY = bytes(range(32))


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = Page.create(4, KEY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def page(descriptor: int) -> Iterator[Page]:
    page = Page(descriptor)
    yield page
    page.close()


def full_row() -> SessionRow:
    """Another value in every field."""
    values: dict[str, Any] = {}
    for number, (name, default) in enumerate(SessionRow._field_defaults.items(), 1):
        values[name] = bytes([number]) * 16 if isinstance(default, bytes) else number
    return SessionRow(**values)


def test_a_new_page_is_empty(page: Page) -> None:
    assert (page.capacity, page.challenge_key) == (4, KEY)
    assert page.read_row(3) == SessionRow()
    assert page.read_activity(3) == Activity(0, 0, 0, 0, 0, 0, 0)
    assert page.read_highest(3, 0) is None
    assert page.read_fence() == 0


def test_every_field_of_a_row_comes_back_in_another_process(page: Page, descriptor: int) -> None:
    page.write_row(2, full_row())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"same" if Page(descriptor).read_row(2) == full_row() else b"other")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 16) == b"same"
    os.close(reader)
    os.close(writer)


def test_records_are_their_own(page: Page) -> None:
    page.write_row(1, full_row())
    page.write_activity(1, 1, 2, 3, 4, 5, 6)
    page.write_heard(1, 7)
    page.write_highest(1, 0, 9)
    for record in (0, 2, 3):
        assert page.read_row(record) == SessionRow()
        assert page.read_activity(record) == Activity(0, 0, 0, 0, 0, 0, 0)
        assert page.read_highest(record, 0) is None
    assert page.read_activity(1) == Activity(1, 2, 3, 4, 5, 6, 7)


def test_supervisor_and_worker_write_beside_each_other(page: Page) -> None:
    page.write_activity(0, 1, 2, 3, 4, 5, 6)
    for index in range(HIGHEST_ENTRIES):
        page.write_highest(0, index, index)
    page.write_row(0, full_row())
    page.write_heard(0, 8)
    assert page.read_row(0) == full_row()
    assert page.read_activity(0) == Activity(1, 2, 3, 4, 5, 6, 8)
    assert [page.read_highest(0, index) for index in range(HIGHEST_ENTRIES)] == list(range(HIGHEST_ENTRIES))


def test_a_cleared_record_is_empty(page: Page) -> None:
    page.write_row(0, full_row())
    page.write_activity(0, 1, 2, 3, 4, 5, 6)
    page.write_highest(0, 3, 4)
    page.clear_record(0)
    assert page.read_row(0) == SessionRow()
    assert page.read_activity(0) == Activity(0, 0, 0, 0, 0, 0, 0)
    assert page.read_highest(0, 3) is None


def test_counter_zero_is_remembered(page: Page) -> None:
    page.write_highest(0, 5, 0)
    assert page.read_highest(0, 5) == 0
    assert page.read_highest(0, 5 + HIGHEST_ENTRIES) is None


def test_a_newer_index_takes_the_place_of_one_that_shares_it(page: Page) -> None:
    page.write_highest(0, 5, 100)
    page.write_highest(0, 5 + HIGHEST_ENTRIES, 7)
    assert page.read_highest(0, 5) is None
    assert page.read_highest(0, 5 + HIGHEST_ENTRIES) == 7


@pytest.mark.parametrize("generation", [0, 1, 65_535])
def test_highest_takes_every_counter_of_a_generation(page: Page, generation: int) -> None:
    counter = (generation << 48) + 2**48 - 2
    page.write_highest(0, 1, counter)
    assert page.read_highest(0, 1) == counter


def test_counters_of_slots_are_seen_at_once_by_others(page: Page, descriptor: int) -> None:
    other = Page(descriptor)
    for slot in (0, COUNTER_SLOTS - 1):
        mine, theirs = page.counters(slot), other.counters(slot)
        assert len(mine) == COUNTERS_PER_SLOT
        mine[0] += 3
        mine[COUNTERS_PER_SLOT - 1] += 2**63
        assert (theirs[0], theirs[COUNTERS_PER_SLOT - 1]) == (3, 2**63)
        mine.release()
        theirs.release()
    assert other.read_row(0) == SessionRow()
    other.close()


def test_the_fence(page: Page) -> None:
    page.write_fence(2**63 + 1)
    assert page.read_fence() == 2**63 + 1
    assert page.challenge_key == KEY


WORDS: dict[str, tuple[Callable[[Page, int], None], Callable[[Page], object]]] = {
    "activity": (
        lambda page, value: page.write_activity(0, *[value] * 6),
        lambda page: page.read_activity(0)[:6],
    ),
    "heard": (lambda page, value: page.write_heard(0, value), lambda page: page.read_activity(0).heard_ns),
    "forged": (lambda page, value: page.write_forged(0, value), lambda page: page.read_activity(0).forged),
    "highest": (
        lambda page, value: page.write_highest(0, 7, value - 1),
        lambda page: page.read_highest(0, 7),
    ),
    "fence": (lambda page, value: page.write_fence(value), lambda page: page.read_fence()),
}
#: Each byte of one differs from that of the other, and none is zero.
ONE, OTHER = 0x0101010101010101, 0x7272727272727272
READS = 50_000


def halves(page: Page, read: Callable[[Page], object]) -> set[object]:
    """What was seen that nobody has written."""
    written = {ONE, OTHER, ONE - 1, OTHER - 1}
    seen: set[object] = set()
    for _ in range(READS):
        found = read(page)
        seen |= set(found) if isinstance(found, tuple) else {found}
    return seen - written


@pytest.mark.parametrize("name", WORDS)
def test_a_reader_sees_old_or_new_and_nothing_between(page: Page, descriptor: int, name: str) -> None:
    write, read = WORDS[name]
    write(page, ONE)
    child = os.fork()
    if child == 0:
        status = 2
        try:
            status = 1 if halves(Page(descriptor), read) else 0
        finally:
            os._exit(status)
    status = None
    while status is None:
        for _ in range(100):
            write(page, OTHER)
            write(page, ONE)
        ended, how = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(how) if ended else None
    assert status == 0


def test_a_row_that_was_never_finished_is_not_believed(page: Page, descriptor: int) -> None:
    """A supervisor killed while writing leaves the lock odd and the bytes half new."""
    page.write_row(0, full_row())
    os.pwrite(descriptor, b"\1", RECORDS)
    assert page.read_row(0) == full_row()
    os.pwrite(descriptor, b"half", RECORDS + 20)
    with pytest.raises(page_module.TornRow):
        page.read_row(0)
    page.write_row(0, full_row())
    assert page.read_row(0) == full_row()


def test_other_descriptors_are_refused() -> None:
    descriptor = os.memfd_create("not-a-page")
    os.ftruncate(descriptor, RECORDS + RECORD_BYTES)
    with pytest.raises(ValueError, match="shared page"):
        Page(descriptor)
    os.close(descriptor)
