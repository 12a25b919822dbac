"""F29: the wall clocks of gateway and client jump by days, forwards and backwards; nothing expires early or late."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
from running import Process, Running, Setup, prepared, wait_for
from streams import TcpEcho

from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network
from jvpn.lab.wall_clock import WallClock
from jvpn.observability.events import StateChange

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

Net = Network[EmulatedLink]
DAY = 86_400
QUICK = {"recovery_window_ms": 500, "idle_probe_interval_ms": 500}
NO_BPF = ("setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon")
#: A TTL for the part that waits for it.
TTL_S = 3.0
SHORT = QUICK | {"transport_loss_ttl_ms": int(TTL_S * 1000)}


class Jumping:
    """A gateway and a client, each with a wall clock that a test sets."""

    def __init__(self, system: Running) -> None:
        self.system = system
        self.clocks = {name: WallClock(system.folder / f"{name}.shift") for name in ("gateway", "client")}

    def jump_to(self, days: int) -> None:
        for clock in self.clocks.values():
            clock.jump_to(days * DAY)

    def start_gateway(self) -> None:
        # Without BPF it is up in a moment; programs and maps have no wall clock.
        self.system.start_gateway(*NO_BPF, *self.clocks["gateway"].prefix())
        self.system.gateway_up()

    def start_client(self) -> None:
        process = Process(
            self.system.net.client, self.system.folder, ["client", "0"], self.clocks["client"].prefix()
        )
        self.system.clients.append(process)

    def ready(self) -> None:
        self.system.attached()
        self.system.tunnelled()
        self.system.warm()

    def told_ms(self) -> int:
        """The gateway's wall time at its last STATE_CHANGE."""
        event: StateChange = self.system.events()[-1]
        return event.ts_ms

    def flows(self) -> None:
        with TcpEcho(self.system.net.client, self.system.net.gateway, "10.8.0.1") as tcp:
            tcp.goes_on()


@pytest.fixture
def jumping(two_uplinks: Net) -> Iterator[Jumping]:
    with prepared(two_uplinks, Setup(policy=QUICK)) as system:
        made = Jumping(system)
        made.start_gateway()
        made.start_client()
        made.ready()
        yield made


def test_f29_the_wall_clock_jumps_and_nothing_expires_early_or_late(jumping: Jumping) -> None:
    system, net = jumping.system, jumping.system.net
    before = system.attached()
    with TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp:
        for days in (30, -30):
            jumping.jump_to(days)
            tcp.goes_on()
            left = system.active()
            left.down()
            assert system.moved_from(left)["session_id"] == before["session_id"]
            # It is the clock that jumped which the events carry, so it did jump.
            assert (jumping.told_ms() / 1000 - time.time()) / DAY == pytest.approx(days, abs=1)
            left.up()
            system.warm()
            tcp.goes_on()

    # Not early: the clock jumps over the TTL while there is no path.
    for link in net:
        link.blackhole()
    wait_for(lambda: system.sessions()[0]["state"] in ("RECOVERING", "DEGRADED"), "a gateway without a path")
    jumping.jump_to(30)
    wait_for(lambda: system.client()["state"] in ("RECOVERING", "DEGRADED"), "a client without a path")
    for link in net:
        link.heal()
    assert system.attached()["session_id"] == before["session_id"]
    jumping.flows()

    # A gateway that is gone altogether finds its session again in the store, whatever the time is said to be.
    for pid in net.gateway.pids():
        os.kill(pid, signal.SIGKILL)
    system.gateway.wait()
    jumping.jump_to(-30)
    write_setup(system, SHORT)
    jumping.start_gateway()
    again = system.attached()
    assert (again["session_id"], again["epoch"]) == (before["session_id"], before["epoch"] + 1)
    jumping.flows()
    system.audited()

    # A client whose clock was set back shakes hands again: its timestamps rise all the same.
    assert system.clients[0].stop() == 0
    jumping.jump_to(-60)
    jumping.start_client()
    wait_for(lambda: system.client()["session"] not in (None, before["session_id"]), "a second session")
    system.attached()

    # Neither late nor early: the clock is set back while there is no path.
    since = time.monotonic()
    for link in net:
        link.blackhole()
    wait_for(lambda: system.sessions()[0]["state"] in ("RECOVERING", "DEGRADED"), "a gateway without a path")
    jumping.jump_to(-90)
    system.told("TRANSPORT_LOSS_TTL_EXPIRED")
    assert time.monotonic() - since >= TTL_S
    assert system.sessions() == []
    system.audited()


def write_setup(system: Running, policy: dict[str, int]) -> None:
    """For whoever starts from now on."""
    setup = replace(system.setup, policy=policy)
    (system.folder / "setup.json").write_text(json.dumps(asdict(setup)))
