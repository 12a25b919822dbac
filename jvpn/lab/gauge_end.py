"""One end of the stream gauge, run inside a namespace by ``gauge.StreamGauge``.

``python -m jvpn.lab.gauge_end --bind ADDRESS --port N [--peer ADDRESS:PORT] [--hz N] [--bytes N] [--tcp]``

It sends sequence-numbered, time-stamped datagrams on absolute deadlines and records every arrival. Without --peer
it answers to wherever the newest datagram came from. After a stall of more than one tick the missed ticks are
skipped and recorded, never sent in a burst: a burst would hide the stall from the other end.

With --tcp the stream is a TCP connection: a frame arrives when the kernel hands it over, in order.

Commands on stdin, one per line: ``start``, ``stop``, ``count``, ``dump``. Answers on stdout are a JSON line; after
that of ``dump`` the arrays follow as native int64, in the order and of the lengths its "arrays" names.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import struct
import sys
import time
from array import array

from jvpn.lab.emulator import SO_RCVBUFFORCE, sharpen_timing
from jvpn.lab.tcp_socket import TcpSocket

SO_BINDTODEVICE = 25
_STAMP = struct.Struct("!QQQ")
_MAGIC = 0x6A76706E67617567
_ARRAYS = ("sent_ns", "seq", "departure_ns", "arrival_ns", "skipped_at_ns", "skipped_ticks")


class GaugeEnd:
    """Sender and receiver of one end; *tick_ns* between datagrams of *size* bytes."""

    def __init__(
        self, sock: socket.socket | TcpSocket, peer: tuple[str, int] | None, tick_ns: int, size: int
    ) -> None:
        self._sock = sock
        self._peer = peer
        self._follows_source = peer is None
        self._tick_ns = tick_ns
        self._padding = bytes(max(0, size - _STAMP.size))
        self._next_ns = 0
        self._sending = False
        self._refused = 0
        self._seen: set[int] = set()
        self._records = {name: array("q") for name in _ARRAYS}

    def serve(self, commands_fd: int) -> None:
        pending = b""
        while True:
            if select.select((self._sock.fileno(), commands_fd), (), (), self._wait_s())[0]:
                self._receive()
                if select.select((commands_fd,), (), (), 0)[0]:
                    data = os.read(commands_fd, 4096)
                    if not data:
                        return
                    *lines, pending = (pending + data).split(b"\n")
                    for line in lines:
                        self._obey(line.decode())
            if self._sending and self._peer is not None:
                self._send_if_due(self._peer)

    def _wait_s(self) -> float | None:
        if not self._sending or self._peer is None:
            return None
        return max(0, self._next_ns - time.monotonic_ns()) / 1e9

    def _send_if_due(self, peer: tuple[str, int]) -> None:
        now_ns = time.monotonic_ns()
        if self._next_ns == 0:
            self._next_ns = now_ns
        if now_ns < self._next_ns:
            return
        records = self._records
        missed = (now_ns - self._next_ns) // self._tick_ns
        if missed:
            records["skipped_at_ns"].append(self._next_ns)
            records["skipped_ticks"].append(missed)
        self._next_ns += (missed + 1) * self._tick_ns
        stamp = _STAMP.pack(_MAGIC, len(records["sent_ns"]), now_ns)
        records["sent_ns"].append(now_ns)
        try:
            self._sock.sendto(stamp + self._padding, peer)
        except OSError:
            self._refused += 1  # no route, device down, queue full: silence, as the other end will see

    def _receive(self) -> None:
        records = self._records
        for _ in range(64):
            try:
                data, source = self._sock.recvfrom(65_536)
            except OSError:
                return
            now_ns = time.monotonic_ns()
            if len(data) < _STAMP.size:
                continue
            magic, seq, departure_ns = _STAMP.unpack_from(data)
            if magic != _MAGIC:
                continue
            self._seen.add(seq)
            records["seq"].append(seq)
            records["departure_ns"].append(departure_ns)
            records["arrival_ns"].append(now_ns)
            if self._follows_source:
                self._peer = source[:2]

    def _obey(self, command: str) -> None:
        if command == "start":
            self._sending, self._next_ns = True, 0
        elif command == "stop":
            self._sending = False
        answer: dict[str, object] = {
            "sent": len(self._records["sent_ns"]),
            "received": len(self._seen),
            "refused": self._refused,
        }
        if command == "dump":
            answer["arrays"] = [(name, len(values)) for name, values in self._records.items()]
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        if command == "dump":
            for values in self._records.values():
                sys.stdout.buffer.write(values.tobytes())
        sys.stdout.buffer.flush()


def open_socket(bind: str, port: int, device: str) -> socket.socket:
    """A bound non-blocking UDP socket of the family of *bind*. OSError when the address is not there."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode())
    sock.setblocking(False)
    sock.bind((bind, port))
    return sock


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jvpn.lab.gauge_end")
    parser.add_argument("--bind", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--peer", default="")
    parser.add_argument("--device", default="")
    parser.add_argument("--hz", type=float, default=1000.0)
    parser.add_argument("--bytes", type=int, default=64)
    parser.add_argument("--tcp", action="store_true", help="frames on a TCP connection in place of datagrams")
    options = parser.parse_args(argv)
    peer: tuple[str, int] | None = None
    if options.peer:
        host, port = options.peer.rsplit(":", 1)
        peer = (host, int(port))
    sock: socket.socket | TcpSocket
    if options.tcp:
        sock = TcpSocket(options.bind, options.port, max(options.bytes, _STAMP.size), peer)
    else:
        sock = open_socket(options.bind, options.port, options.device)
    sharpen_timing()
    print(json.dumps({"port": sock.getsockname()[1]}), flush=True)
    GaugeEnd(sock, peer, round(1e9 / options.hz), options.bytes).serve(sys.stdin.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
