"""A client whose worker has to wait for its CPU just when the path is lost."""

import pytest

from jvpn.sim.matrix.acts import link, rebind, together
from jvpn.sim.matrix.holds import lost, same_session
from jvpn.sim.matrix.scene import Act, At, Flow, Scenario, Scene, run_scenario


def busy(ms: float) -> Act:
    """From now on what the client's worker says comes so late."""

    def act(scene: Scene) -> None:
        scene.world.client.reports.delay_ms = ms

    return act


@pytest.mark.parametrize("fault", [rebind(0), link(0, False)], ids=["another NAT port", "link down"])
@pytest.mark.parametrize("late_ms", [60, 100])
def test_nothing_is_lost_while_it_waits(fault: Act, late_ms: int) -> None:
    """Only the gateway sends. The REQUEST that goes without the worker's word loses all of the gap."""
    scenario = Scenario(
        "F9",
        "the worker is late",
        (At(0, together(fault, busy(late_ms))), At(500, busy(0))),
        (same_session, lost(0)),
        flows=(Flow(False, 5),),
        # With these all that is lost is still kept when the REQUEST comes.
        rtts_ms=(10, 20),
        lasts_ms=1_500,
    )
    for seed in range(2):
        found = run_scenario(scenario, seed)
        assert not found.code, found.text
