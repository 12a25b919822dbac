"""Count what captures have of JVP/1: by direction and type, how many, how long, when, of how many paths and sources.

Also whether an answer was larger than what had asked for it, and with --keylog what the sealed parts say. Of each file
a table, or with --json one line with one object.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from jvpn.protocol.constants import PacketType
from vagrant.traffic.datagrams import NS, CaptureError, captured
from vagrant.traffic.jvp import PORT
from vagrant.traffic.keylog import KeyLog, KeyLogError
from vagrant.traffic.opening import Opened
from vagrant.traffic.script import number
from vagrant.traffic.tallying import DOWN, UP, Tally

FAILED, BAD_ARGUMENTS = 1, 2
#: Of a bin.
SHORTEST_S: Final = 0.001
LONGEST_S: Final = 86_400.0
_HEADS: Final = ("", "type", "packets", "bytes", "first s", "last s", "sizes", "ids", "sources")


def tallied(
    path: Path,
    *,
    ports: frozenset[int] = frozenset({PORT}),
    log: KeyLog | None = None,
    origin_ns: int | None = None,
    bin_s: float = 0.0,
) -> dict[str, Any]:
    """What `--json` prints of one capture. Raises OSError and CaptureError, the latter for too many bins as well."""
    tally = Tally(ports, origin_ns, round(bin_s * NS))
    opened = None if log is None else Opened(log)
    for one in captured(path):
        found = tally.add(one)
        if opened is not None and one is not None and found is not None:
            opened.add(found[0], one.payload)
    told = {"device": path.stem, "file": str(path), **tally.told()}
    return told if opened is None else {**told, "opened": opened.told()}


def as_text(told: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [_HEADS]
    for way in (UP, DOWN):
        rows += [
            _row(way, kind.name, told[way][kind.name])
            for kind in PacketType
            if told[way][kind.name]["packets"]
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    answers, refused = told["answers"], sum(told["refused"].values())
    lines += [
        "",
        f"answers larger than what asked: {answers['larger']}, without being asked: {answers['unasked']}",
        f"remote ends: {told['remotes']['count']}, steering ids: {told['steering_ids']['count']}",
        f"no JVP/1: {refused} datagrams, {told['other_frames']} other frames",
    ]
    if "opened" in told:
        lines += ["", *_opened(told["opened"])]
    return "\n".join([f"{told['device']}: {told['packets']} datagrams, {told['bytes']} bytes", *lines])


def _row(way: str, kind: str, seen: dict[str, Any]) -> tuple[str, ...]:
    sizes = str(seen["smallest"])
    if seen["largest"] != seen["smallest"]:
        sizes += f"-{seen['largest']}"
    times = f"{seen['first_s']:.3f}", f"{seen['last_s']:.3f}"
    return (
        way,
        kind,
        str(seen["packets"]),
        str(seen["bytes"]),
        *times,
        sizes,
        str(seen["steering_ids"]),
        str(seen["sources"]),
    )


def _opened(opened: dict[str, Any]) -> list[str]:
    lines = [f"not opened: {opened['closed']}"]
    lines += [
        f"{name}: {', '.join(map(str, opened[name])) or 'none'}" for name in ("epochs", "phases", "indexes")
    ]
    for way in (UP, DOWN):
        for group, counts in opened[way].items():
            seen = [f"{name} {count}" for name, count in counts.items() if count]
            lines += [f"{way} {group}: {', '.join(seen)}"] if seen else []
    return lines


def _bins(text: str) -> float:
    length_s = number(text)
    if not SHORTEST_S <= length_s <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"bins last {SHORTEST_S:g} to {LONGEST_S:g} seconds, not {text}")
    return length_s


def main(arguments: list[str] | None = None) -> int:
    """0; 1 for a file that cannot be read; 2 for bad arguments or a bad key log."""
    parser = argparse.ArgumentParser(prog="python -m vagrant.traffic.tally", description=__doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="pcap or pcapng, of one device each"
    )
    parser.add_argument("--keylog", type=Path, metavar="FILE", help="open what it has the keys of")
    parser.add_argument(
        "--port", type=int, action="append", help=f"the gateway's; may be repeated (default {PORT})"
    )
    parser.add_argument(
        "--origin-ns",
        type=int,
        metavar="NS",
        help="what times count from, CLOCK_REALTIME (default: the first datagram)",
    )
    parser.add_argument(
        "--bins",
        type=_bins,
        default=0.0,
        metavar="S",
        help="count types in bins of so many seconds, 0.001 to 86400",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a file, each on a line")
    options = parser.parse_args(arguments)
    try:
        log = None if options.keylog is None else KeyLog.read(options.keylog)
    except (OSError, KeyLogError) as error:
        print(f"tally: {error}", file=sys.stderr)
        return BAD_ARGUMENTS
    ports = frozenset(options.port or {PORT})
    for path in options.files:
        try:
            told = tallied(path, ports=ports, log=log, origin_ns=options.origin_ns, bin_s=options.bins)
        except (OSError, CaptureError) as error:
            print(f"tally: {error}", file=sys.stderr)
            return FAILED
        print(json.dumps(told) if options.json else as_text(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
