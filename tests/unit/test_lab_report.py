"""The lab's report: what it says and where it draws, however hostile the texts in a result are."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from jvpn.cli import build_parser
from jvpn.lab.report import write
from jvpn.lab.report.again import results_in
from jvpn.lab.scenario.result import (
    Assertion,
    Mark,
    Result,
    ResultError,
    Series,
    StateStep,
    Transport,
    encode,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</style><script>alert(1)</script>"\' onload="x" & ]]> | `` ![x](y) \x00\x1b\ud800 \n# head'


def made(**changes: Any) -> Result:
    result = Result(
        scenario="f2-blackhole[rtt_ms=20]",
        title="The active path falls silent",
        row="F2",
        parameters={"rtt_ms": 20},
        backend="netns",
        about={"kernel": "6.1.0-demo", "xdp": {"gw1": "native"}, "medium": "emulator"},
        started="2026-01-02T03:04:05Z",
        duration_s=12.5,
        passed=False,
        assertions=[
            Assertion(text="session.same", value=True, passed=True),
            Assertion(
                text="stream.down.silence_ms[hole] < 400 + 100", value=431.25, passed=True, at_most=500.0
            ),
            Assertion(text="stream.up.lost == 0", value=17, passed=False),
        ],
        marks=[
            Mark(at_s=2, what="fault", text="blackhole on A", name="hole"),
            Mark(at_s=4, what="do", text="reload"),
            Mark(at_s=6, what="stop", text="blackhole on A", name="hole"),
            Mark(at_s=3, what="do", text="link down", name="cut"),
            Mark(at_s=5, what="stop", text="link down", name="cut"),
        ],
        series={
            "stream.up": Series(at_s=[0.0, 2.0, 7.9], mbit_s=[0.3, 0.0, 0.3]),
            "stream.down": Series(at_s=[0.0, 2.0, 7.9], mbit_s=[0.3, 0.3, 0.3]),
            "bulk.up": Series(at_s=[0.0, 4.0], mbit_s=[2100.0, 1900.0]),
        },
        states=[
            StateStep(at_s=-1, who="client", version=1, from_="BIRTH", to="ATTACHED", reason="HANDSHAKE_OK"),
            StateStep(at_s=2, who="client", version=2, from_="ATTACHED", to="RECOVERING", reason="DEAD"),
            StateStep(
                at_s=4, who="client", version=3, from_="RECOVERING", to="ATTACHED", reason="REATTACH_OK"
            ),
        ],
        transports=[
            Transport(at_s=-1, device="upA", remote="10.202.1.2:51820"),
            Transport(at_s=4, device="upB", remote="10.202.1.2:51820", index=1, reason="REATTACH_OK"),
        ],
        measures={"stream.up.lost": 17, "stream.down.lost": 2, "stream.down.silence_ms[hole]": 431.25},
        files={"pcap": ["client-upA.pcap"]},
        commands=["jvpn lab run f2-blackhole", "python -m vagrant.traffic.faults.blackhole --link A"],
    )
    return msgspec.structs.replace(result, **changes)


class Page(HTMLParser):
    """What a browser would make of it: elements with attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [value for _tag, found in self.elements if (value := found.get(attribute)) is not None]


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def drawn(folder: Path, slug: str = "f2-blackhole-rtt-ms-20") -> ElementTree.Element:
    return ElementTree.parse(folder / "plots" / f"{slug}.svg").getroot()


def of_class(drawing: ElementTree.Element, *classes: str) -> Iterator[ElementTree.Element]:
    return (it for it in drawing.iter() if set(classes) <= set(it.get("class", "").split()))


def seconds(drawing: ElementTree.Element) -> dict[str, float]:
    """Where the time axis has its figures."""
    ticks = [it for it in of_class(drawing, "tick") if it.get("text-anchor") == "middle"]
    return {str(it.text).removesuffix(" s"): float(it.get("x", "")) for it in ticks}


def extent(bar: ElementTree.Element) -> tuple[float, float]:
    start = float(bar.get("x", ""))
    return start, start + float(bar.get("width", ""))


def test_both_forms_say_everything_that_was_asserted_and_measured(tmp_path: Path) -> None:
    write([made()], tmp_path)
    page, text = page_of(tmp_path), (tmp_path / "report.md").read_text(encoding="utf-8")
    for form in (page.text, text):
        for said in (
            "session.same",
            "stream.down.silence_ms[hole] < 400 + 100",
            "431.2",
            "stream.up.lost == 0",
            "17",
        ):
            assert said in form
        for said in ("6.1.0-demo", "native", "emulator", *made().commands, "failed, 1 of 3"):
            assert said in form
        assert "0 of 1 passed" in form
        # The worst: the longest silence, all that was lost, and what is nearest to its limit.
        assert "431 ms" in form
        assert "19" in form
        assert "stream.down.silence_ms[hole]: 431.2 of 500" in form


def test_the_page_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    write([made(), made()], tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.values("src")
    assert "url(" not in html
    assert "@import" not in html
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _attributes in page.elements}
    ids = page.values("id")
    assert len(ids) == len(set(ids)) == 2
    assert [f"#{name}" for name in ids] == page.values("href")


def test_faults_stand_at_their_times_in_every_panel(tmp_path: Path) -> None:
    write([made()], tmp_path)
    drawing = drawn(tmp_path)
    at = seconds(drawing)
    [step] = of_class(drawing, "step", "fault")
    [band] = of_class(drawing, "band", "fault")
    assert extent(step) == extent(band) == pytest.approx((at["2"], at["6"]))
    [stopped] = of_class(drawing, "band", "do")
    assert extent(stopped) == pytest.approx((at["3"], at["5"]))
    [moment] = of_class(drawing, "moment")
    assert float(moment.get("x1", "")) == pytest.approx(at["4"])
    top, height = float(band.get("y", "")), float(band.get("height", ""))
    for panel in (*of_class(drawing, "curve", "up"), *of_class(drawing, "bar")):
        if panel.tag == f"{SVG}rect" and panel.get("height") != "12":
            assert top <= float(panel.get("y", "")) < top + height


def test_states_and_transports_stand_at_their_times(tmp_path: Path) -> None:
    write([made()], tmp_path)
    drawing = drawn(tmp_path)
    at = seconds(drawing)
    lanes = [bar for bar in of_class(drawing, "bar") if bar.get("height") == "18"]
    shown = {
        str(bar.findtext(f"{SVG}title")).split(" ")[0] + str(n): extent(bar) for n, bar in enumerate(lanes)
    }
    found = sorted((name[:-1], round(start), round(end)) for name, (start, end) in shown.items())
    where = {name: round(x) for name, x in at.items()}
    assert found == sorted(
        [
            ("ATTACHED", where["0"], where["2"]),
            ("RECOVERING", where["2"], where["4"]),
            ("ATTACHED", where["4"], where["8"]),
            ("upA", where["0"], where["4"]),
            ("upB", where["4"], where["8"]),
        ]
    )


def test_a_session_of_a_fleet_has_one_lane_that_says_whose_it_is(tmp_path: Path) -> None:
    epoch = 1 << 40
    told = [
        StateStep(at_s=-1, who="gw1", version=epoch, from_="BIRTH", to="ATTACHED", reason="HANDSHAKE_OK"),
        StateStep(
            at_s=4, who="gw2", version=2 * epoch, from_="RECOVERING", to="ATTACHED", reason="REATTACH_OK"
        ),
    ]
    write([made(states=told)], tmp_path)
    drawing = drawn(tmp_path)
    at = seconds(drawing)
    bars = {
        str(it.findtext(f"{SVG}title")).partition(" 0.")[0].partition(" 4.")[0]: extent(it)
        for it in of_class(drawing, "bar", "attached")
        if it.get("height") == "18"
    }
    assert bars == {
        "ATTACHED at gw1": pytest.approx((at["0"], at["4"])),
        "ATTACHED at gw2": pytest.approx((at["4"], at["8"])),
    }


def test_a_state_that_lasted_a_moment_is_seen(tmp_path: Path) -> None:
    moment = [
        StateStep(at_s=2, who="client", version=2, from_="ATTACHED", to="RECOVERING", reason="DEAD"),
        StateStep(
            at_s=2.001, who="client", version=3, from_="RECOVERING", to="ATTACHED", reason="REATTACH_OK"
        ),
    ]
    write([made(states=moment)], tmp_path)
    bars = [bar for bar in of_class(drawn(tmp_path), "bar") if bar.get("height") == "18"]
    lane = [bar for bar in bars if "transport" not in str(bar.get("class"))]
    assert "recovering" in str(lane[-1].get("class")), "drawn last, so that nothing covers it"
    start, end = extent(lane[-1])
    assert end - start >= 2


def test_throughput_is_drawn_to_scale_and_in_a_unit_that_suits_it(tmp_path: Path) -> None:
    write([made()], tmp_path)
    drawing = drawn(tmp_path)
    headings = [str(it.text) for it in of_class(drawing, "heading")]
    assert "stream, kbit/s received" in headings
    assert "bulk, Gbit/s received" in headings
    up = next(it for it in of_class(drawing, "curve", "up") if it.findtext(f"{SVG}title") == "stream up")
    points = [tuple(map(float, point.split(","))) for point in up.get("points", "").split()]
    at = seconds(drawing)
    second = at["1"] - at["0"]
    assert [x for x, _y in points] == pytest.approx([at["0"], at["2"], at["8"] - 0.1 * second], abs=0.1)
    assert points[1][1] > points[0][1] == points[2][1], "the silence is lower"


def test_words_of_many_steps_do_not_overlap(tmp_path: Path) -> None:
    marks = [Mark(at_s=n / 2, what="do", text=f"step number {n} with words") for n in range(16)]
    marks += [Mark(at_s=n + 0.2, what="fault", text="blackhole on A", name=f"h{n}") for n in range(7)]
    marks += [Mark(at_s=n + 0.4, what="stop", text="blackhole on A", name=f"h{n}") for n in range(7)]
    write([made(marks=marks)], tmp_path)
    drawing = drawn(tmp_path)
    words = [
        it for it in of_class(drawing, "beside") if "step number" in str(it.text) or "black" in str(it.text)
    ]
    assert len(words) == 17, "what is done again is named once"
    taken: dict[str, list[tuple[float, float]]] = {}
    for it in words:
        x = float(it.get("x", ""))
        taken.setdefault(it.get("y", ""), []).append((x, x + 6 * len(str(it.text))))
    for row in taken.values():
        row.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(row))
    assert max(end for row in taken.values() for _start, end in row) <= 920


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    result = made(
        scenario=HOSTILE,
        title=HOSTILE,
        row=HOSTILE,
        backend=HOSTILE,
        started=HOSTILE,
        error=HOSTILE,
        parameters={HOSTILE: HOSTILE},
        about={HOSTILE: {HOSTILE: HOSTILE}},
        assertions=[Assertion(text=HOSTILE, value=HOSTILE, passed=False)],
        marks=[Mark(at_s=1, what="fault", text=HOSTILE, name=HOSTILE)],
        series={HOSTILE: Series(at_s=[0.0], mbit_s=[1.0])},
        states=[StateStep(at_s=1, who=HOSTILE, version=1, from_=HOSTILE, to=HOSTILE, reason=HOSTILE)],
        transports=[Transport(at_s=1, device=HOSTILE, remote=HOSTILE, reason=HOSTILE)],
        measures={HOSTILE: HOSTILE},
        files={HOSTILE: [HOSTILE]},
        commands=[HOSTILE],
    )
    write([result], tmp_path)
    page = page_of(tmp_path)
    harmless = made()
    write([harmless], tmp_path / "harmless")
    known = page_of(tmp_path / "harmless")
    assert {tag for tag, _found in page.elements} <= {tag for tag, _found in known.elements} | {"pre"}
    attributes = {name for _tag, found in page.elements for name in found}
    assert attributes <= {name for _tag, found in known.elements for name in found}
    assert "<script>alert(1)</script>" in page.text
    [svg] = (tmp_path / "plots").iterdir()
    assert {it.tag for it in ElementTree.parse(svg).getroot().iter()} <= {
        SVG + tag
        for tag in ("svg", "title", "desc", "style", "g", "rect", "line", "path", "polyline", "text")
    }
    markdown_stays_whole((tmp_path / "report.md").read_text(encoding="utf-8"))


def markdown_stays_whole(text: str) -> None:
    """Outside code there is no markup from a text, and every table has its columns."""
    outside = re.sub(r"(`{3,})text\n.*?\n\1", "", text, flags=re.S)
    outside = re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", lambda code: "|" * code[2].count("\\|"), outside)
    assert not re.search(r"(?<!\\)<script", outside)
    assert not re.search(r"(?<!\\)!\[x(?<!\\)\]", outside)
    assert not re.search(r"^# head", outside, flags=re.M)
    for table in re.findall(
        r"(?:^\|.*\n)+", re.sub(r"(`{3,})text\n.*?\n\1", "", text, flags=re.S), flags=re.M
    ):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


def test_a_run_that_did_not_finish_says_why_and_draws_nothing(tmp_path: Path) -> None:
    empty = made(
        error="no such device",
        assertions=[],
        marks=[],
        series={},
        states=[],
        transports=[],
        measures={},
        duration_s=0.0,
    )
    write([empty], tmp_path)
    assert "no such device" in page_of(tmp_path).text
    assert "did not finish" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not list((tmp_path / "plots").iterdir())


def test_numbers_of_any_size_are_written(tmp_path: Path) -> None:
    write([made(measures={"whole": 10**400, "real": 1e300})], tmp_path)
    assert "1 000 000 000" in (tmp_path / "report.html").read_text()


def test_scaled_limits_and_differing_machines_are_said(tmp_path: Path) -> None:
    slow = made(scenario="slow", backend="vagrant", about={"kernel": "6.1.0-slow", "time_factor": 8})
    write([made(), slow], tmp_path)
    for form in (page_of(tmp_path).text, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "multiplied by 8" in form
        assert "6.1.0-demo" in form
        assert "6.1.0-slow" in form


def test_earlier_runs_are_found_in_their_order(tmp_path: Path) -> None:
    for name, started in (("b", "2026-01-02T03:04:05Z"), ("a", "2026-01-02T03:04:06Z")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_bytes(encode(made(scenario=name, started=started)))
    assert [result.scenario for result in results_in(tmp_path)] == ["b", "a"]
    (tmp_path / "b" / "result.json").write_text("{}")
    with pytest.raises(ResultError, match=r"b/result\.json"):
        results_in(tmp_path)
    with pytest.raises(ResultError, match="no result"):
        results_in(tmp_path / "nowhere")


def test_the_command_says_where_it_is_or_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "result.json").write_bytes(encode(made()))
    assert call("report", str(tmp_path)) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    assert (tmp_path / "report.md").exists()
    assert call("report", str(tmp_path / "nowhere")) == 1
    assert "no result.json" in capsys.readouterr().err


def call(*words: str) -> int:
    args = build_parser(["lab"]).parse_args(["lab", *words])
    status: int = args.run(args)
    return status
