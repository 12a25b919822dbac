"""A policy: one frozen value per name and version, read from YAML or from the snapshot that CONFIG carries.

What each parameter means stands in `parameters.py`; this file only reads, checks, names and packs.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from pathlib import PurePath
from typing import Any, Final, TypeVar

import yaml

from jvpn.policy.parameters import (
    BY_NAME,
    HOUR,
    LABEL_RULE,
    MAX_LABELS,
    ORDERED,
    PARAMETERS,
    PATTERN_PATTERN,
    Kind,
    Parameter,
    Value,
)
from jvpn.policy.source import Source, SourceError, nearest
from jvpn.protocol.constants import CARRIED

#: Largest snapshot: one CONFIG chunk that fits a control datagram beside its frame.
MAX_WIRE_BYTES: Final = 1_100
#: Snapshots read of late whose policies are kept: a gateway's sessions have few different ones, and share them.
_KEPT: Final = 64
NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
NAME_RULE: Final = "up to 32 of a-z, 0-9 and -, not beginning with -"


class PolicyError(SourceError):
    """A policy that cannot be used: file, line, field, problem and remedy in one line."""


@dataclass(frozen=True)
class Policy:
    """Every parameter of `PARAMETERS` under its own name, checked; see there for units, bounds and meaning."""

    name: str
    session_ttl_ms: int
    transport_loss_ttl_ms: int
    recovery_window_ms: int
    on_recovery_window_exceeded: str
    max_switches_per_minute: int
    switch_cooldown_ms: int
    switch_improvement_factor: float
    volatility_hold_ms: int
    volatile_to_degraded_ms: int
    stability_window_ms: int
    hysteresis: float
    loss_floor: float
    loss_window_ms: int
    latency_floor_ms: int
    jitter_floor_ms: int
    max_candidates: int
    candidate_probe_bytes_per_day: int
    allowed_transports: tuple[str, ...]
    allowed_interfaces: tuple[str, ...]
    allowed_networks: tuple[str, ...]
    max_cost: int
    probe_interval_ms: int
    idle_probe_interval_ms: int
    drain_window_ms: int
    resend_window_ms: int
    resend_bytes: int
    rekey_interval_ms: int
    kem: str
    security_failures_before_terminate: int
    reauthenticate_on: tuple[str, ...]
    reauthenticate_interval_h: int

    @cached_property
    def canonical(self) -> bytes:
        """JSON with sorted keys and no spaces: equal policies have equal bytes on every node."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def version(self) -> str:
        """First 8 hex digits of SHA-256 over the canonical form."""
        return hashlib.sha256(self.canonical).hexdigest()[:8]

    @cached_property
    def label(self) -> str:
        """name@version, as records and events name the policy."""
        return f"{self.name}@{self.version}"

    @property
    def lifetime_ms(self) -> int:
        """How long a session lasts at most, from its handshake: its TTL, or until its peer must prove itself anew."""
        if not self.reauthenticate_interval_h:
            return self.session_ttl_ms
        return min(self.session_ttl_ms, self.reauthenticate_interval_h * HOUR)

    def to_wire(self) -> bytes:
        """The snapshot for CONFIG, at most MAX_WIRE_BYTES: the canonical form."""
        return self.canonical

    @classmethod
    def default(cls) -> "Policy":
        """The built-in policy named "default"."""
        return cls(name="default", **{p.name: p.default for p in PARAMETERS})  # type: ignore[arg-type]

    @classmethod
    def from_wire(cls, data: bytes) -> "Policy":
        """Inverse of `to_wire`, checked like a file. Raises PolicyError (file "CONFIG", line 0)."""
        return _from_wire(data)


def load(text: str, filename: str) -> Policy:
    """A policy from YAML. Fields left out have their default; `name` may be left out if it is the file's stem.

    Raises PolicyError for anything else than a policy: unknown or repeated fields, values out of bounds, a name that
    is not the file's, transports of which this build carries none.
    """
    policy, problems = examine(text, filename)
    if policy is None:
        raise problems[0]
    return policy


def examine(text: str, filename: str) -> tuple[Policy | None, list[PolicyError]]:
    """As `load`, with everything that is wrong instead of the first of it, in the order of the file's lines.

    The policy is None if and only if something is wrong.
    """
    source, problems = Source(filename, PolicyError), list[PolicyError]()
    try:
        nodes = _nodes(source, source.root(text), problems)
    except PolicyError as broken:
        return None, [broken]
    stem = PurePath(filename).stem
    name = _tried(problems, lambda: _name(source, nodes.get("name"), stem)) or stem
    values: dict[str, Value] = {}
    for parameter in PARAMETERS:
        node = nodes.get(parameter.name)
        value = (
            parameter.default if node is None else _tried(problems, partial(_read, source, node, parameter))
        )
        values[parameter.name] = parameter.default if value is None else value
    if not problems:
        _tried(problems, lambda: _together(source, nodes, values))
    if problems:
        return None, sorted(problems, key=lambda problem: problem.line)
    return Policy(name=name, **values), []  # type: ignore[arg-type]


Tried = TypeVar("Tried")


def _tried(problems: list[PolicyError], read: Callable[[], Tried]) -> Tried | None:
    """What `read()` gives, or None and one problem more."""
    try:
        return read()
    except PolicyError as problem:
        problems.append(problem)
        return None


def _nodes(source: Source, root: yaml.Node, problems: list[PolicyError]) -> dict[str, yaml.Node]:
    """The fields that are known, by name; the others are problems."""
    known = ["name", *BY_NAME]
    if not isinstance(root, yaml.MappingNode):
        return source.mapping(root, "", known)
    found: dict[str, yaml.Node] = {}
    for key, value in root.value:
        alone = yaml.MappingNode(root.tag, [(key, value)], root.start_mark)
        for name, node in (_tried(problems, partial(source.mapping, alone, "", known)) or {}).items():
            if name in found:
                _tried(problems, partial(source.fail, key, name, "given twice", "remove one of the two"))
            found[name] = node
    return found


def _name(source: Source, node: yaml.Node | None, stem: str) -> str:
    name = stem if node is None else source.text(node, "name")
    if not NAME_PATTERN.fullmatch(name):
        source.fail(node, "name", f"{name[:60]!r} cannot be a policy's name", f"use {NAME_RULE}")
    if name != stem:
        source.fail(node, "name", f"{name!r} is not the file's name", f"write {stem}, or rename the file")
    return name


def _together(source: Source, nodes: Mapping[str, yaml.Node], values: Mapping[str, Value]) -> None:
    """What single values do not show."""
    broken = _out_of_order(values)
    if broken:
        smaller, larger, problem = broken
        remedy = f"lower {smaller} or raise {larger}"
        source.fail(nodes.get(smaller) or nodes.get(larger), smaller, problem, remedy)
    allowed = values["allowed_transports"]
    assert isinstance(allowed, tuple)
    if not CARRIED & set(allowed):
        problem = f"this build carries none of {', '.join(allowed)}, so no client could connect"
        remedy = f"add {' or '.join(sorted(CARRIED))}"
        source.fail(nodes.get("allowed_transports"), "allowed_transports", problem, remedy)


def _read(source: Source, node: yaml.Node, parameter: Parameter) -> Value:
    name = parameter.name
    if parameter.kind is Kind.INTEGER:
        return source.integer(node, name, int(parameter.low), int(parameter.high))
    if parameter.kind is Kind.RATIO:
        return source.number(node, name, parameter.low, parameter.high)
    if parameter.kind is Kind.CHOICE:
        return _word(source, node, name, parameter)
    items = source.items(node, name)
    read = _label if parameter.kind is Kind.LABELS else _word
    words = tuple(read(source, item, where, parameter) for where, item in items)
    if parameter.kind is Kind.LABELS and len(words) > MAX_LABELS:
        source.fail(
            node, name, f"{len(words)} are too many", f"name at most {MAX_LABELS}; * stands for any end"
        )
    if len(set(words)) != len(words):
        source.fail(node, name, "a word is given twice", "remove one of the two")
    if not words and not parameter.may_be_empty:
        source.fail(node, name, "the list is empty", f"name at least one of: {', '.join(parameter.choices)}")
    return words


def _word(source: Source, node: yaml.Node, field: str, parameter: Parameter) -> str:
    return source.choice(node, field, parameter.choices)


def _label(source: Source, node: yaml.Node, field: str, _parameter: Parameter) -> str:
    text = source.text(node, field)
    if not PATTERN_PATTERN.fullmatch(text):
        remedy = f"use {LABEL_RULE}; a * at its end stands for any end"
        source.fail(node, field, f"{text[:60]!r} cannot be one", remedy)
    return text


def _out_of_order(values: Mapping[str, Value]) -> tuple[str, str, str] | None:
    for smaller, larger in ORDERED:
        low, high = values[smaller], values[larger]
        assert isinstance(low, int)
        assert isinstance(high, int)
        if low > high:
            return smaller, larger, f"{low} is more than {larger}, which is {high}"
    return None


def _wire_error(field: str, problem: str) -> PolicyError:
    return PolicyError("CONFIG", 0, field, problem, "update the older end, so that both know the same policy")


@lru_cache(_KEPT)
def _from_wire(data: bytes) -> Policy:
    if len(data) > MAX_WIRE_BYTES:
        raise _wire_error("", f"{len(data)} bytes are more than {MAX_WIRE_BYTES}")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as broken:
        raise _wire_error("", "not JSON") from broken
    if not isinstance(fields, dict):
        raise _wire_error("", "not a list of fields")
    unknown = set(fields) - set(BY_NAME) - {"name"}
    if unknown:
        name = min(unknown)
        raise PolicyError("CONFIG", 0, name, "unknown field", nearest(name, BY_NAME))
    return _from_fields(fields)


def _from_fields(fields: dict[str, Any]) -> Policy:
    name = fields.get("name")
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise _wire_error("name", "not a policy's name")
    values: dict[str, Value] = {}
    for parameter in PARAMETERS:
        if parameter.name not in fields:
            raise _wire_error(parameter.name, "missing")
        value = _checked(parameter, fields[parameter.name])
        if value is None:
            raise _wire_error(parameter.name, f"{str(fields[parameter.name])[:60]!r} is not allowed")
        values[parameter.name] = value
    broken = _out_of_order(values)
    if broken:
        raise _wire_error(broken[0], broken[2])
    return Policy(name=name, **values)  # type: ignore[arg-type]


def _checked(parameter: Parameter, value: object) -> Value | None:
    """The value as the model holds it, None if the parameter does not allow it. bool is an int in Python, not here."""
    if isinstance(value, bool):
        return None
    if parameter.kind is Kind.INTEGER:
        return value if isinstance(value, int) and parameter.low <= value <= parameter.high else None
    if parameter.kind is Kind.RATIO:
        if not isinstance(value, int | float) or not parameter.low <= value <= parameter.high:
            return None
        return float(value)
    if parameter.kind is Kind.CHOICE:
        return value if isinstance(value, str) and value in parameter.choices else None
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        return None
    words = tuple(value)
    if parameter.kind is Kind.LABELS:
        known = all(PATTERN_PATTERN.fullmatch(word) for word in words) and len(set(words)) == len(words)
        return words if known and len(words) <= MAX_LABELS else None
    allowed = set(words) <= set(parameter.choices) and len(set(words)) == len(words)
    return words if allowed and (words or parameter.may_be_empty) else None
