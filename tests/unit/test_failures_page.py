"""docs/failures.md: each failure names tests that exist, and each test with a failure's id in its name stands there."""

import re
from pathlib import Path

import pytest
from test_conformance import defined_in

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "failures.md"
OF_F20 = "test_f20_traffic_goes_on_without_a_supervisor_and_under_the_next"
_ROW = re.compile(r"^\| F(\d+) \| (.+?) \| (.+) \|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")
_OF_A_ROW = re.compile(r"test_f(\d+)_")


def rows(text: str) -> list[tuple[int, list[tuple[str, str]]]]:
    """Number of the failure, and the file and name of each test that shows what happens."""
    return [(int(number), _TEST.findall(shown)) for number, _, shown in _ROW.findall(text)]


def findings(text: str) -> list[str]:
    """What is wrong with the page."""
    wrong, numbers = [], [number for number, _ in rows(text)]
    if numbers != sorted(set(numbers)) or not numbers:
        wrong.append("the rows are not in order")
    for number, tests in rows(text):
        if not tests:
            wrong.append(f"nothing shows F{number}")
        for path, name in tests:
            own = _OF_A_ROW.match(name.split("::")[-1])
            if not (ROOT / path).is_file() or name not in defined_in(ROOT / path):
                wrong.append(f"no test {path}::{name}")
            elif own and int(own[1]) != number:
                wrong.append(f"{name} is not of F{number}")
    return wrong


def written_for_a_failure() -> list[tuple[int, str, str]]:
    found = []
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        for name in sorted(defined_in(path)):
            own = _OF_A_ROW.match(name.split("::")[-1])
            if own:
                found.append((int(own[1]), str(path.relative_to(ROOT)), name))
    return found


def test_every_failure_is_shown_by_tests_that_exist() -> None:
    assert findings(PAGE.read_text()) == []


def test_every_test_for_a_failure_stands_on_the_page() -> None:
    named = {(number, *test) for number, tests in rows(PAGE.read_text()) for test in tests}
    assert [test for test in written_for_a_failure() if test not in named] == []


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("| F1 | all is well | believe us |", "nothing shows F1"),
        (
            "| F1 | it goes on | `tests/unit/test_nowhere.py::test_a` |",
            "no test tests/unit/test_nowhere.py::test_a",
        ),
        (
            f"| F1 | it goes on | `tests/netns/test_lifecycle.py::{OF_F20}` |",
            f"{OF_F20} is not of F1",
        ),
        ("no row", "the rows are not in order"),
    ],
)
def test_what_is_wrong_is_found(row: str, wrong: str) -> None:
    assert findings(row) == [wrong]
