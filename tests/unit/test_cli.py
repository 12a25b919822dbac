"""The command line as its users meet it: exit statuses, error lines, and what status and sessions print."""

import json
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jvpn.cli import build_parser, switch
from jvpn.cli.client_plans import client_plan
from jvpn.cli.plans import gateway_plan
from jvpn.cli.sessions import sessions_text
from jvpn.cli.status import client_text, gateway_text
from jvpn.cli.text import columns, duration, version_text
from jvpn.config import ConfigError, parse_client, parse_gateway
from jvpn.observability.admin import ADMIN_SOCKET, AdminError, AdminServer
from jvpn.observability.snapshot import (
    ClientSnapshot,
    FleetSnapshot,
    GatewaySnapshot,
    PathSnapshot,
    SessionSnapshot,
    SwitchSnapshot,
    WorkerSnapshot,
)
from jvpn.session.machine import State, pack_version

COMMANDS = (
    "keygen",
    "server",
    "client",
    "up",
    "down",
    "status",
    "switch",
    "sessions",
    "peer",
    "policy",
    "terminate",
    "timeline",
    "doctor",
)
KEY = "MVEDTJdwSlhEm2XniODk4fTCgoLPN6wwHRIWGqvlkm0="


def jvpn(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jvpn.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_key(directory: Path) -> None:
    (directory / "node.key").write_text(KEY + "\n")
    (directory / "node.key").chmod(0o600)


def gateway_text_of(**changes: str) -> str:
    fields = {
        "node_id": "gw-1",
        "listen": '["[::]:51820"]',
        "tun": "{addresses: [10.8.0.1/24, 'fd00:8::1/64']}",
        "private_key_file": "node.key",
    } | changes
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def client_text_of(**changes: str) -> str:
    fields = {
        "private_key_file": "node.key",
        "gateway": f"{{public_key: {KEY}, endpoints: ['192.0.2.1:51820']}}",
        "uplinks": "[{device: up-a, preference: 200}, {device: up-b}]",
    } | changes
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


# Commands and their failures


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    assert f"jvpn {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["fly"], ["status", "--run-dir"]])
def test_a_wrong_command_line_is_status_2(arguments: list[str]):
    done = jvpn(*arguments)
    assert done.returncode == 2
    assert "usage: jvpn" in done.stderr


@pytest.mark.parametrize(
    ("command", "text", "named"),
    [
        ("server", gateway_text_of(wrokers="2"), "wrokers"),
        ("server", gateway_text_of(listen='["[::]:0"]'), "listen"),
        ("server", gateway_text_of(private_key_file="absent.key"), "private_key_file"),
        ("server", gateway_text_of(policy="gone"), "policy"),
        ("client", client_text_of(suite="7"), "suite"),
        ("client", client_text_of(uplinks="[]"), "uplinks"),
    ],
)
def test_a_broken_configuration_is_one_line_and_status_2(tmp_path: Path, command: str, text: str, named: str):
    write_key(tmp_path)
    path = tmp_path / "node.yaml"
    path.write_text(text)
    done = jvpn(command, "-c", str(path))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"{path}:")
    assert named in line
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["server", "client"])
def test_a_missing_configuration_says_which_example_to_copy(tmp_path: Path, command: str):
    done = jvpn(command, "-c", str(tmp_path / "absent.yaml"))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "config/" in line


@pytest.mark.parametrize("command", ["status", "sessions"])
def test_asking_nobody_is_one_line_and_status_1(tmp_path: Path, command: str):
    done = jvpn(command, "--run-dir", str(tmp_path))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert str(tmp_path / ADMIN_SOCKET) in line


def test_a_timeline_without_events_says_how_to_name_the_file(tmp_path: Path):
    done = jvpn("timeline", "--events", str(tmp_path / "absent.jsonl"))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "--events" in line


# A running node, as status and sessions show it


SESSION = SessionSnapshot(
    session_id="f1e49ab9d038498d69d8f4f29fd3924c",
    peer="alice",
    state=State.ATTACHED,
    state_version=pack_version(1, 3),
    epoch=1,
    index=1,
    transport="udp",
    source="10.2.0.2:54289",
    inner_addresses=["10.8.0.2/32"],
    age_ms=28_100,
    since_ms=4_600,
    rx_bytes=49_684,
    tx_bytes=32_424,
    rx_packets=300,
    tx_packets=200,
    last_switch=SwitchSnapshot(
        ago_ms=4_600, reason_code="TRANSPORT_DEAD", old_transport="a", new_transport="b", gap_ms=17.0
    ),
)
GATEWAY = GatewaySnapshot(
    node_id="gw-1",
    version="0.1.0",
    uptime_ms=11_400,
    listeners=["::ffff:192.0.2.1:51820"],
    xdp_mode={"up-a": "native", "up-b": "generic"},
    steering="native XDP picks the owner's core",
    workers=[WorkerSnapshot(slot=0, pid=4711, cpu=-1, state="running", sessions=1)],
    sessions=1,
    counters={"bad_tag": 3, "xdp_drop_unknown_id": 1_234_567},
    policy="default@baf8c9cc",
    offload="TUN vnet header, TSO, no USO; UDP GSO, GRO",
    store="etcd, http://192.0.2.20:2379",
    fleet=FleetSnapshot(nodes=["gw-1", "gw-2"], draining=["gw-2"], lease_ms=2_345, routes=3),
)
CLIENT = ClientSnapshot(
    session=None,
    state=State.BIRTH,
    state_version=0,
    active=None,
    paths=[
        PathSnapshot(
            name="up-a",
            device="up-a",
            index=None,
            state="probing",
            validated=False,
            rtt_ms=None,
            loss=None,
            last_ack_ago_ms=None,
            source=None,
        )
    ],
    offload="off by configuration",
)


def as_answer(snapshot: object) -> Any:
    return json.loads(msgspec.json.encode(snapshot))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    """A run directory in which a gateway answers."""

    def handle(request: dict[str, Any]) -> object:
        if request["command"] == "status":
            return GATEWAY
        if request["command"] == "sessions":
            return [SESSION]
        raise AdminError("not known here")

    selector = selectors.DefaultSelector()
    server = AdminServer(tmp_path / ADMIN_SOCKET, selector, handle)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            for key, _events in selector.select(0.05):
                key.data()

    thread = threading.Thread(target=serve)
    thread.start()
    yield tmp_path
    stop.set()
    thread.join()
    server.close()


def test_status_and_sessions_ask_the_node_of_the_run_directory(node: Path):
    status, sessions = jvpn("status", "--run-dir", str(node)), jvpn("sessions", "--run-dir", str(node))
    assert (status.returncode, sessions.returncode) == (0, 0)
    assert "gw-1" in status.stdout
    assert SESSION.session_id in sessions.stdout


def test_json_output_is_the_snapshot(node: Path):
    status = jvpn("status", "--json", "--run-dir", str(node))
    sessions = jvpn("sessions", "--json", "--run-dir", str(node))
    assert json.loads(status.stdout) == as_answer(GATEWAY)
    assert json.loads(sessions.stdout) == [as_answer(SESSION)]


def test_output_into_a_closed_pipe_is_no_error(node: Path):
    command = f"{sys.executable} -m jvpn.cli status --run-dir {node} | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_a_gateways_status_shows_workers_interfaces_and_every_counter():
    text = gateway_text(as_answer(GATEWAY))
    assert "1,234,567" in text
    assert any(line.split() == ["up-b", "generic"] for line in text.splitlines())
    worker = next(line for line in text.splitlines() if "4711" in line)
    assert worker.split()[2] == "any", "a worker that is not pinned has no CPU number"


def test_a_fleets_gateway_says_who_is_there_and_how_long_its_lease_lasts() -> None:
    answer = as_answer(GATEWAY)
    text = gateway_text(answer)
    assert "store     etcd, http://192.0.2.20:2379\n" in text
    assert "nodes     gw-1, gw-2 (draining)\nlease     for 2.3 s\nroutes    3 in the kernel" in text
    answer["fleet"] |= {"lease_ms": 0, "nodes": None}
    assert (
        "nodes     not heard of the other nodes yet\nlease     ended: nothing is carried\n"
        in gateway_text(answer)
    )
    answer["fleet"] = None
    assert "nodes " not in gateway_text(answer)


def test_a_client_without_a_session_says_so():
    text = client_text(as_answer(CLIENT))
    assert "none" in text.splitlines()[0]
    path = next(line for line in text.splitlines() if line.startswith("up-a"))
    assert "never" in path


def test_an_endpoint_that_need_not_answer_is_explained_not_called_dead() -> None:
    answer = as_answer(CLIENT)
    assert "standby" not in client_text(answer)
    answer["paths"][0] |= {"state": "standby", "loss": 1.0, "source": "192.0.2.2:51820"}
    path, note = client_text(answer).splitlines()[-3:-1]
    assert path.split() == ["up-a", "standby", "never", "192.0.2.2:51820"]
    assert "answers no probes" in note


def test_a_session_is_one_line_with_its_path_and_last_switch():
    _head, line = sessions_text([as_answer(SESSION)]).splitlines()
    assert "udp 10.2.0.2:54289 #1" in line
    assert "1.3" in line
    assert "TRANSPORT_DEAD 4.6 s ago, silent 17 ms" in line


def test_a_session_without_a_path_says_none():
    detached = as_answer(SESSION) | {"transport": None, "source": None, "index": None, "last_switch": None}
    _head, line = sessions_text([detached]).splitlines()
    assert "none" in line
    assert "never" in line


def test_no_sessions_is_a_sentence():
    assert sessions_text([]) == "no sessions"


def test_columns_are_aligned_numbers_to_the_right():
    lines = columns([["name", "count"], ["a", "5"], ["longer", "1,234"]])
    assert lines == ["name    count", "a           5", "longer  1,234"]


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 ms"), (999, "999 ms"), (1_000, "1.0 s"), (120_000, "2.0 min"), (7_200_000, "2.0 h")],
)
def test_durations_as_people_say_them(ms: float, text: str):
    assert duration(ms) == text


def test_a_version_is_epoch_and_count():
    assert version_text(pack_version(3, 17)) == "3.17"


# From configuration to plans


def test_a_gateways_plan_listens_with_dual_stack_addresses_and_routes_its_networks(tmp_path: Path):
    write_key(tmp_path)
    text = gateway_text_of(listen='["192.0.2.1:51820", "[::]:443"]', workers="3")
    plan = gateway_plan(parse_gateway(text, "gateway.yaml", tmp_path), "gateway.yaml")
    assert plan.listen == [("::ffff:192.0.2.1", 51820), ("::", 443)]
    assert plan.routes == ("10.8.0.0/24", "fd00:8::/64")
    assert plan.workers == 3


def test_a_broken_policy_file_stops_the_gateway_with_its_reason(tmp_path: Path):
    write_key(tmp_path)
    (tmp_path / "default.yaml").write_text("probe_interval_ms: fast\n")
    config = parse_gateway(gateway_text_of(policy_dir="."), "gateway.yaml", tmp_path)
    with pytest.raises(ConfigError, match="probe_interval_ms"):
        gateway_plan(config, "gateway.yaml")


def test_a_peer_takes_its_own_policy_and_the_others_the_default(tmp_path: Path):
    write_key(tmp_path)
    (tmp_path / "calm.yaml").write_text("name: calm\n")
    other_key = "+GwMKqcQDCspuRmqLgkCvcQFEMJ+lov/dOv1Rut2lhA="
    peers = (
        f"[{{name: a, public_key: {KEY}, addresses: [10.8.0.2/32], policy: calm}}, "
        f"{{name: b, public_key: {other_key}, addresses: [10.8.0.3/32]}}]"
    )
    (tmp_path / "default.yaml").write_text("name: default\n")
    config = parse_gateway(gateway_text_of(policy_dir=".", peers=peers), "gateway.yaml", tmp_path)
    plan = gateway_plan(config, "gateway.yaml")
    assert [peer.policy.name for peer in plan.peers] == ["calm", "default"]


def test_a_clients_plan_keeps_endpoints_as_they_are_written_and_in_order(tmp_path: Path):
    write_key(tmp_path)
    gateway = f"{{public_key: {KEY}, endpoints: ['no-such-host.invalid:1', '[2001:db8::1]:51820']}}"
    plan = client_plan(parse_client(client_text_of(gateway=gateway), "c.yaml", tmp_path))
    assert plan.endpoints == (("no-such-host.invalid", 1), ("2001:db8::1", 51820))
    assert plan.uplinks is not None
    assert [(u.device, u.preference) for u in plan.uplinks] == [("up-a", 200), ("up-b", 100)]


@pytest.mark.parametrize(
    ("routes", "planned"),
    [
        ("split", None),
        ("full", ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")),
        ("[10.1.0.0/16]", ("10.1.0.0/16",)),
    ],
)
def test_what_goes_through_the_tunnel(tmp_path: Path, routes: str, planned: tuple[str, ...] | None):
    write_key(tmp_path)
    config = parse_client(client_text_of(routes=routes), "c.yaml", tmp_path)
    assert client_plan(config).routes == planned


@pytest.mark.parametrize(
    ("index", "read", "status", "said"),
    [
        (4, True, 0, "is on udp B #4, after"),
        (3, True, 1, "has read the wish"),
        (3, False, 1, "not answered yet"),
    ],
)
def test_switch_at_a_gateway_waits_for_the_clients_move(
    index: int,
    read: bool,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def ask(_run_dir: Path, request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        now = index if request["command"] == "switching" and len(asked) > 2 else 3
        path = f"udp {'B' if now == 4 else 'A'} #{now}"
        known = {"session": "5e" * 16, "peer": "alice", "index": now, "path": path}
        return known | {"state": "ATTACHED", "read": read}

    monkeypatch.setattr(switch, "ask", ask)
    monkeypatch.setattr(switch, "TIMEOUT_S", 0.05)
    args = build_parser().parse_args(["switch", "5e5e"])
    assert args.run(args) == status
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert asked[0]["session"] == "5e5e"
    assert asked[-1] == {"command": "switching", "session": "5e" * 16, "peer": "alice"}
