"""docs/conformance/: every statement names what shows it, and everything that is named exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "conformance").glob("*.md"))
#: `tests/unit/test_x.py::test_name`, perhaps with the class or the parameters of the test.
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)(?:\[[^`]*\])?`")
#: What is otherwise on purpose has its reason there instead.
_REASON = re.compile(r"\]\(\.\./decisions\.md#([\w-]+)\)")


@cache
def defined_in(path: Path) -> frozenset[str]:
    """The tests that pytest finds in a file: functions, and methods as Class::method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found |= {f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return frozenset(name for name in found if name.split("::")[-1].startswith("test_"))


def statements(text: str) -> list[str]:
    """The rows of every table whose second column says what shows the first."""
    rows, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
        elif line.replace(" ", "").startswith("|statement|shownby"):
            inside = True
        elif inside and not re.fullmatch(r"[|\s:-]+", line):
            rows.append(line)
    return rows


def findings(text: str, root: Path = ROOT) -> list[str]:
    """What is wrong with a page: tests that are not there, statements that nothing shows."""
    wrong = []
    for path, name in _NAMED.findall(text):
        if not (root / path).is_file():
            wrong.append(f"{path}: no such file")
        elif name not in defined_in(root / path):
            wrong.append(f"{path}: no test {name}")
    rows = statements(text)
    wrong += [f"nothing shows: {row}" for row in rows if not _NAMED.search(row) and not _REASON.search(row)]
    return wrong if rows else [*wrong, "no table of statements"]


def test_there_are_pages() -> None:
    assert PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_statement_is_shown_by_a_test_that_exists(page: Path) -> None:
    assert findings(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_reason_has_its_section(page: Path) -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "decisions.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(_REASON.findall(page.read_text())) <= anchors


def test_what_is_missing_is_found() -> None:
    head = "| statement | shown by |\n| --- | --- |\n"
    here = "tests/unit/test_conformance.py"
    assert findings(head + f"| a | `{here}::test_there_are_pages` |\n") == []
    assert findings(head + "| a | [reason](../decisions.md#wire) |\n") == []
    assert findings(head + f"| a | `{here}::test_nobody_wrote` |\n") == [f"{here}: no test test_nobody_wrote"]
    assert findings(head + "| a | `tests/unit/test_nowhere.py::test_a` |\n") == [
        "tests/unit/test_nowhere.py: no such file"
    ]
    assert findings(head + "| a | believe us |\n") == ["nothing shows: | a | believe us |"]
    assert findings("# A page\n") == ["no table of statements"]
