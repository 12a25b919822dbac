"""The wire of the lab: a process that carries Ethernet frames between pairs of devices as ``link_model`` decides.

``python -m jvpn.lab.emulator --seed 1 A:cA:gA B:cB:gB`` runs inside the middle namespace. Direction "up" goes from
the first device to the second, "down" back. It speaks JSON lines: one request on stdin, one answer on stdout;
a ``set`` that is answered is in force. It ends when stdin closes.

Frames pass whole through AF_PACKET sockets with PACKET_VNET_HDR (packet(7); the header is virtio_net_hdr, virtio
1.2 section 5.1.6), so a GSO superpacket is one read and one write, and a checksum that a sender left to its
device stays marked as such. VLAN tags are not carried.

Stages of a turn: wait for frames or the next arrival time; deliver what is due; take in a few frames per device.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import heapq
import os
import select
import socket
import struct
import sys
import time
from typing import Any

import msgspec

from jvpn.lab.link_model import LinkModel, LinkParams

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
PR_SET_TIMERSLACK = 29

VNET_BYTES = 10
_VNET = struct.Struct("=BBHHHH")
GSO_NONE, GSO_UDP_L4, GSO_ECN = 0, 5, 0x80
FRAME_ROOM = VNET_BYTES + 18 + 65_536
# Frames up to this size are copied out of the receive buffer; larger ones keep the buffer.
COPY_LIMIT = 4_096
BATCH = 16
SOCKET_BUFFER_BYTES = 64 << 20
POOL_BUFFERS = 512


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One line on stdin. ``op``: "set" (link, direction, params) or "read" (all counters)."""

    op: str
    link: str = ""
    direction: str = ""
    params: LinkParams | None = None


def open_device(name: str) -> socket.socket:
    """A raw socket on device *name* that sees only what arrives, superpackets whole. OSError when there is none."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER_BYTES)
    sock.setblocking(False)
    sock.bind((name, ETH_P_ALL))
    return sock


def wire_size(frame: bytearray | memoryview, length: int) -> tuple[int, int]:
    """(bytes on the wire, frames on the wire) of *length* bytes of virtio header and frame in *frame*."""
    frame_bytes = length - VNET_BYTES
    _, gso_type, _, gso_size, transport, _ = _VNET.unpack_from(frame)
    if gso_type == GSO_NONE or gso_size == 0:
        return frame_bytes, 1
    if gso_type & ~GSO_ECN == GSO_UDP_L4:
        header_bytes = transport + 8
    else:
        header_bytes = transport + (frame[VNET_BYTES + transport + 12] >> 4) * 4
    segments = max(1, -(-(frame_bytes - header_bytes) // gso_size))
    return frame_bytes + (segments - 1) * header_bytes, segments


class Direction:
    """One way through a link: from one device's socket to another's."""

    def __init__(self, source: socket.socket, sink: socket.socket, model: LinkModel) -> None:
        self.source = source
        self.sink = sink
        self.model = model
        self.input_overflow = 0
        self.output_refused = 0
        self.worst_late_ns = 0

    def read(self) -> dict[str, Any]:
        """Counters so far; ``worst_late_us`` is the emulator's own tardiness since the last read."""
        statistics = self.source.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self.input_overflow += struct.unpack("=II", statistics)[1]
        worst_late_us, self.worst_late_ns = self.worst_late_ns // 1000, 0
        return {
            **msgspec.to_builtins(self.model.counters),
            "input_overflow": self.input_overflow,
            "output_refused": self.output_refused,
            "worst_late_us": worst_late_us,
        }


class Emulator:
    """All links of one process. ``serve`` runs until *control_fd* closes."""

    def __init__(self, control_fd: int, answer_fd: int) -> None:
        self._control_fd = control_fd
        self._answer_fd = answer_fd
        self._pending_control = b""
        self._directions: dict[tuple[str, str], Direction] = {}
        self._by_fd: dict[int, Direction] = {}
        # (arrival time, order of entry, direction, frame, buffer to give back or None)
        self._on_the_way: list[tuple[int, int, Direction, bytes | memoryview, bytearray | None]] = []
        self._entered = 0
        self._pool: list[bytearray] = []
        self._buffer = bytearray(FRAME_ROOM)
        self._running = True

    def add_link(self, name: str, near: str, far: str, seed: str) -> None:
        """Join devices *near* and *far*; both directions start without impairment."""
        near_socket, far_socket = open_device(near), open_device(far)
        for direction, source, sink in (("up", near_socket, far_socket), ("down", far_socket, near_socket)):
            model = LinkModel(f"{seed}/{name}/{direction}")
            made = Direction(source, sink, model)
            self._directions[name, direction] = made
            self._by_fd[source.fileno()] = made

    def serve(self) -> None:
        watched = [self._control_fd, *self._by_fd]
        self._answer({"ok": True})
        while self._running:
            readable = select.select(watched, (), (), self._wait_s())[0]
            self._deliver()
            for fd in readable:
                if fd == self._control_fd:
                    self._obey()
                else:
                    self._take_in(self._by_fd[fd])
                    self._deliver()

    def _wait_s(self) -> float | None:
        if not self._on_the_way:
            return None
        return max(0, self._on_the_way[0][0] - time.monotonic_ns()) / 1e9

    def _take_in(self, direction: Direction) -> None:
        receive, model, clock = direction.source.recv_into, direction.model, time.monotonic_ns
        for _ in range(BATCH):
            buffer = self._buffer
            try:
                length = receive(buffer)
            except BlockingIOError:
                return
            except OSError:
                return  # the device went down; the socket works again when it comes up
            arrivals = model.offer(clock(), *wire_size(buffer, length))
            if not arrivals:
                continue
            frame: bytes | memoryview
            kept: bytearray | None = None
            if length <= COPY_LIMIT or len(arrivals) > 1:
                frame = bytes(memoryview(buffer)[:length])
            else:
                frame, kept = memoryview(buffer)[:length], buffer
                self._buffer = self._pool.pop() if self._pool else bytearray(FRAME_ROOM)
            for arrival_ns in arrivals:
                self._entered += 1
                heapq.heappush(self._on_the_way, (arrival_ns, self._entered, direction, frame, kept))

    def _deliver(self) -> None:
        queue, now_ns = self._on_the_way, time.monotonic_ns()
        while queue and queue[0][0] <= now_ns:
            arrival_ns, _, direction, frame, kept = heapq.heappop(queue)
            try:
                direction.sink.send(frame)
            except OSError:
                direction.output_refused += 1  # device down, or its queue full
            now_ns = time.monotonic_ns()
            if now_ns - arrival_ns > direction.worst_late_ns:
                direction.worst_late_ns = now_ns - arrival_ns
            if kept is not None and len(self._pool) < POOL_BUFFERS:
                self._pool.append(kept)

    def _obey(self) -> None:
        data = os.read(self._control_fd, 65_536)
        if not data:
            self._running = False
            return
        *lines, self._pending_control = (self._pending_control + data).split(b"\n")
        for line in lines:
            try:
                self._answer(self._execute(msgspec.json.decode(line, type=Request)))
            except (msgspec.MsgspecError, KeyError, ValueError) as error:
                self._answer({"ok": False, "error": f"{type(error).__name__}: {error}"})

    def _execute(self, request: Request) -> dict[str, Any]:
        if request.op == "read":
            counters = {
                f"{link}/{way}": direction.read() for (link, way), direction in self._directions.items()
            }
            return {"ok": True, "counters": counters}
        if request.op == "set" and request.params is not None:
            self._directions[request.link, request.direction].model.configure(request.params)
            return {"ok": True}
        raise ValueError(f"no operation {request.op!r} with these fields")

    def _answer(self, answer: dict[str, Any]) -> None:
        os.write(self._answer_fd, msgspec.json.encode(answer) + b"\n")


def sharpen_timing() -> None:
    """Wake up on time: minimal timer slack (prctl(2)), no collector pauses, ahead of ordinary processes if allowed."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    gc.disable()
    with contextlib.suppress(PermissionError):
        os.nice(-10)


def stay_on_one_cpu(turn: int) -> None:
    """Frames that a process sends through veth queue on its CPU: one that migrates would reorder them."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[turn % len(cpus)]})


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jvpn.lab.emulator", description=__doc__)
    parser.add_argument("--seed", default="1")
    parser.add_argument(
        "--turn", type=int, default=0, help="which of the allowed CPUs to stay on, modulo their number"
    )
    parser.add_argument("links", nargs="+", metavar="NAME:NEAR:FAR")
    options = parser.parse_args(argv)
    sharpen_timing()
    stay_on_one_cpu(options.turn)
    emulator = Emulator(sys.stdin.fileno(), sys.stdout.fileno())
    for link in options.links:
        name, near, far = link.split(":")
        emulator.add_link(name, near, far, options.seed)
    emulator.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
