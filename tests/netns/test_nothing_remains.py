"""Of a gateway and a client that have ended nothing remains but what is to last, however they ended."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from client_lab import ClientLab
from remains import all_pids, files, memfds, mounts, namespace_state
from test_lifecycle import loaded

from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network
from jvpn.lab.running import GATEWAY_INNER, GATEWAY_INNER6, wait_for

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

OWN_SERVERS = "search example.net\nnameserver 192.0.2.53\n"
#: What is meant to outlive both: the store with its key, the events, the client's last handshake.
LASTING = {
    "gateway": ["events.jsonl", "sessions.db", "sessions.db.key"],
    "client": ["events.jsonl"],
    "client-state": ["handshake-timestamp"],
}
#: SQLite's, for the store's next opening (sqlite.org/tempfiles.html); they vanish when it is closed in order.
OF_THE_STORE = ("-wal", "-shm")


@pytest.fixture
def here(two_uplinks: Network[EmulatedLink], tmp_path: Path) -> Iterator[ClientLab]:
    with ClientLab(two_uplinks, tmp_path) as made:
        made.resolv_conf.write_text(OWN_SERVERS)
        made.write_gateway(xdp="auto", workers=2, dns=[GATEWAY_INNER, GATEWAY_INNER6])
        made.write_client(routes=[f"{GATEWAY_INNER}/32", f"{GATEWAY_INNER6}/128"])
        yield made


def state(here: ClientLab) -> dict[str, Any]:
    ends = {"gateway": here.network.gateway, "client": here.network.client}
    found = {
        f"{end}: {part}": value
        for end, namespace in ends.items()
        for part, value in namespace_state(namespace).items()
    }
    found["pins"] = Path(pins(here)).exists()
    found["mounts"] = mounts(str(here.work), here.node_id)
    found["resolv.conf"] = here.resolv_conf.read_text()
    return found


def pins(here: ClientLab) -> str:
    return f"/sys/fs/bpf/jvpn/{here.node_id}"


def differing(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def pids(here: ClientLab) -> list[int]:
    return [*here.network.gateway.pids(), *here.network.client.pids()]


def stop(here: ClientLab) -> None:
    assert here.client.stop() == 0
    assert here.gateway.stop() == 0


def crash(here: ClientLab) -> None:
    """All at once, then what an operator does."""
    for pid in pids(here):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    here.client.process.wait()
    here.gateway.process.wait()
    wait_for("the end of all processes", lambda: not pids(here))
    left = state(here)
    assert left["gateway: xdp"]
    assert left["pins"]
    assert GATEWAY_INNER in left["resolv.conf"]
    gateway = here.jvpn(
        "doctor", "--clean", "-c", str(here.work / "gateway.yaml"), where=here.network.gateway
    )
    assert gateway.returncode == 0, gateway.stdout
    client = here.jvpn("down", "-c", str(here.work / "client.yaml"))
    assert client.returncode == 0, client.stderr


@pytest.mark.parametrize("end", [stop, crash])
def test_nothing_remains(here: ClientLab, end: Any) -> None:
    before = state(here)
    assert before["gateway: processes"] == before["client: processes"] == []
    here.start()
    wait_for("the name servers", lambda: GATEWAY_INNER in here.resolv_conf.read_text())
    assert here.ping(GATEWAY_INNER)
    assert here.ping(GATEWAY_INNER6)
    during = differing(before, state(here))
    expected = (
        "links",
        "addr -4",
        "addr -6",
        "route -4",
        "route -6",
        "processes",
        "sockets inet6",
        "sockets unix",
    )
    for part in expected:
        assert {f"gateway: {part}", f"client: {part}"} <= during.keys(), (
            f"{part} shows nothing of a running VPN"
        )
    assert {"gateway: xdp", "pins", "resolv.conf"} <= during.keys()
    shared = memfds(pids(here))
    assert shared
    note = json.loads((here.work / "gateway" / "steering.json").read_text())
    assert loaded(note)

    end(here)
    assert differing(before, state(here)) == {}
    assert not memfds(all_pids()) & shared
    wait_for("the kernel to free programs and maps", lambda: not loaded(note))
    left = {name: files(here.work / name) for name in LASTING}
    assert end is crash or left == LASTING
    assert {n: [f for f in left[n] if not f.endswith(OF_THE_STORE)] for n in left} == LASTING
