"""The checker of claims finds what is wrong in a history, and nothing in one that is right."""

import pytest

from jvpn.sim.owner_history import BadHistory, Claim, Read, check

A, B, C, D = (1, "gw1"), (2, "gw2"), (2, "gw3"), (3, "gw3")

GOOD = {
    "one after another": ([Claim(A, B, True, 0, 1), Claim(B, D, True, 2, 3)], [Read(B, 1, 2), Read(D, 4, 5)]),
    "at once": ([Claim(A, B, True, 0, 5), Claim(A, C, False, 0, 5), Claim(B, D, True, 1, 4)], []),
    "a read while it changes": ([Claim(A, B, True, 0, 4)], [Read(B, 1, 2), Read(A, 0, 1)]),
    "no answer, and it was kept": ([Claim(A, B, None, 0, 1), Claim(B, D, True, 5, 6)], [Read(A, 2, 3)]),
    "no answer, and it was not": ([Claim(A, B, None, 0, 1), Claim(A, C, True, 5, 6)], [Read(C, 7, 8)]),
    "refused while it changes": ([Claim(A, B, True, 0, 9), Claim(A, C, False, 1, 2)], []),
}
BAD = {
    "two owners of a version": ([Claim(A, B, True, 0, 1), Claim(A, C, True, 0, 1)], []),
    "two owners, one without an answer": (
        [Claim(A, B, None, 0, 1), Claim(A, C, True, 2, 3)],
        [Read(B, 4, 5)],
    ),
    "on what never was": ([Claim(B, D, True, 0, 1)], []),
    "a version again": ([Claim(B, A, True, 0, 1)], []),
    "before what it has seen": ([Claim(A, B, True, 5, 6), Claim(B, D, True, 0, 1)], []),
    "a read from the past": ([Claim(A, B, True, 0, 1)], [Read(A, 2, 3)]),
    "a read from the future": ([Claim(A, B, True, 4, 5)], [Read(B, 0, 1)]),
    "reads that go back": ([Claim(A, B, True, 0, 9)], [Read(B, 1, 2), Read(A, 3, 4)]),
    "a read of nothing": ([], [Read(B, 0, 1)]),
    "refused for nothing": ([Claim(A, B, True, 5, 6), Claim(A, C, False, 1, 2)], []),
    "refused what it had": ([Claim(A, B, True, 0, 1), Claim(B, D, False, 2, 3)], []),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_right_history_is_right(name: str) -> None:
    claims, reads = GOOD[name]
    assert check(A, claims, reads)[0] == A


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_history_is_found(name: str) -> None:
    claims, reads = BAD[name]
    with pytest.raises(BadHistory):
        check(A, claims, reads)
