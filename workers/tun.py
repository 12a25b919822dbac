"""TUN queues: packets behind a virtio_net_hdr, superpackets of up to 64 KiB (Documentation/networking/tuntap.rst)."""

import fcntl
import os
import struct
from collections.abc import Sequence
from typing import Final, Protocol

_TUNSETIFF: Final = 0x400454CA
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
        self.uso = negotiate_offload(descriptor)

    def fileno(self) -> int:
        return self.descriptor

    def readv(self, buffers: Sequence[memoryview]) -> int:
        return os.readv(self.descriptor, buffers)

    def writev(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        return os.writev(self.descriptor, buffers)

    def close(self) -> None:
        os.close(self.descriptor)


def open_queue(name: str, *, multi_queue: bool = False) -> int:
    """Open a queue of the TUN interface `name` (made if absent) in this network namespace; returns its descriptor.

    Non-blocking, with virtio_net_hdr and every offload that the kernel has. Raises OSError (EPERM without
    CAP_NET_ADMIN, EBUSY when it is open and not multi-queue, ENOENT without /dev/net/tun).
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi_queue else 0)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
        negotiate_offload(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def negotiate_offload(descriptor: int) -> bool:
    """Ask for checksum and segmentation offload; True when UDP segmentation (Linux 6.2) is among it."""
    try:
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _CSUM | _TSO4 | _TSO6 | _USO4 | _USO6)
    except OSError:
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _CSUM | _TSO4 | _TSO6)
        return False
    return True
