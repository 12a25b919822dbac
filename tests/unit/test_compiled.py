"""The compiled modules: used only where they are of these very sources, and nobody else's; and they do the same."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from jvpn import compiled
from jvpn.cli import checks
from jvpn.compiled import FOLDER, MODULES, SUFFIX, SWITCH, Interpreted, digest, look

ROOT = compiled.ROOT
COPIED = ("jvpn", "workers", "script", "pyproject.toml", "requirements.lock")
SAME_TESTS = (
    "tests/properties/test_pipeline_equivalence.py",
    "tests/properties/test_pipeline_robustness.py",
    "tests/properties/test_replay_model.py",
    "tests/unit/test_bulk.py",
    "tests/unit/test_fairness.py",
    "tests/unit/test_forged_runs.py",
    "tests/unit/test_offload.py",
    "tests/unit/test_replay.py",
    "tests/unit/test_worker_pipelines.py",
)
#: With the workers interpreted: what these tests put in their place inherits from theirs.
SAME_TESTS_OF_CONTROL = (
    "tests/unit/test_adoption.py",
    "tests/unit/test_keeping.py",
    "tests/unit/test_machine.py",
    "tests/unit/test_reattach_verdicts.py",
    "tests/unit/test_record.py",
    "tests/unit/test_session_rules.py",
    "tests/unit/test_takeover.py",
)
WHICH = "import workers.encrypt; print(workers.encrypt.__file__)"


@pytest.fixture(autouse=True)
def _not_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, nothing compiled."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def pretend(checkout: Path) -> Path:
    """The folder that a compiler would have made, with empty files."""
    folder = checkout / FOLDER / digest(checkout)
    for name in MODULES:
        path = folder / (name.replace(".", "/") + SUFFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o644)
    for path in (checkout / FOLDER, folder, *folder.rglob("*/")):
        path.chmod(0o755)
    return folder


def refused(checkout: Path) -> Interpreted:
    found = look(checkout)
    assert isinstance(found, Interpreted), f"used: {found}"
    return found


def run(checkout: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_was_compiled_from_these_sources_is_used(checkout: Path):
    assert "not compiled" in refused(checkout).why
    folder = pretend(checkout)
    assert look(checkout) == {name: folder / (name.replace(".", "/") + SUFFIX) for name in MODULES}


@pytest.mark.parametrize(
    "edited",
    [
        "workers/encrypt.py",
        "workers/page.py",
        "jvpn/policy/model.py",
        "jvpn/protocol/constants.py",
        "requirements.lock",
    ],
)
def test_an_edited_source_is_interpreted(checkout: Path, edited: str):
    """Not only one that was compiled: constants of the others are in these."""
    pretend(checkout)
    with (checkout / edited).open("a") as file:
        file.write("\n")
    found = refused(checkout)
    assert "other sources" in found.why
    assert "script/setup" in found.remedy


def test_another_source_is_interpreted(checkout: Path):
    pretend(checkout)
    (checkout / "workers/another.py").touch()
    assert "other sources" in refused(checkout).why


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("place", [".", "workers", f"workers/udp{SUFFIX}", ".."])
def test_what_others_may_write_is_ignored(checkout: Path, place: str, mode: int):
    path = pretend(checkout) / place
    path.chmod(path.stat().st_mode | mode)
    found = refused(checkout)
    assert "written by" in found.why
    assert "remove" in found.remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: needs root")
@pytest.mark.parametrize("place", [".", f"workers/udp{SUFFIX}"])
def test_what_belongs_to_others_is_ignored(checkout: Path, place: str):
    os.chown(pretend(checkout) / place, 54_321, -1)
    assert "belongs to" in refused(checkout).why


def test_a_link_is_ignored(checkout: Path):
    path = pretend(checkout) / f"workers/udp{SUFFIX}"
    path.unlink()
    path.symlink_to(f"fair{SUFFIX}")
    assert "belongs to" in refused(checkout).why


def test_all_of_them_or_none(checkout: Path):
    (pretend(checkout) / f"workers/udp{SUFFIX}").unlink()
    assert "lacks workers.udp" in refused(checkout).why


def test_it_can_be_switched_off(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    pretend(checkout)
    monkeypatch.setenv(SWITCH, "1")
    found = refused(checkout)
    assert SWITCH in found.why
    assert not found.remedy


def test_doctor_says_it_and_nothing_fails_for_it(monkeypatch: pytest.MonkeyPatch):
    for answer, level, says in (
        (Interpreted("not compiled", "script/setup"), "warning", "interpreted: not compiled"),
        (Interpreted("asked for"), "ok", "interpreted: asked for"),
        ({"workers.udp": Path("x")}, "ok", "compiled"),
    ):
        monkeypatch.setattr(compiled, "look", lambda answer=answer: answer)
        check = next(check for check in checks.crypto() if check.name == "data plane")
        assert (check.level, check.blocks_bpf) == (level, False)
        assert check.found.startswith(says)


def test_without_a_compiler_setup_says_so_and_makes_nothing(checkout: Path):
    said = run(checkout, "script/compile.py", PATH=str(checkout))
    assert "interpreted" in said
    assert "gcc and python3-dev" in said
    assert len(said.splitlines()) == 1
    assert not (checkout / FOLDER).exists()
    assert run(checkout, "-c", WHICH).strip() == str(checkout / "workers/encrypt.py")
    pretend(checkout)
    assert run(checkout, "script/compile.py", PATH=str(checkout)) == ""


@pytest.mark.skipif(
    shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is None
    or not Path(sysconfig.get_path("include"), "Python.h").is_file(),
    reason="no compiler here",
)
def test_what_cannot_be_compiled_is_interpreted_and_not_tried_again(checkout: Path):
    with (checkout / "workers/fair.py").open("a") as file:
        file.write('\nwrong: int = "no number"\n')
    said = run(checkout, "script/compile.py")
    assert "could not be compiled" in said
    (report,) = (checkout / FOLDER).iterdir()
    assert "workers/fair.py" in report.read_text()
    assert "compiling" not in run(checkout, "script/compile.py")
    assert run(checkout, "-c", WHICH).strip() == str(checkout / "workers/encrypt.py")


@pytest.mark.skipif(isinstance(look(), Interpreted), reason="not compiled here: script/setup does it")
class TestCompiledHere:
    def test_processes_take_them(self, checkout: Path):
        shutil.copytree(ROOT / FOLDER, checkout / FOLDER)
        assert run(checkout, "-c", WHICH).strip().endswith(SUFFIX)
        assert run(checkout, "-c", WHICH, JVPN_INTERPRETED="1").strip().endswith(".py")
        with (checkout / "jvpn/protocol/constants.py").open("a") as file:
            file.write("\n")
        assert run(checkout, "-c", WHICH).strip().endswith(".py")

    def test_they_do_what_their_sources_do(self):
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *SAME_TESTS]
        run(ROOT, *command, JVPN_INTERPRETED="0")

    def test_they_decide_what_their_sources_decide(self):
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *SAME_TESTS_OF_CONTROL]
        run(ROOT, *command, JVPN_INTERPRETED="workers")

    def test_the_subset_runs_compiled_code(self):
        code = "import tests.conftest, workers.encrypt; print(workers.encrypt.__file__)"
        assert run(ROOT, "-c", code, JVPN_INTERPRETED="0").strip().endswith(SUFFIX)
        assert run(ROOT, "-c", code).strip().endswith(".py")
        assert run(ROOT, "-c", code, JVPN_INTERPRETED="workers").strip().endswith(".py")
        code = "import tests.conftest, jvpn.supervisor.core; print(jvpn.supervisor.core.__file__)"
        assert run(ROOT, "-c", code, JVPN_INTERPRETED="workers").strip().endswith(SUFFIX)
