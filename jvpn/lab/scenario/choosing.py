"""Which scenarios somebody means: by name, by row of the failure matrix, all, or those in the short set."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from jvpn.lab.places import SCENARIOS
from jvpn.lab.scenario.load import load
from jvpn.lab.scenario.model import Scenario, ScenarioError
from jvpn.lab.scenario.variants import split_name

ALL, SHORT = "all", "short"


def files(folder: Path = SCENARIOS) -> list[Path]:
    """Every scenario's file. Raises ScenarioError where there is none at all."""
    found = sorted(folder.glob("*.yaml"))
    if not found:
        remedy = "the lab needs a checkout of the project, where its scenarios and scripts are; run jvpn from there"
        raise ScenarioError(str(folder), 0, "", "there are no scenarios here", remedy)
    return found


def everything(folder: Path = SCENARIOS) -> list[Scenario]:
    """All variants of all scenarios, in the order of their rows."""
    found = [scenario for path in files(folder) for scenario in load(path)]
    return sorted(found, key=lambda scenario: (*_order(scenario.row), scenario.file))


def _order(row: str) -> tuple[str, int, str]:
    """F2 before F10, rows of another's list behind those of ours."""
    letter, number = row[:1], row[1:]
    return (letter, int(number), "") if number.isdigit() else ("~", 0, row)


def choose(names: Sequence[str], folder: Path = SCENARIOS) -> list[Scenario]:
    """What *names* mean, in their order, none twice: `NAME`, `NAME[parameter=value,…]`, a row (`F2`), `all`, `short`,
    or a path to a YAML file. Raises ScenarioError."""
    found: dict[str, Scenario] = {}
    for name in names:
        for scenario in _meant(name, folder):
            found.setdefault(f"{scenario.file} {scenario.name}", scenario)
    return list(found.values())


def _meant(name: str, folder: Path) -> list[Scenario]:
    stem, given = split_name(name)
    if stem.endswith(".yaml"):
        return load(Path(stem), given)
    path = folder / f"{stem}.yaml"
    if path.is_file():
        return load(path, given)
    known = everything(folder)
    of_row = [
        scenario
        for scenario in known
        if stem == ALL or (stem == SHORT and scenario.short) or scenario.row.lower() == stem.lower()
    ]
    if of_row and not given:
        return of_row
    if of_row:
        raise ScenarioError(name, 0, "", "parameters are of one scenario", "name it in place of its row")
    stems = sorted({Path(scenario.file).stem for scenario in known})
    close = difflib.get_close_matches(stem, stems, n=3)
    asked = f"did you mean {' or '.join(close)}? " if close else ""
    raise ScenarioError(name, 0, "", "there is no such scenario", f"{asked}`jvpn lab list` names them all")
