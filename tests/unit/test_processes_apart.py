"""What each process has and has not: compilers, pickles, programs, and what goes between them."""

import ast
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from core_pair import CorePair, every_pair_is_sound

from jvpn.clocks import now_ms, wall_ms
from jvpn.holder.loader import MAPS, PROGRAMS, SOURCES
from jvpn.supervisor import effects
from jvpn.supervisor.programs import note_refusal, noted_pin_dir, noted_refusal, remove_pins
from workers import commands

__all__ = ["every_pair_is_sound"]

ROOT = Path(__file__).parents[2]


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """(file, module) of every import statement in a package of the product."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield path.name, node.module
                yield from ((path.name, f"{node.module}.{alias.name}") for alias in node.names)


def loaded_by(module: str) -> set[str]:
    """What a process that works as `module` has in memory."""
    script = f"import sys; before = set(sys.modules); import {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_the_bpf_folder_holds_three_programs_and_one_header() -> None:
    assert sorted(path.name for path in (ROOT / "bpf").iterdir()) == sorted(SOURCES)
    assert sorted(SOURCES) == ["jvp.h", "pick.c", "steer.c", "tun_queue.c"]
    assert len(PROGRAMS) == 3
    text = "".join((ROOT / "bpf" / name).read_text() for name in SOURCES)
    assert all(name in text for name in (*PROGRAMS, *MAPS))


@pytest.mark.parametrize("module", ["jvpn.cli.client", "workers.main"])
def test_a_client_has_neither_compiler_nor_steering(module: str) -> None:
    loaded = loaded_by(module)
    assert module in loaded
    for name in (
        "bcc",
        "jvpn.holder.loader",
        "jvpn.holder.xdp",
        "jvpn.holder.bpf_syscall",
        "jvpn.supervisor",
    ):
        assert not any(each == name or each.startswith(name + ".") for each in loaded)


def test_the_process_that_faces_the_internet_has_no_compiler() -> None:
    loaded = loaded_by("jvpn.supervisor.process")
    assert "jvpn.holder.bpf_syscall" in loaded
    assert not any(each.split(".")[0] == "bcc" for each in loaded)
    # Nor what only workers need.
    assert not {"numpy", "workers.main"} & loaded


@pytest.mark.parametrize("folder", ["jvpn", "workers"])
def test_nothing_is_pickled_and_nothing_shared_can_be_unlinked_by_a_tracker(folder: str) -> None:
    found = list(imports(folder))
    assert len(found) > 50
    forbidden = ("pickle", "dill", "marshal", "shelve", "multiprocessing", "multiprocess.shared_memory")
    assert [pair for pair in found if pair[1].startswith(forbidden)] == []


def test_commands_travel_as_messages_and_a_pickle_is_none() -> None:
    pair = CorePair().attach()
    pair.link(0, up=False)
    pair.wait_for(lambda: pair.attached)
    told = [effect.command for effect in pair.done if isinstance(effect, effects.TellWorker)]
    assert {type(command) for command in told} >= {commands.AddSession, commands.Rebind}
    for command in told:
        assert commands.decode_command(commands.encode(command)) == command
    for nonsense in (pickle.dumps(os.getcwd), b"", b"\xc1", msgspec.msgpack.encode({"type": "Exec"})):
        with pytest.raises(msgspec.MsgspecError):
            commands.decode_command(nonsense)


def test_deadlines_run_on_a_clock_that_goes_on_in_sleep_and_logs_on_the_walls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def clock(number: int) -> int:
        asked.append(number)
        return 7_000_000

    monkeypatch.setattr("time.clock_gettime_ns", clock)
    monkeypatch.setattr("time.time_ns", lambda: 9_000_000)
    assert (now_ms(), wall_ms()) == (7, 9)
    import time

    assert asked == [time.CLOCK_BOOTTIME]


def test_that_a_data_plane_does_without_programs_is_known_until_its_end(tmp_path: Path) -> None:
    assert noted_refusal(tmp_path) is None
    note_refusal(tmp_path, "the TUN program: Operation not permitted")
    assert noted_refusal(tmp_path) == "the TUN program: Operation not permitted"
    pins = tmp_path / "pins"
    assert noted_pin_dir(tmp_path, pins) == pins
    remove_pins(pins, tmp_path)
    assert noted_refusal(tmp_path) is None


@pytest.mark.parametrize("command", ["keygen", "status", "sessions", "switch", "terminate", "peer"])
def test_a_command_that_asks_loads_neither_gateway_nor_client(command: str) -> None:
    script = (
        "import atexit, sys; from jvpn.cli import main; atexit.register(lambda: print(*sys.modules)); "
        f"sys.argv = ['jvpn', '{command}', '--help']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = done.stdout.splitlines()[-1].split()
    assert f"jvpn.cli.{command}" in loaded
    assert not [name for name in loaded if name.startswith(("jvpn.supervisor.", "jvpn.agent.", "pyroute2"))]
