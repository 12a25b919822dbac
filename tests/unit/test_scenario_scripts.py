"""What a scenario tells scripts and configurations is checked by their own parsers, before there is any machine."""

import pytest

from jvpn.lab.places import SCENARIOS
from jvpn.lab.scenario.choosing import everything
from jvpn.lab.scenario.examined import examine
from jvpn.lab.scenario.load import parse
from jvpn.lab.scenario.model import ScenarioError

SCENARIO = """title: Scripts
row: F1
topology: {gateways: 2}
traffic: [{name: stream, kind: udp}]
timeline:
  - {at_s: 1, fault: blackhole, on: A}
  - %s
ends_at_s: 9
assertions: [session.same]
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "fault: blackhole, foo: 3",
            "fault blackhole: unknown: foo; `python -m vagrant.traffic.faults.blackhole --",
        ),
        ("fault: loss, share: 5", "fault loss: share: "),
        ("fault: loss", "fault loss: the following arguments are required: share"),
        ("fault: nat-rebind, prot: 4", "fault nat-rebind: unknown: prot"),
        ("attack: garbage-flood, rate: abc", "attack garbage-flood: rate: "),
        ("attack: garbage-flood, types: BOGUS", "attack garbage-flood: types: BOGUS is none of"),
        ("attack: version-claim", "attack version-claim: the following arguments are required: keylog"),
        ("attack: replay, gateway: nowhere", "attack replay: gateway: "),
    ],
)
def test_a_mistake_is_told_with_its_line(line: str, said: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        examine(parse(SCENARIO % f"{{at_s: 2, {line}}}", "scripts.yaml"))
    assert str(refused.value).startswith(f"scripts.yaml:7: {said}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gateway: {workers: abc}", "gateway.workers: 'abc' is "),
        ("gateway: {suites: [7]}", "gateway.suites[0]: "),
        ("client: {routes: [here]}", "client.routes[0]: "),
    ],
)
def test_what_nodes_would_not_read_is_told(line: str, said: str) -> None:
    text = SCENARIO.replace("topology:", f"{line}\ntopology:") % "{at_s: 2, do: link-up, on: A}"
    with pytest.raises(ScenarioError) as refused:
        examine(parse(text, "scripts.yaml"))
    assert str(refused.value).startswith(f"scripts.yaml: {said}")


def test_what_kept_scenarios_tell_is_taken() -> None:
    examine(everything(SCENARIOS))
    line = "{at_s: 2, attack: rival-reattach, gateway: gw2, owner: gw1, keylog: client, late: 0.5}"
    examine(parse(SCENARIO % line, "scripts.yaml"))
    examine([])
