"""What a timeline can `do`: functions by name, each with the fields that it takes.

A step is a function of a running scenario, decorated::

    @step("kill-worker", gateway="gw1", worker=0)
    def kill_worker(run: Run, at: Step) -> None: ...

A field's default says its type too; a type in place of a default is a field that must be given. `OneOf` and `Within`
say what a field may be besides. Whoever reads a timeline knows what `gateway`, `machine`, `who` and `device` name.
`at.on` is the uplink by its name when the step takes one (`on=True`); `at.parameters` has every field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Of a running scenario and the step.
Function = Callable[..., None]


@dataclass(frozen=True, slots=True)
class OneOf:
    """A field that is one of these; the first unless told otherwise, or *given* always."""

    values: tuple[str | int, ...]
    given: bool = False

    @property
    def usual(self) -> Any:
        """As a plain field would have it."""
        return type(self.values[0]) if self.given else self.values[0]


@dataclass(frozen=True, slots=True)
class Within:
    """A field that is a whole number, *least* … *most*; *usual* is int where it must be given."""

    least: int
    most: int
    usual: Any = int


@dataclass(frozen=True, slots=True)
class StepKind:
    """*undo* is what `stop:` does to it, None where nothing can be taken back. *prepare* is done before anybody runs,
    once for each step of the timeline, where machines and their files must be otherwise for it. *fleet*: whether it is
    about the store that a fleet has."""

    function: Function
    takes_on: bool
    fields: Mapping[str, Any] = field(default_factory=dict)
    undo: Function | None = None
    prepare: Function | None = None
    fleet: bool = False


STEPS: dict[str, StepKind] = {}


def step(
    name: str,
    *,
    on: bool = False,
    undo: Function | None = None,
    prepare: Function | None = None,
    fleet: bool = False,
    **fields: Any,
) -> Callable[[Function], Function]:
    """Make a function the step *name*; see the module's text."""

    def register(function: Function) -> Function:
        if name in STEPS:
            raise ValueError(f"there is a step {name!r} already")
        STEPS[name] = StepKind(function, on, fields, undo, prepare, fleet)
        return function

    return register
