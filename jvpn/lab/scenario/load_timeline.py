"""A scenario's timeline: faults, attacks, things to do, and the end of what they began."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from jvpn.lab.backends.topology import Topology
from jvpn.lab.places import SCRIPTS
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
    for field, item in source.items(node, "timeline"):
        step = _step(source, item, field, topology)
        if step.at_s > ends_at_s:
            source.fail(item, join(field, "at_s"), f"later than ends_at_s, {ends_at_s:g}", "move one of them")
        if steps and step.at_s < steps[-1].at_s:
            source.fail(item, join(field, "at_s"), "earlier than the line before", "put the lines in order")
        running = {earlier.label for earlier in steps if earlier.label and earlier.kind != STOP}
        if step.kind == STOP and step.name not in running:
            _unknown_stop(source, item, field, step, running)
        if step.kind != STOP and step.label and step.label in running | streams:
            source.fail(item, join(field, "as"), f"{step.label!r} is taken", "give another name")
        steps.append(step)
    return tuple(steps)


def _unknown_stop(source: Source, item: yaml.Node, field: str, step: Step, running: set[str]) -> None:
    remedy = nearest(step.name, running) if running else "give that line a name with as: NAME"
    source.fail(item, join(field, STOP), f"nothing before it is called {step.name!r}", remedy)


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
        on = on or "active"
    elif kind == DO:
        parameters = _fields_of_step(source, item, field, name, parameters, on)
    elif parameters or on or label:
        source.fail(item, field, "a stop takes nothing else", f"write {{at_s: 6, stop: {name}}}")
    at_s = source.number(nodes["at_s"], join(field, "at_s"), 0, 3600)
    return Step(at_s, kind, name, on, label, parameters, item.start_mark.line + 1)


def _known_script(source: Source, node: yaml.Node, field: str, kind: str, name: str) -> None:
    known = sorted(path.stem.replace("_", "-") for path in (SCRIPTS / f"{kind}s").glob("*.py") if _runs(path))
    if name not in known:
        remedy = nearest(name, known) if known else f"there are no scripts in vagrant/traffic/{kind}s"
        source.fail(node, field, f"there is no {kind} {name!r}", remedy)


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
    values = {key: value for key, value in kind.fields.items() if not isinstance(value, type)}
    for key, value in given.items():
        if key not in kind.fields:
            remedy = nearest(key, kind.fields) if kind.fields else f"{name} takes none"
            source.fail(nodes[key], join(field, key), "unknown field", remedy)
        usual = kind.fields[key]
        values[key] = _of_type(source, nodes[key], join(field, key), value, usual)
    for key, usual in kind.fields.items():
        if key not in values:
            source.fail(item, join(field, key), "missing", f"add {_TYPES[usual]}")
    return values


def _of_type(source: Source, node: yaml.Node, field: str, value: Any, usual: Any) -> Any:
    wanted = usual if isinstance(usual, type) else type(usual)
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is str and isinstance(value, bool | int | float):
        return source.text(node, field)
    if type(value) is not wanted:
        source.fail(node, field, f"not {_TYPES[wanted]}", f"give {_TYPES[wanted]}")
    return value
