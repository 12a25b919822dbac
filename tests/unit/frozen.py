"""Deep snapshots of the cores: that nothing has changed is shown by comparing everything."""

from collections.abc import Iterator
from typing import Final

_OPAQUE: Final = (
    "TokenBucket",
    "Narrator",
    "ClientNarrator",
    "MemorySink",
    "Page",
    "Suite",
    "Policy",
    "AESGCM",
)
#: What counts what is dropped, and when a health monitor was last asked: they change with everything that comes.
LIMITS: Final = frozenset({"counters", "stale_inits", "_sources", "_datagrams", "_now_ns"})


def frozen(value: object, *, without: frozenset[str] = LIMITS) -> object:
    """All that an object is made of, as nested tuples that are equal iff nothing has changed.

    Left out are functions, opaque parts that hold no state of a session, and the attributes that `without` names.
    """
    return _freeze(value, without, {})


def _freeze(value: object, without: frozenset[str], seen: dict[int, int]) -> object:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if id(value) in seen:
        return ("again", seen[id(value)])
    seen[id(value)] = len(seen)
    if isinstance(value, dict):
        return tuple((_freeze(k, without, seen), _freeze(v, without, seen)) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_freeze(item, without, seen) for item in value)
    if isinstance(value, bytearray):
        return bytes(value)
    kind = type(value).__name__
    if callable(value) or kind in _OPAQUE:
        return kind
    fields = dict(_fields(value))
    return (kind, *((name, _freeze(fields[name], without, seen)) for name in fields if name not in without))


def _fields(value: object) -> Iterator[tuple[str, object]]:
    for owner in type(value).__mro__:
        for name in getattr(owner, "__slots__", ()):
            if hasattr(value, name):
                yield name, getattr(value, name)
    yield from getattr(value, "__dict__", {}).items()


def differences(before: object, after: object, where: str = "") -> list[str]:
    """Where two snapshots differ, for the message of a failed test."""
    if before == after:
        return []
    if isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        found = []
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            name = old[0] if isinstance(old, tuple) and old and isinstance(old[0], str) else str(number)
            found += differences(old, new, f"{where}.{name}")
        return found
    return [f"{where}: {str(before)[:200]} → {str(after)[:200]}"]
