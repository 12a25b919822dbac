"""YAML nodes as plain values, where no schema says what they are: `off` stays a word, `1:30` is no number."""

from __future__ import annotations

import re
from typing import Any

import yaml

from jvpn.policy.source import Source, join

_INTEGER = re.compile(r"[+-]?[0-9][0-9_]*")
_NUMBER = re.compile(r"[+-]?[0-9][0-9_]*(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_TRUTH = {"true": True, "false": False, "yes": True, "no": False}


def scalar(source: Source, node: yaml.Node, field: str) -> bool | int | float | str:
    """One value: number, true or false, or text."""
    text = source.text(node, field)
    return value_of(text) if isinstance(node, yaml.ScalarNode) and node.style is None else text


def value_of(text: str) -> bool | int | float | str:
    """What a plain word is."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    return _TRUTH.get(text, text)


def plain(source: Source, node: yaml.Node, field: str) -> Any:
    """A value, or lists and mappings of such."""
    if isinstance(node, yaml.SequenceNode):
        return [plain(source, item, name) for name, item in source.items(node, field)]
    if isinstance(node, yaml.MappingNode):
        return mapping(source, node, field)
    return scalar(source, node, field)


def mapping(source: Source, node: yaml.Node, field: str) -> dict[str, Any]:
    """Fields that are not known beforehand; one that is given twice is an error."""
    if not isinstance(node, yaml.MappingNode):
        source.fail(node, field, "not a list of fields", "write one 'name: value' per line")
    found: dict[str, Any] = {}
    for key, value in node.value:
        name = source.text(key, field)
        if name in found:
            source.fail(key, join(field, name), "given twice", "remove one of the two")
        found[name] = plain(source, value, join(field, name))
    return found
