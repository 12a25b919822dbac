"""Fixtures for tests on real kernel interfaces. Everything they make is gone after the test, also when it fails."""

import os
from collections.abc import Iterator

import pytest

from jvpn.lab import links
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.namespaces import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """An open lab with namespaces of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    with Lab("test") as opened:
        yield opened


@pytest.fixture
def two_uplinks(lab: Lab) -> links.Network[EmulatedLink]:
    """Client, gateway and uplinks A and B, 10 ms each way."""
    return links.two_uplinks(lab, rtt_ms=20)
