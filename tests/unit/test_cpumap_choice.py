"""Where frames may cross to their owner's CPU: wherever none can be lost by it."""

import pytest

from jvpn.supervisor.interfaces import may_cross


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({}, False),
        ({"eth0": "none"}, False),
        ({"eth0": "generic"}, False),
        ({"eth0": "native"}, True),
        ({"eth0": "native", "eth1": "native", "bond0": "native"}, True),
        ({"eth0": "native", "veth0": "none"}, True),
        ({"veth0": "native"}, False),
        # A container's clients behind a veth, all others behind hardware.
        ({"eth0": "native", "veth0": "native"}, False),
        ({"eth0": "none", "veth0": "native"}, False),
    ],
)
def test_not_where_a_frame_may_come_from_a_veth(modes: dict[str, str], expected: bool) -> None:
    kinds = {"lo": None, "eth0": None, "eth1": None, "bond0": "bond", "veth0": "veth"}
    assert may_cross(modes, kinds) is expected
