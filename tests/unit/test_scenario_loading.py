"""Scenarios as files: what is read, which variants there are, who is meant by a name, and errors that say where."""

from pathlib import Path

import pytest

from jvpn.lab.places import SCENARIOS
from jvpn.lab.scenario.choosing import choose, everything
from jvpn.lab.scenario.load import parse
from jvpn.lab.scenario.model import Scenario, ScenarioError

TEXT = """\
title: The active path falls silent, ${rtt_ms}ms away
row: F2
short: {direction: both}
parameters: {rtt_ms: 20, direction: both}
variants: [{direction: both}, {direction: up}]
topology: {uplinks: {A: {rtt_ms: $rtt_ms}, B: {rtt_ms: $rtt_ms, loss: 0.1}}, gateways: 1}
policy: {idle_probe_interval_ms: 500}
gateway: {workers: 2}
client: {preferences: {A: 100, B: 50}, endpoints: [v6, v4]}
traffic:
  - {name: stream, kind: udp, hz: 200}
  - {name: bulk, kind: iperf, reverse: true}
timeline:
  - {at_s: 2, fault: blackhole, on: active, direction: $direction, as: hole}
  - {at_s: 3, do: kill-worker, busy: false}
  - {at_s: 6, stop: hole}
ends_at_s: 8
assertions:
  - session.same
  - stream.down.silence_ms[hole] < 2 * $rtt_ms + 100
  - events.gateway.TRANSPORT_SWITCH == 1
  - hole.counters.up_dropped > 0
"""


def parsed(text: str = TEXT) -> list[Scenario]:
    return parse(text, "f2-blackhole.yaml")


def test_a_scenario_is_read_once_for_each_variant_with_its_parameters_filled_in() -> None:
    both, up = parsed()
    assert (both.name, up.name) == (
        "f2-blackhole[direction=both,rtt_ms=20]",
        "f2-blackhole[direction=up,rtt_ms=20]",
    )
    assert up.title == "The active path falls silent, 20ms away"
    assert (both.short, up.short) == (True, False)
    assert up.parameters == {"rtt_ms": 20, "direction": "up"}
    assert {name: shape.rtt_ms for name, shape in up.topology.uplinks.items()} == {"A": 20, "B": 20}
    assert up.topology.uplinks["B"].loss == 0.1
    assert up.policy == {"idle_probe_interval_ms": 500}
    hole, kill, stop = up.timeline
    assert (hole.at_s, hole.kind, hole.on, hole.label, hole.line) == (2, "fault", "active", "hole", 14)
    assert hole.parameters == {"direction": "up"}
    assert kill.parameters == {"gateway": "gw1", "busy": False}
    assert (stop.kind, stop.name) == ("stop", "hole")
    assert up.assertions[1].text == "stream.down.silence_ms[hole] < 2 * 20 + 100"
    assert (up.traffic[0].hz, up.traffic[0].reverse, up.traffic[1].reverse) == (200, False, True)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("row: F2", "rwo: F2", ":2: rwo: unknown field; did you mean row?"),
        ("ends_at_s: 8\n", "", "ends_at_s: missing"),
        ("title: The", "title: [a", ":"),
        ("direction: up}]", "direction: both}]", ":5: variants[1]: the same as"),
        ("direction: up}]", "way: up}]", ":5: variants[1].way: no parameter of this scenario"),
        ("direction: $direction", "direction: $dircetion", ":14: timeline[0].direction: $dircetion is no"),
        ("gateways: 1", "gateways: 3", ":6: topology.gateways: 3 is above"),
        ("{A: {rtt_ms: $rtt_ms}", "{C: {rtt_ms: $rtt_ms}", ":6: topology.uplinks.C: unknown field"),
        ("loss: 0.1", "loss: 2", ":6: topology.uplinks.B.loss: 2.0 is above"),
        ("loss: 0.1", "loss: much", ":6: topology.uplinks.B.loss: 'much' is not a number"),
        ("interval_ms: 500", "interval_ms: 1", ":7: policy.idle_probe_interval_ms: 1 is below"),
        ("idle_probe_interval_ms", "idle_probe", ":7: policy.idle_probe: unknown field"),
        ("{workers: 2}", "{worker: 2}", ":8: gateway.worker: unknown field; did you mean workers?"),
        ("{workers: 2}", "{node_id: x}", ":8: gateway.node_id: unknown field"),
        ("[v6, v4]", "[v5]", ":9: client.endpoints[0]: 'v5' is not one of the choices"),
        ("B: 50", "C: 50", ":9: client.preferences.C: unknown field"),
        ("kind: udp", "kind: upd", ":11: traffic[0].kind: 'upd' is not one of"),
        ("name: stream", "name: session", ":11: traffic[0].name: 'session' is taken"),
        ("name: stream", "name: a-b", ":11: traffic[0].name: 'a-b' cannot be a stream's name"),
        ("hz: 200", "reverse: true", ":11: traffic[0].reverse: has no meaning for udp"),
        (
            "fault: blackhole",
            "fault: blakhole",
            ":14: timeline[0].fault: there is no fault 'blakhole'; did you",
        ),
        ("on: active", "on: C", ":14: timeline[0].on: 'C' is not one of"),
        ("as: hole", "as: a b", ":14: timeline[0].as: 'a b' cannot be a mark's name"),
        ("as: hole", "as: stream", ":14: timeline[0].as: 'stream' is taken"),
        (
            "do: kill-worker",
            "do: kill-wroker",
            ":15: timeline[1].do: there is no step 'kill-wroker'; did you",
        ),
        ("busy: false", "busy: 3", ":15: timeline[1].busy: not true or false"),
        ("busy: false", "bsy: false", ":15: timeline[1].bsy: unknown field; did you mean busy?"),
        ("busy: false", "on: A", ":15: timeline[1].on: kill-worker is of no uplink"),
        ("do: kill-worker, busy: false", "do: link-down", ":15: timeline[1].on: missing"),
        ("do: kill-worker, busy: false", "do: freeze", ":15: timeline[1].who: missing"),
        ("do: kill-worker", "fault: loss, do: kill-worker", ":15: timeline[1]: a step is one of"),
        ("{at_s: 3, do", "{do", ":15: timeline[1].at_s: missing"),
        ("at_s: 3", "at_s: 1", ":15: timeline[1].at_s: earlier than the line before"),
        ("at_s: 6", "at_s: 9", ":16: timeline[2].at_s: later than ends_at_s"),
        ("stop: hole", "stop: hol", ":16: timeline[2].stop: nothing before it is called 'hol'; did you mean"),
        ("stop: hole", "stop: hole, on: A", ":16: timeline[2]: a stop takes nothing else"),
        (
            "session.same",
            "session.smae",
            ":19: assertions[0]: session.smae: there is no measure of the session",
        ),
        (
            "session.same",
            "sesion.same",
            ":19: assertions[0]: sesion.same: there is no measure 'sesion'; did you",
        ),
        ("session.same", "session.same[hole]", ":19: assertions[0]"),
        ("silence_ms[hole]", "silence_ms[hoel]", ":20: assertions[1]"),
        ("silence_ms", "silence", ":20: assertions[1]"),
        ("stream.down", "stream", ":20: assertions[1]"),
        ("< 2", "< < 2", ":20: assertions[1]"),
        ("TRANSPORT_SWITCH", "TRANSPORT_SWICH", ":21: assertions[2]"),
        ("events.gateway", "events.gw2", ":21: assertions[2]"),
        (
            "events.gateway.TRANSPORT_SWITCH",
            "grown.gateway.worker_bad_tg",
            ":21: assertions[2]: grown.gateway.worker_bad_tg == 1: there is no counter of gateway called "
            "'worker_bad_tg'; nearest: worker_bad_tag",
        ),
        (
            "events.gateway.TRANSPORT_SWITCH",
            "counters.client.takeovers",
            ":21: assertions[2]: counters.client.takeovers == 1: there is no counter of client called",
        ),
        ("events.gateway.TRANSPORT_SWITCH", "counters.gateway.handshakes.done", ":21: assertions[2]"),
        (
            "TRANSPORT_SWITCH",
            "TRANSPORT_SWITCH.QUALTY_SWITCH",
            ":21: assertions[2]: events.gateway.TRANSPORT_SWITCH.QUALTY_SWITCH == 1: there is no reason of a "
            "TRANSPORT_SWITCH called 'QUALTY_SWITCH'; did you mean QUALITY_SWITCH?",
        ),
        ("TRANSPORT_SWITCH", "TRANSPORT_SWITCH.HANDSHAKE_OK", "no reason of a TRANSPORT_SWITCH called"),
        ("TRANSPORT_SWITCH", "KEY_EVENT.NOPE.after_ms[hole]", "no reason of a KEY_EVENT called 'NOPE'"),
        ("TRANSPORT_SWITCH", "TRANSPORT_SWITCH.QUALITY_SWITCH.NODE_DRAIN", "an event has one reason"),
        (
            "session.same",
            "session.state != ATACHED",
            ":19: assertions[0]: session.state != ATACHED: session.state is never 'ATACHED'; did you mean ATTACHED?",
        ),
        ("session.same", "session.owner != gw2", "session.owner is never 'gw2'; did you mean gw1?"),
        ("session.same", "Z != client.active", "client.active is never 'Z'; known here: A, B"),
        ("session.same", "client.state not in [ATTACHED, OVER]", "client.state is never 'OVER'"),
        ("session.same", "Z not in client.candidates", "client.candidates is never 'Z'"),
        ("session.same", "gateway.xdp != [natve]", "gateway.xdp is never 'natve'; did you mean native?"),
        (
            "[hole]",
            "[8:9]",
            ":20: assertions[1]: stream.down.silence_ms[8:9] < 2 * 20 + 100: the time asked about begins at 8 s, "
            "and the scenario ends at 8 s; ask about an earlier time, or let ends_at_s be later",
        ),
        ("[hole]", "[9:]", "begins at 9 s, and the scenario ends at 8 s"),
        ("[hole]", "[2:1]", "begins at 2 s and ends at 1 s; write [from:to] with the earlier one first"),
        ("[hole]", "[2:2]", "begins at 2 s and ends at 2 s"),
        ("[hole]", "[hole:1.5]", "begins at 2 s and ends at 1.5 s"),
        ("[hole]", "[3:hole]", "begins at 3 s and ends at 2 s"),
        ("[hole]", "[:0]", "begins at 0 s and ends at 0 s"),
        ("- session.same", "- {session: same}", ":19: assertions[0]: not a single value"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_field(before: str, after: str, said: str) -> None:
    assert before in TEXT
    with pytest.raises(ScenarioError) as refused:
        parsed(TEXT.replace(before, after, 1))
    assert str(refused.value).startswith("f2-blackhole.yaml")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "window", ["[hole]", "[hole:]", "[:hole]", "[2:99]", "[:8]", "[hole.end:]", "[7.9:]", "[:hole.end]"]
)
def test_a_time_in_which_something_can_happen_may_be_asked_about(window: str) -> None:
    assert parsed(TEXT.replace("[hole]", window))[0].assertions[1].text.endswith(f"{window} < 2 * 20 + 100")


def write(folder: Path, name: str, row: str, short: str) -> None:
    text = TEXT.replace("row: F2", f"row: {row}").replace("short: {direction: both}", f"short: {short}")
    (folder / f"{name}.yaml").write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "f10-one", "F10", "true")
    write(tmp_path, "f2-two", "F2", "{direction: up}")
    write(tmp_path, "quic-three", "'quic: blackhole'", "false")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (["f2-two"], ["f2-two[both,20]", "f2-two[up,20]"]),
        (["f2-two[direction=up]"], ["f2-two[up,20]"]),
        (["f2-two[rtt_ms=750]"], ["f2-two[both,750]", "f2-two[up,750]"]),
        (["f2-two[direction=down, rtt_ms=750]"], ["f2-two[down,750]"]),
        (["f2-two[direction=up,down,rtt_ms=20]"], ["f2-two[up,down,20]"]),
        (["F2"], ["f2-two[both,20]", "f2-two[up,20]"]),
        (["short"], ["f2-two[up,20]", "f10-one[both,20]", "f10-one[up,20]"]),
        (["f10-one[direction=up]", "F10"], ["f10-one[up,20]", "f10-one[both,20]"]),
        (["quic: blackhole"], ["quic-three[both,20]", "quic-three[up,20]"]),
    ],
)
def test_a_name_means_a_scenario_its_variants_or_a_row(
    folder: Path, names: list[str], meant: list[str]
) -> None:
    found = [
        scenario.name.replace("direction=", "").replace("rtt_ms=", "") for scenario in choose(names, folder)
    ]
    assert found == meant


def test_all_are_in_the_order_of_their_rows(folder: Path) -> None:
    assert [scenario.row for scenario in choose(["all"], folder)] == ["F2"] * 2 + ["F10"] * 2 + [
        "quic: blackhole"
    ] * 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("f2-tow", "did you mean f2-two?"),
        ("f2-two[speed=3]", "speed: no parameter of this scenario; it has: direction, rtt_ms"),
        ("f2-two[up]", "not parameter=value"),
        ("f2-two[direction=up", "not a scenario's name"),
        ("F2[direction=up]", "parameters are of one scenario"),
        ("/nowhere/x.yaml", "cannot be read"),
    ],
)
def test_a_name_that_means_nothing_says_what_to_do(folder: Path, name: str, said: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        choose([name], folder)
    assert said in str(refused.value)


def test_a_parameter_of_who_takes_none_is_told_so() -> None:
    lines = [line for line in TEXT.splitlines() if not line.startswith(("parameters", "variants", "short"))]
    text = "\n".join(lines).replace("${rtt_ms}", "20").replace("$rtt_ms", "20").replace("$direction", "both")
    assert len(parse(text, "plain.yaml")) == 1
    with pytest.raises(
        ScenarioError, match="speed: no parameter of this scenario; it has none: name it without"
    ):
        parse(text, "plain.yaml", {"speed": "3"})


def test_without_a_checkout_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="the lab needs a checkout of the project"):
        everything(tmp_path)


def test_every_scenario_of_this_checkout_can_be_read_and_has_a_name_of_its_own() -> None:
    names = [scenario.name for scenario in everything(SCENARIOS)]
    assert len(names) == len(set(names))
    assert any(scenario.short for scenario in everything(SCENARIOS))
