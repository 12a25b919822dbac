"""The report of runs that were made earlier, out of the results that they left."""

from pathlib import Path

from jvpn.lab.scenario.result import Result, ResultError, load


def results_in(folder: Path) -> list[Result]:
    """Every result.json below the folder, in the order in which they ran.

    ResultError for a file that is none, and where there is none; OSError for one that cannot be read.
    """
    found = [load(path) for path in sorted(folder.rglob("result.json"))]
    if not found:
        raise ResultError(
            f"{folder}: no result.json in it or below it; name the folder that `jvpn lab run` said it wrote"
        )
    return sorted(found, key=lambda result: result.started)
