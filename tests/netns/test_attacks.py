"""The lab's attack scripts against a real gateway: each does what it says, and nothing comes of it."""

import base64
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from attack_lab import GATEWAY_IP, NEAR, attack, routed
from running import GATEWAY_KEY, Running, Setup, running
from streams import TcpEcho
from test_bad_input import GROWTH_KB, counted, facts, resident_kb
from test_matrix_keys import dropped

from jvpn.lab.capture import Capture
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.observability.events import SecurityEvent
from jvpn.protocol.suites import x25519_public

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]


#: On a busy machine nothing but an attack changes a session's state.
PATIENT = {
    "loss_floor": 1.0,
    "latency_floor_ms": 10_000,
    "jitter_floor_ms": 5_000,
    "probe_interval_ms": 1_000,
}


@dataclass
class Scene:
    """A client that talks through its tunnel all the time, and the router on its way."""

    system: Running
    router: Namespace
    tcp: TcpEcho
    before: list[dict[str, object]]
    pids: list[int]
    memory: dict[int, int]

    def unharmed(self) -> None:
        """The session is what it was, its stream goes on, no process has died or grown."""
        assert facts(self.system) == self.before
        self.tcp.goes_on(3)
        assert self.system.net.gateway.pids() == self.pids
        grown = {pid: resident_kb(pid) - self.memory[pid] for pid in self.pids}
        assert max(grown.values()) < GROWTH_KB, grown
        assert "Traceback" not in self.system.gateway.said
        self.system.audited()


@pytest.fixture(scope="module")
def system() -> Iterator[tuple[Running, Namespace]]:
    with Lab("attacks") as lab:
        made = routed(lab)
        setup = Setup(devices=("upA",), endpoints=((GATEWAY_IP, 51_820),), keylog=True, policy=PATIENT)
        with running(made.net, setup) as system:
            yield system, made.router


@pytest.fixture
def scene(system: tuple[Running, Namespace]) -> Iterator[Scene]:
    run, router = system
    pids = run.net.gateway.pids()
    memory = {pid: resident_kb(pid) for pid in pids}
    with TcpEcho(run.net.client, run.net.gateway, "10.8.0.1") as tcp:
        yield Scene(run, router, tcp, facts(run), pids, memory)


def test_replays_are_not_delivered_and_hardly_answered(scene: Scene) -> None:
    already = counted(scene.system, "worker_replayed")
    with attack(scene.router, "replay", "--count", "200", "--delay", "0.01") as replay:
        replay.ended()
    counters = replay.counters
    assert counters["sent"] == 200
    assert counters["asked"] > 0
    assert counters["sent_DATA"] > 0
    assert counters["answered_DATA"] == 0
    assert counters["answered_bytes"] <= counters["asked_bytes"]
    assert counted(scene.system, "worker_replayed") > already
    scene.unharmed()


def test_bad_proofs_from_right_and_forged_sources(scene: Scene) -> None:
    already = counted(scene.system, "bad_proof")
    with attack(scene.router, "spoofed_reattach", "--count", "5000") as reattach:
        reattach.ended()
    assert reattach.counters["sent"] == 5_000
    assert reattach.counters["asked"] > 0
    assert reattach.counters["answered"] == 0
    assert counted(scene.system, "bad_proof") > already
    scene.unharmed()


def test_a_racer_that_comes_first_gets_no_data_and_nothing_larger_than_it_sent(scene: Scene) -> None:
    with attack(scene.router, "relay_race", "--count", "2") as race:
        race.ended()
    counters = race.counters
    assert counters["sent_PATH"] == counters["answered_PATH"] == 2
    assert counters["sent_on"] >= 2
    assert counters["answered_DATA"] == 0
    assert counters["largest_answer"] <= counters["largest_sent"]
    assert scene.router.run(["nft", "list", "tables"]).stdout == ""
    # Its probes came late, and are answered all the same.
    assert scene.system.client()["paths"][0]["validated"]
    scene.unharmed()


def test_handshakes_from_forged_sources_get_a_cookie_at_most(scene: Scene) -> None:
    key = base64.b64encode(x25519_public(GATEWAY_KEY)).decode()
    with attack(scene.router, "handshake_flood", "--count", "1000", "--public-key", key) as flood:
        flood.ended()
    counters = flood.counters
    assert counters["sent"] == counters["asked"] == 1_000
    assert counters["answered_COOKIE"] == counters["answered"] > 0
    assert counters["answered_bytes"] < counters["asked_bytes"]
    scene.unharmed()


def test_datagrams_of_sessions_that_nobody_has_are_not_answered(scene: Scene) -> None:
    already = counted(scene.system, "xdp_drop_unknown_id", "unknown_id")
    with attack(scene.router, "session_flood", "--count", "2000") as flood:
        flood.ended()
    assert flood.counters["sent"] == 2_000
    assert flood.counters["answered"] == 0
    assert counted(scene.system, "xdp_drop_unknown_id", "unknown_id") > already
    scene.unharmed()


def test_garbage_on_an_id_of_the_session_is_not_authentic(scene: Scene) -> None:
    already = counted(scene.system, "worker_bad_tag")
    with attack(scene.router, "garbage_flood", "--count", "2000") as flood:
        flood.ended()
    assert flood.counters["sent"] == 2_000
    assert counted(scene.system, "worker_bad_tag") > already
    scene.unharmed()


def test_spoilt_datagrams_are_dropped(scene: Scene) -> None:
    already = dropped(scene.system)
    with attack(scene.router, "fuzz", "--count", "400", "--rate", "2000") as fuzz:
        fuzz.ended()
    counters = fuzz.counters
    assert counters["sent"] == 400
    assert all(counters[kind] for kind in ("flipped", "truncated", "extended", "edited"))
    assert counters["sent_DATA"] > 0
    assert dropped(scene.system) > already
    scene.unharmed()


def test_replays_and_spoilt_copies_of_a_capture_file(scene: Scene, tmp_path: Path) -> None:
    with Capture(scene.router, NEAR, "udp port 51820") as capture:
        scene.tcp.goes_on(5)
    capture.save(tmp_path / "session.pcap")
    for name, more in (("replay", ()), ("fuzz", ("--count", "200"))):
        with attack(
            scene.router, name, "--capture", str(tmp_path / "session.pcap"), "--direction", "both", *more
        ) as again:
            again.process.wait(60)
        assert again.counters["seen"] > 5
        assert again.counters["sent"] > 5
    scene.unharmed()


def test_authentic_data_with_offloads_that_are_not_allowed(scene: Scene) -> None:
    refused = ("worker_bad_offload", "worker_bad_inner", "worker_inner_source")
    already = {name: counted(scene.system, name) for name in refused}
    tunnel = Capture(scene.system.net.gateway, "jvpn0")
    log = scene.system.folder / "client0.keys"
    with attack(scene.router, "offload_abuse", "--keylog", str(log), "--count", "300") as abuse:
        abuse.ended()
    assert abuse.counters["sent"] == 300
    for name in refused:
        assert counted(scene.system, name) > already[name]
    delivered = {frame.data[12:16] for frame in tunnel.stop() if not frame.outgoing}
    assert delivered == {socket.inet_aton("10.8.0.2")}
    scene.unharmed()


def test_frames_whose_marks_tell_lies(scene: Scene) -> None:
    with attack(scene.router, "offload_abuse", "--count", "300") as abuse:
        abuse.ended()
    assert abuse.counters["sent"] > 20
    scene.unharmed()


def test_a_version_that_the_session_never_had_is_refused(scene: Scene) -> None:
    log = scene.system.folder / "client0.keys"
    with attack(scene.router, "version_claim", "--keylog", str(log), "--count", "1") as claim:
        claim.process.wait(60)
    assert (claim.counters["pending"], claim.counters["VERSION_CONFLICT"]) == (1, 1)
    assert claim.counters["answered_DATA"] == 0
    told = [event.violation for event in scene.system.events(kind=SecurityEvent)]
    assert told.count("VERSION_CONFLICT") == 1
    scene.unharmed()


def test_an_attack_leaves_other_devices_alone(scene: Scene) -> None:
    command = ["-m", "vagrant.traffic.attacks.session_flood", "--gateway", GATEWAY_IP, "--device", "lo"]
    done = scene.router.run([sys.executable, *command], check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "lo has " in done.stderr
