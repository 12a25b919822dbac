"""What `jvpn status` of a client calls its paths."""

from core_pair import GATEWAY, CorePair
from fleet_pair import SECOND, FleetPair

from jvpn.agent.admin import path_state
from jvpn.supervisor.node_drain import DEFAULT_PER_S


def shown(pair: CorePair) -> dict[str, str]:
    """States by the uplink's number and the endpoint that the path leads to."""
    session = pair.client.session
    assert session is not None
    paths, active = session.paths.paths, session.paths.active_path
    ends = {GATEWAY: "first", SECOND: "second"}
    return {
        f"{number} {ends[path.uplink.remote]}": path_state(path, active, pair.now_ns)
        for number, path in sorted(paths.items())
    }


def test_a_gateway_that_does_not_have_the_session_is_no_dead_path() -> None:
    pair = FleetPair()
    pair.wait_for(lambda: pair.attached)
    assert shown(pair) == {"0 first": "active", "1 second": "probing"}
    pair.wait_for(lambda: shown(pair)["1 second"] != "probing")
    assert shown(pair) == {"0 first": "active", "1 second": "standby"}
    # It has the session now: the other one answers as little as it did.
    pair.gateway.drain.begin(DEFAULT_PER_S, "", pair.now_ms)
    pair.settle()
    pair.wait_for(lambda: pair.second.context.sessions and shown(pair)["1 second"] == "active")
    pair.wait_for(lambda: shown(pair)["0 first"] == "standby")


def test_a_path_to_the_owner_that_does_not_answer_is_dead() -> None:
    pair = FleetPair(ways=((GATEWAY,), (GATEWAY,)), uplinks=2)
    pair.rules.append(lambda flight: [] if flight.uplink == 1 else None)
    pair.wait_for(lambda: pair.attached)
    pair.wait_for(lambda: shown(pair)["1 first"] == "dead")
    pair.link(1, False)
    assert shown(pair)["1 first"] == "dead"
