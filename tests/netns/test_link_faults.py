"""Fault scripts that treat single packets, by what becomes of datagrams: over the emulator, and tbf in the kernel."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from datagrams import Datagrams, missing, numbers
from routed import Fault, Routed, script

from jvpn.lab.namespaces import Lab, module_environment
from jvpn.lab.running import wait_for

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces: needs root")
    with Lab("faults") as lab:
        yield Routed(lab, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def flow(routed: Routed) -> Iterator[Datagrams]:
    with Datagrams(routed) as opened:
        yield opened


@pytest.fixture
def wire(routed: Routed) -> tuple[str, ...]:
    """Where, for the emulator."""
    return ("--wire", str(routed.control), "--link", "A")


def test_loss_takes_its_share_in_one_direction_and_says_how_many(
    routed: Routed, flow: Datagrams, wire: tuple[str, ...]
) -> None:
    with Fault(routed, "loss", *wire, "--share", "0.3", "--direction", "up", "--seed", "3") as fault:
        up, down = flow.up(200), flow.down(50)
    assert fault.began["parameters"] == {
        "wire": str(routed.control), "link": "A", "direction": "up", "share": 0.3,
    }  # fmt: skip
    assert fault.summary["seeded"]
    assert 30 <= len(missing(up, 200)) <= 90
    assert not missing(down, 50)
    assert fault.summary["counters"]["up_dropped"] >= len(missing(up, 200))
    assert not missing(flow.up())


def test_the_same_seed_loses_the_same_and_another_does_not(lab: Lab, tmp_path: Path) -> None:
    routed = Routed(lab, tmp_path)
    for namespace, device in ((routed.client, "upA"), (routed.router, "rA")):
        # Nothing may travel but what is counted here: what draws a chance takes it from the next.
        namespace.sysctl({f"net.ipv6.conf.{device}.disable_ipv6": 1})
    where = ("--wire", str(routed.control), "--link", "A", "--share", "0.3", "--direction", "up")
    with Datagrams(routed) as flow:
        lost = []
        for seed in ("1", "2", "1"):
            with Fault(routed, "loss", *where, "--seed", seed):
                lost.append(missing(flow.up()))
    assert lost[0] == lost[2] != lost[1]


def test_burst_loss_loses_together(routed: Routed, flow: Datagrams, wire: tuple[str, ...]) -> None:
    with Fault(routed, "burst_loss", *wire, "--share", "0.4", "--frames", "20") as fault:
        lost = missing(flow.up(400), 400)
    assert lost
    bursts = 1 + sum(1 for before, now in pairwise(lost) if now != before + 1)
    assert len(lost) / bursts > 4
    assert fault.summary["counters"]["up_burst_lost"] >= len(lost)


def test_delays_of_two_scripts_add_up(routed: Routed, flow: Datagrams, wire: tuple[str, ...]) -> None:
    with (
        Fault(routed, "delay", *wire, "--ms", "20"),
        Fault(routed, "delay", *wire, "--ms", "15", "--direction", "down"),
    ):
        up, down = flow.up(20), flow.down(20)
    assert not missing(up, 20)
    assert min(one.ms for one in up) >= 20
    assert min(one.ms for one in down) >= 35
    assert min(one.ms for one in flow.down(20)) < 20


def test_jitter_spreads_and_keeps_the_order(routed: Routed, flow: Datagrams, wire: tuple[str, ...]) -> None:
    with Fault(routed, "jitter", *wire, "--ms", "40"):
        came = flow.up(60, pause_s=0.01)
    assert numbers(came) == list(range(60))
    assert max(one.ms for one in came) - min(one.ms for one in came) > 10


def test_reordering_loses_nothing_and_duplication_repeats(
    routed: Routed, flow: Datagrams, wire: tuple[str, ...]
) -> None:
    with Fault(routed, "reorder", *wire, "--share", "0.2", "--ms", "10") as fault:
        came = numbers(flow.up(100, pause_s=0.002))
    assert sorted(came) == list(range(100))
    assert came != sorted(came)
    assert fault.summary["counters"]["up_reordered"] > 5
    with Fault(routed, "duplicate", *wire, "--share", "0.3") as fault:
        came = numbers(flow.up())
    assert set(came) == set(range(100))
    assert 110 < len(came) < 160
    assert fault.summary["counters"]["up_duplicated"] >= len(came) - 100


def test_a_flipped_bit_is_a_lost_datagram(routed: Routed, flow: Datagrams, wire: tuple[str, ...]) -> None:
    with Fault(routed, "corrupt", *wire, "--share", "0.3", "--direction", "up") as fault:
        lost = missing(flow.up(200), 200)
    assert 30 <= len(lost) <= 90
    assert fault.summary["counters"]["up_corrupted"] >= len(lost)


@pytest.mark.parametrize(("direction", "medium"), [("up", "wire"), ("up", "kernel"), ("down", "kernel")])
def test_a_bottleneck_goes_through_its_steps(
    routed: Routed, flow: Datagrams, wire: tuple[str, ...], direction: str, medium: str
) -> None:
    where = wire if medium == "wire" else ("--device", "rA")
    argv = (*where, "--direction", direction, "--steps", "50,1", "--every", "0.01", "--queue-ms", "1000")
    before = queueing(routed)
    with Fault(routed, "rate", *argv, "--seed", "5") as fault:
        wait_for("the second step", lambda: bool(flow.up(1)) and slow(flow, direction))
    assert fault.summary["counters"]["steps"] == 1
    assert fault.summary["counters"][f"{direction}_offered"] >= 30
    assert queueing(routed) == before
    assert not slow(flow, direction)


def slow(flow: Datagrams, direction: str) -> bool:
    """Whether 30 datagrams of 1000 bytes take as long as at 1 Mbit/s at the fastest, less a burst."""
    came = flow.up(30, 1000) if direction == "up" else flow.down(30, 1000)
    return not missing(came, 30) and (came[-1].came_ns - came[0].left_ns) / 1e6 >= 26 * 8


def queueing(routed: Routed) -> list[str]:
    """The router's devices and their queueing disciplines."""
    rows = json.loads(routed.router.run(["tc", "-j", "qdisc", "show"]).stdout)
    devices = json.loads(routed.router.run(["ip", "-json", "link", "show"]).stdout)
    return [f"{row['dev']} {row['kind']} {row['handle']}" for row in rows] + [
        row["ifname"] for row in devices
    ]


def test_two_bottlenecks_on_a_device_are_the_slower_one_and_either_can_go_first(routed: Routed) -> None:
    argv = ("--device", "rA", "--direction", "down", "--every", "1")
    before = queueing(routed)
    with Fault(routed, "rate", *argv, "--steps", "8") as eight:
        assert rate_of(routed) == 8e6
        with Fault(routed, "rate", *argv, "--steps", "2"):
            assert rate_of(routed) == 2e6
            eight.process.send_signal(signal.SIGTERM)
            eight.process.wait(10)
            assert rate_of(routed) == 2e6
    assert queueing(routed) == before


def rate_of(routed: Routed) -> float:
    (row,) = json.loads(routed.router.run(["tc", "-j", "qdisc", "show", "dev", "rA", "root"]).stdout)
    return float(row["options"]["rate"]) * 8


def test_what_a_killed_script_left_is_taken_back_by_the_next(
    routed: Routed, flow: Datagrams, wire: tuple[str, ...]
) -> None:
    before = queueing(routed)
    killed = Fault(routed, "rate", "--device", "rA", "--steps", "1").__enter__()
    assert queueing(routed) != before
    killed.process.kill()
    killed.process.wait(10)
    with Fault(routed, "blackhole", "--device", "rA", "--for", "0.01"):
        pass
    assert queueing(routed) == before
    killed = Fault(routed, "loss", *wire, "--share", "1").__enter__()
    assert not flow.up(5)
    killed.process.kill()
    killed.process.wait(10)
    wait_for("the wire to be whole again", lambda: bool(flow.up(5)))


KILLED_HALFWAY = """
import os
from jvpn.lab.link_model import LinkParams
from vagrant.traffic.faults.means import ledger, netem
change = netem.change
def change_and_die(*what):
    change(*what)
    os.kill(os.getpid(), 9)
netem.change = change_and_die
ledger.impair({"up/rA": LinkParams(rate_mbit=1), "down/rA": LinkParams(rate_mbit=1)}, 1)
"""


def test_one_that_is_killed_halfway_has_written_down_what_it_did(routed: Routed) -> None:
    before = queueing(routed)
    killed = routed.router.popen([sys.executable, "-c", KILLED_HALFWAY], env=module_environment())
    assert killed.wait(30) == -signal.SIGKILL
    assert queueing(routed) != before
    with Fault(routed, "icmp", "--device", "rA", "--for", "0.01"):
        pass
    assert queueing(routed) == before


def test_two_burst_processes_on_a_link_are_refused(routed: Routed, wire: tuple[str, ...]) -> None:
    with Fault(routed, "burst_loss", *wire, "--share", "0.1"):
        refused = script(routed, "burst_loss", *wire, "--share", "0.2", "--for", "0.1")
    assert refused.returncode == 1
    assert "end it first" in refused.stderr
    assert refused.stdout == ""


def test_somebody_elses_queueing_discipline_is_left_alone(routed: Routed) -> None:
    routed.router.run(["tc", "qdisc", "add", "dev", "rA", "root", "handle", "7:", "pfifo", "limit", "99"])
    try:
        before = queueing(routed)
        refused = script(routed, "rate", "--device", "rA", "--steps", "1", "--for", "0.1")
        assert refused.returncode == 1
        assert "somebody else's (pfifo 7:)" in refused.stderr
        assert queueing(routed) == before
    finally:
        routed.router.run(["tc", "qdisc", "del", "dev", "rA", "root"])


def test_where_there_is_neither_netem_nor_a_wire_it_says_what_to_do(
    routed: Routed, wire: tuple[str, ...]
) -> None:
    before = queueing(routed)
    done = script(routed, "loss", "--device", "rA", "--share", "0.5", "--for", "0.1")
    if done.returncode == 1:  # this kernel has no netem
        assert "modprobe sch_netem" in done.stderr
        assert "--wire SOCKET --link NAME" in done.stderr
    else:
        assert '"seeded"' in done.stdout
    assert queueing(routed) == before
    done = script(routed, "loss", "--wire", "/nowhere.sock", "--link", "A", "--share", "0.5")
    assert done.returncode == 1
    assert "no emulator answers at /nowhere.sock" in done.stderr
    done = script(routed, "loss", *wire[:3], "Z", "--share", "0.5")
    assert done.returncode == 1
    assert "has no link Z: it has A" in done.stderr
