"""Commands on standard input, one JSON object a line on standard output, the client's loop between them.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn.

    python -m interop KEY_FILE GATEWAY_KEY ENDPOINT STATE_DIR [--suite N] [--psk-file FILE]

Commands: `path NAME SOURCE DEVICE [cold]`, `call NAME`, `ping COUNT [SIZE]`, `flow INTERVAL_MS`, `flow stop`,
`udp PORT TEXT`, `rekey`, `switch NAME CAUSE`, `rebind NAME SOURCE DEVICE`, `probed NAME`, `moved EPOCH`,
`storm DEVICE NETWORK FIRST LAST EACH`, `status`, `close`, `quit`.
"""

import argparse
import base64
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path as File
from typing import Any

from .calling import Calling, Identity
from .client import Client
from .controlling import Stage
from .inner import ICMP, UDP, echo, packet_is_sound, udp
from .path import Path
from .wire import Cause

UDP_PORT = 40000


class Endpoint:
    """The inner end of the tunnel: pings the gateway, answers pings, keeps the UDP that came."""

    def __init__(self, client: Client | None = None) -> None:
        self.client = client
        self.gateway = ""
        self.sent = self.answered = self.unsound = self.pings_answered = 0
        self.size = 56
        self.longest_gap_s = 0.0
        self._last_answer = 0.0
        self.datagrams: list[bytes] = []
        self.interval_s: float | None = None
        self._next_at = 0.0
        self._waiting: set[int] = set()

    @property
    def address(self) -> str:
        assert self.client is not None
        return str(self.client.config["addresses"][0]).split("/")[0]

    def take(self, packet: bytes) -> None:
        assert self.client is not None
        if not packet_is_sound(packet):
            self.unsound += 1
            return
        body = packet[20:]
        source = ".".join(map(str, packet[12:16]))
        if packet[9] == ICMP and body[0] == 8:
            self.pings_answered += 1
            ends = int.from_bytes(body[4:6], "big"), int.from_bytes(body[6:8], "big")
            self.client.send_packet(echo(self.address, source, 0, *ends, body[8:]))
        elif packet[9] == ICMP and body[0] == 0 and body[8:16].isdigit():
            number = int(body[8:16])
            if number in self._waiting:
                self._waiting.discard(number)
                now = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now - self._last_answer)
                self._last_answer = now
                self.answered += 1
        elif packet[9] == UDP:
            self.datagrams.append(body[8:])

    def reset(self) -> None:
        self.sent = self.answered = 0
        self.longest_gap_s, self._last_answer = 0.0, time.monotonic()
        self._waiting.clear()

    def ping(self) -> None:
        assert self.client is not None
        self._waiting.add(self.sent)
        data = b"%08d" % self.sent + bytes(self.size - 8)
        self.client.send_packet(
            echo(self.address, self.gateway, 8, os.getpid() & 0xFFFF, self.sent & 0xFFFF, data)
        )
        self.sent += 1

    def tick(self) -> None:
        now = time.monotonic()
        if self.interval_s is not None and now >= self._next_at:
            self._next_at = now + self.interval_s
            self.ping()

    def say_udp(self, port: int, data: bytes) -> None:
        assert self.client is not None
        self.client.send_packet(udp(self.address, self.gateway, UDP_PORT, port, data))

    def figures(self) -> dict[str, Any]:
        return {"sent": self.sent, "answered": self.answered, "longest_gap_s": round(self.longest_gap_s, 4)}


def say(event: str, fields: dict[str, Any]) -> None:
    print(json.dumps({"event": event, "at": round(time.time(), 3), **fields}), flush=True)


class Shell:
    """Carries out the commands."""

    def __init__(self, client: Client, inner: Endpoint, gateway: tuple[str, int]) -> None:
        self.client, self.inner, self.gateway = client, inner, gateway

    def run(self) -> None:
        buffered = b""
        while True:
            self.inner.tick()
            if self.client.step(0.005, [0]):
                came = os.read(0, 65536)
                if not came:
                    return
                *lines, buffered = (buffered + came).split(b"\n")
                for line in lines:
                    if line == b"quit":
                        return
                    self.command(line.decode().split())

    def command(self, words: list[str]) -> None:
        name, arguments = words[0], words[1:]
        answer = getattr(self, f"do_{name}")(*arguments) or {}
        say("done", {"command": name, **answer})

    def do_path(self, name: str, source: str, device: str, cold: str = "") -> None:
        self.client.add_path(Path(name, source, device, self.gateway, not cold))

    def do_call(self, name: str) -> dict[str, Any]:
        self.client.call(name)
        self._until(lambda: self.client.stage in (Stage.BOUND, Stage.CLOSED), 10.0)
        return self.do_status()

    def do_ping(self, count: str, size: str = "56") -> dict[str, Any]:
        self.inner.reset()
        self.inner.size = int(size)
        for wanted in range(1, int(count) + 1):
            self.inner.ping()
            self._until(lambda n=wanted: self.inner.answered >= n, 2.0)
        return self.inner.figures()

    def do_flow(self, interval_ms: str) -> dict[str, Any]:
        if interval_ms == "stop":
            self.inner.interval_s = None
            self._until(lambda: self.inner.answered >= self.inner.sent, 0.5)
            return self.inner.figures()
        self.inner.reset()
        self.inner.interval_s = int(interval_ms) / 1000
        return {}

    def do_udp(self, port: str, text: str) -> None:
        self.inner.say_udp(int(port), text.encode())

    def do_rekey(self) -> dict[str, Any]:
        session = self.client.session
        assert session is not None
        wanted = session.phase + 1
        self._until(self.client.rekey, 10.0)
        self._until(lambda: session.phase >= wanted, 15.0)
        return {"phase": session.phase}

    def do_switch(self, name: str, cause: str) -> dict[str, Any]:
        self.client.switch(name, Cause[cause])
        self._until(lambda: self.client.attempt is None and self.client.stage == Stage.BOUND, 10.0)
        return self.do_status()

    def do_probed(self, name: str) -> None:
        """Waits until the path is validated."""
        path = self.client.paths[name]
        path.probed = True
        self._until(lambda: path.challenge(time.monotonic()) is not None, 5.0)

    def do_moved(self, epoch: str) -> dict[str, Any]:
        """Waits until the session is bound in that epoch."""
        wanted = int(epoch)
        self._until(lambda: self.client.version >> 40 == wanted and self.client.stage == Stage.BOUND, 30.0)
        return self.do_status()

    def do_rebind(self, name: str, source: str, device: str) -> None:
        self.client.paths[name].rebind(source, device)

    def do_storm(self, device: str, network: str, first: str, last: str, each: str) -> None:
        """INITs of strangers who know the gateway's key, as fast as they go, from many addresses."""
        inits = []
        for _ in range(int(each) * (int(last) - int(first))):
            stranger = replace(self.client.identity, private_key=os.urandom(32))
            inits.append(Calling(stranger).init(0.0))
        for number in range(int(first), int(last)):
            path = Path("storm", f"{network}.{number}", device, self.gateway, False)
            for _ in range(int(each)):
                path.send(inits.pop())
            path.socket.close()

    def do_close(self) -> None:
        self.client.close()

    def do_status(self) -> dict[str, Any]:
        client = self.client
        return {
            "stage": client.stage.value,
            "session": client.session.session_id.hex() if client.session else None,
            "phase": client.session.phase if client.session else None,
            "path": client.active.name if client.active else None,
            "index": client.active.index if client.active else None,
            "version": client.version,
            "handshakes": client.handshakes,
            "counters": dict(client.counters),
            "udp": [data.decode(errors="replace")[:40] for data in self.inner.datagrams],
            "udp_bytes": sum(map(len, self.inner.datagrams)),
            "unsound": self.inner.unsound,
            "pings_answered": self.inner.pings_answered,
            "config": client.config,
        }

    def _until(self, condition: Any, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < end:
            self.inner.tick()
            self.client.step(0.002)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("key_file", type=File)
    parser.add_argument("gateway_key")
    parser.add_argument("endpoint")
    parser.add_argument("state_dir", type=File)
    parser.add_argument("--inner-gateway", default="10.8.0.1")
    parser.add_argument("--suite", type=int, default=1)
    parser.add_argument("--kem", type=int, default=1)
    parser.add_argument("--psk-file", type=File)
    given = parser.parse_args()
    psk = base64.b64decode(given.psk_file.read_text()) if given.psk_file else bytes(32)
    private = base64.b64decode(given.key_file.read_text())
    stamp = given.state_dir / "interop.timestamp"
    identity = Identity(private, base64.b64decode(given.gateway_key), stamp, psk, given.suite, given.kem)
    host, port = given.endpoint.rsplit(":", 1)
    inner = Endpoint()
    inner.client = Client(identity, inner.take, say)
    inner.gateway = given.inner_gateway
    Shell(inner.client, inner, (host, int(port))).run()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
