"""Assertions: METRIC [OP VALUE], in the syntax of Python expressions and with nothing of their power.

    session.same
    stream.up.lost == 0
    max(stream.up.silence_ms[hole], stream.down.silence_ms[hole]) < 2 * 20 + 60
    flooded.up.received >= 0.9 * calm.up.received
    client.state in [ATTACHED, VOLATILE]
    "disk is full" in said.gw1

A name with dots is a measure; one without is a word. `[hole]` is the time from a timeline's mark until what it began
was stopped; `[hole:back]` from one mark to the next, `[hole.end:]` and `[2:6.5]` (seconds of the scenario) likewise.
What there was nothing of to measure passes no comparison but `== none`.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

Value: TypeAlias = bool | int | float | str | list["Value"] | None

_COMPARE: Final[dict[type[ast.cmpop], Callable[[object, object], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,  # type: ignore[dict-item]
    ast.LtE: operator.le,  # type: ignore[dict-item]
    ast.Gt: operator.gt,  # type: ignore[dict-item]
    ast.GtE: operator.ge,  # type: ignore[dict-item]
}
_UPPER_BOUNDS: Final = (ast.Lt, ast.LtE)
_ARITHMETIC: Final[dict[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: Final[dict[str, Callable[..., float]]] = {"max": max, "min": min, "abs": abs}
_WORDS: Final = {"true": True, "false": False}
#: What a measure is equal to where there was nothing to measure; some measures are this word themselves.
NONE: Final = "none"
REMEDY: Final = "write METRIC, or METRIC OP VALUE with OP one of == != < <= > >= in"


class ExpressionError(ValueError):
    """Not an assertion, or one that cannot be judged; the text says why, *remedy* what to do."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Edge:
    """A moment: seconds of the scenario, or where a mark begins or ends."""

    mark: str = ""
    at_end: bool = False
    at_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.mark}{'.end' if self.at_end else ''}" if self.mark else f"{self.at_s:g}"


@dataclass(frozen=True, slots=True)
class Window:
    """From *start* to *end*, None for the scenario's own. *whole*: all of one mark, until it was stopped."""

    start: Edge | None
    end: Edge | None
    whole: bool = False

    def __str__(self) -> str:
        return str(self.start) if self.whole else f"{self.start or ''}:{self.end or ''}"

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(edge.mark for edge in (self.start, self.end) if edge is not None and edge.mark)


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure's name, part by part, and the time it is asked about."""

    path: tuple[str, ...]
    window: Window | None = None

    def __str__(self) -> str:
        name = ".".join(self.path)
        return f"{name}[{self.window}]" if self.window is not None else name

    @property
    def is_time(self) -> bool:
        return self.path[-1].endswith("_ms")


@dataclass(frozen=True, slots=True)
class Verdict:
    """*value* is what was measured: the left side's. *at_most* is the right side's, where it is an upper bound."""

    value: Value
    passed: bool
    scaled: bool = False
    at_most: float | None = None


class Expression:
    """One assertion, parsed. Raises ExpressionError for what is none."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._node = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError) as broken:
            raise ExpressionError(f"cannot be read: {getattr(broken, 'msg', broken)}", REMEDY) from None
        self.measures = tuple(self._walk(self._node))
        #: Each measure that is compared with words, as it is, and those words.
        self.words = tuple(_compared_with_words(self._node))
        if not self.measures:
            raise ExpressionError("nothing is measured in it")

    def judge(self, look: Callable[[Measure], Value], time_factor: float = 1.0) -> Verdict:
        """*look* says what a measure's value is. An upper bound on a time is multiplied by *time_factor*."""
        node = self._node
        if not isinstance(node, ast.Compare):
            value = self._value(node, look)
            if value is None:
                return Verdict(None, False)
            if not isinstance(value, bool):
                raise ExpressionError(f"it is {value!r}, neither true nor false: compare it with something")
            return Verdict(value, value)
        left, right = self._value(node.left, look), self._value(node.comparators[0], look)
        op = node.ops[0]
        scaled = (
            time_factor != 1.0
            and isinstance(op, _UPPER_BOUNDS)
            and any(measure.is_time for measure in self._walk(node.left))
            and isinstance(right, int | float)
        )
        if scaled:
            assert isinstance(right, int | float)
            right = right * time_factor
        passed = self._compare(op, left, right)
        if isinstance(op, ast.In | ast.NotIn) and isinstance(right, str):
            # The text that was looked for is no measure, that it was found is.
            return Verdict(passed is isinstance(op, ast.In), passed)
        at_most = right if isinstance(op, _UPPER_BOUNDS) and isinstance(right, int | float) else None
        return Verdict(left, passed, scaled, at_most)

    def _compare(self, op: ast.cmpop, left: Value, right: Value) -> bool:
        if _missing(left) or _missing(right):
            return _is_none(op, left, right)
        if isinstance(op, ast.In | ast.NotIn):
            if isinstance(right, str) and isinstance(left, str):
                return (left in right) is isinstance(op, ast.In)
            if not isinstance(right, list):
                raise ExpressionError("what stands behind 'in' is neither a list nor text: write [A, B]")
            return (left in right) is isinstance(op, ast.In)
        if not isinstance(op, ast.Eq | ast.NotEq):
            for side in (left, right):
                if isinstance(side, str | list | bool):
                    raise ExpressionError(f"{side!r} is not a number, so nothing is more or less than it")
        elif NONE not in (left, right) and _kind(left) is not _kind(right):
            raise ExpressionError(f"{left!r} and {right!r} are of two kinds, so they are never the same")
        return bool(_COMPARE[type(op)](left, right))

    # The few kinds of syntax that there are

    def _walk(self, node: ast.expr) -> Iterator[Measure]:
        """Every measure in it; ExpressionError for syntax that is none of ours."""
        if isinstance(node, ast.Compare):
            if len(node.ops) != 1:
                raise ExpressionError("it compares more than two things: write one comparison a line")
            if not isinstance(node.ops[0], (ast.In, ast.NotIn, *_COMPARE)):
                raise ExpressionError("that is no comparison we know")
            yield from self._walk(node.left)
            yield from self._walk(node.comparators[0])
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            yield from self._walk(node.left)
            yield from self._walk(node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield from self._walk(node.operand)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            if node.func.id not in _FUNCTIONS or not node.args:
                raise ExpressionError(f"{ast.unparse(node)!r}: there are {', '.join(_FUNCTIONS)}")
            for argument in node.args:
                yield from self._walk(argument)
        elif isinstance(node, ast.List | ast.Tuple):
            for item in node.elts:
                yield from self._walk(item)
        elif isinstance(node, ast.Attribute | ast.Subscript):
            yield _measure(node)
        elif not isinstance(node, ast.Name) and not _is_value(node):
            raise ExpressionError(f"{ast.unparse(node)!r} has no meaning here")

    def _value(self, node: ast.expr, look: Callable[[Measure], Value]) -> Value:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, bool | int | float | str)
            return node.value
        if isinstance(node, ast.Attribute | ast.Subscript):
            return look(_measure(node))
        if isinstance(node, ast.Name):
            return _WORDS.get(node.id, node.id)
        if isinstance(node, ast.List | ast.Tuple):
            return [self._value(item, look) for item in node.elts]
        if isinstance(node, ast.UnaryOp):
            return self._reckon(operator.neg, node.operand, look=look)
        if isinstance(node, ast.BinOp):
            return self._reckon(_ARITHMETIC[type(node.op)], node.left, node.right, look=look)
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        return self._reckon(_FUNCTIONS[node.func.id], *node.args, look=look)

    def _reckon(
        self, function: Callable[..., float], *nodes: ast.expr, look: Callable[[Measure], Value]
    ) -> Value:
        """None when anything in it was not there to be measured."""
        numbers = [self._value(node, look) for node in nodes]
        if any(number is None for number in numbers):
            return None
        for number in numbers:
            if isinstance(number, str | list):
                raise ExpressionError(f"{number!r} is not a number")
        try:
            return function(*numbers)
        except (ArithmeticError, TypeError) as refused:
            raise ExpressionError(f"{self.text!r} cannot be reckoned: {refused}") from None


def _missing(value: Value) -> bool:
    """Whether there was nothing to measure, in it or in some part of it."""
    return value is None or (isinstance(value, list) and any(_missing(part) for part in value))


def _is_none(op: ast.cmpop, left: Value, right: Value) -> bool:
    """Of two values, one of which is missing: whether the assertion asks for that."""
    if isinstance(op, ast.In):
        return left is None and isinstance(right, list) and NONE in right
    return isinstance(op, ast.Eq) and NONE in (left, right)


def _kind(value: Value) -> type:
    """bool, float for all numbers, str or list."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _compared_with_words(node: ast.expr) -> Iterator[tuple[Measure, tuple[str, ...]]]:
    if isinstance(node, ast.Compare):
        left, right = node.left, node.comparators[0]
        for side, other in ((left, right), (right, left)):
            for one in side.elts if isinstance(side, ast.List | ast.Tuple) else [side]:
                if isinstance(one, ast.Attribute | ast.Subscript):
                    yield _measure(one), tuple(_words(other))


def _words(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.List | ast.Tuple):
        for item in node.elts:
            yield from _words(item)
    elif isinstance(node, ast.Name) and node.id not in _WORDS:
        yield node.id
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def _is_value(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str)


def _measure(node: ast.expr) -> Measure:
    window = None
    if isinstance(node, ast.Subscript):
        window, node = _window(node.slice), node.value
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ExpressionError(f"{ast.unparse(node)!r} is no measure's name")
    return Measure((node.id, *reversed(names)), window)


def _window(node: ast.expr) -> Window:
    if isinstance(node, ast.Slice):
        if node.step is not None:
            raise ExpressionError("a time is [from:to]")
        return Window(_edge(node.lower), _edge(node.upper))
    edge = _edge(node)
    if edge is None or not edge.mark or edge.at_end:
        raise ExpressionError("a time is [MARK] or [from:to]")
    return Window(edge, None, whole=True)


def _edge(node: ast.expr | None) -> Edge | None:
    if node is None:
        return None
    if isinstance(node, ast.Name):
        return Edge(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in ("start", "end"):
        return Edge(node.value.id, node.attr == "end")
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Edge(at_s=float(node.value))
    raise ExpressionError(f"{ast.unparse(node)!r} is no moment: give a mark, MARK.end, or seconds")
