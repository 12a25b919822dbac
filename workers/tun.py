"""TUN queues: packets behind a virtio_net_hdr, superpackets of up to 64 KiB (Documentation/networking/tuntap.rst).

Where the kernel has no such header, or nobody wants one, a queue is plain: packet by packet, checksums filled in.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from jvpn.protocol.offload import PARTIAL, VIRTIO, OffloadError, deliver, fill_checksum, segment

_TUNSETIFF: Final = 0x400454CA
_TUNGETIFF: Final = 0x800454D2
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TUN: Final = 0x0001
_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_CSUM, _TSO4, _TSO6, _USO4, _USO6 = 0x01, 0x02, 0x04, 0x20, 0x40

VNET_HEADER_BYTES: Final = 10


class TunLike(Protocol):
    """What the pipelines need of a TUN queue. `uso`: UDP superpackets may be written too.

    Both raise BlockingIOError when they would wait, another OSError when the interface refuses.
    """

    uso: bool

    def readv(self, buffers: Sequence[memoryview]) -> int: ...

    def writev(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int: ...


class TunQueue:
    """One TUN queue behind its descriptor, which it owns."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.uso = negotiate_offload(descriptor).uso

    def fileno(self) -> int:
        return self.descriptor

    def readv(self, buffers: Sequence[memoryview]) -> int:
        return os.readv(self.descriptor, buffers)

    def writev(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        return os.writev(self.descriptor, buffers)

    def close(self) -> None:
        os.close(self.descriptor)


class PlainTunQueue(TunQueue):
    """A queue without virtio_net_hdr: the same calls with the same bytes, but what it reads is never offloaded, and of
    what is written the kernel gets whole packets, one by one."""

    def __init__(self, descriptor: int) -> None:
        negotiate_offload(descriptor, vnet_header=False)
        self.descriptor = descriptor
        self.uso = False

    def readv(self, buffers: Sequence[memoryview]) -> int:
        first = buffers[0]
        size = os.readv(self.descriptor, [first[VNET_HEADER_BYTES:], *buffers[1:]])
        first[:VNET_HEADER_BYTES] = bytes(VNET_HEADER_BYTES)
        return VNET_HEADER_BYTES + size

    def writev(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        superpacket = b"".join(buffers)
        try:
            packets = deliver(segment(superpacket))
        except OffloadError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        for header, packet in packets:
            flags, _kind, _length, _size, start, offset = VIRTIO.unpack(header)
            os.write(self.descriptor, fill_checksum(packet, start, offset) if flags & PARTIAL else packet)
        return len(superpacket)


def open_queue(name: str, *, multi_queue: bool = False, offload: bool = True) -> int:
    """Open a queue of the TUN interface `name` (made if absent) in this network namespace; returns its descriptor.

    Non-blocking; with `offload` with virtio_net_hdr and every offload that the kernel has (`has_vnet_header` tells).
    Raises OSError (EPERM without CAP_NET_ADMIN, EBUSY when it is open and not multi-queue, ENOENT without
    /dev/net/tun).
    """
    if offload:
        try:
            return _open(name, multi_queue, vnet_header=True)
        except _NoHeader:
            pass
    return _open(name, multi_queue, vnet_header=False)


class _NoHeader(Exception):
    """The kernel has no virtio_net_hdr for us."""


def _open(name: str, multi_queue: bool, *, vnet_header: bool) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _IFF_TUN | _IFF_NO_PI | (_IFF_MULTI_QUEUE if multi_queue else 0)
        flags |= _IFF_VNET_HDR if vnet_header else 0
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        except OSError as error:
            if vnet_header and error.errno == errno.EINVAL:
                raise _NoHeader from error
            raise
        if vnet_header:
            try:
                fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
            except OSError as error:
                raise _NoHeader from error
            negotiate_offload(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def has_vnet_header(descriptor: int) -> bool:
    """Whether packets of this queue have a virtio_net_hdr in front. Raises OSError."""
    answer = fcntl.ioctl(descriptor, _TUNGETIFF, bytes(40))
    (flags,) = struct.unpack_from("=H", answer, 16)
    return bool(flags & _IFF_VNET_HDR)


class Negotiated(NamedTuple):
    """What the kernel leaves to us on this TUN: TCP to be cut and checksums (`tso`), and UDP to be cut (`uso`)."""

    tso: bool
    uso: bool


def negotiate_offload(descriptor: int, *, vnet_header: bool = True) -> Negotiated:
    """Ask for checksum and segmentation offload, UDP segmentation (Linux 6.2) too; without any, everything works.

    Raises OSError when `descriptor` is no TUN queue.
    """
    wanted = (
        (_CSUM | _TSO4 | _TSO6 | _USO4 | _USO6, Negotiated(True, True)),
        (_CSUM | _TSO4 | _TSO6, Negotiated(True, False)),
        (0, Negotiated(False, False)),
    )
    for flags, found in wanted if vnet_header else wanted[2:]:
        try:
            fcntl.ioctl(descriptor, _TUNSETOFFLOAD, flags)
        except OSError as error:
            if error.errno == errno.ENOTTY:
                raise
            continue
        return found
    return Negotiated(False, False)
