"""`jvpn lab list` and `jvpn lab run`: what they print, and the folder with the report."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jvpn.cli import lab_steps

if TYPE_CHECKING:
    from jvpn.lab.scenario.model import Scenario
    from jvpn.lab.scenario.result import Result
    from jvpn.lab.scenario.teller import Teller

REPORTS = Path("lab-report")


def list_all(args: argparse.Namespace) -> int:
    """0. Raises ScenarioError."""
    if args.steps:
        print(json.dumps(lab_steps.described()) if args.json else "\n".join(lab_steps.lines()))
        return 0
    from jvpn.lab.scenario.choosing import everything

    found = everything()
    if args.json:
        print(json.dumps([_described(scenario) for scenario in found]))
        return 0
    width = max(len(scenario.name) for scenario in found)
    rows = max(len(scenario.row) for scenario in found)
    for scenario in found:
        mark = "short" if scenario.short else ""
        print(f"{scenario.row:<{rows}}  {scenario.name:<{width}}  {mark:<5}  {scenario.title}")
    print(
        f"{len(found)} in all; `jvpn lab run short` runs those in the short set, `jvpn lab run all` the rest too"
    )
    return 0


def _described(scenario: "Scenario") -> dict[str, object]:
    return {
        "name": scenario.name,
        "row": scenario.row,
        "title": scenario.title,
        "short": scenario.short,
        "parameters": dict(scenario.parameters),
        "seconds": scenario.ends_at_s,
        "assertions": [assertion.text for assertion in scenario.assertions],
    }


def run(args: argparse.Namespace) -> int:
    """0; 1 when one did not pass. Raises ScenarioError, and OSError when its folder cannot be written."""
    from jvpn.lab import report
    from jvpn.lab.scenario.choosing import choose
    from jvpn.lab.scenario.examined import examine

    chosen = choose(args.scenarios)
    examine(chosen)
    if os.geteuid() != 0 and args.backend == "netns":
        print(
            "jvpn lab: it makes network namespaces and needs root: run it as root or with sudo",
            file=sys.stderr,
        )
        return 1
    from jvpn.lab.scenario.teller import Teller

    folder: Path = args.out or REPORTS / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)  # before anything runs whose result could not be kept
    results: list[Result] = []
    try:
        _run_all(args, chosen, folder, Teller(sys.stderr if args.json else sys.stdout), results)
    finally:
        # Also of what ran before somebody had enough of it.
        if results:
            report.write(results, folder)
            say_report(results, folder, as_json=args.json, wanted=len(chosen))
    return 0 if all(result.passed for result in results) else 1


def _run_all(
    args: argparse.Namespace,
    chosen: "list[Scenario]",
    folder: Path,
    teller: "Teller",
    results: "list[Result]",
) -> None:
    from jvpn.lab.backends import backend as backend_of
    from jvpn.lab.scenario.conduct import conduct, folder_name

    backend = backend_of(args.backend)
    try:
        for number, scenario in enumerate(chosen, 1):
            teller.line(f"{number}/{len(chosen)}  {scenario.name}  {scenario.title}")
            where = folder / folder_name(scenario)
            result = conduct(scenario, backend, where, teller, pcap=args.pcap, time_factor=args.time_factor)
            _tell(result, where, teller)
            results.append(result)
            if not result.passed and not args.keep_going and number < len(chosen):
                teller.line("the others are not run: --keep-going runs them all the same")
                break
    finally:
        backend.close()  # takes back also what somebody interrupted the taking back of


def _tell(result: "Result", where: Path, teller: "Teller") -> None:
    width = max((len(assertion.text) for assertion in result.assertions), default=0)
    for assertion in result.assertions:
        verdict = "ok    " if assertion.passed else "FAILED"
        seen = "" if assertion.value is True else f"  {_shown(assertion.value)}"
        teller.line(f"    {verdict}  {assertion.text:<{width if seen else 0}}{seen}")
    if not result.passed:
        for finding in result.about.get("findings", ()):
            teller.line(f"            {finding}")
    if result.error:
        teller.line(f"    FAILED  {result.error}")
    if result.passed:
        teller.line(f"    passed in {result.duration_s:g} s\n")
    else:
        teller.line(f"    did not pass; logs and events are in {where}\n")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def say_report(results: "list[Result]", folder: Path, *, as_json: bool, wanted: int = 0) -> None:
    """What stands in the report and where it is. *wanted*: how many were to run, where those were more."""
    if as_json:
        print(json.dumps(_as_json(results, folder)))
    else:
        _verdict(results, max(wanted, len(results)), folder)


def _verdict(results: "list[Result]", wanted: int, folder: Path) -> None:
    failed = [result.scenario for result in results if not result.passed]
    left = wanted - len(results)
    print(f"{len(results) - len(failed)} of {wanted} passed", end="")
    print(f", {left} not run" if left else "")
    for name in failed:
        print(f"    did not pass: {name}")
    print(f"report: {folder / 'report.md'}, {folder / 'report.html'}")


def _as_json(results: "list[Result]", folder: Path) -> dict[str, object]:
    return {
        "passed": all(result.passed for result in results),
        "folder": str(folder),
        "scenarios": [
            {
                "scenario": result.scenario,
                "row": result.row,
                "passed": result.passed,
                "duration_s": result.duration_s,
                "error": result.error,
                "assertions": [
                    {"text": one.text, "value": one.value, "passed": one.passed} for one in result.assertions
                ],
            }
            for result in results
        ],
    }
