"""Event files of client and gateways, read when nothing more is being written, and judged by the auditor."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from jvpn.lab.backends.topology import CLIENT
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario.nodes import Nodes
from jvpn.lab.scenario.record import NS, Told
from jvpn.observability.verify import audit

EVENTS: Final = "events.jsonl"
_MS: Final = 1_000_000
#: An event that is told as a clock jumps has either time.
_SLACK_NS: Final = NS
#: Who writes events does so in a thread of its own, soon.
_QUIET_S: Final = 0.1
_TIMES: Final = 20


def read(nodes: Nodes) -> dict[str, list[bytes]]:
    """Lines by who told them; none of who has no file yet."""
    found = _read(nodes)
    for _ in range(_TIMES):
        time.sleep(_QUIET_S)
        before, found = found, _read(nodes)
        if before == found:
            break
    return found


def _read(nodes: Nodes) -> dict[str, list[bytes]]:
    found = {}
    for who in (CLIENT, *nodes.topology.gateway_names):
        content = b"".join(_content(nodes, who, name) for name in nodes.event_files.get(who, [EVENTS]))
        # A line that is being written does not end yet.
        found[who] = content[: content.rfind(b"\n") + 1].splitlines()
    return found


def _content(nodes: Nodes, who: str, name: str) -> bytes:
    try:
        return nodes.machine(who).read(nodes.run_dir(who) / name)
    except LabError:
        return b""


def told(nodes: Nodes, lines: Mapping[str, list[bytes]]) -> list[Told]:
    """All events in the order of their time, which is on this process's clock."""
    found = []
    for who, of_one in lines.items():
        wall_ns, shifts = nodes.attended[who].wall_ns, nodes.shifts.get(who, [])
        for line in of_one:
            event = json.loads(line)
            found.append(Told(_unshifted(event["ts_ms"] * _MS - wall_ns, shifts), who, event))
    return sorted(found, key=lambda one: one.at_ns)


def _unshifted(at_ns: int, shifts: Sequence[tuple[int, int]]) -> int:
    """When that was, by a wall clock that was shifted by so many seconds from such a time on: the one of the shifts
    under which the moment lies within its own time. They are days, and no run is that long."""
    for number, (since_ns, seconds) in enumerate(shifts):
        found = at_ns - seconds * NS
        until_ns = shifts[number + 1][0] if number + 1 < len(shifts) else found
        if since_ns - _SLACK_NS <= found <= until_ns + _SLACK_NS:
            return found
    return at_ns


def findings(lines: Mapping[str, list[bytes]]) -> list[str]:
    """What the auditor says of the client's stream, and of all gateways' together, sentences with whose they are."""
    of_each = [some for who, some in lines.items() if who != CLIENT]
    of_gateways = [line for some in of_each for line in some]
    if len(of_each) > 1:
        of_gateways.sort(key=lambda line: int(json.loads(line)["ts_ms"]))
    streams = {CLIENT: lines.get(CLIENT, []), "gateway": of_gateways}
    return [f"{who}: {finding}" for who, some in streams.items() for finding in audit(some)]


def keep(lines: Mapping[str, list[bytes]], folder: Path) -> list[str]:
    """Copies in *folder*; their names."""
    for who, of_one in lines.items():
        (folder / f"{who}-events.jsonl").write_bytes(b"".join(line + b"\n" for line in of_one))
    return [f"{who}-events.jsonl" for who in lines]
