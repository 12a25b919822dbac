"""`jvpn drain`, asking a real admin socket in front of two gateway cores."""

import json
import selectors
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_pair import GATEWAY, every_pair_is_sound
from fleet_pair import FleetPair

from jvpn.observability.admin import ADMIN_SOCKET, AdminServer
from jvpn.supervisor import drain_admin
from jvpn.supervisor.drain_admin import DrainAdmin

__all__ = ["every_pair_is_sound"]


class Served:
    """The first node of a pair behind its admin socket; each question lets 100 ms of virtual time pass before it."""

    def __init__(self, pair: FleetPair, run_dir: Path, *, fleet: bool = True) -> None:
        plan = SimpleNamespace(node_id=pair.node_id, fleet=object() if fleet else None)
        gateway: Any = SimpleNamespace(core=pair.gateway, plan=plan)
        self._admin, self._pair = DrainAdmin(gateway), pair
        self._selector = selectors.DefaultSelector()
        self._server = AdminServer(run_dir / ADMIN_SOCKET, self._selector, self._handle)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _handle(self, request: dict[str, Any]) -> object:
        self._pair.advance(100)
        verbs = {"drain": self._admin.begin, "undrain": self._admin.undo}
        verb = verbs.get(request["command"])
        return self._admin.look() if verb is None else verb(request)

    def _serve(self) -> None:
        while not self._ends.is_set():
            for key, _ready in self._selector.select(0.05):
                key.data()

    def __enter__(self) -> "Served":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._server.close()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> FleetPair:
    pair = FleetPair()
    monkeypatch.setattr(drain_admin, "now_ms", lambda: pair.now_ms)
    pair.wait_for(lambda: pair.owned_by(pair))
    return pair


def jvpn(run_dir: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "jvpn.cli", "drain", "--run-dir", str(run_dir), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_it_waits_until_the_node_is_empty(pair: FleetPair, tmp_path: Path) -> None:
    with Served(pair, tmp_path):
        done = jvpn(tmp_path, "gw")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == "gw is empty: 1 session moved to gw2"
        assert pair.owned_by(pair.second)
        undone = jvpn(tmp_path, "--undo", "--json")
        assert (undone.returncode, json.loads(undone.stdout)["undone"]) == (0, "gw")
        again = jvpn(tmp_path, "--undo")
        assert (again.returncode, again.stderr) == (1, "jvpn drain: gw does not drain\n")


def test_who_is_left_is_named_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = FleetPair(ways=((GATEWAY,),))
    monkeypatch.setattr(drain_admin, "now_ms", lambda: pair.now_ms)
    pair.wait_for(lambda: pair.owned_by(pair))
    with Served(pair, tmp_path):
        done = jvpn(tmp_path, "--timeout", "3")
        assert done.returncode == 1
        assert "0 moved, 1 left. The node goes on asking" in done.stderr
        assert f"{pair.session_at(pair).hex_id}  laptop" in done.stderr
        # This node cannot know which: the client does not reach them, or they refuse it.
        assert "may know none or reach none" in done.stderr
        assert "did not take it" in done.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("gw7",), "this node is gw, not gw7: run jvpn drain on gw7 itself"),
        (("--rate", "0"), "0 is no rate: give 1 … 1000 sessions a second"),
    ],
)
def test_what_makes_no_sense_changes_nothing(
    pair: FleetPair, tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    with Served(pair, tmp_path):
        done = jvpn(tmp_path, *options)
    assert (done.returncode, done.stderr) == (1, f"jvpn drain: {why}\n")
    assert not pair.context.draining


def test_where_there_is_nobody_to_move_to_it_says_so(pair: FleetPair, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    with Served(pair, tmp_path / "alone", fleet=False):
        done = jvpn(tmp_path / "alone")
    assert done.returncode == 1
    assert "nobody to move to: this gateway is no node of a fleet" in done.stderr
    pair.drains("gw2")
    with Served(pair, tmp_path):
        done = jvpn(tmp_path)
    assert done.returncode == 1
    assert "nobody to move to: no other node" in done.stderr
    assert not pair.context.draining
