"""`jvpn lab list --steps`: what a scenario's timeline can `do`, from the steps themselves."""

import inspect
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jvpn.lab.scenario.steps import StepKind

WIDTH = 100


def lines() -> list[str]:
    """Each step as a line of a timeline would have it, with what it does below."""
    from jvpn.lab.scenario.steps import STEPS

    return [line for name in sorted(STEPS) for line in _lines(name, STEPS[name])]


def described() -> list[dict[str, object]]:
    from jvpn.lab.scenario.steps import STEPS

    return [
        {
            "name": name,
            "on": kind.takes_on,
            "fields": {field: _shown(usual) for field, usual in kind.fields.items()},
            "may_be_stopped": kind.undo is not None,
            "does": _does(kind),
        }
        for name, kind in sorted(STEPS.items())
    ]


def _lines(name: str, kind: "StepKind") -> list[str]:
    fields = ["on: active"] if kind.takes_on else []
    fields += [f"{field}: {_shown(usual)}" for field, usual in kind.fields.items()]
    does = textwrap.wrap(_does(kind), WIDTH, initial_indent="    ", subsequent_indent="    ")
    return [", ".join([f"do: {name}", *fields]), *does]


def _shown(usual: object) -> str:
    """A field's usual value, of one that must be given its type; all values where there are few."""
    from jvpn.lab.scenario.steps.registry import OneOf, Within

    if isinstance(usual, OneOf):
        words = "|".join(map(str, usual.values))
        return f"<{words}>" if usual.given else words
    if isinstance(usual, Within):
        usual = usual.usual
    if isinstance(usual, type):
        return f"<{usual.__name__}>"
    return str(usual).lower() if isinstance(usual, bool) else str(usual)


def _does(kind: "StepKind") -> str:
    return " ".join((inspect.getdoc(kind.function) or "").split())
