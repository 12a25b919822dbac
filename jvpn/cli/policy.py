"""`jvpn policy`: look at policies before they are in force, and understand the ones that are.

jvpn policy check FILE…        is each of them a policy?
jvpn policy explain [NAME]     what it means, and what it would decide now
jvpn policy apply              a running gateway takes changed files up
jvpn policy replay EVENTS…     what it decided, decided again
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jvpn.cli import policy_explain, policy_replay
from jvpn.cli.peer import operator
from jvpn.cli.status import add_run_dir
from jvpn.config.loader import read_policy
from jvpn.observability.admin import ask
from jvpn.policy.estimators import MIN_PROBES
from jvpn.policy.health import WATCH_INTERVALS
from jvpn.policy.model import Policy, PolicyError
from jvpn.policy.parameters import HOUR, SECOND
from jvpn.policy.words import span
from jvpn.supervisor.policies import MODES, Applied, told

#: Many NATs forget a UDP mapping after this (RFC 4787 asks for two minutes, and many do less).
NAT_FORGETS_MS = 30 * SECOND


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "policy",
        help="check policy files, explain a policy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = verbs.add_parser(
        "check",
        help="whether files are policies",
        description="Reads policy files as the gateway does, and says everything that is wrong with them, one line "
        "each. Exit status 1 when one of them cannot be used; warnings alone are 0.",
    )
    check.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a policy, or a directory of them")
    check.add_argument("--json", action="store_true", help="print one JSON object for each file, in a list")
    check.set_defaults(run=run_check)
    policy_explain.add_parser(verbs)
    policy_replay.add_parser(verbs)
    apply = verbs.add_parser(
        "apply",
        help="put changed files in force",
        description="Has a running gateway read its policies again, as SIGHUP does, and says what has changed and for "
        "how many sessions. New sessions get the new policies. grace: those that there are keep theirs until they "
        "end. strict: they have the new one now; where a session cannot be changed (kem) it ends, and its client "
        "shakes hands anew.",
    )
    apply.add_argument(
        "--mode", choices=MODES, default="", help="default: policy_change of the configuration"
    )
    add_run_dir(apply)
    apply.set_defaults(run=run_apply)


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing about a file. `line` 0: the whole file. `level`: "error" or "warning"."""

    level: str
    line: int
    field: str
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Checked:
    """One file; `policy` None when it cannot be used."""

    file: Path
    policy: Policy | None
    remarks: tuple[Remark, ...]


def run_check(args: argparse.Namespace) -> int:
    """0, or 1 when one of the files cannot be used."""
    checked = [one for path in args.files for one in _checked(path)]
    if args.json:
        print(json.dumps([_as_json(one) for one in checked], indent=2))
    else:
        for one in checked:
            _print(one)
    return 0 if all(one.policy is not None for one in checked) else 1


def _checked(path: Path) -> list[Checked]:
    if not path.is_dir():
        return [_one(path)]
    files = sorted(path.glob("*.yaml"))
    if files:
        return [_one(file) for file in files]
    problem = "there is no *.yaml in this directory"
    return [Checked(path, None, (Remark("error", 0, "", problem, "name the directory of the policies"),))]


def _one(path: Path) -> Checked:
    policy, problems = read_policy(path)
    if policy is None:
        return Checked(path, None, tuple(_error(problem) for problem in problems))
    return Checked(path, policy, tuple(warnings(policy)))


def _error(problem: PolicyError) -> Remark:
    return Remark("error", problem.line, problem.field, problem.problem, problem.remedy)


def warnings(policy: Policy) -> list[Remark]:
    """What may be meant, and more often is not."""
    found = []
    if policy.idle_probe_interval_ms >= NAT_FORGETS_MS:
        idle, forgotten = span(policy.idle_probe_interval_ms), span(NAT_FORGETS_MS)
        problem = f"{idle}: many NATs forget a silent client after {forgotten}"
        remedy = "stay below it, unless no client is behind a NAT"
        found.append(Remark("warning", 0, "idle_probe_interval_ms", problem, remedy))
    watched_ms = WATCH_INTERVALS * policy.probe_interval_ms
    if policy.loss_window_ms < MIN_PROBES * watched_ms:
        problem = (
            f"{span(policy.loss_window_ms)} hold fewer than {MIN_PROBES} probes of an idle path "
            f"(one every {span(watched_ms)} while it is too bad), so it is never judged"
        )
        found.append(Remark("warning", 0, "loss_window_ms", problem, "raise it, or lower probe_interval_ms"))
    hours = policy.reauthenticate_interval_h
    if hours and hours * HOUR > policy.session_ttl_ms:
        problem = f"{hours} h is after session_ttl_ms ({span(policy.session_ttl_ms)}), so it changes nothing"
        found.append(Remark("warning", 0, "reauthenticate_interval_h", problem, "lower it, or write 0"))
    return found


def run_apply(args: argparse.Namespace) -> int:
    """0; 1 when a policy is broken now, or (AdminError) no gateway runs there or its configuration is."""
    request: dict[str, object] = {"command": "policy-apply", "mode": args.mode, "by": operator()}
    answer = ask(args.run_dir, request)
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join(told(msgspec.convert(answer, Applied))))
    return 1 if any(change["problem"] for change in answer["changes"]) else 0


def _print(one: Checked) -> None:
    """What is wrong on standard error, what is well on standard output."""
    for remark in one.remarks:
        place = f"{one.file}:{remark.line}" if remark.line else f"{one.file}"
        level = "" if remark.level == "error" else f"{remark.level}: "
        parts = [place, remark.field, f"{level}{remark.problem}; {remark.remedy}"]
        print(": ".join(part for part in parts if part), file=sys.stderr)
    if one.policy is not None:
        print(f"{one.file}: ok, {one.policy.name}@{one.policy.version}", flush=True)


def _as_json(one: Checked) -> dict[str, object]:
    policy = one.policy
    return {
        "file": str(one.file),
        "ok": policy is not None,
        "name": one.file.stem if policy is None else policy.name,
        "version": None if policy is None else policy.version,
        "remarks": [
            {
                "level": r.level,
                "line": r.line or None,
                "field": r.field or None,
                "problem": r.problem,
                "remedy": r.remedy,
            }
            for r in one.remarks
        ],
    }
