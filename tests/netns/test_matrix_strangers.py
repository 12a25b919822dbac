"""Strangers who see the wire: a flood of bad proofs, replays of everything, a racer who copies what a client asks."""

import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pytest
from injection import Injector, payload, source_port, towards_gateway
from running import PORT, Running, prepared, wait_for
from streams import TcpEcho
from test_bad_input import GROWTH_KB, LONGEST, counted, facts, resident_kb, unknown_key_init

from jvpn.lab import links
from jvpn.lab.capture import Capture, Frame
from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import SERVICE_IP, Network
from jvpn.lab.namespaces import Lab
from jvpn.observability.events import ReattachResult, SecurityEvent, TransportSwitch
from jvpn.protocol.constants import PacketType

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

BAD_PROOFS = 100_000
SEED = 10
REQUEST_BYTES = 256
#: Replayed of each type at most.
COPIES = 150

Net = Network[EmulatedLink]
Source = tuple[str, int]


@dataclass
class Scene:
    """The client on A and B, strangers on C; `recorded` is all that the client said since its handshake."""

    system: Running
    recorded: dict[PacketType, list[tuple[bytes, Source]]]
    injector: Injector

    @property
    def net(self) -> Net:
        return self.system.net

    def bound(self) -> Source:
        address, _, port = self.system.sessions()[0]["source"].rpartition(":")
        return address, int(port)

    def ids(self) -> set[bytes]:
        """Steering ids that the wire has shown."""
        ours = (PacketType.DATA, PacketType.CONTROL, PacketType.PATH, PacketType.REATTACH_REQUEST)
        return {data[4:12] for kind in ours for data, _ in self.recorded[kind]}

    def drained(self) -> None:
        """Wait until a datagram that was sent after all others on the same way is counted."""
        already = counted(self.system, "unknown_peer")

        def seen() -> bool:
            self.injector.send(unknown_key_init(), (self.net["C"].client_ip, 5_000))
            return counted(self.system, "unknown_peer") > already

        wait_for(seen, "the last datagram counted")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A client that has shaken hands and moved there and back, with all of it captured."""
    with Lab("strangers") as lab:
        net = links.uplinks(lab, "ABC", rtt_ms=4)
        with prepared(net) as system:
            captures = {
                link: towards_gateway(net.client, link.client_device) for link in (net["A"], net["B"])
            }
            system.start_gateway()
            system.gateway_up()
            system.start_client()
            system.attached()
            system.tunnelled()
            system.warm()
            for _ in range(2):
                with TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp:
                    left = system.active()
                    left.down()
                    system.moved_from(left)
                    tcp.goes_on(3)
                left.up()
                system.warm()
            injector = Injector(net.client, net["C"].client_device)
            yield Scene(system, record(captures), injector)
            injector.close()


def record(captures: dict[EmulatedLink, Capture]) -> dict[PacketType, list[tuple[bytes, Source]]]:
    recorded: dict[PacketType, list[tuple[bytes, Source]]] = {}
    for link, capture in captures.items():
        for frame in capture.stop():
            # Of a superpacket the first segment: the longest that a single datagram can be.
            whole = payload(frame)
            data = whole[:1_400] if len(whole) > LONGEST else whole
            known = recorded.setdefault(PacketType(data[0]), [])
            known.append((data, (link.client_ip, source_port(frame))))
    return recorded


def violations(system: Running) -> Counter[str]:
    return Counter(event.violation for event in system.events(kind=SecurityEvent))


def test_f11_replays_of_everything_bind_nothing_and_deliver_nothing(scene: Scene) -> None:
    system = scene.system
    elsewhere = (scene.net["C"].spare_ip, 7_011)
    device = scene.net["C"].client_device
    back = Capture(scene.net.client, device, f"udp and dst host {elsewhere[0]} and dst port {elsewhere[1]}")
    kinds = ("HANDSHAKE_INIT", "REATTACH_REQUEST", "CONTROL", "DATA", "PATH")
    replayed = {PacketType[name]: scene.recorded[PacketType[name]][-COPIES:] for name in kinds}
    reasons = ("stale_timestamp", "replay", "worker_replayed", "reattach_drop", "reattach_same_ack")
    before, counts = facts(system), {name: counted(system, name) for name in reasons}
    told = violations(system)
    sent = {kind: sum(len(data) for data, _ in copies) for kind, copies in replayed.items()}
    for kind in replayed:
        for data, source in replayed[kind]:
            scene.injector.send(data, source)
            scene.injector.send(data, elsewhere)
        scene.drained()
        assert facts(system) == before, kind.name
    for reason in ("stale_timestamp", "replay", "worker_replayed"):
        wait_for(lambda r=reason: counted(system, r) > counts[r], reason)  # type: ignore[misc]
    # What goes to the new address is answers of the kinds that prove a return path, none larger than its question.
    answers = [payload(frame) for frame in back.stop() if not frame.outgoing]
    answered: Counter[int] = Counter()
    for answer in answers:
        answered[answer[0]] += len(answer)
    assert answered.keys() <= {PacketType.REATTACH_ACK, PacketType.PATH, PacketType.COOKIE}
    assert answered[PacketType.REATTACH_ACK] <= sent[PacketType.REATTACH_REQUEST]
    # A sample of DATA may be answered too.
    assert answered[PacketType.PATH] <= sent[PacketType.PATH] + sent[PacketType.DATA]
    # The ids of earlier attempts are not installed any more; on one that is, an old attempt is told as stale.
    assert (violations(system) - told).keys() <= {"STALE_ATTEMPT"}
    with TcpEcho(scene.net.client, scene.net.gateway, "10.8.0.1") as tcp:
        tcp.goes_on()
    system.audited()


def bad_proofs(scene: Scene, dice: random.Random) -> list[bytes]:
    """IPv4 packets with REATTACH_REQUESTs for ids of the session, sealed by nobody, from its source and from others."""
    bound, ids = scene.bound(), sorted(scene.ids())
    active = next(data[4:12] for data, source in reversed(scene.recorded[PacketType.DATA]) if source == bound)
    sealed = [dice.randbytes(REQUEST_BYTES - 12) for _ in range(64)]
    made = []
    for number in range(BAD_PROOFS):
        source = (
            bound if number % 2 else (f"10.201.3.{dice.randrange(3, 255)}", dice.randrange(1_024, 65_536))
        )
        steering_id = active if number % 3 else dice.choice(ids)
        body = bytes((PacketType.REATTACH_REQUEST, 0x10, 0, 0)) + steering_id + dice.choice(sealed)
        udp = struct.pack("!HHHH", source[1], PORT, 8 + len(body), 0)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(body), 0, 0, 64, socket.IPPROTO_UDP, 0)
        made.append(head + socket.inet_aton(source[0]) + socket.inet_aton(SERVICE_IP) + udp + body)
    return made


def test_f10_a_hundred_thousand_bad_proofs(scene: Scene) -> None:
    system, net = scene.system, scene.net
    packets = bad_proofs(scene, random.Random(SEED))
    raw = net.client.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, net["C"].client_device.encode())
    before, told = facts(system), violations(system)
    pids = net.gateway.pids()
    memory = {pid: resident_kb(pid) for pid in pids}
    gone = threading.Event()

    def flood() -> None:
        for packet in packets:
            raw.sendto(packet, (SERVICE_IP, 0))
        gone.set()

    arrived = net["C"].counters()["up"]["delivered"]
    seen = counted(system, "bad_proof")
    with TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp:
        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        while not gone.is_set():
            tcp.goes_on(1)
        thread.join()
        raw.close()
        scene.drained()
        assert facts(system) == before
        tcp.goes_on()
        # The flood was one, and nearly all of it died before anybody looked at its proof.
        assert net["C"].counters()["up"]["delivered"] - arrived > BAD_PROOFS // 2
        assert counted(system, "bad_proof") > 0
        assert counted(system, "bad_proof") - seen < BAD_PROOFS // 10
        assert (violations(system) - told).keys() <= {"BAD_PROOF"}
        assert sum((violations(system) - told).values()) < 200
        # Service goes on: a death is still recovered from.
        left = system.active()
        left.down()
        system.moved_from(left)
        tcp.goes_on()
    left.up()
    system.warm()
    assert net.gateway.pids() == pids
    grown = {pid: resident_kb(pid) - memory[pid] for pid in pids}
    assert max(grown.values()) < GROWTH_KB, grown
    assert len(system.sessions()) == 1
    system.audited()


class Racer:
    """Sits on the way of one link and sends a copy of every REQUEST and PATH from its own address, by a quicker way."""

    def __init__(self, net: Net, watched: EmulatedLink, own: EmulatedLink) -> None:
        self.source = (own.spare_ip, 7_012)
        self.copies: Counter[int] = Counter()
        self.longest = 0
        self._watch = towards_gateway(net.client, watched.client_device)
        where = f"udp and dst host {self.source[0]} and dst port {self.source[1]}"
        self._back = Capture(net.client, own.client_device, where)
        self._injector = Injector(net.client, own.client_device)
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        done = 0
        while not self._stop:
            frames = self._watch.frames()
            for frame in frames[done:]:
                self._copy(frame)
            done = len(frames)
            time.sleep(0.001)

    def _copy(self, frame: Frame) -> None:
        data = payload(frame)
        if data[0] in (PacketType.REATTACH_REQUEST, PacketType.PATH):
            self.copies[data[0]] += 1
            self.longest = max(self.longest, len(data))
            self._injector.send(data, self.source)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> list[bytes]:
        """Ends it; everything that was sent to its address. Safe to call twice."""
        self._stop = True
        self._thread.join()
        self._watch.stop()
        self._injector.close()
        return [payload(frame) for frame in self._back.stop() if not frame.outgoing]


def test_f12_a_racer_that_arrives_first_wins_nothing_and_spoils_nothing(scene: Scene) -> None:
    system, net = scene.system, scene.net
    moves, asked = len(system.events(kind=TransportSwitch)), len(system.events(kind=ReattachResult))
    left = system.active()
    slow = system.other(left)
    assert isinstance(slow, EmulatedLink)
    slow.impair(delay_ms=40, direction="up")
    with (
        Racer(net, slow, net["C"]) as racer,
        TcpEcho(net.client, net.gateway, "10.8.0.1") as tcp,
    ):
        # A device that was away comes back cold: its first REQUEST has no challenge, and the copy is there before it.
        slow.admin_down()
        wait_for(lambda: candidate(system, slow)["state"] == "dead", "a client that knows")
        left.down()
        slow.admin_up()
        row = system.moved_from(left)
        tcp.goes_on(20)
        wait_for(lambda: racer.copies[PacketType.PATH] > 0, "a probe copied")
        back = racer.stop()
        assert system.attached()["source"] == row["source"]
        assert row["source"].startswith(f"{slow.client_ip}:")
        tcp.goes_on()
    assert racer.copies[PacketType.REATTACH_REQUEST] > 0
    # It was answered, so its copies did arrive, with nothing longer than they are and never with DATA.
    kinds = Counter(data[0] for data in back)
    assert kinds[PacketType.REATTACH_ACK] > 0
    assert kinds.keys() <= {PacketType.REATTACH_ACK, PacketType.PATH}
    assert max(map(len, back)) <= racer.longest
    assert kinds[PacketType.REATTACH_ACK] <= racer.copies[PacketType.REATTACH_REQUEST]
    # The genuine one was not taken for a replay: it is the one that was bound, and nothing was refused.
    assert {event.reason_code for event in system.events(kind=TransportSwitch)[moves:]} == {"TRANSPORT_DEAD"}
    assert {event.result for event in system.events(kind=ReattachResult)[asked:]} == {"bound"}
    assert system.handshakes() == 1
    slow.heal()
    left.up()
    system.warm()
    system.audited()


def candidate(system: Running, link: EmulatedLink) -> dict[str, object]:
    found: dict[str, object] = next(
        path for path in system.client()["paths"] if path["device"] == link.client_device
    )
    return found
