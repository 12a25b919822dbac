"""Say what the environment really imports, and fail when it is not what the project needs.

Run by script/setup with the environment's interpreter, from outside the checkout.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import bcc
import cryptography
from packaging.requirements import Requirement

import jvpn
import workers

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    if not hasattr(bcc, "BPF"):
        sys.exit(f"setup: {bcc.__file__} is not the BPF compiler but another package named bcc: uninstall it")
    for package in (jvpn, workers):
        if not _inside(package.__file__):
            sys.exit(f"setup: Python finds {package.__name__} in {package.__file__}, not in this checkout")
    if not _inside(cryptography.__file__):
        sys.exit(f"setup: Python imports cryptography from {cryptography.__file__}, not from .venv")
    wrong = _unmet("jumping-vpn", {"dev"}, set())
    if wrong:
        sys.exit("setup: requirements.lock does not meet pyproject.toml: " + "; ".join(wrong))
    print(
        f"setup: Python {sys.version.split()[0]}, cryptography {cryptography.__version__}, "
        f"bcc {bcc.__version__}, jumping-vpn {version('jumping-vpn')}"
    )


def _unmet(name: str, extras: set[str], seen: set[str]) -> list[str]:
    """What `name` needs, and what that needs, as far as .venv does not have it. Debian's own packages do not count:
    their versions are not ours to pin."""
    wrong = []
    for line in distribution(name).requires or ():
        need = Requirement(line)
        if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        if need.name in seen:
            continue
        seen.add(need.name)
        try:
            found = distribution(need.name)
        except PackageNotFoundError:
            wrong.append(f"{name} needs {need}, which is missing")
            continue
        if not _inside(str(found.locate_file(""))):
            wrong.append(f"{name} needs {need}, found only outside .venv")
        elif not need.specifier.contains(found.version, prereleases=True):
            wrong.append(f"{name} needs {need}, found {found.version}")
        wrong += _unmet(need.name, need.extras, seen)
    return wrong


def _inside(path: str | None) -> bool:
    return path is not None and Path(path).resolve().is_relative_to(ROOT)


if __name__ == "__main__":
    main()
