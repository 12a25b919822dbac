"""YAML read by schema, keeping the line of everything, so that an error can say where it is.

Scalars are read as the schema wants them, not as YAML 1.1 guesses: `off` stays a word, `1:30` is not a number in
base 60. Sans-I/O: the text is an argument. The same reader serves policies and configuration files.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, NoReturn, TypeVar

import yaml

_INTEGER: Final = re.compile(r"[+-]?[0-9][0-9_]*")
_NUMBER: Final = re.compile(r"[+-]?[0-9][0-9_]*(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_TRUE: Final = frozenset({"true", "yes", "on"})
_FALSE: Final = frozenset({"false", "no", "off"})
_LONGEST_SHOWN: Final = 60
#: Levels of lists and fields inside each other; nothing that is read here has half as many.
_DEEPEST: Final = 32

Parsed = TypeVar("Parsed")


class SourceError(ValueError):
    """A file that cannot be used; `str()` is one line: file, line, field, problem, remedy.

    `line` counts from 1; 0 means the whole file.
    """

    #: Where one finds what such a file may look like.
    EXAMPLE: ClassVar = "docs/configuration.md"

    def __init__(self, file: str, line: int, field: str, problem: str, remedy: str) -> None:
        self.file = file
        self.line = line
        self.field = field
        self.problem = problem
        self.remedy = remedy
        super().__init__(file, line, field, problem, remedy)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        parts = [place, self.field, f"{self.problem}; {self.remedy}" if self.remedy else self.problem]
        return ": ".join(part.replace("\n", " ") for part in parts if part)


def shown(text: str) -> str:
    """`text` in quotes, short enough for one line of an error."""
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…")


def nearest(word: str, known: Iterable[str]) -> str:
    """What to do about an unknown word: the nearest known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(names)}"


class _Refused(Exception):
    """YAML that is valid and not taken all the same: its place (PyYAML's), why, and what to do."""

    def __init__(self, mark: Any, problem: str, remedy: str) -> None:
        self.mark = mark
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem)


class _Loader(yaml.SafeLoader):
    """Nodes are a tree of some depth, so that whoever walks through them ends: an alias may be a part of itself, and
    a few lines of them can stand for more values than there is memory. Raises _Refused."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(
                event.start_mark,
                f"*{event.anchor} is an alias, which is not read here",
                "write the value itself, or put it in quotes if it is text",
            )
        if self._depth == _DEEPEST:
            raise _Refused(event.start_mark, "nested too deeply", "remove the nesting")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class Source:
    """One YAML text and the errors it can have; every method raises `error` (a SourceError) with the node's line."""

    def __init__(self, file: str, error: type[SourceError]) -> None:
        self.file = file
        self.error = error

    def fail(self, node: yaml.Node | None, field: str, problem: str, remedy: str) -> NoReturn:
        line = node.start_mark.line + 1 if node is not None and node.start_mark is not None else 0
        raise self.error(self.file, line, field, problem, remedy)

    def root(self, text: str) -> yaml.Node:
        """The document's node. Anything that is not one YAML document is an error."""
        try:
            node = yaml.compose(text, Loader=_Loader)
        except _Refused as refused:
            line = refused.mark.line + 1
            raise self.error(self.file, line, "", refused.problem, refused.remedy) from None
        except yaml.MarkedYAMLError as broken:
            mark = broken.problem_mark or broken.context_mark
            line = mark.line + 1 if mark is not None else 0
            problem = f"not valid YAML: {broken.problem or broken.context or 'unreadable'}"
            remedy = "check the indentation, colons and quotes of this line"
            raise self.error(self.file, line, "", problem, remedy) from broken
        except yaml.reader.ReaderError as broken:
            remedy = "save the file as UTF-8 text"
            raise self.error(self.file, 0, "", f"not text: {broken.reason}", remedy) from broken
        except (ValueError, OverflowError) as broken:  # a number of eight digits behind \U
            remedy = "write the character itself"
            raise self.error(self.file, 0, "", "an escape in quotes names no character", remedy) from broken
        if node is None:
            remedy = f"start from the example in {self.error.EXAMPLE}"
            raise self.error(self.file, 0, "", "the file is empty", remedy)
        return node

    def mapping(
        self, node: yaml.Node, field: str, known: Iterable[str], required: Iterable[str] = ()
    ) -> dict[str, yaml.Node]:
        """Field → node; unknown, repeated and missing fields are errors."""
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, field, "not a list of fields", "write one 'name: value' per line")
        names = list(known)
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            where = join(field, name)
            if name not in names:
                self.fail(key, where, "unknown field", nearest(name, names))
            if name in found:
                self.fail(key, where, "given twice", "remove one of the two")
            found[name] = value
        for name in required:
            if name not in found:
                self.fail(node, join(field, name), "missing", "add this field")
        return found

    def items(self, node: yaml.Node, field: str) -> list[tuple[str, yaml.Node]]:
        """Elements of a list with their names ("peers[0]")."""
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, field, "not a list", "write [a, b], or one '- a' per line")
        return [(f"{field}[{position}]", item) for position, item in enumerate(node.value)]

    def text(self, node: yaml.Node, field: str) -> str:
        """A word or text that is not empty."""
        if not isinstance(node, yaml.ScalarNode):
            self.fail(node, field, "not a single value", "put it in quotes if it contains [ ] { } or ': '")
        if not node.value:
            self.fail(node, field, "empty", "give it a value or remove the line")
        return str(node.value)

    def _plain(self, node: yaml.Node, field: str, kind: str) -> str:
        text = self.text(node, field)
        if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"'):
            self.fail(node, field, f"{shown(text)} is text, not {kind}", "write it without quotes")
        return text

    def integer(self, node: yaml.Node, field: str, low: int, high: int) -> int:
        text = self._plain(node, field, "a whole number")
        remedy = f"give a whole number from {low} to {high}"
        if not _INTEGER.fullmatch(text) or len(text) > _LONGEST_SHOWN:
            self.fail(node, field, f"{shown(text)} is not a whole number", remedy)
        value = int(text)
        self._within(node, field, value, low, high)
        return value

    def number(self, node: yaml.Node, field: str, low: float, high: float) -> float:
        text = self._plain(node, field, "a number")
        if not _NUMBER.fullmatch(text) or len(text) > _LONGEST_SHOWN:
            self.fail(node, field, f"{shown(text)} is not a number", f"give a number from {low} to {high}")
        value = float(text)
        self._within(node, field, value, low, high)
        return value

    def _within(self, node: yaml.Node, field: str, value: float, low: float, high: float) -> None:
        if value < low:
            self.fail(node, field, f"{value} is below the least allowed, {low}", f"give {low} to {high}")
        if value > high:
            self.fail(node, field, f"{value} is above the most allowed, {high}", f"give {low} to {high}")

    def boolean(self, node: yaml.Node, field: str) -> bool:
        text = self._plain(node, field, "true or false").lower()
        if text not in _TRUE | _FALSE:
            self.fail(node, field, f"{shown(text)} is neither true nor false", "write true or false")
        return text in _TRUE

    def choice(self, node: yaml.Node, field: str, choices: Iterable[str]) -> str:
        """One of a few words."""
        text = self.text(node, field)
        words = list(choices)
        if text not in words:
            self.fail(
                node, field, f"{shown(text)} is not one of the choices", f"write one of: {', '.join(words)}"
            )
        return text

    def parsed(
        self, node: yaml.Node, field: str, parse: Callable[[str], Parsed], what: str, remedy: str
    ) -> Parsed:
        """`parse(text)`; its ValueError becomes "not <what>; <remedy>"."""
        text = self.text(node, field)
        try:
            return parse(text)
        except ValueError:
            self.fail(node, field, f"{shown(text)} is not {what}", remedy)


def join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
