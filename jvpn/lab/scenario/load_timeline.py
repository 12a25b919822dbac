"""A scenario's timeline: faults, attacks, things to do, and the end of what they began."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from jvpn.lab.backends.topology import CLIENT, GATEWAYS, Topology, roles
from jvpn.lab.places import SCRIPTS
from jvpn.lab.scenario.given import ENDS
from jvpn.lab.scenario.model import (
    ATTACK,
    DO,
    FAULT,
    LABEL,
    LABEL_RULE,
    ON,
    STEP_KINDS,
    STOP,
    Step,
)
from jvpn.lab.scenario.steps import STEPS
from jvpn.lab.scenario.steps.registry import OneOf, Within
from jvpn.lab.scenario.values import mapping
from jvpn.policy.source import Source, join, nearest

_COMMON: Final = ("at_s", "on", "as", *STEP_KINDS)
_TYPES: Final[dict[type, str]] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "fields"
}  # fmt: skip


def timeline(
    source: Source, node: yaml.Node, topology: Topology, ends_at_s: float, streams: set[str]
) -> tuple[Step, ...]:
    """The steps in the order of their times, which must be the file's."""
    steps: list[Step] = []
    begun: dict[str, Step] = {}
    stopped: set[str] = set()
    for field, item in source.items(node, "timeline"):
        step = _step(source, item, field, topology)
        if step.at_s > ends_at_s:
            source.fail(item, join(field, "at_s"), f"later than ends_at_s, {ends_at_s:g}", "move one of them")
        if steps and step.at_s < steps[-1].at_s:
            source.fail(item, join(field, "at_s"), "earlier than the line before", "put the lines in order")
        if step.kind == STOP:
            _may_be_stopped(source, item, join(field, STOP), step, begun, stopped)
            stopped.add(step.name)
        elif step.label in begun.keys() | streams:
            source.fail(item, join(field, "as"), f"{step.label!r} is taken", "give another name")
        elif step.label:
            begun[step.label] = step
        steps.append(step)
    return tuple(steps)


def _may_be_stopped(
    source: Source, item: yaml.Node, field: str, step: Step, begun: dict[str, Step], stopped: set[str]
) -> None:
    if step.name not in begun:
        remedy = nearest(step.name, begun) if begun else "give that line a name with as: NAME"
        source.fail(item, field, f"nothing before it is called {step.name!r}", remedy)
    if step.name in stopped:
        source.fail(item, field, f"{step.name!r} is stopped before", "remove one of the two lines")
    ended = begun[step.name]
    if ended.kind == DO and STEPS[ended.name].undo is None:
        source.fail(item, field, f"{ended.name} cannot be taken back", "remove this line")


def _step(source: Source, item: yaml.Node, field: str, topology: Topology) -> Step:
    values = mapping(source, item, field)
    nodes = {key.value: value for key, value in item.value}
    kinds = [kind for kind in STEP_KINDS if kind in nodes]
    if len(kinds) != 1:
        remedy = "write {at_s: 2, fault: NAME, …}, or attack: NAME, do: NAME, stop: MARK"
        source.fail(item, field, "a step is one of fault, attack, do and stop", remedy)
    if "at_s" not in nodes:
        source.fail(item, join(field, "at_s"), "missing", "add the second at which it happens")
    kind = kinds[0]
    name = source.text(nodes[kind], join(field, kind))
    parameters = {key: value for key, value in values.items() if key not in _COMMON}
    on = source.choice(nodes["on"], join(field, "on"), ON) if "on" in nodes else ""
    if on in ("A", "B") and on not in topology.uplinks:
        source.fail(nodes["on"], join(field, "on"), f"there is no uplink {on}", "see topology.uplinks")
    label = source.text(nodes["as"], join(field, "as")) if "as" in nodes else ""
    if label and not LABEL.fullmatch(label):
        source.fail(nodes["as"], join(field, "as"), f"{label!r} cannot be a mark's name", LABEL_RULE)
    if kind in (FAULT, ATTACK):
        _known_script(source, nodes[kind], join(field, kind), kind, name)
        _names_of_script(source, nodes, field, topology)
        on = on or "active"
    elif kind == DO:
        parameters = _fields_of_step(source, item, field, name, parameters, on)
        if STEPS[name].fleet and topology.gateways < 2:
            source.fail(
                nodes[DO], join(field, DO), f"{name} is about a fleet's store", "add gateways: 2 to topology"
            )
        _names_of_step(source, item, field, name, parameters, topology)
    elif parameters or on or label:
        source.fail(item, field, "a stop takes nothing else", f"write {{at_s: 6, stop: {name}}}")
    at_s = source.number(nodes["at_s"], join(field, "at_s"), 0, 3600)
    return Step(at_s, kind, name, on, label, parameters, item.start_mark.line + 1)


def _known_script(source: Source, node: yaml.Node, field: str, kind: str, name: str) -> None:
    known = sorted(path.stem.replace("_", "-") for path in (SCRIPTS / f"{kind}s").glob("*.py") if _runs(path))
    if name not in known:
        remedy = nearest(name, known) if known else f"there are no scripts in vagrant/traffic/{kind}s"
        source.fail(node, field, f"there is no {kind} {name!r}", remedy)


def _names_of_script(source: Source, nodes: dict[str, yaml.Node], field: str, topology: Topology) -> None:
    """What a script is told of machines by their names."""
    holders, gateways = (CLIENT, *topology.gateway_names), topology.gateway_names
    for key, names in (("machine", topology.machine_names), ("keylog", holders), ("public_key", gateways)):
        if key in nodes:
            source.choice(nodes[key], join(field, key), names)
    for key in ENDS:
        if key in nodes and (name := source.text(nodes[key], join(field, key))) in GATEWAYS:
            _known(source, nodes[key], join(field, key), name, gateways)


def _names_of_step(
    source: Source, item: yaml.Node, field: str, name: str, values: dict[str, Any], topology: Topology
) -> None:
    nodes = {key.value: value for key, value in item.value}
    usual = STEPS[name].fields
    known = {
        "gateway": topology.gateway_names,
        "machine": topology.machine_names,
        "who": (
            CLIENT,
            *topology.gateway_names,
            *([usual["who"]] if isinstance(usual.get("who"), str) else []),
        ),
    }
    for key, names in known.items():
        if key in values:
            _known(source, nodes.get(key, item), join(field, key), values[key], names)
    if "device" in values:
        devices = tuple(roles(values["gateway"], topology))
        _known(source, nodes.get("device", item), join(field, "device"), values["device"], devices)


def _known(source: Source, node: yaml.Node, field: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        source.fail(node, field, f"there is no {name!r} in this scenario", f"use one of {', '.join(names)}")


def _runs(path: Path) -> bool:
    """Whether it is a script, and not what scripts are made of."""
    return "__main__" in path.read_text(encoding="utf-8")


def _fields_of_step(
    source: Source, item: yaml.Node, field: str, name: str, given: dict[str, Any], on: str
) -> dict[str, Any]:
    """What was given and, for the others, defaults."""
    nodes = {key.value: value for key, value in item.value}
    if name not in STEPS:
        source.fail(nodes[DO], join(field, DO), f"there is no step {name!r}", nearest(name, STEPS))
    kind = STEPS[name]
    if on and not kind.takes_on:
        source.fail(nodes["on"], join(field, "on"), f"{name} is of no uplink", "remove it")
    if kind.takes_on and not on:
        source.fail(item, join(field, "on"), "missing", f"add on: with one of {', '.join(ON)}")
    fields = {key: getattr(usual, "usual", usual) for key, usual in kind.fields.items()}
    values = {key: value for key, value in fields.items() if not isinstance(value, type)}
    for key, value in given.items():
        if key not in kind.fields:
            remedy = nearest(key, kind.fields) if kind.fields else f"{name} takes none"
            source.fail(nodes[key], join(field, key), "unknown field", remedy)
        values[key] = _of_type(source, nodes[key], join(field, key), value, fields[key])
        _within(source, nodes[key], join(field, key), values[key], kind.fields[key])
    for key, usual in fields.items():
        if key not in values:
            source.fail(item, join(field, key), "missing", f"add {_TYPES[usual]}")
    return values


def _within(source: Source, node: yaml.Node, field: str, value: Any, usual: Any) -> None:
    if isinstance(usual, OneOf) and value not in usual.values:
        words = ", ".join(map(str, usual.values))
        source.fail(node, field, f"{value!r} is none of {words}", f"use one of {words}")
    if isinstance(usual, Within) and not usual.least <= value <= usual.most:
        problem = f"{value} is not in {usual.least} … {usual.most}"
        source.fail(node, field, problem, "give a number of that range")


def _of_type(source: Source, node: yaml.Node, field: str, value: Any, usual: Any) -> Any:
    wanted = usual if isinstance(usual, type) else type(usual)
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is str and isinstance(value, bool | int | float):
        return source.text(node, field)
    if type(value) is not wanted:
        source.fail(node, field, f"not {_TYPES[wanted]}", f"give {_TYPES[wanted]}")
    return value
