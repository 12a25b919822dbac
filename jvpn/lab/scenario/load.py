"""From a scenario's YAML to checked values, one for each variant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml

from jvpn.config.client import CLIENT_FIELDS
from jvpn.config.gateway import GATEWAY_FIELDS
from jvpn.lab.backends.topology import GATEWAYS, UPLINKS, Topology, UplinkShape
from jvpn.lab.scenario import variants
from jvpn.lab.scenario.expressions import Expression, ExpressionError
from jvpn.lab.scenario.load_timeline import timeline
from jvpn.lab.scenario.measures import check, check_words, is_measure
from jvpn.lab.scenario.model import (
    LABEL,
    LABEL_RULE,
    TRAFFIC_KINDS,
    Assertion,
    Scenario,
    ScenarioError,
    Step,
    Traffic,
)
from jvpn.lab.scenario.values import mapping, value_of
from jvpn.policy.model import examine
from jvpn.policy.source import Source, join

FIELDS: Final = (
    "title", "row", "short", "parameters", "variants", "topology", "policy", "gateway", "client", "traffic",
    "timeline", "ends_at_s", "assertions",
)  # fmt: skip
REQUIRED: Final = ("title", "row", "traffic", "timeline", "ends_at_s", "assertions")
TOPOLOGY_FIELDS: Final = ("uplinks", "gateways", "seed")
SHAPE_FIELDS: Final = ("rtt_ms", "jitter_ms", "loss", "rate_mbit", "queue_ms", "mtu")
TRAFFIC_FIELDS: Final = ("name", "kind", "hz", "bytes", "mbit", "reverse", "to")
#: What the lab itself decides about the two configuration files.
_OURS: Final = frozenset(
    {"node_id", "listen", "private_key_file", "peers", "store", "fleet", "run_dir", "state_dir", "events"}
    | {"policy_dir", "uplinks"}
)
LONGEST_S: Final = 3600.0


def load(path: Path, given: Mapping[str, str] | None = None) -> list[Scenario]:
    """Every variant in a file, or those with the *given* parameters. Raises ScenarioError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as refused:
        remedy = "name a scenario of `jvpn lab list`, or a file that can be read"
        raise ScenarioError(str(path), 0, "", f"cannot be read ({refused})", remedy) from refused
    return parse(text, str(path), given)


def parse(text: str, file: str, given: Mapping[str, str] | None = None) -> list[Scenario]:
    """As `load`, of a *text* that came from *file*."""
    source = Source(file, ScenarioError)
    root = source.root(text)
    nodes = source.mapping(root, "", FIELDS, REQUIRED)
    parameters = variants.fields(source, nodes["parameters"], "parameters") if "parameters" in nodes else {}
    found = variants.variants(source, parameters, nodes.get("variants"))
    if given:
        found = variants.chosen(file, found, given, {name: value_of(text) for name, text in given.items()})
    kept = [(key, value) for key, value in root.value if key.value not in ("parameters", "variants")]
    body = yaml.MappingNode(root.tag, kept, root.start_mark, root.end_mark)
    stem = Path(file).stem
    return [
        _Reader(source, variants.replaced(source, body, "", values), values).scenario(stem)
        for values in found
    ]


class _Reader:
    """Reads one variant, all `$name` in it replaced."""

    def __init__(self, source: Source, root: yaml.Node, values: variants.Values) -> None:
        self._source = source
        self._values = values
        self._nodes = source.mapping(root, "", FIELDS)

    def scenario(self, stem: str) -> Scenario:
        source, nodes = self._source, self._nodes
        topology = self._topology()
        ends_at_s = source.number(nodes["ends_at_s"], "ends_at_s", 0.1, LONGEST_S)
        traffic = self._traffic()
        steps = timeline(source, nodes["timeline"], topology, ends_at_s, {t.name for t in traffic})
        return Scenario(
            name=variants.full_name(stem, self._values),
            file=source.file,
            title=source.text(nodes["title"], "title"),
            row=source.text(nodes["row"], "row"),
            short=self._short(),
            parameters=self._values,
            topology=topology,
            policy=self._policy(),
            gateway=self._over("gateway", GATEWAY_FIELDS),
            client=self._over("client", CLIENT_FIELDS),
            traffic=traffic,
            timeline=steps,
            ends_at_s=ends_at_s,
            assertions=self._assertions(traffic, steps, ends_at_s, topology),
        )

    def _short(self) -> bool:
        """true, false, or the parameters' values of the variants that are."""
        node = self._nodes.get("short")
        if node is None:
            return False
        if isinstance(node, yaml.MappingNode):
            wanted = variants.fields(self._source, node, "short")
            return all(self._values.get(name) == value for name, value in wanted.items())
        return self._source.boolean(node, "short")

    def _topology(self) -> Topology:
        source = self._source
        if "topology" not in self._nodes:
            return Topology()
        nodes = source.mapping(self._nodes["topology"], "topology", TOPOLOGY_FIELDS)
        shapes = {name: UplinkShape() for name in UPLINKS}
        if "uplinks" in nodes:
            uplinks = source.mapping(nodes["uplinks"], "topology.uplinks", UPLINKS)
            if not uplinks:
                source.fail(nodes["uplinks"], "topology.uplinks", "there is none", "write {A: {}, B: {}}")
            shapes = {name: self._shape(node, f"topology.uplinks.{name}") for name, node in uplinks.items()}
        gateways = 1
        if "gateways" in nodes:
            gateways = source.integer(nodes["gateways"], "topology.gateways", 1, len(GATEWAYS))
        seed = source.integer(nodes["seed"], "topology.seed", 0, 2**32 - 1) if "seed" in nodes else 1
        return Topology(shapes, gateways, seed)

    def _shape(self, node: yaml.Node, field: str) -> UplinkShape:
        nodes = self._source.mapping(node, field, SHAPE_FIELDS)
        high = {"loss": 1.0, "mtu": 65_535}
        numbers = {
            name: self._source.number(value, join(field, name), 0.0, high.get(name, 1e5))
            for name, value in nodes.items()
        }
        mtu = int(numbers.pop("mtu", 0))
        return UplinkShape(**numbers, mtu=mtu)

    def _policy(self) -> dict[str, object]:
        """Fields of a policy, checked as `jvpn` checks them, but with the lines of this file."""
        if "policy" not in self._nodes:
            return {}
        node = self._nodes["policy"]
        values = mapping(self._source, node, "policy")
        _policy, problems = examine(yaml.safe_dump(values), "default.yaml")
        if problems:
            first = problems[0]
            found = {key.value: value for key, value in node.value}
            self._source.fail(
                found.get(first.field, node), join("policy", first.field), first.problem, first.remedy
            )
        return values

    def _over(self, field: str, known: tuple[str, ...]) -> dict[str, object]:
        if field not in self._nodes:
            return {}
        names = [name for name in known if name not in _OURS]
        nodes = self._source.mapping(
            self._nodes[field], field, [*names, "preferences", "endpoints"] if field == "client" else names
        )
        values = mapping(self._source, self._nodes[field], field)
        if "preferences" in nodes:
            preferences = self._source.mapping(nodes["preferences"], "client.preferences", UPLINKS)
            for name, value in preferences.items():
                self._source.integer(value, f"client.preferences.{name}", 0, 1000)
        if "endpoints" in nodes:
            for name, value in self._source.items(nodes["endpoints"], "client.endpoints"):
                self._source.choice(value, name, ("v4", "v6"))
        return values

    def _traffic(self) -> tuple[Traffic, ...]:
        found: list[Traffic] = []
        for field, item in self._source.items(self._nodes["traffic"], "traffic"):
            one = self._stream(item, field)
            if is_measure(one.name) or one.name in (other.name for other in found):
                self._source.fail(item, join(field, "name"), f"{one.name!r} is taken", "give another name")
            found.append(one)
        return tuple(found)

    def _stream(self, node: yaml.Node, field: str) -> Traffic:
        source = self._source
        nodes = source.mapping(node, field, TRAFFIC_FIELDS, ("name", "kind"))
        name = source.text(nodes["name"], join(field, "name"))
        if not LABEL.fullmatch(name):
            source.fail(nodes["name"], join(field, "name"), f"{name!r} cannot be a stream's name", LABEL_RULE)
        kind = source.choice(nodes["kind"], join(field, "kind"), TRAFFIC_KINDS)
        unknown = set(nodes) & ({"hz", "bytes"} if kind == "iperf" else {"mbit", "reverse"})
        for wrong in unknown:
            source.fail(nodes[wrong], join(field, wrong), f"has no meaning for {kind}", "remove it")
        usual = Traffic(name, kind)
        return Traffic(
            name,
            kind,
            hz=source.number(nodes["hz"], join(field, "hz"), 0.1, 20_000) if "hz" in nodes else usual.hz,
            bytes=source.integer(nodes["bytes"], join(field, "bytes"), 24, 60_000)
            if "bytes" in nodes
            else usual.bytes,
            mbit=source.number(nodes["mbit"], join(field, "mbit"), 0, 1e5) if "mbit" in nodes else 0.0,
            reverse=source.boolean(nodes["reverse"], join(field, "reverse")) if "reverse" in nodes else False,
            to=source.text(nodes["to"], join(field, "to")) if "to" in nodes else "",
        )

    def _assertions(
        self, traffic: tuple[Traffic, ...], steps: tuple[Step, ...], ends_at_s: float, topology: Topology
    ) -> tuple[Assertion, ...]:
        streams = {one.name: one.kind for one in traffic}
        scripts = {step.label for step in steps if step.label and step.kind in ("fault", "attack")}
        marks = {step.label: step.at_s for step in steps if step.label}
        found = []
        for field, item in self._source.items(self._nodes["assertions"], "assertions"):
            text = self._source.text(item, field)
            try:
                expression = Expression(text)
                for measure in expression.measures:
                    check(measure, streams, scripts, marks, ends_at_s, topology)
                for measure, words in expression.words:
                    check_words(measure, words, topology)
            except ExpressionError as wrong:
                self._source.fail(item, field, f"{text}: {wrong}", wrong.remedy)
            found.append(Assertion(expression, item.start_mark.line + 1))
        if not found:
            self._source.fail(
                self._nodes["assertions"], "assertions", "the list is empty", "say what must be true"
            )
        return tuple(found)
