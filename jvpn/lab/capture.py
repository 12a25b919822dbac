"""Capture a device in a namespace into memory, for assertions on what really travelled.

An AF_PACKET socket (packet(7)) opened in the namespace by the calling process: capturing is in force when the
constructor returns, and no process has to be waited for. Superpackets are captured whole.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from jvpn.lab.emulator import ETH_P_ALL, PACKET_STATISTICS, SO_RCVBUFFORCE, SOL_PACKET
from jvpn.lab.namespaces import LabError, Namespace

SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
PACKET_OUTGOING = 4
_BUFFER_BYTES = 64 << 20
_PCAP_NANOSECONDS = 0xA1B23C4D
_LINKTYPE_ETHERNET = 1


@dataclass(frozen=True)
class Frame:
    """One captured frame; ``time_ns`` is CLOCK_MONOTONIC, ``outgoing`` as seen from the device's namespace."""

    time_ns: int
    wall_ns: int
    outgoing: bool
    data: bytes


class Capture:
    """Frames of *device* in *namespace* that match *expression* (pcap-filter(7); empty: all).

    At most *snap_bytes* of each are kept. LabError when the expression or the device is wrong.
    """

    def __init__(
        self, namespace: Namespace, device: str, expression: str = "", *, snap_bytes: int = 65_550
    ) -> None:
        program = _compile(namespace, device, expression) if expression else b""
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if program:
            buffer = ctypes.create_string_buffer(program, len(program))
            descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
            self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, descriptor)
        self._snap_bytes = snap_bytes
        self._frames: list[Frame] = []
        self._dropped = 0
        self._changed = threading.Condition()
        self._stop_here, self._stop_there = socket.socketpair()
        try:
            self._socket.bind((device, ETH_P_ALL))
        except OSError as error:
            raise LabError(f"cannot capture on {device} in {namespace.label}: {error}") from error
        self._reader = threading.Thread(target=self._read, name=f"capture-{device}", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def frames(self) -> list[Frame]:
        """What has been captured by now, in order."""
        with self._changed:
            return list(self._frames)

    def wait_for(self, wanted: Callable[[Frame], bool], *, timeout_s: float = 10.0) -> Frame:
        """The first frame (from the start of the capture) that *wanted* accepts; LabError when none comes in time."""
        deadline = time.monotonic() + timeout_s
        seen = 0
        with self._changed:
            while True:
                for frame in self._frames[seen:]:
                    if wanted(frame):
                        return frame
                seen = len(self._frames)
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise LabError(f"no such frame among {seen} captured in {timeout_s:g} s")

    @property
    def dropped(self) -> int:
        """Frames that matched and that the kernel could not keep for us."""
        if self._socket.fileno() >= 0:
            self._dropped += struct.unpack("=II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[
                1
            ]
        return self._dropped

    def stop(self) -> list[Frame]:
        """Read what the kernel still holds, end, and return all frames. Safe to call twice."""
        if self._socket.fileno() >= 0:
            self._stop_here.close()
            self._reader.join()
            _ = self.dropped
            self._socket.close()
            self._stop_there.close()
        return self.frames()

    def save(self, path: Path) -> None:
        """Write a pcap file (nanosecond variant) that tcpdump and Wireshark read."""
        write_pcap(path, self.frames())

    def _read(self) -> None:
        self._socket.setblocking(False)
        # Not select(), which knows no descriptor above 1023.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        stop = self._stop_there.fileno()
        poll.register(stop, select.POLLIN)
        stopping = False
        while not stopping:
            stopping = any(fd == stop for fd, _ in poll.poll())
            batch: list[Frame] = []
            try:
                while True:
                    batch.append(self._receive())
            except OSError:
                pass  # nothing more for now, or the device went down: it may come back
            with self._changed:
                self._frames += batch
                self._changed.notify_all()

    def _receive(self) -> Frame:
        data, control, _, address = self._socket.recvmsg(self._snap_bytes, 64)
        wall_ns = time.time_ns()
        age_ns = 0
        for level, kind, value in control:
            if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                seconds, nanoseconds = struct.unpack("=qq", value)
                age_ns = wall_ns - (seconds * 1_000_000_000 + nanoseconds)
        return Frame(time.monotonic_ns() - age_ns, wall_ns - age_ns, address[2] == PACKET_OUTGOING, data)


def write_pcap(path: Path, frames: Iterable[Frame]) -> None:
    """Write frames to a pcap file (nanosecond variant)."""
    with path.open("wb") as file:
        file.write(struct.pack("=IHHiIII", _PCAP_NANOSECONDS, 2, 4, 0, 0, 262_144, _LINKTYPE_ETHERNET))
        for frame in frames:
            seconds, nanoseconds = divmod(frame.wall_ns, 1_000_000_000)
            size = len(frame.data)
            file.write(struct.pack("=IIII", seconds, nanoseconds, size, size) + frame.data)


def _compile(namespace: Namespace, device: str, expression: str) -> bytes:
    """*expression* as classic BPF (struct sock_filter array); tcpdump prints "code jt jf k" per instruction."""
    listing = namespace.run(["tcpdump", "-ddd", "-i", device, expression]).stdout.split("\n")[1:]
    return b"".join(struct.pack("=HBBI", *map(int, line.split())) for line in listing if line)
