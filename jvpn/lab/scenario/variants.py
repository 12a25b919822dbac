"""A scenario's parameters: their values in each variant, `$name` replaced by them, and names that say them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml

from jvpn.lab.scenario.model import ScenarioError
from jvpn.lab.scenario.values import scalar
from jvpn.policy.source import Source, nearest

Values = dict[str, "bool | int | float | str"]
_USE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
#: A comma ahead of the next parameter; others are of a value.
_NEXT = re.compile(r",(?=\s*[A-Za-z_]\w*\s*=)")
_NAME = re.compile(r"(?P<stem>[^\[\]]+)(?:\[(?P<values>[^\[\]]*)\])?")


def fields(source: Source, node: yaml.Node, field: str) -> Values:
    """A mapping of names to single values."""
    if not isinstance(node, yaml.MappingNode):
        source.fail(node, field, "not a list of fields", "write {name: value, …}")
    return {
        source.text(key, field): scalar(source, value, f"{field}.{source.text(key, field)}")
        for key, value in node.value
    }


def variants(source: Source, parameters: Values, node: yaml.Node | None) -> list[Values]:
    """Every variant's values, parameters that it does not name as they are; one of them where there are none."""
    if node is None:
        return [parameters]
    found = []
    for field, item in source.items(node, "variants"):
        given = fields(source, item, field)
        for name in given:
            if name not in parameters:
                source.fail(
                    item, f"{field}.{name}", "no parameter of this scenario", _remedy(name, parameters)
                )
        values = {**parameters, **given}
        if values in found:
            source.fail(item, field, "the same as a variant above", "remove one of the two")
        found.append(values)
    if not found:
        source.fail(node, "variants", "the list is empty", "write at least one, or remove the line")
    return found


def _remedy(name: str, parameters: Mapping[str, object]) -> str:
    if not parameters:
        return "add it to parameters, with its usual value"
    return f"{nearest(name, parameters)} Or add it to parameters"


def replaced(source: Source, node: yaml.Node, field: str, values: Mapping[str, object]) -> yaml.Node:
    """The same node with every `$name` in it replaced; each keeps its line."""
    if isinstance(node, yaml.ScalarNode):
        text = _USE.sub(lambda use: _value(source, node, field, use, values), node.value)
        return yaml.ScalarNode(node.tag, text, node.start_mark, node.end_mark, node.style)
    if isinstance(node, yaml.SequenceNode):
        items = [replaced(source, item, f"{field}[{n}]", values) for n, item in enumerate(node.value)]
        return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)
    assert isinstance(node, yaml.MappingNode)
    pairs = [
        (key, replaced(source, value, f"{field}.{key.value}" if field else str(key.value), values))
        for key, value in node.value
    ]
    return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)


def _value(
    source: Source, node: yaml.Node, field: str, use: re.Match[str], values: Mapping[str, object]
) -> str:
    name = use[1] or use[2]
    if name not in values:
        source.fail(node, field, f"${name} is no parameter of this scenario", _remedy(name, values))
    return text_of(values[name])


def text_of(value: object) -> str:
    """As YAML and names have it: true, not True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def full_name(stem: str, values: Mapping[str, object]) -> str:
    """`stem[one=1,two=2]`; the stem alone without parameters."""
    inside = ",".join(f"{name}={text_of(value)}" for name, value in sorted(values.items()))
    return f"{stem}[{inside}]" if inside else stem


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """Inverse of `full_name`, values as text. Raises ScenarioError."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ScenarioError(
            name, 0, "", "not a scenario's name", "write NAME or NAME[parameter=value,…], in quotes"
        )
    given: dict[str, str] = {}
    for part in _NEXT.split(match["values"] or ""):
        key, equals, value = (word.strip() for word in part.partition("="))
        if equals and key and value:
            given[key] = value
        elif part.strip():
            raise ScenarioError(
                name, 0, part, "not parameter=value", "write NAME[parameter=value,…], in quotes"
            )
    return match["stem"], given


def chosen(
    file: str, all_variants: Sequence[Values], given: Mapping[str, str], parse: Mapping[str, object]
) -> list[Values]:
    """The variants that have the *given* values. A value that no variant has is put in place of theirs; *parse* has
    it as a value. Raises ScenarioError for a name that is no parameter."""
    found = [dict(values) for values in all_variants]
    for name, text in given.items():
        if name not in all_variants[0]:
            names = ", ".join(sorted(all_variants[0]))
            remedy = f"it has: {names}" if names else "it has none: name it without brackets"
            raise ScenarioError(file, 0, name, "no parameter of this scenario", remedy)
        having = [values for values in found if text_of(values[name]) == text]
        if having:
            found = having
            continue
        for values in found:
            values[name] = parse[name]  # type: ignore[assignment]
        found = [values for n, values in enumerate(found) if values not in found[:n]]
    return found
