"""A run in words, the same in both forms of the report."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from jvpn.lab.scenario.result import Assertion, Result
from jvpn.session.version import COUNT_BITS, MAX_COUNT

#: In what a result says of its machines.
_OF_THE_RUN: Final = ("findings", "summaries", "xdp")
_COMPARISON: Final = re.compile("<=?")


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return f"{value:,d}".replace(",", " ")
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(shown(part) for part in value) or "none"
    return str(value)


def parameters(result: Result) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in result.parameters.items())


def version(number: int) -> str:
    """epoch.count"""
    return f"{number >> COUNT_BITS}.{number & MAX_COUNT}"


def failed(result: Result) -> list[Assertion]:
    return [assertion for assertion in result.assertions if not assertion.passed]


def verdict(result: Result) -> str:
    if result.passed:
        return "passed"
    if result.error:
        return "did not finish"
    return f"failed, {len(failed(result))} of {len(result.assertions)}"


def total(results: Sequence[Result]) -> str:
    passed = sum(result.passed for result in results)
    if passed == len(results):
        return f"{passed} of {len(results)} passed"
    return f"{passed} of {len(results)} passed, {len(results) - passed} did not"


@dataclass(frozen=True, slots=True)
class Worst:
    """The figures that say how close a run came: empty where nothing of the kind was measured."""

    silence: str
    lost: str
    tightest: str


def worst(result: Result) -> Worst:
    """The longest silence of any stream, what all of them lost, and the figure closest to (or over) its limit."""
    measured = {name: value for name, value in result.measures.items() if _is_number(value)}
    silences = [value for name, value in measured.items() if "silence_ms" in name]
    lost = [value for name, value in measured.items() if name.endswith(".lost")]
    return Worst(
        silence=f"{max(silences):.0f} ms" if silences else "",
        lost=shown(sum(lost)) if lost else "",
        tightest=_tightest(result.assertions),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tightest(assertions: Sequence[Assertion]) -> str:
    used: list[tuple[float, str]] = []
    for it in assertions:
        if it.at_most and _is_number(it.value):
            metric = _COMPARISON.split(it.text)[0].strip()
            used.append((it.value / it.at_most, f"{metric}: {shown(it.value)} of {shown(it.at_most)}"))
    return max(used, default=(0.0, ""))[1]


def flat(about: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested facts as lines, in their order."""
    lines: list[tuple[str, str]] = []
    for name, value in about.items():
        if isinstance(value, dict) and value:
            lines += flat(value, f"{before}{name}.")
        else:
            lines.append((f"{before}{name}", shown(value)))
    return lines


def machines(results: Sequence[Result]) -> list[tuple[list[str], dict[str, Any]]]:
    """What backends said of themselves, each once, with the scenarios that ran so."""
    seen: list[tuple[list[str], dict[str, Any]]] = []
    for result in results:
        about = {"backend": result.backend} | _of_the_machine(result.about)
        for names, known in seen:
            if known == about:
                names.append(result.scenario)
                break
        else:
            seen.append(([result.scenario], about))
    return seen


def _of_the_machine(about: dict[str, Any]) -> dict[str, Any]:
    """Without what is of the run alone, and with the details as lines of their own."""
    details = about.get("details")
    found = {name: value for name, value in about.items() if name not in ("details", *_OF_THE_RUN)}
    return found | details if isinstance(details, dict) else found


def header(result: Result) -> str:
    """In one line: row, parameters, where, with which XDP modes, and when."""
    xdp = result.about.get("xdp")
    modes = [f"{name} {mode}" for name, mode in flat(xdp)] if isinstance(xdp, dict) and xdp else []
    said = f"XDP {', '.join(modes)}" if modes else ""
    parts = (result.row, parameters(result), result.backend, said, result.started)
    return ", ".join(part for part in parts if part)


def findings(result: Result) -> list[str]:
    """What the auditor said of its events."""
    found = result.about.get("findings")
    return [shown(one) for one in found] if isinstance(found, list) else []


def summaries(result: Result) -> list[tuple[str, str]]:
    """What its scripts said at their end: MARK.NAME and value."""
    found = result.about.get("summaries")
    return flat(found) if isinstance(found, dict) else []


def commands(result: Result) -> list[str]:
    """How to run it again, and what ran on its machines."""
    return [f"jvpn lab run {shlex.quote(result.scenario)} --backend {result.backend}", *result.commands]


def scaled(about: dict[str, Any]) -> str:
    """A sentence where limits in milliseconds were scaled, otherwise empty."""
    factor = about.get("time_factor", 1)
    if not _is_number(factor) or factor == 1:
        return ""
    return f"Limits in milliseconds are multiplied by {shown(factor)} on this machine; counts are not."


def slugs(results: Sequence[Result]) -> list[str]:
    """A name for each that files and links can have, no two alike."""
    made: list[str] = []
    for result in results:
        slug = re.sub(r"[^a-z0-9.]+", "-", result.scenario.lower()).strip("-.")[:80] or "run"
        number, unique = 1, slug
        while unique in made:
            number += 1
            unique = f"{slug}-{number}"
        made.append(unique)
    return made
