"""A client that has lost its handshake timestamp and whose clock is behind, at a gateway that runs."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from client_lab import ClientLab

from jvpn.agent.timestamp import FILE_NAME
from jvpn.lab.links import direct_links
from jvpn.lab.namespaces import Lab
from jvpn.lab.running import GATEWAY_INNER, wait_for

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

DAY_US = 86_400_000_000
PATIENCE_S = 60


def test_an_operator_lets_a_client_in_whose_clock_went_back(lab: Lab, tmp_path: Path) -> None:
    with ClientLab(direct_links(lab, "A"), tmp_path) as here:
        run_dir = ("--run-dir", str(here.work / "gateway"))

        def laptop() -> dict[str, Any]:
            (shown,) = here.gateway.ask("peers", peer="laptop")
            return dict(shown)

        here.write_gateway()
        here.write_client()
        # Its clock has been a day ahead before.
        newest = here.work / "client-state" / FILE_NAME
        newest.parent.mkdir()
        newest.write_text(f"{time.time_ns() // 1000 + DAY_US}\n")
        here.start()
        assert laptop()["last_handshake_us"] == int(newest.read_text())
        assert laptop()["sessions"] == [here.status()["session"]]
        assert here.client.stop() == 0
        newest.unlink()

        here.start_client()
        wait_for("handshakes that are stale", lambda: laptop()["stale_inits"] > 0, PATIENCE_S)
        assert not here.attached()
        shown = here.jvpn("peer", "show", "--json", *run_dir)
        assert [peer["public_key"] for peer in json.loads(shown.stdout)] == [here.client_key]
        assert "ahead of the clock here" in here.jvpn("peer", "show", "laptop", *run_dir).stdout
        done = here.jvpn("peer", "reset-clock", "laptop", *run_dir)
        assert done.returncode == 0, done.stderr
        wait_for("a session", here.attached, PATIENCE_S)
        assert here.ping(GATEWAY_INNER)
        assert laptop()["last_handshake_us"] == int(newest.read_text())
        (told,) = [line for line in here.gateway.event_lines() if b"reset-clock" in line]
        assert b"peer laptop" in told
