"""Compile the busiest modules by mypyc, where the machine has what that takes.

Run by script/setup with the environment's interpreter. jvpn/compiled.py says which modules, where they come to lie, and
takes them from there. Nothing is needed of them: without, or when this fails, their sources are interpreted.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jvpn.compiled import FOLDER, MODULES, SUFFIX, Interpreted, digest, look  # noqa: E402

NEEDED = ("jvpn", "workers", "script", "pyproject.toml", "requirements.lock")


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def has_compiler() -> bool:
    command: str = sysconfig.get_config_var("CC") or "cc"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(command.split()[0]) is not None and header.is_file()


def copy_sources(target: Path) -> None:
    """mypyc writes beside what it compiles, and an editor may write to the checkout meanwhile."""
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target / name)


def run(command: list[str], folder: Path) -> str:
    """What it said, when it failed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout or f"status {done.returncode}"


def build(scratch: Path, compiled: Path) -> str:
    """Compile, import once, and put in place under the digest of what was compiled. What failed, if anything did."""
    copy, made = scratch / "copy", scratch / "made"
    copy.mkdir()
    copy_sources(copy)
    failed = run(["-m", "mypyc", *(name.replace(".", "/") + ".py" for name in MODULES)], copy)
    if failed:
        return failed
    for path in copy.rglob("*" + SUFFIX):
        relative = path.relative_to(copy)
        if relative.parts[0] != "build":
            (made / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, made / relative)
    name = digest(copy)
    # In the copy they lie beside their sources, before which Python takes them.
    failed = run(["-c", f"import {', '.join(MODULES)}"], copy)
    if failed:
        return failed
    made.rename(compiled / name)
    return ""


def remove_others(compiled: Path, kept: str) -> None:
    """What was made of other sources, and what killed ones left behind."""
    for path in compiled.iterdir():
        if path.is_dir() and path.name != kept:
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink()


def main() -> None:
    # Made before, or brought from a machine that has a compiler and the same Python.
    if not isinstance(look(ROOT), Interpreted):
        return
    if not has_compiler():
        say(
            "the busiest modules stay interpreted, which is slower: to compile them, install gcc and python3-dev"
        )
        return
    # What runs as root is written by its owner alone, whatever the caller's umask.
    os.umask(0o022)
    compiled = ROOT / FOLDER
    compiled.mkdir(parents=True, exist_ok=True)
    holder = os.open(compiled, os.O_RDONLY | os.O_CLOEXEC)
    # Two at once take turns; the second finds all done.
    fcntl.flock(holder, fcntl.LOCK_EX)
    name = digest(ROOT)
    report = compiled / f"{name}.failed"
    if (compiled / name).is_dir():
        return
    if not report.exists():
        remove_others(compiled, name)
        say("compiling the busiest modules, a minute or two")
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=compiled) as scratch:
            failed = build(Path(scratch), compiled)
        if not failed:
            return
        # The next setup need not fail at the same again.
        report.write_text(failed)
    say(f"the busiest modules stay interpreted, which is slower: they could not be compiled, see {report}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        say(f"the busiest modules stay interpreted, which is slower: they could not be compiled ({error})")
