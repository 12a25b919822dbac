"""The replay window against a set of integers."""

from hypothesis import given, settings
from hypothesis import strategies as st

from jvpn.protocol.constants import GENERATION_SHIFT
from jvpn.protocol.replay import ReplayWindow


class Model:
    """The obvious window: every counter ever seen, and a floor."""

    def __init__(self, size: int, seen_below: int) -> None:
        self.size = size
        self.floor = seen_below
        self.highest = seen_below - 1
        self.seen: set[int] = set()

    def is_seen(self, counter: int) -> bool:
        return counter < self.floor or counter <= self.highest - self.size or counter in self.seen

    def check_and_set(self, counter: int) -> bool:
        if self.is_seen(counter):
            return False
        self.seen.add(counter)
        self.highest = max(self.highest, counter)
        return True


#: A step is relative to the highest, where the edges are: (offset, run length; 0 = the single verb).
OFFSETS = st.one_of(
    st.integers(-70, 70), st.integers(-3, 3), st.sampled_from([-64, -63, 63, 64, 65, 1 << GENERATION_SHIFT])
)
STEPS = st.lists(st.tuples(OFFSETS, st.one_of(st.just(0), st.integers(1, 140))), max_size=60)


@settings(max_examples=400, deadline=None)
@given(
    size=st.sampled_from([1, 2, 7, 16, 20, 64]),
    seen_below=st.one_of(st.just(0), st.integers(0, 300)),
    steps=STEPS,
)
def test_window_agrees_with_a_set(size: int, seen_below: int, steps: list[tuple[int, int]]) -> None:
    window, model = ReplayWindow(size, seen_below), Model(size, seen_below)
    for offset, count in steps:
        counter = max(0, model.highest + offset)
        look = max(0, counter - 5)
        seen = window.seen_run(look, count + 10)
        assert seen == bytes(model.is_seen(c) for c in range(look, look + count + 10))
        if count:
            got = window.check_and_set_run(counter, count)
            want = bytes(model.check_and_set(c) for c in range(counter, counter + count))
            assert got == (want if 0 in want else None)
        else:
            assert window.check_and_set(counter) == model.check_and_set(counter)
        assert window.highest == model.highest
