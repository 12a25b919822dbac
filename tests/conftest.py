"""How the whole suite runs: Hypothesis profiles, the order of the folders, the marker of kernel tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Tests put their own things into modules and classes, which compiled ones do not allow (jvpn/compiled.py). Who sets it
# decides; processes that the tests start run what the machine has.
if "JVPN_INTERPRETED" in os.environ:
    import jvpn
else:
    os.environ["JVPN_INTERPRETED"] = "1"
    import jvpn  # noqa: F401

    del os.environ["JVPN_INTERPRETED"]

# No deadline anywhere: how long an example takes says more of the machine than of the code.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

_TESTS = Path(__file__).parent
_FASTEST_FIRST = ("unit", "properties", "sim", "netns", "vagrant")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a real kernel, and run quick folders before slow ones."""
    for item in items:
        if _folder(item) == "netns":
            item.add_marker(pytest.mark.netns)
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    folder = _folder(item)
    return _FASTEST_FIRST.index(folder) if folder in _FASTEST_FIRST else len(_FASTEST_FIRST)


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(_TESTS).parts[0]
