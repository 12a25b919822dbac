"""A real gateway and client whose wire shows every type of datagram, captured at the client with key logs of both.

Run as a program, with a folder, it writes such captures there as they are kept (docs/traffic.md, "Kept captures").
"""

import contextlib
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from client_lab import ClientLab
from injection import Injector, payload, source_port

from jvpn.lab import links
from jvpn.lab.capture import Capture, Frame, write_pcap
from jvpn.lab.gauge import StreamGauge
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.lab.running import GATEWAY_INNER, GATEWAY_INNER6, wait_for
from jvpn.protocol.constants import PacketType

#: Too narrow for the tunnel's MTU: what is longer goes in FRAGMENTs.
NARROW = 1280
LONG = 1_350
#: One voluntary switch is granted, the next one is not; and what was under way is said again, however slow the machine.
POLICY = {"max_switches_per_minute": 1, "switch_cooldown_ms": 0, "resend_window_ms": 5_000}
HZ = 50
LONG_PORT = 7_000
#: Of the kept set: Ethernet destination and source of what the client sends, and the time of its first frame.
LINK_ADDRESSES = (bytes.fromhex("020000000002"), bytes.fromhex("020000000001"))
BEGIN_NS = 1_767_225_600 * 10**9


@dataclass
class Recording:
    """One running lab and what its wire has shown so far."""

    lab: ClientLab
    captures: dict[str, Capture]

    @property
    def keylogs(self) -> dict[str, Path]:
        return {end: self.lab.work / f"{end}.keys" for end in ("gateway", "client")}

    def frames(self, kind: PacketType, *, up: bool) -> list[Frame]:
        """Of a type, from the client (`up`) or to it, on all uplinks."""
        seen = [frame for capture in self.captures.values() for frame in capture.frames()]
        return [frame for frame in seen if frame.outgoing is up and payload(frame)[0] == kind]

    def shows(self, kind: PacketType, *, up: bool, act: Callable[[], object] = lambda: None) -> None:
        """Wait for one of a type; `act` before each look."""

        def seen() -> bool:
            act()
            return bool(self.frames(kind, up=up))

        wait_for(f"{kind.name} {'from' if up else 'to'} the client", seen)

    # What is done, in this order

    def attach(self) -> None:
        self.lab.start_gateway("--keylog", str(self.keylogs["gateway"]))
        self.lab.start_client("--keylog", str(self.keylogs["client"]))
        wait_for("a session", self.lab.attached)
        wait_for("both paths", lambda: self.lab.validated("upA", "upB"))

    def carry(self) -> None:
        """Packets of both families, and some that are too long for the paths."""
        network = self.lab.network
        wait_for("IPv4", lambda: self.lab.ping(GATEWAY_INNER))
        wait_for("IPv6", lambda: self.lab.ping(GATEWAY_INNER6))
        for source, sink, to, up in (
            (network.client, network.gateway, GATEWAY_INNER, True),
            (network.gateway, network.client, "10.8.0.2", False),
        ):
            self.shows(PacketType.FRAGMENT, up=up, act=partial(say, source, sink, to))

    def switch(self) -> None:
        """By the gateway's wish, which is granted; then by the client's, which is not any more."""
        before = self.lab.status()["active"]
        (session,) = self.lab.gateway.ask("sessions")
        self.lab.gateway.ask("switch", session=session["session_id"])
        wait_for("the other path", lambda: self.lab.status()["active"] not in (None, before))
        wait_for("the path before as a candidate", lambda: self.lab.validated("upA", "upB"))
        self.lab.client.ask("switch", device=before)
        self.shows(PacketType.REATTACH_FAIL, up=False)

    def lose_a_path(self) -> None:
        """Under traffic each way, of which what was lost is said again."""
        network = self.lab.network
        with StreamGauge(network.client, network.gateway, GATEWAY_INNER, hz=HZ) as gauge:
            wait_for("the stream", lambda: min(gauge.counts()) > HZ // 2)
            dead = next(link for link in network if link.client_device == self.lab.status()["active"])
            dead.impair(drop=True)
            for up in (True, False):
                self.shows(PacketType.RESENT, up=up)
            gauge.stop()

    def part(self) -> None:
        """The gateway ends the session; then somebody says again what the client had said."""
        (session,) = self.lab.gateway.ask("sessions")
        self.lab.gateway.ask("terminate", session=session["session_id"])
        wait_for("the client's end", lambda: self.lab.client.process.poll() is not None)
        network = self.lab.network
        alive = next(link for link in network if not link.params("up").drop)
        with contextlib.closing(Injector(network.client, alive.client_device)) as injector:
            for kind, answer in (
                (PacketType.REATTACH_REQUEST, PacketType.RESET),
                (PacketType.HANDSHAKE_INIT, PacketType.COOKIE),
            ):
                said = self.frames(kind, up=True)[-1]
                again = partial(injector.send, payload(said), (alive.client_ip, source_port(said)))
                self.shows(answer, up=False, act=again)


def say(source: Namespace, sink: Namespace, to: str) -> None:
    """One long UDP datagram; nobody need have it."""
    with source.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(bytes(range(256)) * 5 + bytes(LONG - 1_280), (to, LONG_PORT))


@contextlib.contextmanager
def recorded(work: Path) -> Iterator[Recording]:
    """The lab, where the whole life of a session has been captured."""
    with Lab("everytype") as lab:
        network = links.two_uplinks(lab, rtt_ms=4, native_xdp=False)
        for link in network:
            # The emulator takes each datagram by itself then, so no capture has several in one frame.
            link.impair(mtu=NARROW)
        with ClientLab(network, work) as ends, contextlib.ExitStack() as stack:
            ends.write_gateway(POLICY)
            ends.write_client()
            captures = {
                link.client_device: stack.enter_context(
                    Capture(network.client, link.client_device, "udp port 51820")
                )
                for link in network
            }
            recording = Recording(ends, captures)
            recording.attach()
            recording.carry()
            recording.switch()
            recording.lose_a_path()
            recording.part()
            for capture in captures.values():
                capture.stop()
            yield recording


def keep(folder: Path) -> None:
    """Make the kept set anew: a capture of each uplink and the gateway's key log, without link addresses and date."""
    with tempfile.TemporaryDirectory() as work, recorded(Path(work)) as recording:
        begin_ns = min(capture.frames()[0].wall_ns for capture in recording.captures.values())
        for device, capture in recording.captures.items():
            write_pcap(folder / f"{device}.pcap", (anonymous(frame, begin_ns) for frame in capture.frames()))
        (folder / "session.keys").write_bytes(recording.keylogs["gateway"].read_bytes())


def anonymous(frame: Frame, begin_ns: int) -> Frame:
    """The addresses of the lab's own networks stay; what a machine and a day would be known by goes."""
    ends = LINK_ADDRESSES if frame.outgoing else LINK_ADDRESSES[::-1]
    return replace(frame, data=b"".join(ends) + frame.data[12:], wall_ns=frame.wall_ns - begin_ns + BEGIN_NS)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
