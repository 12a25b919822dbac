"""The gateway and a client that knows nothing of it but docs/protocol.md: tests/interop, a process of its own."""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import GATEWAY_KEY, PORT, Running, Setup, client_key, prepared, wait_for

from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import SERVICE_IP, Network
from jvpn.observability.events import KeyEvent, OwnershipEvent, TransportSwitch
from jvpn.protocol.suites import x25519_public

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

Net = Network[EmulatedLink]
TESTS = Path(__file__).parents[1]
INNER_GATEWAY = "10.8.0.1"
#: A train of five datagrams and a rest in one send (UDP_SEGMENT, 103), then a single one without its checksum.
SAY_UDP = """
import socket
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.bind(("10.8.0.1", 0))
end.setsockopt(socket.IPPROTO_UDP, 103, 1000)
end.sendto(b"x" * 5500, ("10.8.0.2", 40000))
end.setsockopt(socket.IPPROTO_UDP, 103, 0)
end.sendto(b"alone", ("10.8.0.2", 40000))
"""


class Independent:
    """The other client's process, told what to do line by line."""

    def __init__(self, net: Net, folder: Path, suite: int = 1, kem: int = 1) -> None:
        key = folder / "interop.key"
        key.write_text(base64.b64encode(client_key(0)).decode())
        gateway = base64.b64encode(x25519_public(GATEWAY_KEY)).decode()
        options = ["--suite", str(suite), "--kem", str(kem), "--inner-gateway", INNER_GATEWAY]
        given = [str(key), gateway, f"{SERVICE_IP}:{PORT}", str(folder), *options]
        self.events: list[dict[str, Any]] = []
        self._process: subprocess.Popen[str] = net.client.popen(
            [sys.executable, "-m", "interop", *given],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def order(self, *commands: str) -> dict[str, Any]:
        """Have all of it done without a pause between; the last one's answer."""
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{command}\n" for command in commands))
        self._process.stdin.flush()
        answer: dict[str, Any] = {}
        for command in commands:
            answer = self._answer(command)
        return answer

    def told(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    def _answer(self, command: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said: dict[str, Any] = json.loads(line)
            self.events.append(said)
            if said["event"] == "done":
                return said
        raise AssertionError(f"the client ended at {command!r}")


def called(system: Running, **options: int) -> Independent:
    """A client on uplink A with uplink B cold beside it, after its handshake."""
    client = Independent(system.net, system.folder, **options)
    client.order("path A 10.201.1.2 upA", "path B 10.201.2.2 upB cold")
    assert client.order("call A")["stage"] == "bound"
    return client


def all_answered(figures: dict[str, Any]) -> bool:
    return bool(figures["sent"] and figures["sent"] == figures["answered"])


def switches(system: Running) -> list[tuple[str, int, int]]:
    found = system.events(kind=TransportSwitch)
    return [(event.reason_code, event.old.index, event.new.index) for event in found]


@pytest.mark.parametrize("suite", [1, 2])
def test_a_client_made_from_the_page_alone(two_uplinks: Net, suite: int) -> None:
    """Handshake, traffic, rekey, a cold and a validated switch, a death, a rebinding, close: one session throughout."""
    with prepared(two_uplinks, Setup(policy={"switch_cooldown_ms": 0})) as system:
        system.start_gateway()
        system.gateway_up()
        client = called(system, suite=suite)
        (before,) = system.sessions()
        assert client.order("status")["session"] == before["session_id"]
        assert all_answered(client.order("ping 3"))

        assert client.order("rekey")["phase"] == 2
        assert all_answered(client.order("ping 3"))
        wait_for(lambda: [e.phase for e in system.events(kind=KeyEvent)] == [1, 2], "two rekeys")

        client.order("flow 10")
        cold = client.order("switch B OPERATOR_SWITCH")
        assert (cold["path"], cold["index"]) == ("B", 1)
        # One each, unless a busy machine is so late that the client asks again.
        asked = cold["counters"]["requests cold"]
        assert 1 <= cold["counters"]["pending"] <= asked
        validated = client.order("probed A", "switch A PREFERENCE_SWITCH")
        assert (validated["path"], validated["counters"]["requests cold"]) == ("A", asked)
        assert validated["counters"]["pending"] <= asked
        assert all_answered(client.order("flow stop"))

        client.order("probed B", "flow 10")
        two_uplinks["A"].blackhole("down")
        wait_for(lambda: client.order("status")["path"] == "B", "the other path")
        client.order("flow stop")
        assert all_answered(client.order("ping 3"))
        client.order("rebind B 10.201.2.102 upB", "flow 10")
        rebound = wait_for(
            lambda: [e for e in switches(system) if e[0] == "ADDRESS_CHANGED"], "a new address"
        )
        assert len(rebound) == 1
        client.order("flow stop")
        assert all_answered(client.order("ping 3"))
        assert [reason for reason, _, _ in switches(system)] == [
            "OPERATOR_SWITCH",
            "PREFERENCE_SWITCH",
            "TRANSPORT_DEAD",
            "ADDRESS_CHANGED",
        ]

        (after,) = system.sessions()
        assert after["session_id"] == before["session_id"] == client.order("status")["session"]
        assert system.handshakes() == len(client.told("handshake")) == 1
        client.order("close")
        assert system.told("PEER_CLOSED").to == "TERMINATED"
        wait_for(lambda: not system.sessions(), "the end of the session")
        system.audited()


def test_it_takes_what_the_kernel_sends(two_uplinks: Net) -> None:
    """Pings of the gateway's kernel, a UDP packet without checksum, a train of UDP in one superpacket."""
    with prepared(two_uplinks) as system:
        system.start_gateway()
        system.gateway_up()
        client = called(system)
        pinged = two_uplinks.gateway.popen(["ping", "-c", "3", "-i", "0.2", "10.8.0.2"])
        wait_for(lambda: client.order("status")["pings_answered"] == 3, "three pings")
        assert pinged.wait(10) == 0
        two_uplinks.gateway.run([sys.executable, "-c", SAY_UDP])
        came = wait_for(lambda: len((now := client.order("status"))["udp"]) == 7 and now, "seven datagrams")
        assert came["udp_bytes"] == 5505
        assert came["udp"][-1] == "alone"
        assert came["counters"]["segmentation 5"] == 6
        assert came["unsound"] == 0
        assert all_answered(client.order("ping 3 1300"))
        assert client.order("status")["counters"]["fragments"] >= 6


def test_without_a_kem_and_through_a_cookie(two_uplinks: Net) -> None:
    with prepared(two_uplinks, Setup(policy={"kem": "none"})) as system:
        system.start_gateway()
        system.gateway_up()
        numbers = range(10, 90)
        two_uplinks.client.ip(*(f"address add 10.201.2.{number}/24 dev upB" for number in numbers))
        client = Independent(two_uplinks, system.folder, kem=0)
        client.order("path A 10.201.1.2 upA")
        storm = f"storm upB 10.201.2 {numbers.start} {numbers.stop} 8"
        # A storm that a busy machine carries late, or an INIT lost in it, meets a gateway at rest: then once more.
        called = (client.order(storm, "call A") for _ in range(10))
        bound = next(said for said in called if said["counters"].get("cookies"))
        assert bound["stage"] == "bound"
        assert bound["phase"] == 0
        assert all_answered(client.order("ping 3"))
        assert client.order("rekey")["phase"] == 1
        assert all_answered(client.order("ping 3"))


def test_it_finds_its_session_again_at_a_gateway_that_died(two_uplinks: Net) -> None:
    """Every process of the gateway killed: ticket, epoch 2, new keys, the same session."""
    with prepared(two_uplinks) as system:
        system.start_gateway()
        system.gateway_up()
        client = called(system)
        (before,) = system.sessions()
        _kill_all(system)
        system.start_gateway()
        system.gateway_up()
        moved = client.order("moved 2")
        assert moved["session"] == before["session_id"]
        assert all_answered(client.order("ping 3"))
        assert client.order("rekey")["phase"] == 2
        assert all_answered(client.order("ping 3"))
        assert len(client.told("handshake")) == 1
        assert "TAKEN_OVER" in [event.reason_code for event in system.events(kind=OwnershipEvent)]
        assert system.sessions()[0]["session_id"] == before["session_id"]


def _kill_all(system: Running) -> None:
    """The gateway's processes are all that run in its namespace."""
    listed = subprocess.run(
        ["ip", "netns", "pids", system.net.gateway.name], capture_output=True, text=True, check=True
    )
    for pid in map(int, listed.stdout.split()):
        os.kill(pid, signal.SIGKILL)
    system.gateway.popen.wait(10)
