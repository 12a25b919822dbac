"""The auditor: rebuilds every session's life from an event stream and reports what cannot be.

    violation   the stream says something the session machine forbids
    lost        events are missing: a gap in the versions, a beginning without a birth, a TELEMETRY_LOSS line

What it checks, for a gateway's events (a session's life goes on over nodes) and for each client's own:

 1. every line is an event of this schema;
 2. every STATE_CHANGE is a row of the table, continues where the last one ended, and its bindings fit;
 3. versions have no gap within an epoch, and an epoch opens with an OWNERSHIP_EVENT{acquired};
 4. nothing moves after TERMINATED;
 5. every REATTACH_ATTEMPT has exactly one REATTACH_RESULT, and is told once by each owner;
 6. a binding changes only by passing through RECOVERING.

`python -m jvpn.observability.verify FILE…` prints the findings and exits 1 if there are any violations.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jvpn.observability import events as ev
from jvpn.observability.life import Life, Problem, Severity
from jvpn.session.machine import Origin

__all__ = ["Auditor", "Finding", "Severity", "audit", "audit_file", "main"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`line` counts from 1; 0 for what the end of the stream shows. `code` is stable, `message` is for people."""

    line: int
    severity: Severity
    code: str
    session_id: str
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}" if self.line else "end"
        session = f" session {self.session_id}" if self.session_id else ""
        return f"{where}: {self.severity}: {self.code}:{session} {self.message}"


_Key = tuple[Origin, str, str]


class Auditor:
    """Feed it lines, in order; `findings` grows. `finish` reports what only the end can show."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._lives: dict[_Key, Life] = {}
        self._line = 0
        self._loss_told = False

    def feed(self, line: bytes | str) -> None:
        """One line of the stream. Blank lines count as lines and are skipped."""
        self._line += 1
        if not line.strip():
            return
        try:
            event = ev.decode(line)
        except ev.EventError as error:
            self._add(self._line, "", Problem("violation", "BAD_LINE", str(error)))
            return
        if isinstance(event, ev.TelemetryLoss):
            self._loss_told = True
            self._add(
                self._line, "", Problem("lost", "TELEMETRY_LOSS", f"{event.count} events are missing here")
            )
        elif event.session_id:
            for problem in self._life(event).take(event, self._line, self._loss_told):
                self._add(self._line, event.session_id, problem)

    def finish(self) -> list[Finding]:
        for (_, session_id, _), life in self._lives.items():
            for line, problem in life.finish():
                self._add(line, session_id, problem)
        self.findings.sort(key=lambda finding: finding.line)
        return self.findings

    def _life(self, event: ev.Event) -> Life:
        # A session moves between gateways and stays one life; each client tells its own.
        node = event.node_id if event.origin is Origin.CLIENT else ""
        key = (event.origin, event.session_id, node)
        return self._lives.setdefault(key, Life())

    def _add(self, line: int, session_id: str, problem: Problem) -> None:
        self.findings.append(Finding(line, problem.severity, problem.code, session_id, problem.message))


def audit(lines: Iterable[bytes | str]) -> list[Finding]:
    """All findings of a stream, by line; empty for one that accounts for every session's whole life."""
    auditor = Auditor()
    for line in lines:
        auditor.feed(line)
    return auditor.finish()


def audit_file(path: Path) -> list[Finding]:
    """Raises OSError when `path` cannot be read."""
    with path.open("rb") as file:
        return audit(file)


def main(arguments: Sequence[str] | None = None) -> int:
    paths = sys.argv[1:] if arguments is None else list(arguments)
    if not paths:
        print("usage: python -m jvpn.observability.verify FILE…", file=sys.stderr)
        return 2
    worst = 0
    for path in paths:
        try:
            findings = audit_file(Path(path))
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr)
            return 2
        for finding in findings:
            print(f"{path}: {finding}")
        worst |= any(finding.severity == "violation" for finding in findings)
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
