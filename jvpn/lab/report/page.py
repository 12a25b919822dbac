"""The report as one HTML file that needs no other and no network."""

from collections.abc import Iterable, Sequence
from typing import Final

from jvpn.lab.report import style, words
from jvpn.lab.report.element import Child, Element, as_html, el
from jvpn.lab.report.plot import drawing, has_drawing
from jvpn.lab.scenario.result import Result

TITLE: Final = "Jumping VPN lab report"
#: Longer tables are folded at first; they are printed all the same.
FEW: Final = 12


def page(results: Sequence[Result]) -> str:
    slugs = words.slugs(results)
    runs = [_run(result, slug) for result, slug in zip(results, slugs, strict=True)]
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", TITLE),
        el("style", style.PAGE + style.PLOT),
    )
    body = el(
        "body",
        el("h1", TITLE),
        el("p", words.total(results), class_="passed" if all(r.passed for r in results) else "failed"),
        _summary(results, slugs),
        *_machines(results),
        *runs,
    )
    return as_html(el("html", head, body, lang="en"))


def _verdict(result: Result) -> Element:
    sign, kind = ("✓", "passed") if result.passed else ("✗", "failed")
    return el("span", f"{sign} {words.verdict(result)}", class_=kind)


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[Child]], numbers: Sequence[int] = (), kind: str = ""
) -> Element:
    """`numbers`: the columns whose cells are figures. Of kind "tight" all but the last are as narrow as they can."""
    body = [el("tr", *(_cell(cell, number in numbers) for number, cell in enumerate(row))) for row in rows]
    titles = [
        el("th", head, scope="col", class_="number" if number in numbers else None)
        for number, head in enumerate(heads)
    ]
    head = el("thead", el("tr", *titles))
    return el("div", el("table", head, el("tbody", *body)), class_=f"wide {kind}".strip())


def _cell(child: Child, is_number: bool) -> Element:
    return el("td", child, class_="number" if is_number else None)


def _summary(results: Sequence[Result], slugs: Sequence[str]) -> Element:
    rows: list[list[Child]] = []
    for result, slug in zip(results, slugs, strict=True):
        worst = words.worst(result)
        name = el("span", el("a", result.scenario, href=f"#{slug}"), el("br"), result.title)
        rows.append(
            [
                _verdict(result), name, result.row, words.parameters(result),
                worst.silence, worst.lost, worst.tightest,
            ]
        )  # fmt: skip
    heads = ["verdict", "scenario", "row", "parameters", "longest silence", "lost", "closest to its limit"]
    return _table(heads, rows, numbers=(4, 5), kind="summary")


def _machines(results: Sequence[Result]) -> list[Element]:
    parts = []
    known = words.machines(results)
    for names, about in known:
        parts.append(el("h3", "Where it ran"))
        if len(known) > 1:
            parts.append(el("p", ", ".join(names), class_="muted"))
        parts.append(_facts(words.flat(about)))
        if said := words.scaled(about):
            parts.append(el("p", said))
    return parts


def _facts(facts: Iterable[tuple[str, str]]) -> Element:
    return el("dl", *(part for name, value in facts for part in (el("dt", name), el("dd", value))))


def _run(result: Result, slug: str) -> Element:
    parts = [
        el("h2", f"{result.scenario}: {result.title}"),
        el("p", _verdict(result), f" in {result.duration_s:.1f} s"),
        el("p", words.header(result), class_="muted"),
    ]
    if result.error:
        parts.append(el("pre", result.error))
    if has_drawing(result):
        parts.append(el("div", drawing(result), class_="wide"))
    parts += _assertions(result) + _done(result) + _changes(result) + _rest(result)
    return el("section", *parts, id=slug)


def _assertions(result: Result) -> list[Element]:
    if not result.assertions:
        return []
    rows: list[list[Child]] = [
        [
            el("span", "✓ held" if it.passed else "✗ failed", class_="passed" if it.passed else "failed"),
            el("code", it.text),
            words.shown(it.value),
        ]
        for it in result.assertions
    ]
    return [el("h3", "Assertions"), _table(["", "what must hold", "measured"], rows)]


def _done(result: Result) -> list[Element]:
    if not result.marks:
        return []
    rows = [[f"{mark.at_s:.3f}", mark.what, mark.name, mark.text] for mark in result.marks]
    return [
        _folded(
            "Timeline",
            _table(["at, s", "what", "name", ""], rows, numbers=(0,), kind="tight"),
            is_open=len(rows) <= FEW,
        )
    ]


def _changes(result: Result) -> list[Element]:
    rows = [
        (it.at_s, [f"{it.at_s:.3f}", it.who, words.version(it.version), f"{it.from_} → {it.to}", it.reason])
        for it in result.states
    ]
    rows += [
        (
            it.at_s,
            [f"{it.at_s:.3f}", "path", f"index {it.index}", f"{it.device or 'none'} {it.remote}", it.reason],
        )
        for it in result.transports
    ]
    if not rows:
        return []
    ordered = [cells for _at, cells in sorted(rows, key=lambda row: row[0])]
    table = _table(["at, s", "who", "version", "change", "reason"], ordered, numbers=(0,), kind="tight")
    return [_folded("States and paths", table)]


def _rest(result: Result) -> list[Element]:
    parts = []
    if findings := words.findings(result):
        parts.append(_folded("The auditor's findings", el("pre", "\n".join(findings)), is_open=True))
    found = [(name, words.shown(value)) for name, value in result.measures.items()]
    measured: list[list[Child]] = [
        [el("code", name), value] for name, value in found + words.summaries(result)
    ]
    if measured:
        parts.append(_folded("All that was measured", _table(["measure", "value"], measured)))
    files: list[list[Child]] = [
        [kind, el("code", name)] for kind, names in result.files.items() for name in names
    ]
    if files:
        parts.append(_folded("Files", _table(["kind", "file"], files, kind="tight")))
    parts.append(_folded("Commands", el("pre", "\n".join(words.commands(result))), is_open=True))
    return parts


def _folded(title: str, *inside: Element, is_open: bool = False) -> Element:
    return el("details", el("summary", title), *inside, open="" if is_open else None)
