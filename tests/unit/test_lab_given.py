"""What an attack of a scenario is given of what its nodes know, and what is measured of the nodes themselves."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jvpn.lab.backends.topology import Topology
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario.expressions import Expression
from jvpn.lab.scenario.given import filled_in
from jvpn.lab.scenario.measures import value
from jvpn.lab.scenario.model import ATTACK, Step
from jvpn.lab.scenario.record import NS, Answer, Record, Snapshot


def judged(text: str, before: Snapshot, after: Snapshot) -> bool:
    record = Record(Topology(), {}, start_ns=0, end_ns=NS, before=before, after=after)
    return Expression(text).judge(lambda measure: value(record, measure)).passed


def test_memory_is_told_from_before_to_after() -> None:
    def holding(client_kb: int, *gateways_kb: int) -> Snapshot:
        gateways = {f"gw{n}": Answer(True, {}, memory_kb=kb) for n, kb in enumerate(gateways_kb, 1)}
        return Snapshot({"client": Answer(True, {}, memory_kb=client_kb)} | gateways)

    snapshots = {"before": holding(100, 1_000, 2_000), "after": holding(90, 1_200, 2_030)}
    assert judged("memory.gateway.grown_kb == 230", **snapshots)
    assert judged("memory.gw2.grown_kb == 30", **snapshots)
    assert judged("memory.client.grown_kb == 0 - 10", **snapshots)


@pytest.mark.parametrize(
    "text",
    [
        "session.count == 0",
        "session.same == false",
        "session.same",
        "session.owner != gw1",
        "counters.gateway.takeovers == 0",
        "grown.gw1.takeovers == 0",
        "grown.client.sleeps < 1",
        "memory.gateway.grown_kb < 1",
    ],
)
def test_who_does_not_answer_has_not_counted_nothing_but_says_nothing(text: str) -> None:
    lives = Answer(True, {"counters": {}, "session": "aa"}, memory_kb=100)
    before = Snapshot({"client": lives, "gw1": lives})
    after = Snapshot({name: Answer(False, {}) for name in ("client", "gw1")})
    assert judged("counters.gateway.takeovers == 0", before, before)
    assert judged("session.count == 0", before, before)
    assert not judged(text, before, after)


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        path.write_bytes(data)
        path.chmod(mode)


def test_an_attack_is_given_the_keys_of_who_was_asked_for_them(tmp_path: Path) -> None:
    machines = {name: Machine(tmp_path / name) for name in ("client", "router", "gw1")}
    for machine in machines.values():
        machine.folder.mkdir()
    nodes = SimpleNamespace(public_key="KEY=")
    scenario = SimpleNamespace(topology=Topology())
    run: Any = SimpleNamespace(machine=lambda name: machines[name], nodes=nodes, scenario=scenario)
    step = Step(1.0, ATTACK, "fuzz", "A", "", {"keylog": "client", "public_key": "gw1", "rate": 5}, 1)
    (tmp_path / "client" / "session.keys").write_bytes(b"")
    with pytest.raises(LabError, match="no keys yet"):
        filled_in(run, step)
    (tmp_path / "client" / "session.keys").write_bytes(b"JVP1 1")
    filled = filled_in(run, step)
    copy = Path(filled.parameters["keylog"])
    assert copy.parent == machines["router"].folder
    assert (copy.read_bytes(), copy.stat().st_mode & 0o777) == (b"JVP1 1", 0o600)
    assert filled.parameters | {"keylog": ""} == {"keylog": "", "public_key": "KEY=", "rate": 5}
    assert filled_in(run, replace(step, parameters={"rate": 5})).parameters == {"rate": 5}


def test_an_attack_is_told_where_a_node_is() -> None:
    run: Any = SimpleNamespace(scenario=SimpleNamespace(topology=Topology(gateways=2)))
    step = Step(1.0, ATTACK, "rival-reattach", "A", "", {"gateway": "gw2", "owner": "gw1"}, 1)
    assert filled_in(run, step).parameters == {"gateway": "10.202.2.2:51820", "owner": "10.202.1.2:51820"}
    told = replace(step, parameters={"gateway": "[fd00:202:1::2]:51820"})
    assert filled_in(run, told).parameters == told.parameters
