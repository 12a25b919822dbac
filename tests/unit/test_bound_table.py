"""The table of bound ids: what it holds, where there is no room, and in which order it is written."""

import sys
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from jvpn.supervisor.bound_table import PLACES, WORDS, BoundTable

PLACE_BYTES = 8 * WORDS
SOURCE, PORT = bytes(range(16)), 0x1234


def table(buckets: int) -> tuple[BoundTable, bytearray]:
    memory = bytearray(buckets * PLACES * PLACE_BYTES)
    return BoundTable(memory), memory


def held(memory: bytearray) -> list[bytes]:
    ids = (bytes(memory[at : at + 8]) for at in range(0, len(memory), PLACE_BYTES))
    return sorted(steering_id for steering_id in ids if any(steering_id))


def test_layout_of_a_place() -> None:
    one, memory = table(1)
    one.put(b"12345678", 3, SOURCE, PORT)
    assert memory[:8] == b"12345678"
    assert memory[8:24] == SOURCE
    assert memory[24:26] == PORT.to_bytes(2, "big")
    assert int.from_bytes(memory[26:28], sys.byteorder) == 3
    assert not any(memory[28:])


def test_a_full_bucket_takes_no_more_and_keeps_what_it_has() -> None:
    one, memory = table(1)
    ids = [bytes([n]) * 8 for n in range(1, PLACES + 3)]
    for steering_id in ids:
        one.put(steering_id, 2, SOURCE, PORT)
    assert held(memory) == ids[:PLACES]
    one.remove(ids[-1])
    assert held(memory) == ids[:PLACES], "what is not there is not removed"
    one.remove(ids[0])
    one.put(ids[-1], 2, SOURCE, PORT)
    assert held(memory) == sorted([*ids[1:PLACES], ids[-1]])


def test_the_id_of_a_free_place_is_never_held() -> None:
    one, memory = table(1)
    one.put(bytes(8), 2, SOURCE, PORT)
    assert not any(memory)


def test_the_first_32_bits_choose_the_bucket_evenly() -> None:
    many, memory = table(64)
    ids = [
        (upper << 26 | lower).to_bytes(4, sys.byteorder) + b"rest"
        for upper in range(64)
        for lower in range(1, PLACES + 1)
    ]
    for steering_id in ids:
        many.put(steering_id, 2, SOURCE, PORT)
    assert held(memory) == sorted(ids)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60))
def test_holds_what_was_put_and_not_removed(steps: Iterable[tuple[bool, int]]) -> None:
    small, memory = table(3)
    present = set[bytes]()
    for puts, n in steps:
        steering_id = (n * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little")
        small.remove(steering_id)
        present.discard(steering_id)
        if puts:
            before = held(memory)
            small.put(steering_id, 2, SOURCE, PORT)
            present |= set(held(memory)) - set(before)
        assert held(memory) == sorted(present)
