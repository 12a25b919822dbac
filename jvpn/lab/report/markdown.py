"""The report as Markdown (CommonMark with tables); its plots are SVG files beside it."""

import re
from collections.abc import Iterable, Sequence

from jvpn.lab.report import words
from jvpn.lab.report.element import clean
from jvpn.lab.scenario.result import Result


def markdown(results: Sequence[Result], plots: Sequence[str]) -> str:
    """`plots`: for each result the name of its drawing's file, empty where there is none."""
    lines = ["# Jumping VPN lab report", "", words.total(results) + ".", ""]
    lines += _summary(results)
    known = words.machines(results)
    for names, about in known:
        lines += ["## Where it ran", ""]
        if len(known) > 1:
            lines += [", ".join(_code(name) for name in names), ""]
        lines += [f"- {_text(name)}: {_text(value)}" for name, value in words.flat(about)]
        lines += ["", said, ""] if (said := words.scaled(about)) else [""]
    for result, plot in zip(results, plots, strict=True):
        lines += _run(result, plot)
    return "\n".join(lines).rstrip() + "\n"


def _summary(results: Sequence[Result]) -> list[str]:
    rows = []
    for result in results:
        worst = words.worst(result)
        rows.append(
            [
                words.verdict(result) if result.passed else f"**{words.verdict(result)}**",
                f"{_code(result.scenario)} {_text(result.title)}", _text(result.row), _text(words.parameters(result)),
                worst.silence, worst.lost, _code(worst.tightest),
            ]
        )  # fmt: skip
    heads = ["verdict", "scenario", "row", "parameters", "longest silence", "lost", "closest to its limit"]
    return _table(heads, rows)


def _run(result: Result, plot: str) -> list[str]:
    lines = [f"## {_text(result.scenario)}: {_text(result.title)}", ""]
    lines += [f"{words.verdict(result)} in {result.duration_s:.1f} s: {_text(words.header(result))}", ""]
    if result.error:
        lines += [_block([result.error]), ""]
    if plot:
        lines += [f"![{_text(result.scenario)}: what was done, throughput, states, transport]({plot})", ""]
    if result.assertions:
        rows = [
            ["held" if it.passed else "**failed**", _code(it.text), _text(words.shown(it.value))]
            for it in result.assertions
        ]
        lines += _table(["", "what must hold", "measured"], rows)
    if result.marks:
        rows = [[f"{it.at_s:.3f}", it.what, _text(it.name), _text(it.text)] for it in result.marks]
        lines += _table(["at, s", "what", "name", ""], rows)
    if found := words.findings(result):
        lines += ["The auditor's findings:", "", _block(found), ""]
    return [*lines, _block(words.commands(result)), ""]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def _text(text: str) -> str:
    """On one line, with nothing in it that Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", _line(text))


def _line(text: str) -> str:
    return " ".join(clean(text).split())


def _code(text: str) -> str:
    """A span of code that may stand in a cell: only `|` is escaped there, and a fence is longer than any inside."""
    inside = _line(text).replace("|", "\\|")
    if not inside:
        return ""
    fence = "`" * (_longest_run(inside) + 1)
    return f"{fence} {inside} {fence}" if "`" in inside else f"`{inside}`"


def _block(lines: Sequence[str]) -> str:
    inside = clean("\n".join(lines))
    fence = "`" * max(3, _longest_run(inside) + 1)
    return f"{fence}text\n{inside}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
