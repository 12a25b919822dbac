"""Assertions of scenarios: what they mean, and what is none."""

import pytest

from jvpn.lab.scenario.expressions import Edge, Expression, ExpressionError, Measure, Value, Window

MEASURED: dict[str, Value] = {
    "stream.up.lost": 0,
    "stream.up.silence_ms[hole]": 120.5,
    "stream.down.silence_ms[hole]": 80.0,
    "calm.mbit_s": 10.0,
    "flooded.mbit_s": 9.5,
    "session.same": True,
    "client.running": False,
    "client.active": "B",
    "client.candidates": ["A"],
    "client.first": "none",
    "stream.up.first_ms": None,
}


def judged(text: str, time_factor: float = 1.0) -> tuple[Value, bool]:
    verdict = Expression(text).judge(lambda measure: MEASURED[str(measure)], time_factor)
    return verdict.value, verdict.passed


@pytest.mark.parametrize(
    "text",
    [
        "session.same",
        "client.running == false",
        "stream.up.lost == 0",
        "stream.up.silence_ms[hole] < 2 * 20 + 100",
        "stream.up.silence_ms[hole] - 100 >= 20.5",
        "max(stream.up.silence_ms[hole], stream.down.silence_ms[hole]) <= 120.5",
        "min(stream.up.silence_ms[hole], stream.down.silence_ms[hole]) == 80",
        "flooded.mbit_s >= 0.9 * calm.mbit_s",
        "client.active == B",
        "client.active != gw1",
        "client.active in [A, B]",
        "client.active not in [A]",
        "client.candidates == [A]",
        "B in client.active",
        "stream.up.first_ms == none",
        "none == stream.up.first_ms",
        "stream.up.first_ms in [A, none]",
        "client.first == none",
        "client.first in [A, none]",
        "client.active != none",
        "-stream.up.lost / 2 == 0",
    ],
)
def test_what_holds_passes(text: str) -> None:
    assert judged(text)[1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("client.running", False),
        ("stream.up.lost > 0", 0),
        ("stream.up.silence_ms[hole] < 120.5", 120.5),
        ("max(stream.up.silence_ms[hole], stream.down.silence_ms[hole]) < 100", 120.5),
        ("client.active == A", "B"),
        ("client.active in [A, none]", "B"),
        ("flooded.mbit_s >= calm.mbit_s", 9.5),
        ("client.first != none", "none"),
        ("client.active == none", "B"),
    ],
)
def test_what_does_not_hold_fails_and_says_what_was_measured(text: str, value: Value) -> None:
    assert judged(text) == (value, False)


@pytest.mark.parametrize(
    "text",
    [
        "stream.up.first_ms < 10",
        "stream.up.first_ms > 10",
        "stream.up.first_ms + 1 > 0",
        "stream.up.first_ms != 3",
        "stream.up.first_ms == 3",
        "stream.up.first_ms != none",
        "stream.up.first_ms != A",
        "stream.up.first_ms not in [1, 2]",
        "stream.up.first_ms == stream.up.first_ms",
        "stream.up.first_ms != stream.up.lost",
    ],
)
def test_what_there_was_nothing_of_to_measure_fails_whatever_it_is_compared_with(text: str) -> None:
    assert judged(text) == (None, False)


@pytest.mark.parametrize(
    "text", ["stream.up.lost != stream.up.first_ms", "stream.up.lost not in [stream.up.first_ms]"]
)
def test_nor_does_what_is_compared_with_nothing(text: str) -> None:
    assert judged(text) == (0, False)


@pytest.mark.parametrize(
    "text",
    [
        "stream.up.lost",
        "client.active < 3",
        "client.candidates > 1",
        "stream.up.lost != many",
        "client.active != 3",
        "client.running != 0",
        "client.candidates != A",
    ],
)
def test_a_comparison_that_means_nothing_says_so(text: str) -> None:
    with pytest.raises(ExpressionError):
        judged(text)


def test_an_upper_bound_on_a_time_grows_with_the_time_factor_and_nothing_else_does() -> None:
    assert not judged("stream.up.silence_ms[hole] < 100")[1]
    assert judged("stream.up.silence_ms[hole] < 100", 2)[1]
    assert judged("stream.up.silence_ms[hole] > 100", 2)[1]
    assert not judged("stream.up.lost < 0", 1000)[1]
    assert not judged("flooded.mbit_s < 9", 1000)[1]


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("a.b[hole]", Window(Edge("hole"), None, whole=True)),
        ("a.b[hole:back]", Window(Edge("hole"), Edge("back"))),
        ("a.b[hole.end:]", Window(Edge("hole", at_end=True), None)),
        ("a.b[2:6.5]", Window(Edge(at_s=2.0), Edge(at_s=6.5))),
        ("a.b[:hole]", Window(None, Edge("hole"))),
    ],
)
def test_the_time_asked_about(text: str, window: Window) -> None:
    (measure,) = Expression(f"{text} == 0").measures
    assert measure == Measure(("a", "b"), window)
    assert str(measure) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b ==",
        "a.b < 1 < 2",
        "1 == 1",
        "__import__('os').system('true')",
        "a.b.c()",
        "open(a.b)",
        "[x for x in a.b]",
        "lambda: a.b",
        "a.b if a.c else 0",
        "a.b and a.c",
        "a.b[1]",
        "a.b[::2]",
        "a.b[hole][1:2]",
        "a.b is 1",
        "a.b ** 99",
        "max(a.b, key=1)",
        "f'{a.b}' == ''",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression(text)
