"""What one run of a scenario showed: `result.json`, written by the conduct, read by the report.

Times are seconds since the scenario's start. Readers pass over fields they do not know, so a file of a later version
can be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec


class ResultError(ValueError):
    """A file is not the result of a run."""


class Assertion(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the scenario's assertions, and the value that was measured.

    `text` is the line as it was judged: with its parameters filled in, and its limit as scaled for the machine.
    `at_most` is that limit as a number, where the line has an upper one.
    """

    text: str
    value: Any
    passed: bool
    at_most: float | None = None


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the timeline did: a fault or attack begins ("fault", "attack"), ends ("stop"), a step ("do").

    The mark of an end has the `name` (`as:` in the scenario) of what it ends.
    """

    at_s: float
    what: Literal["fault", "attack", "do", "stop"]
    text: str
    name: str = ""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Throughput as the receiver saw it: Mbit/s in the bin that begins at `at_s`. ValueError: not one for each."""

    at_s: list[float]
    mbit_s: list[float]

    def __post_init__(self) -> None:
        if len(self.at_s) != len(self.mbit_s):
            raise ValueError(f"{len(self.at_s)} times for {len(self.mbit_s)} rates")


class StateStep(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """A change of the session's state; `version` is the whole state version, epoch above 40 bits of count."""

    at_s: float
    who: str
    version: int
    from_: str
    to: str
    reason: str


class Transport(msgspec.Struct, frozen=True, kw_only=True):
    """From `at_s` on the session's active path is `index` on the wire: the client's device and the outer addresses."""

    at_s: float
    device: str
    remote: str = ""
    index: int = 0
    reason: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `error` says why it ended before its assertions could be judged; empty when it did not.

    `about` is what the backend said of itself: kernel, XDP mode, netem or emulator, versions, `time_factor`.
    `commands` are those that ran, as typed; `files` are relative to the file of the result.
    """

    scenario: str
    title: str
    row: str
    parameters: dict[str, Any]
    backend: str
    about: dict[str, Any]
    started: str
    duration_s: float
    passed: bool
    assertions: list[Assertion]
    marks: list[Mark] = []
    series: dict[str, Series] = {}
    states: list[StateStep] = []
    transports: list[Transport] = []
    measures: dict[str, Any] = {}
    files: dict[str, list[str]] = {}
    commands: list[str] = []
    error: str = ""


def encode(result: Result) -> bytes:
    """The contents of a result.json."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"


def load(path: Path) -> Result:
    """ResultError, with file and field, when it is not a result; OSError when it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ResultError(f"{path}: not the result of a lab run: {error}") from None
