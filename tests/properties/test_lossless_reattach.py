"""Whatever a network did before it died, a reattach leaves every packet delivered once, what goes again in order.

And reports say exactly what a replay window knows.
"""

from hypothesis import given, settings
from hypothesis import strategies as st
from lossless_pair import START_MS, LossyPair

from jvpn.protocol.constants import GENERATION_SHIFT
from jvpn.protocol.replay import ReplayWindow
from workers.counters import Counter
from workers.fakes import FakeNetwork
from workers.reports import REPORTED, UNKNOWN, Missing, index_report
from workers.udp import Address

#: What becomes of a datagram: how often it arrives, and how many later ones overtake it.
FATE = st.tuples(st.sampled_from((0, 0, 1, 1, 1, 2)), st.integers(0, 6))
MOMENT = st.tuples(st.booleans(), st.integers(1, 4), st.sampled_from((60, 100, 100, 300)))


class Weather:
    """Gives each datagram its fate, as long as the path is not dead."""

    def __init__(self, network: FakeNetwork, fates: list[tuple[int, int]]) -> None:
        self._network = network
        self._fates = fates
        self._waiting: dict[Address, list[tuple[int, bytes]]] = {}
        self._count = 0
        self.dead = False

    def __call__(self, datagrams: list[bytes]) -> list[list[bytes]]:
        if self.dead:
            return []
        arrived: list[bytes] = []
        source = self._network.sent[-1][0]
        waiting = self._waiting.get(source, [])
        for datagram in datagrams:
            times, late = self._fates[self._count % len(self._fates)]
            self._count += 1
            waiting += [(self._count + late, datagram)] * times
            arrived += [d for due, d in waiting if due <= self._count]
            waiting = [(due, d) for due, d in waiting if due > self._count]
        self._waiting[source] = waiting
        return [[datagram] for datagram in arrived]


@settings(max_examples=150, deadline=None)
@given(
    fates=st.lists(FATE, min_size=1, max_size=40),
    before=st.lists(MOMENT, max_size=12),
    dead=st.lists(MOMENT, max_size=12),
    without=st.lists(MOMENT, max_size=6),
    again=st.booleans(),
)
def test_every_packet_arrives_once(
    fates: list[tuple[int, int]],
    before: list[tuple[bool, int, int]],
    dead: list[tuple[bool, int, int]],
    without: list[tuple[bool, int, int]],
    again: bool,
) -> None:
    pair = LossyPair()
    weather = Weather(pair.network, fates)
    ends = {True: (pair.client, pair.gateway), False: (pair.gateway, pair.client)}
    numbers = {True: 0, False: 0}
    now = START_MS

    def talk(moments: list[tuple[bool, int, int]]) -> None:
        nonlocal now
        for up, count, size in moments:
            now += 1
            first = numbers[up]
            numbers[up] += count
            ends[up][0].send(now, *range(first, first + count), size=size)
            pair.settle(now)

    pair.impair(weather)
    talk(before)
    weather.dead = True
    talk(dead)
    pair.lose(now)
    talk(without)
    seen = {up: set(receiver.numbers()) for up, (_, receiver) in ends.items()}
    count = {up: len(receiver.numbers()) for up, (_, receiver) in ends.items()}
    pair.reattach(now + 20, 1)
    if again:
        pair.impair(weather)
        talk(dead)
        pair.reattach(now + 20, 2)
    for up, (sender, receiver) in ends.items():
        assert sorted(receiver.numbers()) == list(range(numbers[up]))
        assert receiver.dropped().keys() <= {"REPLAYED", "NOT_BOUND"}
        assert not sender.session.waiting
        assert not sender.session.resending
        if not again:
            after = receiver.numbers()[count[up] :]
            assert after == [n for n in range(numbers[up]) if n not in seen[up]]
            assert sender.counters[Counter.RESENT_SENT] <= numbers[up]


COUNTERS = st.lists(st.integers(0, 700), max_size=60)


@given(counters=COUNTERS, generation=st.integers(0, 3), older=COUNTERS, index=st.integers(0, 2**32 - 1))
def test_a_report_says_what_the_window_knows(
    counters: list[int], generation: int, older: list[int], index: int
) -> None:
    window = ReplayWindow()
    start = (generation + 1) << GENERATION_SHIFT
    for counter in older:
        window.check_and_set((generation << GENERATION_SHIFT) + counter)
    for counter in counters:
        window.check_and_set(start + counter)
    report = index_report(index, window)
    missing = Missing([report])
    if not counters and not older:
        assert (report.next_counter, report.missing) == (0, bytes(32))
        return
    assert report.next_counter == window.highest + 1
    bits = int.from_bytes(report.missing, "little")
    base = window.highest >> GENERATION_SHIFT << GENERATION_SHIFT
    received = {start + c for c in counters} | {(generation << GENERATION_SHIFT) + c for c in older}
    for bit in range(REPORTED):
        counter = report.next_counter - 1 - bit
        assert bool(bits >> bit & 1) == (counter >= base and counter not in received)
        if counter >= 0:
            assert missing(index, counter, generation + 1) == bool(bits >> bit & 1)
    assert missing(index, report.next_counter, generation + 1)
    assert not missing(index, report.next_counter - REPORTED - 1, generation + 1)
    assert missing(index + 1, start, generation + 1)
    assert not missing(index - 1, start, generation + 1)


@given(
    counters=COUNTERS,
    first=st.integers(0, 600),
    count=st.integers(1, 64),
    index=st.integers(0, 3),
    reported=st.integers(1, 2),
)
def test_the_quick_look_passes_over_nothing_that_is_missing(
    counters: list[int], first: int, count: int, index: int, reported: int
) -> None:
    window = ReplayWindow()
    for counter in counters:
        window.check_and_set(counter)
    missing = Missing([index_report(reported, window)])
    slowly = any(missing(index, counter, 0) for counter in range(first, first + count))
    assert missing.among(index, first, count) == slowly


@given(counter=st.integers(0, UNKNOWN - 1))
def test_nothing_is_missing_when_nothing_is_known(counter: int) -> None:
    assert not Missing([])(3, counter, 0)
