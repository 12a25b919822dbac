"""The wire of the lab: a process that carries Ethernet frames between pairs of devices as ``link_model`` decides.

``python -m jvpn.lab.emulator --seed 1 A:cA:gA B:cB:gB`` runs inside the middle namespace. Direction "up" goes from
the first device to the second, "down" back. It speaks JSON lines: one request on stdin, one answer on stdout;
a ``set`` that is answered is in force. It ends when stdin closes. With ``--control PATH`` others may ask the same over
a Unix socket, and ``impair``: such an impairment comes on top of what is set, and goes with the connection.

Frames pass whole through AF_PACKET sockets with PACKET_VNET_HDR (packet(7)), so a GSO superpacket is one read and one
write, and a checksum that a sender left to its device stays marked as such. VLAN tags are not carried.

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

from jvpn.lab.callers import Caller, listen
from jvpn.lab.link_model import LinkModel, LinkParams, compose
from jvpn.lab.vnet import ETHERNET_BYTES, VNET_BYTES, carries_ip, damage, wire_size

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
PR_SET_TIMERSLACK = 29

FRAME_ROOM = VNET_BYTES + 18 + 65_536
# Frames up to this size are copied out of the receive buffer; larger ones keep the buffer.
COPY_LIMIT = 4_096
BATCH = 16
SOCKET_BUFFER_BYTES = 64 << 20
POOL_BUFFERS = 512


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One line. ``op``: "set" or "impair" (link, direction, params), or "read" (all counters).

    "impair" replaces what its caller had in force on that direction; *seed* begins anew what the impairment draws.
    """

    op: str
    link: str = ""
    direction: str = ""
    params: LinkParams | None = None
    seed: int | None = None


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


class Direction:
    """One way through a link: from one device's socket to another's."""

    def __init__(self, source: socket.socket, sink: socket.socket, model: LinkModel) -> None:
        self.source = source
        self.sink = sink
        self.model = model
        self.input_overflow = 0
        self.output_refused = 0
        self.worst_late_ns = 0
        self._base = model.params
        self._impairments: dict[Caller, LinkParams] = {}

    def set(self, params: LinkParams) -> None:
        """What holds without any impairment. ValueError when it cannot be had with those in force."""
        self.model.configure(compose(params, *self._impairments.values()))
        self._base = params

    def impair(self, caller: Caller, params: LinkParams) -> None:
        """On top, as long as *caller* is there. ValueError as above."""
        wanted = {**self._impairments, caller: params}
        self.model.configure(compose(self._base, *wanted.values()))
        self._impairments = wanted

    def forget(self, caller: Caller) -> None:
        if self._impairments.pop(caller, None) is not None:
            self.model.configure(compose(self._base, *self._impairments.values()))

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
    """All links of one process. ``serve`` runs until *owner* has gone; *control* accepts further callers."""

    def __init__(self, owner: Caller, control: socket.socket | None = None) -> None:
        self._owner = owner
        self._control = control
        self._callers = {owner.fileno(): owner}
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
        door = [self._control.fileno()] if self._control else []
        self._owner.answer({"ok": True})
        while self._running:
            readable = select.select([*door, *self._callers, *self._by_fd], (), (), self._wait_s())[0]
            self._deliver()
            for fd in readable:
                if fd in self._by_fd:
                    self._take_in(self._by_fd[fd])
                    self._deliver()
                elif fd in self._callers:
                    self._obey(self._callers[fd])
                else:
                    self._let_in()

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
            size, segments = wire_size(buffer, length)
            arrivals = model.offer(clock(), size, segments)
            if not arrivals:
                continue
            if model.params.corrupt and carries_ip(buffer):
                bit = model.damaged_bit((length - VNET_BYTES - ETHERNET_BYTES) * 8, segments)
                if bit is not None:
                    damage(buffer, length, bit)
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

    def _let_in(self) -> None:
        assert self._control is not None
        with contextlib.suppress(OSError):  # it has hung up already
            caller = Caller.over(self._control.accept()[0])
            self._callers[caller.fileno()] = caller

    def _obey(self, caller: Caller) -> None:
        lines = caller.lines()
        for line in lines or ():
            try:
                answer = self._execute(caller, msgspec.json.decode(line, type=Request))
            except (msgspec.MsgspecError, KeyError, ValueError) as error:
                answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            if not caller.answer(answer):
                lines = None
                break
        if lines is None:
            self._let_go(caller)

    def _let_go(self, caller: Caller) -> None:
        if caller is self._owner:
            self._running = False
            return
        for direction in self._directions.values():
            direction.forget(caller)
        del self._callers[caller.fileno()]
        caller.close()

    def _execute(self, caller: Caller, request: Request) -> dict[str, Any]:
        if request.op == "read":
            counters = {
                f"{link}/{way}": direction.read() for (link, way), direction in self._directions.items()
            }
            return {"ok": True, "counters": counters}
        if request.op in ("set", "impair") and request.params is not None:
            direction = self._directions[request.link, request.direction]
            if request.op == "set":
                direction.set(request.params)
            else:
                direction.impair(caller, request.params)
            if request.seed is not None:
                seed = f"{request.seed}/{request.link}/{request.direction}"
                direction.model.reseed(seed, request.params)
            return {"ok": True}
        raise ValueError(f"no operation {request.op!r} with these fields")


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
    parser.add_argument("--control", metavar="PATH", help="a Unix socket to be asked over as well")
    parser.add_argument("links", nargs="+", metavar="NAME:NEAR:FAR")
    options = parser.parse_args(argv)
    sharpen_timing()
    stay_on_one_cpu(options.turn)
    with listen(options.control) as control:
        emulator = Emulator(Caller(sys.stdin.fileno(), sys.stdout.fileno()), control)
        for link in options.links:
            name, near, far = link.split(":")
            emulator.add_link(name, near, far, options.seed)
        emulator.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
