"""The same scenario on slower machines: what is put off and what stays."""

from dataclasses import replace
from pathlib import Path

from jvpn.lab.backends.topology import Topology
from jvpn.lab.places import SCENARIOS
from jvpn.lab.scenario.choosing import choose
from jvpn.lab.scenario.expressions import Measure, Value
from jvpn.lab.scenario.measures import streams
from jvpn.lab.scenario.model import FAULT, Scenario
from jvpn.lab.scenario.record import Record, Snapshot
from jvpn.lab.scenario.stretched import stretched


def of(name: str) -> Scenario:
    return choose([str(Path(SCENARIOS) / f"{name}.yaml")])[0]


def test_nothing_changes_on_machines_that_are_as_fast() -> None:
    scenario = of("f2-blackhole")
    assert stretched(scenario, 1.0) is scenario


def test_moments_are_later_and_streams_send_less_often_and_nothing_else_is_another() -> None:
    scenario = of("f2-blackhole")
    slower = stretched(scenario, 4.0)
    assert [step.at_s for step in slower.timeline] == [4 * step.at_s for step in scenario.timeline]
    assert slower.ends_at_s == 4 * scenario.ends_at_s
    assert [traffic.hz for traffic in slower.traffic] == [traffic.hz / 4 for traffic in scenario.traffic]
    assert slower.pace == 4.0
    same = replace(
        slower,
        topology=scenario.topology,
        policy=scenario.policy,
        timeline=scenario.timeline,
        ends_at_s=scenario.ends_at_s,
        traffic=scenario.traffic,
        pace=scenario.pace,
    )
    assert same == scenario


def test_a_fault_lasts_as_much_longer_as_the_timeline() -> None:
    scenario = of("f2-blackhole")
    step = next(step for step in scenario.timeline if step.kind == FAULT)
    limited = replace(
        scenario, timeline=(replace(step, parameters={"for": 1.5, "rate": 500, "share": 0.25}),)
    )
    [later] = stretched(limited, 4.0).timeline
    assert later.parameters == {"for": 6.0, "rate": 125.0, "share": 0.25}


def test_a_narrow_uplink_carries_so_much_less_through_the_same_queue_and_its_delay_stays() -> None:
    scenario = of("quic-simple-p2p")
    before, after = scenario.topology.uplinks["A"], stretched(scenario, 5.0).topology.uplinks["A"]
    assert (before.rate_mbit, before.queue_ms) == (10, 30)
    assert (after.rate_mbit, after.queue_ms) == (2, 150)
    assert after.rtt_ms == before.rtt_ms


def test_times_by_which_paths_are_judged_grow_up_to_what_a_policy_may_say() -> None:
    scenario = replace(of("f1-link-down"), policy={"probe_interval_ms": 250, "session_ttl_ms": 60_000})
    assert stretched(scenario, 4.0).policy == {"probe_interval_ms": 1000, "session_ttl_ms": 60_000}
    assert stretched(scenario, 1000.0).policy["probe_interval_ms"] == 10_000


def test_transfers_are_measured_in_seconds_of_the_scenario() -> None:
    class Sent:
        def measure(self, name: str, start_ns: int, end_ns: int) -> Value:
            return 1.5 if name == "mbit_s" else 40.0

    record = Record(
        Topology(), {}, 0, 10**9, Snapshot({}), Snapshot({}), transfers={"bulk": Sent()}, pace=4.0
    )
    measured = {name: streams.value(record, Measure(("bulk", name))) for name in ("mbit_s", "silence_ms")}
    assert measured == {"mbit_s": 6.0, "silence_ms": 40.0}
