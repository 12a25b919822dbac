"""The pinned BPF programs of this gateway: loaded when needed, opened when they are there, taken away at the end.

A restarted supervisor opens what it finds, provided that it was made from the sources that it would load itself: a
note beside the gateway's sockets says from which sources, and which program ids, the pins in the bpffs came.
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from jvpn.holder import bpf_syscall
from jvpn.holder.bpffs import is_bpffs
from jvpn.holder.loader import MAPS, PROGRAMS, SOURCES
from jvpn.supervisor.steering import Steering

NOTE = "steering.json"
REFUSAL = "refusal"
SOURCE_DIR = Path(__file__).resolve().parents[2] / "bpf"


def source_digest(source_dir: Path = SOURCE_DIR) -> str:
    """One name for what the loader would compile. Raises OSError when a source is missing."""
    digest = sha256()
    for name in SOURCES:
        digest.update((source_dir / name).read_bytes() + b"\0")
    return digest.hexdigest()


def open_pinned(run_dir: Path) -> Steering | None:
    """The programs and maps of an earlier supervisor; None when there are none, or others than would be loaded."""
    try:
        note: dict[str, Any] = json.loads((run_dir / NOTE).read_text())
        pin_dir = Path(note["pin_dir"])
        if note["sources"] != source_digest() or note["programs"] != _pinned_ids(pin_dir):
            return None
        return Steering(pin_dir)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load(pin_dir: Path, run_dir: Path) -> Steering:
    """Load and pin anew, in a process of its own. Raises OSError with stage, reason and remedy."""
    loaded = _run_loader(pin_dir, run_dir)
    steering = Steering(loaded["pin_dir"])
    note = {"sources": source_digest()} | {name: loaded[name] for name in ("pin_dir", "programs", "maps")}
    (run_dir / NOTE).write_text(json.dumps(note))
    return steering


def noted_pin_dir(run_dir: Path, usual: Path) -> Path:
    """Where this gateway's pins are: it is not `usual` where /sys cannot be written."""
    try:
        return Path(json.loads((run_dir / NOTE).read_text())["pin_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return usual


def note_refusal(run_dir: Path, why: str) -> None:
    """Remember, while the data plane lives, that it does without programs: to try again would end it."""
    (run_dir / NOTE).write_text(json.dumps({REFUSAL: why}))


def noted_refusal(run_dir: Path) -> str | None:
    """Why the data plane of this run_dir does without programs that could be loaded; None when nobody found that."""
    try:
        return str(json.loads((run_dir / NOTE).read_text())[REFUSAL])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_pins(pin_dir: Path, run_dir: Path) -> list[str]:
    """Unpin everything that the loader pins and remove its folders; returns what was removed."""
    removed = []
    for name in (*PROGRAMS, *MAPS):
        for path in (pin_dir / name, pin_dir / f"{name}_next"):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                removed.append(str(path))
    (run_dir / NOTE).unlink(missing_ok=True)
    if pin_dir == run_dir / "bpf" and is_bpffs(pin_dir):
        _unmount(pin_dir)
        removed.append(f"the BPF file system on {pin_dir}")
    for folder in (pin_dir, pin_dir.parent if pin_dir.parent.name == "jvpn" else pin_dir):
        with contextlib.suppress(OSError):  # somebody else's pins are in it
            folder.rmdir()
    return removed


def pinned_program(pin_dir: Path) -> int:
    """The id of the steering program pinned there. Raises OSError when there is none."""
    return _pinned_ids(pin_dir)["jvp_steer"]


def _pinned_ids(pin_dir: Path) -> dict[str, int]:
    ids = {}
    for name in PROGRAMS:
        descriptor = bpf_syscall.obj_get(pin_dir / name)
        try:
            ids[name] = bpf_syscall.prog_info(descriptor).id
        finally:
            os.close(descriptor)
    return ids


def _unmount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount(os.fsencode(path)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"unmount {path}: {os.strerror(code)}")


def _run_loader(pin_dir: Path, run_dir: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "jvpn.holder.loader", "--json", "--pin-dir", str(pin_dir)]
    command += ["--run-dir", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if done.returncode or "pin_dir" not in answer:
        why = answer.get("error") or done.stderr.strip()[-500:] or f"the loader ended with {done.returncode}"
        remedy = answer.get("remedy", "")
        raise OSError(f"{answer.get('stage', 'loader')}: {why}" + (f"; {remedy}" if remedy else ""))
    return answer
