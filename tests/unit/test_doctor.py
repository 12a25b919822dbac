"""`jvpn doctor`: what it finds, what it concludes from it, and that it leaves nothing behind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jvpn.cli import checks, checks_config, doctor
from jvpn.cli.checks import Check
from jvpn.cli.doctor import STEPS, Report, as_text, ladder
from jvpn.config.keys import format_key
from jvpn.holder import xdp
from workers import bulk

NATIVE, GENERIC, REUSEPORT, ONE_WORKER = STEPS
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
KEY = "MVEDTJdwSlhEm2XniODk4fTCgoLPN6wwHRIWGqvlkm0="


def jvpn(*arguments: str, as_nobody: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jvpn.cli", "doctor", *arguments]
    if as_nobody:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def found(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def gateway_file(directory: Path, **changes: str) -> Path:
    """A gateway's configuration that keeps every file below `directory`."""
    key = directory / "node.key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    fields = {
        "node_id": "gw-test",
        "listen": '["127.0.0.1:51820"]',
        "interfaces": "[lo]",
        "tun": f"{{name: jt{os.getpid()}, addresses: [10.99.0.1/24]}}",
        "private_key_file": "node.key",
        "store": "state/sessions.db",
        "run_dir": "run",
        "events": "none",
    } | changes
    path = directory / "gateway.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    return path


def client_file(directory: Path, uplink: str, endpoint: str = "127.0.0.1:51820") -> Path:
    key = directory / "node.key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    path = directory / "client.yaml"
    path.write_text(
        f"private_key_file: node.key\n"
        f"gateway: {{public_key: {KEY}, endpoints: ['{endpoint}']}}\n"
        f"uplinks: [{{device: {uplink}}}]\n"
        f"state_dir: state\nrun_dir: run\nevents: none\n"
    )
    return path


@pytest.fixture
def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return port


@pytest.fixture
def taken_port():
    # With SO_REUSEPORT, as another gateway would hold it.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# The ladder


BLOCKER = Check("bcc", "warning", "no module named bcc", "install it", blocks_bpf=True)


@pytest.mark.parametrize(
    ("blockers", "modes", "wanted", "expected"),
    [
        ([], {"eth0": "native"}, "auto", NATIVE),
        ([], {"eth0": "maybe native"}, "auto", NATIVE),
        ([], {"eth0": "none", "eth1": "native"}, "auto", NATIVE),
        ([], {"eth0": "generic"}, "auto", GENERIC),
        ([], {"eth0": "native"}, "generic", GENERIC),
        ([], {"eth0": "generic"}, "native", REUSEPORT),
        ([], {"eth0": "none"}, "auto", REUSEPORT),
        ([], {}, "auto", REUSEPORT),
        ([], {"eth0": "native"}, "off", REUSEPORT),
        ([BLOCKER], {"eth0": "native"}, "auto", ONE_WORKER),
    ],
)
def test_the_ladder_ends_on_the_best_step_that_is_open(
    blockers: list[Check], modes: dict[str, str], wanted: str, expected: str
):
    steps, chosen = ladder(blockers, modes, wanted)
    assert chosen == expected
    assert [step for step, _why in steps] == list(STEPS)
    assert all(why for _step, why in steps)


def test_a_closed_step_names_what_closes_it():
    steps, _chosen = ladder([BLOCKER], {"eth0": "native"}, "auto")
    for _step, why in steps[:3]:
        assert "no module named bcc" in why


# What follows from kernel and processor


@pytest.mark.parametrize(
    ("release", "uso", "cpumap"),
    [
        ("6.1.0-56-amd64", False, False),
        ("6.2.0", True, False),
        ("6.14.11", True, False),
        ("6.15.0-rc1", True, True),
        ("7.0", True, True),
    ],
)
def test_the_kernel_version_says_which_offloads_there_are(release: str, uso: bool, cpumap: bool):
    check = checks.kernel(release)
    assert check.level == "ok"
    assert ("no UDP superpackets" in check.found) is not uso
    assert ("no GRO behind a cpumap" in check.found) is not cpumap


@pytest.mark.parametrize("release", ["5.4.0-150-generic", "4.19.0", "strange"])
def test_a_kernel_too_old_for_the_programs_closes_the_ladder_but_does_not_stop_the_gateway(release: str):
    check = checks.kernel(release)
    assert (check.level, check.blocks_bpf) == ("warning", True)
    assert check.remedy


@pytest.mark.parametrize(
    ("cpuinfo", "level"),
    [
        ("processor\t: 0\nflags\t\t: fpu aes avx\n", "ok"),
        ("processor\t: 0\nflags\t\t: fpu avx aesni_fake\n", "warning"),
        ("processor\t: 0\nFeatures\t: fp asimd aes pmull\n", "ok"),
        ("processor\t: 0\nFeatures\t: fp asimd\n", "warning"),
    ],
)
def test_the_suite_advice_follows_the_processor(cpuinfo: str, level: str):
    check = checks.processor(cpuinfo)
    assert check.level == level
    assert ("suite: 2" in check.remedy) is (level == "warning")


@pytest.mark.parametrize(
    ("why_not", "level"),
    [
        (bulk.Unusable("libIPSec_MB.so.1: cannot open", "apt-get install libipsec-mb1"), "warning"),
        (bulk.Unusable("it is for x86-64, and this machine is aarch64"), "ok"),
    ],
)
def test_a_library_that_is_not_used_is_said_with_its_reason_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, why_not: bulk.Unusable, level: str
):
    monkeypatch.setattr(bulk, "look", lambda: why_not)
    check = next(check for check in checks.crypto() if check.name == "libipsec-mb")
    assert (check.level, check.found, check.remedy) == (level, f"not used: {why_not.why}", why_not.remedy)
    assert not check.blocks_bpf


def test_a_library_that_is_used_is_said():
    check = next(check for check in checks.crypto() if check.name == "libipsec-mb")
    assert check.found.startswith("not used: ") is (bulk.find() is None)


# Configurations


def test_a_broken_configuration_is_a_problem_that_names_file_and_line(tmp_path: Path):
    path = gateway_file(tmp_path, interfaces="[lo]\nwrokers: 2")
    done = jvpn("--json", "-c", str(path))
    assert done.returncode == 1
    check = found(done)["file"]
    assert check["level"] == "problem"
    assert str(path) in check["found"]
    assert "wrokers" in check["found"]


def test_a_missing_configuration_is_a_problem(tmp_path: Path):
    done = jvpn("--json", "-c", str(tmp_path / "nowhere.yaml"))
    assert done.returncode == 1
    assert "nowhere.yaml" in found(done)["file"]["found"]


@ROOT_ONLY
def test_a_taken_port_prevents_running(tmp_path: Path, taken_port: int):
    done = jvpn("--json", "-c", str(gateway_file(tmp_path, listen=f'["127.0.0.1:{taken_port}"]')))
    check = found(done)[f"listen 127.0.0.1:{taken_port}"]
    assert check["level"] == "problem"
    assert str(taken_port) in check["remedy"]
    assert done.returncode == 1


def test_an_address_of_another_machine_cannot_be_listened_on(tmp_path: Path):
    check = found(jvpn("--json", "-c", str(gateway_file(tmp_path, listen='["192.0.2.77:51820"]'))))
    assert check["listen 192.0.2.77:51820"]["level"] == "problem"


@ROOT_ONLY
def test_a_gateway_that_can_run_passes_and_nothing_is_left_behind(tmp_path: Path, free_port: int):
    path = gateway_file(tmp_path, listen=f'["127.0.0.1:{free_port}"]')
    before = sorted(tmp_path.rglob("*"))
    done = jvpn("--json", "-c", str(path))
    answer = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert answer["can_run"] is True
    assert answer["expected"] in STEPS
    assert found(done)[f"listen 127.0.0.1:{free_port}"]["level"] == "ok"
    assert sorted(tmp_path.rglob("*")) == before


def test_networks_behind_peers_ask_for_forwarding(tmp_path: Path):
    peers = f"[{{name: site, public_key: {KEY}, addresses: [10.99.0.2/32, 192.168.77.0/24]}}]"
    check = found(jvpn("--json", "-c", str(gateway_file(tmp_path, peers=peers))))["forwarding v4"]
    if Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "0":
        assert check["level"] == "warning"
        assert "192.168.77.0/24" in check["found"]
        assert "ip_forward=1" in check["remedy"]
    else:
        assert check["level"] == "ok"


def test_a_pool_is_to_have_an_address_for_each_peer(tmp_path: Path):
    other_key = format_key(bytes([7]) * 32)
    peers = f"[{{name: a, public_key: {KEY}}}, {{name: b, public_key: {other_key}}}]"
    enough = found(jvpn("--json", "-c", str(gateway_file(tmp_path, peers=peers, pool="[10.99.0.0/29]"))))
    assert (enough["pool"]["level"], enough["pool"]["found"]) == (
        "ok",
        "5 of IPv4 for 2 peers without addresses",
    )
    short = found(jvpn("--json", "-c", str(gateway_file(tmp_path, peers=peers, pool="[10.99.0.6/32]"))))
    assert short["pool"]["level"] == "warning"
    assert "larger prefix" in short["pool"]["remedy"]
    assert "pool" not in found(jvpn("--json", "-c", str(gateway_file(tmp_path))))


def test_a_client_is_told_of_an_uplink_that_is_not_there(tmp_path: Path):
    done = jvpn("--json", "-c", str(client_file(tmp_path, "nosuch0")))
    assert done.returncode == 1
    assert found(done)["uplink nosuch0"]["level"] == "problem"


@ROOT_ONLY
def test_a_client_needs_no_steering(tmp_path: Path):
    done = jvpn("--json", "-c", str(client_file(tmp_path, "lo")))
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert answer["ladder"] == []
    assert "bcc" not in found(done)


# Interfaces


def test_a_foreign_program_is_named_and_closes_xdp_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(xdp, "current", lambda _name: xdp.Attached("native", 77, "xdp_firewall"))
    check, mode = checks_config.interface("lo", None)
    assert (check.level, mode) == ("warning", "none")
    assert "xdp_firewall" in check.found
    assert "77" in check.found


def test_our_own_program_without_a_gateway_is_left_over(monkeypatch: pytest.MonkeyPatch):
    ours = xdp.Attached("native", 78, xdp.PROGRAM_NAME)
    monkeypatch.setattr(xdp, "current", lambda _name: ours)
    left_over, _mode = checks_config.interface("lo", None)
    in_use, _mode = checks_config.interface("lo", {"node_id": "gw-1"})
    assert (left_over.level, in_use.level) == ("warning", "ok")
    assert left_over.remedy


def test_an_interface_that_is_not_there_steers_nothing():
    check, mode = checks_config.interface("nosuch0", None)
    assert (check.level, mode) == ("warning", "none")
    assert "lo" in check.remedy


# Privileges, the deep look, the printed page


@ROOT_ONLY
def test_an_unprivileged_user_is_told_to_become_root():
    done = jvpn("--json", as_nobody=True)
    assert done.returncode == 1
    assert found(done)["privileges"]["remedy"] == "start as root"
    assert json.loads(done.stdout)["expected"] == ONE_WORKER


@ROOT_ONLY
def test_the_deep_look_loads_the_programs_and_removes_them():
    pytest.importorskip("bcc")
    done = jvpn("--json", "--deep")
    programs = found(done).get("BPF programs")
    if programs is None:
        pytest.skip(
            "this machine lacks what the programs need: " + json.loads(done.stdout)["ladder"][0]["why"]
        )
    assert programs["level"] == "ok", programs
    # Other tests mount things meanwhile: only what carries the doctor's own name can be the doctor's.
    assert "jvpn-doctor" not in Path("/proc/self/mounts").read_text()


def a_report() -> Report:
    long = "a sentence that is too long for a narrow terminal and goes on over " + "several words " * 6
    report = Report("gateway gw-1", expected=NATIVE)
    report.groups["host"] = [Check("TUN", "ok", long), Check("clock", "warning", "not set", "run: date -s")]
    report.ladder = [(NATIVE, "possible"), (GENERIC, long), (REUSEPORT, "possible"), (ONE_WORKER, "always")]
    return report


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_the_page_keeps_its_columns_and_its_width(columns: int):
    lines = as_text(a_report(), columns).splitlines()
    assert max(map(len, lines)) <= columns
    column = next(line.index("a sentence") for line in lines if "a sentence" in line)
    clock = next(line for line in lines if "not set" in line)
    assert clock.index("not set") == column
    remedy = next(line for line in lines if "run: date -s" in line)
    assert remedy.index("→") == column
    assert [line for line in lines if "→ 1" in line], "the expected step is marked"


def test_a_problem_decides_the_verdict():
    report = a_report()
    assert "It can run here: native XDP" in as_text(report, 100)
    report.groups["host"].append(Check("privileges", "problem", "user id 1000", "start as root"))
    assert not report.can_run
    assert "It cannot run here: 1 problem, 1 warning" in as_text(report, 100)


def test_the_default_configuration_is_the_first_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    client = client_file(tmp_path, "lo")
    monkeypatch.setattr(doctor, "GATEWAY_CONFIG", tmp_path / "absent.yaml")
    monkeypatch.setattr(doctor, "CLIENT_CONFIG", client)
    assert doctor.examine(None, deep=False).title == f"client, {client}"
