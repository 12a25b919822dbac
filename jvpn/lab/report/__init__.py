"""The report of lab runs: Markdown with its plots beside it, and one HTML page with all in it.

`write` is all that others need. `words` says a run in words, `spans` makes lengths of time of a result's lists, `plot`
draws them above one `axis`, `page` and `markdown` are the two forms.
"""

from collections.abc import Sequence
from pathlib import Path

from jvpn.lab.report import style, words
from jvpn.lab.report.element import as_xml, el
from jvpn.lab.report.markdown import markdown
from jvpn.lab.report.page import page
from jvpn.lab.report.plot import drawing, has_drawing
from jvpn.lab.scenario.result import Result

__all__ = ["write"]


def write(results: Sequence[Result], folder: Path) -> None:
    """report.md, report.html and plots/*.svg in `folder`, which is made when missing. OSError when it cannot be."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    names = []
    for result, slug in zip(results, words.slugs(results), strict=True):
        names.append(f"plots/{slug}.svg" if has_drawing(result) else "")
        if names[-1]:
            (folder / names[-1]).write_text(_standalone(result), encoding="utf-8")
    (folder / "report.md").write_text(markdown(results, names), encoding="utf-8")
    (folder / "report.html").write_text(page(results), encoding="utf-8")


def _standalone(result: Result) -> str:
    """With its style inside: another viewer has none."""
    plot = drawing(result)
    plot.insert(2, el("style", style.ALONE + style.PLOT))
    return as_xml(plot) + "\n"
