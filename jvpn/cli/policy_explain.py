"""`jvpn policy explain`: what a policy means, what it costs, and what it would decide now.

Without a name it is the policy that the client or gateway of the run directory works by; where none runs, the
built-in default.
"""

import argparse
import json
import os
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from jvpn.cli.plans import DEFAULT_CONFIG as GATEWAY_CONFIG
from jvpn.cli.status import add_run_dir
from jvpn.cli.text import columns
from jvpn.cli.text import duration as span_now
from jvpn.config import ConfigError, load_gateway
from jvpn.config.loader import read_policy
from jvpn.observability.admin import ADMIN_SOCKET, AdminError, ask
from jvpn.policy.forecast import USES, Use, budget, dead_after_ms, interval_ns, missing_probes
from jvpn.policy.model import Policy
from jvpn.policy.probe_budget import PROBE_SIZE
from jvpn.policy.words import in_words, percent, span

WORDS: Final[dict[Use, str]] = {
    "idle": "active, idle",
    "busy": "active, sending all day",
    "watched": "active, idle, too bad",
    "candidate": "candidate",
    "lost": "candidate, no answer",
}
#: Paths that the table of dead paths stands for: loss of the round trips, round trip in ms.
PATHS: Final = ((0.0, 20), (0.0, 100), (0.0, 600), (0.01, 20), (0.05, 20), (0.10, 20), (0.30, 20))


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "explain", help="a policy in words, and what it decides now", description=__doc__
    )
    parser.add_argument(
        "policy", nargs="?", default="", metavar="NAME|FILE", help="a policy's name, or its file"
    )
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        default=GATEWAY_CONFIG,
        metavar="FILE",
        help="the gateway's configuration, for the policies of its policy_dir (default %(default)s)",
    )
    add_run_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 (AdminError) when there is no such policy, 2 (PolicyError) when it cannot be used."""
    try:
        now = running(args.run_dir)
    except AdminError:
        if not args.policy:
            raise
        # A policy that is named can be explained without whatever runs here.
        now = None
    policy, source = find(args.policy, args.config, now)
    if args.json:
        print(json.dumps(as_json(policy, source, now), indent=2))
    else:
        print(as_text(policy, source, now, shutil.get_terminal_size((100, 24)).columns))
    return 0


def running(run_dir: Path) -> dict[str, Any] | None:
    """What the process of this run directory says of its policies; None where none runs."""
    if not os.path.exists(run_dir / ADMIN_SOCKET):
        return None
    answer: dict[str, Any] = ask(run_dir, {"command": "policies"})
    return answer


def find(wanted: str, config: Path, now: dict[str, Any] | None) -> tuple[Policy, str]:
    """The policy, and where it comes from. Raises AdminError, or PolicyError when its file is broken."""
    if not wanted and now is not None:
        return Policy.from_wire(json.dumps(now["policy"]).encode()), f"in force at this {now['kind']}"
    if not wanted:
        return Policy.default(), "built in"
    if "/" in wanted or wanted.endswith((".yaml", ".yml")) or Path(wanted).is_file():
        return _file(Path(wanted))
    held = {} if now is None else now["loaded"]
    if wanted in held:
        return Policy.from_wire(
            json.dumps(held[wanted]).encode()
        ), f"in force at this {now['kind']}" if now else ""
    folder = _policy_dir(config)
    if folder is not None and (folder / f"{wanted}.yaml").is_file():
        return _file(folder / f"{wanted}.yaml")
    if wanted == "default" and folder is None:
        return Policy.default(), "built in"
    where = f"in {folder}" if folder is not None else f"without a policy_dir ({config})"
    raise AdminError(
        f"there is no policy {wanted} {where}; name its file, or the gateway's configuration with -c"
    )


def _file(path: Path) -> tuple[Policy, str]:
    policy, problems = read_policy(path)
    if policy is None:
        raise problems[0]
    return policy, str(path)


def _policy_dir(config: Path) -> Path | None:
    try:
        return load_gateway(config).policy_dir
    except ConfigError:
        return None


# What it costs and how fast it is


def as_json(policy: Policy, source: str, now: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "policy": policy.name,
        "version": policy.version,
        "source": source,
        "parameters": asdict(policy),
        "words": dict(in_words(policy)),
        "dead_path": [_dead(policy, loss, rtt_ms) for loss, rtt_ms in PATHS],
        "probe_bytes": PROBE_SIZE,
        "probe_budget": [
            asdict(budget(policy, use)) | {"interval_ms": interval_ns(policy, use) / 1e6} for use in USES
        ],
        "now": None if now is None else now.get("now"),
    }


def _dead(policy: Policy, loss: float, rtt_ms: float) -> dict[str, Any]:
    return {
        "loss": loss,
        "rtt_ms": rtt_ms,
        "unanswered": missing_probes(policy, loss, rtt_ms),
        "dead_after_ms": dead_after_ms(policy, loss, rtt_ms),
    }


def now_text(now: dict[str, Any] | None) -> list[str]:
    """What a client's or a gateway's sessions make of their policies just now."""
    if now is None or now.get("now") is None:
        return []
    return _gateway_now(now["now"]) if now["kind"] == "gateway" else _client_now(now["now"])


def _client_now(seen: dict[str, Any]) -> list[str]:
    used = seen["limits"]
    paths = {path["id"]: path for path in seen["paths"]}
    rows = [["", "path", "is", "round trip", "loss", "dead known in", "probes a day", "why here"]]
    for place in seen["places"]:
        path = paths[place["id"]]
        rows.append(
            [
                str(place["place"]) if place["place"] else "–",
                place["id"],
                "active" if path["active"] else "candidate" if path["answering"] else "silent",
                "" if path["rtt_ms"] is None else f"{path['rtt_ms']:.1f} ms",
                percent(round(path["loss"], 3)),
                "" if path["dead_after_ms"] is None else f"{path['dead_after_ms']} ms",
                megabytes(path["probe_bytes_per_day"]),
                place["because"],
            ]
        )
    allowed = "a move by choice is allowed now"
    if used["retry_after_ms"]:
        allowed = f"the next move by choice in {span_now(used['retry_after_ms'])}"
    count, most = used["switches_in_minute"], used["max_switches_per_minute"]
    return [
        f"now: session {seen['session'][:12]}, {seen['state']}, on {seen['active'] or 'no path'}",
        *(f"  {line}" for line in columns(rows)),
        f"  would do now: {seen['decision']['words']}",
        f"  limits: {count} of {most} binds in the last minute; {allowed}",
    ]


def _gateway_now(seen: dict[str, Any]) -> list[str]:
    if not seen["sessions"]:
        return ["now: no sessions"]
    rows = [["session", "peer", "policy", "moves by choice", "a new session would have"]]
    for session in seen["sessions"]:
        moves = f"{session['switches_in_minute']} of {session['max_switches_per_minute']} a minute"
        if session["retry_after_ms"]:
            moves += f", next in {span_now(session['retry_after_ms'])}"
        same = session["new_sessions"] == session["policy"]
        rows.append(
            [
                session["session"][:12],
                session["peer"],
                session["policy"],
                moves,
                "the same" if same else session["new_sessions"],
            ]
        )
    return ["now", *(f"  {line}" for line in columns(rows))]


def as_text(policy: Policy, source: str, now: dict[str, Any] | None, width: int) -> str:
    lines = [f"policy {policy.name}@{policy.version}, {source}"]
    if now is not None and policy.version in versions(now):
        lines += [part for line in now_text(now) for part in ([""] * line.startswith("now") + [line])]
    for heading, sentences in in_words(policy):
        lines += ["", heading]
        for sentence in sentences:
            lines += _folded(sentence, width)
    lines += [
        "",
        "how long a path that carries traffic can be dead before that is known",
        *dead_table(policy),
    ]
    lines += [
        "",
        "what probing one path costs a day, both directions, IP headers included",
        *budget_table(policy),
    ]
    return "\n".join(lines)


def versions(now: dict[str, Any]) -> set[str]:
    """Versions of the policies that what runs knows: of others it has nothing to say."""
    held = [now["policy"], *now["loaded"].values()]
    return {Policy.from_wire(json.dumps(policy).encode()).version for policy in held}


def _folded(sentence: str, width: int) -> list[str]:
    return textwrap.wrap(sentence, max(40, width), initial_indent="  ", subsequent_indent="    ")


def dead_table(policy: Policy) -> list[str]:
    rows = [["loss", "round trip", "unanswered probes", "dead after at most"]]
    for loss, rtt_ms in PATHS:
        seen = _dead(policy, loss, rtt_ms)
        rows.append([percent(loss), span(rtt_ms), str(seen["unanswered"]), f"{seen['dead_after_ms']:,} ms"])
    return [f"  {line}" for line in columns(rows)]


def budget_table(policy: Policy) -> list[str]:
    rows = [["path", "probed every", "IPv4", "IPv6", "of that for its MTU"]]
    for use in USES:
        found = budget(policy, use)
        rows.append(
            [
                WORDS[use],
                span_now(interval_ns(policy, use) / 1e6),
                megabytes(found.ipv4_bytes),
                megabytes(found.ipv6_bytes),
                megabytes(found.mtu_bytes) if found.mtu_bytes else "",
            ]
        )
    return [f"  {line}" for line in columns(rows)]


def megabytes(count: int) -> str:
    """A number of bytes as a volume is paid for: in powers of ten."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"
