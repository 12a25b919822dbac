"""One time in two places: what the lease says, in the shared page and in the steering maps."""

import os
from collections.abc import Iterator

import pytest

from jvpn.supervisor.fence import Fence
from jvpn.supervisor.steering_backend import NoSteering
from workers.page import Page

MS = 1_000_000


class Recorded(NoSteering):
    """`fences`: what was written, and what the page said by then."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.fences: list[tuple[int, int]] = []

    def set_fence(self, until_ns: int) -> None:
        self.fences.append((until_ns, self.page.read_fence()))


@pytest.fixture
def page() -> Iterator[Page]:
    descriptor = Page.create(1, bytes(32))
    opened = Page(descriptor)
    os.close(descriptor)
    yield opened
    opened.close()


def test_a_fresh_page_is_never_fenced(page: Page) -> None:
    assert not Fence(page, NoSteering()).fenced(2**62 // MS)


def test_a_fence_is_in_the_page_before_it_is_in_the_maps(page: Page) -> None:
    steering = Recorded(page)
    fence = Fence(page, steering)
    fence.moved(5000)
    assert steering.fences == [(5000 * MS, 5000 * MS)]
    assert not fence.fenced(4999)
    assert fence.fenced(5000)
    fence.moved(7000)
    assert not fence.fenced(6999)


def test_a_lost_lease_is_past_and_no_lease_never(page: Page) -> None:
    steering = Recorded(page)
    fence = Fence(page, steering)
    fence.moved(0)
    assert fence.fenced(1)
    assert page.read_fence() == steering.fences[-1][0] > 0
    fence.lift()
    assert not fence.fenced(2**62 // MS)
    assert page.read_fence() == steering.fences[-1][0] == 0


def test_the_next_supervisor_is_bound_by_the_fence_it_finds(page: Page) -> None:
    Fence(page, NoSteering()).moved(5000)
    assert Fence(page, NoSteering()).fenced(5000)
