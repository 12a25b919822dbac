"""A timeline's mistakes are told when the file is read: with file, line and field, before any machine is made."""

import pytest

from jvpn.lab.scenario.load import parse
from jvpn.lab.scenario.model import ScenarioError

SCENARIO = """title: Steps
row: F1
topology: {gateways: %d}
traffic: [{name: stream, kind: udp}]
timeline:
  - %s
  - {at_s: 5, do: link-up, on: A}
ends_at_s: 9
assertions: [session.same]
"""
BEGUN = "{at_s: 1, fault: blackhole, on: A, as: hole}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{at_s: 1, do: reload, gateway: gw2}", "[0].gateway: there is no 'gw2' in this scenario; use one of gw1"),
        ("{at_s: 1, do: freeze, who: nobody}", "[0].who: there is no 'nobody' in this scenario; use one of client"),
        ("{at_s: 1, do: freeze, who: everybody}", "[0].who: there is no 'everybody'"),
        ("{at_s: 1, do: write-file, machine: mars, path: x, text: y}", "[0].machine: there is no 'mars'"),
        ("{at_s: 1, do: foreign-xdp, device: upA}", "[0].device: there is no 'upA' in this scenario; use one of out"),
        ("{at_s: 1, do: foreign-xdp, mode: weird}", "[0].mode: 'weird' is none of native, generic"),
        ("{at_s: 1, do: fill-disk, what: logs}", "[0].what: 'logs' is none of store, events"),
        ("{at_s: 1, do: fill-disk}", "[0].what: missing"),
        ("{at_s: 1, do: start-gateway-without, missing: luck}", "[0].missing: 'luck' is none of bpf"),
        ("{at_s: 1, do: address-lost, on: A, version: 5}", "[0].version: 5 is none of 4, 6"),
        ("{at_s: 1, do: flap, on: A, times: -4}", "[0].times: -4 is not in 1 … 1000"),
        ("{at_s: 1, do: wall-clock, days: 99999999999}", "[0].days: 99999999999 is not in"),
        ("{at_s: 1, do: wall-clock, who: x, days: 1}", "[0].who: there is no 'x' in this scenario; use one of client"),
        ("{at_s: 1, do: kill-store}", "[0].do: kill-store is about a fleet's store; add gateways: 2"),
        ("{at_s: 1, attack: replay, gateway: gw2}", "[0].gateway: there is no 'gw2'"),
        ("{at_s: 1, attack: fuzz, keylog: router}", "[0].keylog: 'router' is not one of the choices"),
        ("{at_s: 1, attack: fuzz, public_key: gw2}", "[0].public_key: 'gw2' is not one of the choices"),
        ("{at_s: 1, attack: fuzz, machine: mars}", "[0].machine: 'mars' is not one of the choices"),
        ("{at_s: 1, do: kill-worker, as: h}\n  - {at_s: 2, stop: h}", "[1].stop: kill-worker cannot be taken back"),
        (f"{BEGUN}\n  - {{at_s: 2, stop: hole}}\n  - {{at_s: 3, stop: hole}}", "[2].stop: 'hole' is stopped before"),
    ],
)  # fmt: skip
def test_what_a_step_names_is_there_and_may_be(line: str, said: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        parse(SCENARIO % (1, line), "steps.yaml")
    number = 6 + line.count("\n")
    assert str(refused.value).startswith(f"steps.yaml:{number}: timeline{said}")


@pytest.mark.parametrize(
    "line",
    [
        "{at_s: 1, do: reload, gateway: gw2}",
        "{at_s: 1, do: kill-store, machine: gw2}",
        "{at_s: 1, do: wall-clock, days: -30}",
        "{at_s: 1, attack: rival-reattach, gateway: gw2, owner: gw1, keylog: gw2}",
        "{at_s: 1, attack: replay, gateway: '10.202.2.2:51820'}",
        f"{BEGUN}\n  - {{at_s: 2, stop: hole}}",
    ],
)
def test_what_a_fleet_has_may_be_named(line: str) -> None:
    [scenario] = parse(SCENARIO % (2, line), "steps.yaml")
    assert len(scenario.timeline) == 2 + line.count("\n")
