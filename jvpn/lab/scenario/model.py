"""A scenario as read and checked, one variant of it, every parameter filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, TypeAlias

from jvpn.lab.backends.topology import Topology
from jvpn.lab.scenario.expressions import Expression
from jvpn.policy.source import SourceError

Scalar: TypeAlias = bool | int | float | str

#: What a step of the timeline is about; each is the key that names it.
FAULT: Final = "fault"
ATTACK: Final = "attack"
DO: Final = "do"
STOP: Final = "stop"
Kind: TypeAlias = Literal["fault", "attack", "do", "stop"]
STEP_KINDS: Final[tuple[Kind, ...]] = (FAULT, ATTACK, DO, STOP)
#: Which uplink: by name, or the one in use (or not) when the step's time has come.
ON: Final = ("A", "B", "active", "other")
TRAFFIC_KINDS: Final = ("udp", "tcp", "iperf")
#: Marks and streams are names in expressions.
LABEL: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
LABEL_RULE: Final = "use up to 32 letters, digits and _, beginning with a letter"


class ScenarioError(SourceError):
    """A scenario that cannot be run: file, line, field, problem and remedy in one line."""

    EXAMPLE: ClassVar = "docs/lab.md"


@dataclass(frozen=True, slots=True)
class Traffic:
    """A stream between the client and what is behind the gateway. "udp" and "tcp": the gauge, *hz* frames of *bytes*
    each way; "iperf": bulk over TCP, or UDP of *mbit* where that is not 0, from the client (*reverse*: to it).

    *to*: where to; empty for the gateway's inner address, or the host behind a fleet.
    """

    name: str
    kind: str
    hz: float = 200.0
    bytes: int = 200
    mbit: float = 0.0
    reverse: bool = False
    to: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the timeline. *label* (`as`) names its mark; *parameters* are a script's or a step's own."""

    at_s: float
    kind: Kind
    name: str
    on: str
    label: str
    parameters: Mapping[str, Any]
    line: int

    @property
    def text(self) -> str:
        more = [f"on {self.on}"] if self.on else []
        more += [f"{name} {_shown(value)}" for name, value in self.parameters.items()]
        return f"{self.name}{': ' if more else ''}{', '.join(more)}"


@dataclass(frozen=True, slots=True)
class Assertion:
    expression: Expression
    line: int

    @property
    def text(self) -> str:
        return self.expression.text


@dataclass(frozen=True, slots=True)
class Scenario:
    """*name* is the file's stem and the parameters: `f2-blackhole[direction=up,rtt_ms=20]`.

    *policy*, *gateway* and *client* are fields over those that the lab writes into its own files. *pace*: real seconds
    to each of those that assertions name.
    """

    name: str
    file: str
    title: str
    row: str
    short: bool
    parameters: Mapping[str, Scalar]
    topology: Topology
    policy: Mapping[str, Any]
    gateway: Mapping[str, Any]
    client: Mapping[str, Any]
    traffic: tuple[Traffic, ...]
    timeline: tuple[Step, ...]
    ends_at_s: float
    assertions: tuple[Assertion, ...]
    pace: float = 1.0

    @property
    def keylogs(self) -> frozenset[str]:
        """Whose keys some attack wants: "client", "gw1", …; they write them down."""
        return frozenset(
            str(step.parameters["keylog"])
            for step in self.timeline
            if step.kind == ATTACK and "keylog" in step.parameters
        )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
