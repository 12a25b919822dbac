"""The import rules in pyproject.toml hold, and each of them can fail.

Every case plants one import that a rule forbids into a copy of the sources, and expects that rule to name it.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("jvpn", "workers", "vagrant")
_RUN = "from importlinter.cli import lint_imports_command; lint_imports_command()"
# The rule's id, the file that breaks it, what that file says.
VIOLATIONS = [
    ("layers", "jvpn/protocol/planted.py", "import jvpn.session.machine"),
    ("layers", "jvpn/session/planted.py", "import jvpn.policy.model"),
    ("layers", "jvpn/policy/planted.py", "import jvpn.observability.events"),
    ("layers", "jvpn/store/planted.py", "import jvpn.supervisor.core"),
    ("layers", "jvpn/agent/planted.py", "import jvpn.supervisor.core"),
    ("layers", "jvpn/supervisor/planted.py", "import jvpn.cli.keygen"),
    ("layers", "jvpn/planted/__init__.py", ""),
    ("sans-io", "jvpn/protocol/planted.py", "import time"),
    ("sans-io", "jvpn/session/planted.py", "from os import urandom"),
    ("sans-io", "jvpn/policy/planted.py", "def late():\n    import threading"),
    ("workers-below", "workers/planted.py", "import jvpn.session.machine"),
    ("workers-below", "workers/planted.py", "from jvpn.holder import descriptors"),
    ("workers-users", "jvpn/store/planted.py", "import workers.page"),
    ("transports-workers", "jvpn/transports/planted.py", "import workers.page"),
    ("lab", "jvpn/supervisor/planted.py", "import jvpn.lab.links"),
    ("lab", "workers/planted.py", "import jvpn.lab.links"),
    ("bcc", "jvpn/supervisor/planted.py", "import bcc"),
    ("vagrant", "vagrant/planted.py", "import jvpn.session.machine"),
    ("vagrant", "vagrant/traffic/planted.py", "import workers.page"),
    ("vagrant", "vagrant/traffic/planted.py", "import jvpn.lab.link_model"),
    ("vagrant", "vagrant/traffic/faults/planted.py", "import jvpn.lab.wire"),
    ("lab", "vagrant/traffic/faults/planted.py", "import jvpn.lab.namespaces"),
    ("test-tools", "workers/planted.py", "from scapy.layers import inet"),
]


def _lint(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _RUN, "--no-cache", "--no-logo", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources and the rules, to be broken."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_follow_the_rules() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b0 broken", done.stdout), done.stdout


def test_every_source_folder_is_seen() -> None:
    """A folder without __init__.py is invisible to the rules."""
    unseen = {
        str(source.parent.relative_to(ROOT))
        for package in PACKAGES
        for source in (ROOT / package).rglob("*.py")
        if not (source.parent / "__init__.py").is_file()
    }
    assert not unseen


@pytest.mark.parametrize(("contract", "file", "text"), VIOLATIONS)
def test_a_violation_breaks_its_rule(copy: Path, contract: str, file: str, text: str) -> None:
    (copy / file).parent.mkdir(exist_ok=True)
    (copy / file).write_text(text + "\n")
    done = _lint(copy, "--contract", contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"\b1 broken", done.stdout), done.stdout
    assert "planted" in done.stdout.partition("Broken contracts")[2]


def test_every_rule_is_broken_by_some_case() -> None:
    rules = re.findall(r'^id = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(rules) == {contract for contract, _, _ in VIOLATIONS}
