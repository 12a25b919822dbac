"""Steps that take a gateway's disk from it: full, slow, or locked by somebody else.

What fills is a small file system of its own, which the store or the events are on from the beginning; the machine's
own disk is everybody's.
"""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path
from typing import Final

from jvpn.lab.answers import answer_of
from jvpn.lab.scenario.model import Step
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.steps.registry import OneOf, step
from jvpn.lab.scenario.telling import EVENTS

SIZE: Final = "512k"
STORE: Final = "sessions.db"
#: By what is to be on the small disk: its file in the run directory.
_FILES: Final = {"store": STORE, "events": EVENTS}


def _disk(run: Run, at: Step) -> Path:
    return run.machine(at.parameters["gateway"]).folder / f"disk-{at.parameters['what']}"


def _mount(run: Run, at: Step) -> None:
    """Before the gateway starts: its file is a link to the small disk."""
    gateway, disk = at.parameters["gateway"], _disk(run, at)
    if str(disk) in run.kept:
        return
    machine = run.machine(gateway)
    machine.run(["mkdir", str(disk)])
    machine.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "jvpn-lab", str(disk)])
    run.kept[str(disk)] = disk
    run.cleanup.append(partial(machine.run, ["umount", "-l", str(disk)]))  # type: ignore[arg-type]
    name = _FILES[at.parameters["what"]]
    machine.run(["ln", "-s", str(disk / name), str(run.nodes.run_dir(gateway) / name)])


def _free(run: Run, at: Step) -> None:
    run.machine(at.parameters["gateway"]).run(["rm", str(_disk(run, at) / "filling")])


@step("fill-disk", prepare=_mount, undo=_free, gateway="gw1", what=OneOf(tuple(_FILES), given=True))
def fill_disk(run: Run, at: Step) -> None:
    """Not a byte is left on the disk of the gateway's `what: store` or `what: events`; a `stop` makes room again."""
    disk = _disk(run, at)
    fill = 'cat /dev/zero > "$0/filling" 2>/dev/null; test $(stat -f -c %a "$0") -eq 0'
    run.machine(at.parameters["gateway"]).run(["sh", "-c", fill, str(disk)])


def _unlock(run: Run, at: Step) -> None:
    holder = run.kept.pop(_lock_of(at))
    assert isinstance(holder, subprocess.Popen)
    holder.communicate()


def _lock_of(at: Step) -> str:
    return f"lock of {at.parameters['gateway']}"


@step("lock-store", undo=_unlock, gateway="gw1")
def lock_store(run: Run, at: Step) -> None:
    """Somebody else holds the lock of the gateway's store, so that it does not answer; a `stop` lets go of it."""
    gateway = at.parameters["gateway"]
    machine = run.machine(gateway)
    holder = machine.popen(
        [*machine.python, "-m", "jvpn.lab.store_lock", str(run.nodes.run_dir(gateway) / STORE)]
    )
    answer_of(holder, f"who holds the store of {gateway}")
    run.kept[_lock_of(at)] = holder


def _drain(run: Run, at: Step) -> None:
    events = run.nodes.run_dir(at.parameters["gateway"]) / EVENTS
    # Who waits to write gets its reader; what it writes next goes to a file of its own, as after a rotation.
    drain = 'mv "$0" "$0.pipe" && timeout 1 cat "$0.pipe" >> "$0.1"; rm "$0.pipe"'
    run.machine(at.parameters["gateway"]).run(["sh", "-c", drain, str(events)])
    run.nodes.event_files[at.parameters["gateway"]].append(EVENTS)


@step("stall-events", undo=_drain, gateway="gw1")
def stall_events(run: Run, at: Step) -> None:
    """What the gateway writes of events is taken by nobody: its file has become a pipe without a reader. A `stop` reads
    what came into it; from then on there is a file again."""
    events = run.nodes.run_dir(at.parameters["gateway"]) / EVENTS
    stall = 'mv "$0" "$0.1" && mkfifo -m 640 "$0"'
    run.machine(at.parameters["gateway"]).run(["sh", "-c", stall, str(events)])
    run.nodes.event_files[at.parameters["gateway"]] = [f"{EVENTS}.1"]
