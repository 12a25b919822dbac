"""SIGKILL of any one process, under load: one TCP stream, every byte checked, lives through the deaths of all of them.

A supervisor that has ended is started again, as a service manager does; nothing else is mended by the test.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streams import TcpEcho
from test_lifecycle import kill, kill_supervisor, pids, start_again, tunnel

from jvpn.lab.running import GATEWAY_INNER, Tunnel, wait_for
from jvpn.observability.admin import AdminError
from jvpn.observability.verify import audit_file

__all__ = ["tunnel"]

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

RESTART_S = 60.0


def gateway_worker(tunnel: Tunnel) -> None:
    replace_worker(tunnel, with_sessions=True)


def other_gateway_worker(tunnel: Tunnel) -> None:
    replace_worker(tunnel, with_sessions=False)


def replace_worker(tunnel: Tunnel, *, with_sessions: bool) -> None:
    def at_work() -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = tunnel.gateway.status()["workers"]
        return workers

    (first,) = (worker for worker in at_work() if bool(worker["sessions"]) is with_sessions)
    kill(first["pid"])
    wait_for("a successor", lambda: first["pid"] not in {worker["pid"] for worker in at_work()}, RESTART_S)


def supervisor(tunnel: Tunnel) -> None:
    kill_supervisor(tunnel)
    start_again(tunnel)


def holder(tunnel: Tunnel) -> None:
    kill(pids(tunnel)["holder"])
    assert tunnel.gateway.process.wait(RESTART_S) == 1
    start_again(tunnel)


def client_worker(tunnel: Tunnel) -> None:
    first = worker_of_client(tunnel)
    kill(first)
    wait_for("another worker", lambda: worker_of_client(tunnel) not in (None, first), RESTART_S)


def agent(tunnel: Tunnel) -> None:
    kill(tunnel.client.process.pid)
    tunnel.client.process.wait()
    tunnel.client = tunnel._start_client()
    wait_for("the client again", tunnel.client.running, RESTART_S)


def worker_of_client(tunnel: Tunnel) -> int | None:
    pid = tunnel.client.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    workers = [int(p) for p in children if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return workers[0] if workers else None


#: Who dies, and what that costs the session. The loader has ended long since; it is one shot.
DEATHS: list[tuple[Callable[[Tunnel], None], str]] = [
    (other_gateway_worker, "nothing"),
    (gateway_worker, "nothing"),
    (supervisor, "nothing"),
    (client_worker, "nothing"),
    (holder, "epoch"),
    (supervisor, "nothing"),
    # Its keys lived in its memory alone: a client that starts again begins with a handshake, and supersedes.
    (agent, "session"),
]


def agreed(tunnel: Tunnel, before: dict[str, Any], cost: str) -> dict[str, Any] | None:
    """The one session, once both ends have it ATTACHED and it has cost what it may."""
    try:
        theirs, ours = tunnel.client.status(), tunnel.gateway.ask("sessions")
    except AdminError:
        return None
    if len(ours) != 1 or theirs["session"] != ours[0]["session_id"] or ours[0]["state"] != "ATTACHED":
        return None
    session: dict[str, Any] = ours[0]
    if theirs["state_version"] != session["state_version"] or theirs["active"] is None:
        return None
    paid = {
        "nothing": session["state_version"] == before["state_version"],
        "epoch": session["epoch"] == before["epoch"] + 1,
        "session": session["session_id"] != before["session_id"],
    }[cost]
    return session if paid else None


def test_one_tcp_stream_lives_through_the_death_of_every_process(tunnel: Tunnel) -> None:
    network = tunnel.network
    session = wait_for("one session", lambda: agreed(tunnel, tunnel.session(), "nothing"))
    with TcpEcho(network.client, network.gateway, GATEWAY_INNER) as stream:
        for die, cost in DEATHS:
            stream.goes_on()
            die(tunnel)
            # TCP waits up to twice as long as nothing could pass.
            stream.goes_on(20, 2 * RESTART_S)
            before, session = (
                session,
                wait_for(
                    f"the session after the death of the {die.__name__}",
                    lambda before=session, cost=cost: agreed(tunnel, before, cost),
                    RESTART_S,
                ),
            )
            assert cost == "session" or session["session_id"] == before["session_id"]
    assert [str(finding) for finding in audit_file(tunnel.gateway.events)] == []
