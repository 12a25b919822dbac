"""What assertions may ask for by name is what the product counts and tells, no more and no less."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jvpn
from jvpn.lab.scenario.measures.known import AGENT, OTHER_REASONS, REFUSED, SUPERVISOR, reasons_of
from jvpn.session.ownership import Kind

SOURCES = Path(jvpn.__file__).parent
#: Counted under a name that is put together, or given by a method or a default.
ELSEWHERE = {*(f"reattach_{kind.value}" for kind in Kind), "route_errors", "not_remembered"}
REFUSALS = ("WireError", "HandshakeError", "RemoteError")
#: Netlink's own names.
KERNEL = ("IFLA_", "RTA_")


def nodes(package: str) -> Iterator[ast.AST]:
    for path in sorted((SOURCES / package).rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def text_of(node: ast.AST) -> list[str]:
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def counted(package: str) -> set[str]:
    """The names in `….counters["name"]`, `counters["name"]` and `counter="name"`, and reasons of refusals, which are
    counted by their name."""
    found: set[str] = set()
    for node in nodes(package):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).split(".")[-1] == "counters":
            found.update(text_of(node.slice))
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in REFUSALS:
                found.update(name for argument in node.args[:1] for name in text_of(argument))
            found.update(
                name
                for keyword in node.keywords
                if keyword.arg == "counter"
                for name in text_of(keyword.value)
            )
    return found


def test_the_counters_that_can_be_asked_for_are_those_that_are_counted() -> None:
    assert counted("protocol") == set(REFUSED)
    assert counted("supervisor") | ELSEWHERE == set(SUPERVISOR)
    assert counted("agent") - set(REFUSED) == set(AGENT)


def test_the_reasons_that_can_be_asked_for_are_those_that_are_told() -> None:
    said = {
        word
        for package in ("supervisor", "agent", "observability")
        for node in nodes(package)
        for word in text_of(node)
    }
    assert set(OTHER_REASONS) <= said
    told = {word for package in ("supervisor", "agent") for node in nodes(package) for word in text_of(node)}
    words = {word for word in told if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", word) and not word.startswith(KERNEL)}
    assert words <= reasons_of("AUDIT_EVENT")
