"""Raw IP packets in batches: laid out once, then sent by the hundred with one system call (sendmmsg(2))."""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

#: Packets for one system call.
BATCH: Final = 256
_IPV6_HDRINCL: Final = 36


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("sent", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.POINTER(_Mmsghdr), ctypes.c_uint, ctypes.c_int)


class Pool:
    """Packets where sendmmsg wants them, in a ring: `RawSender` goes on where it stopped."""

    def __init__(self, packets: Sequence[bytes], target: bytes) -> None:
        """`packets` are whole IP packets, at least one; `target` is the sockaddr that they are routed to."""
        self.sizes = [len(packet) for packet in packets]
        self.at = 0
        self._bytes = ctypes.create_string_buffer(b"".join(packets))
        self._target = ctypes.create_string_buffer(target)
        self._iovecs = (_Iovec * len(packets))()
        self.messages = (_Mmsghdr * len(packets))()
        place, target_at = ctypes.addressof(self._bytes), ctypes.addressof(self._target)
        for number, size in enumerate(self.sizes):
            self._iovecs[number] = _Iovec(place, size)
            header = self.messages[number].header
            header.name, header.namelen = target_at, len(target)
            header.iov, header.iovlen = ctypes.pointer(self._iovecs[number]), 1
            place += size

    def __len__(self) -> int:
        return len(self.sizes)


class RawSender:
    """A raw socket that sends whole IP packets with whatever source they name, to one address.

    raw(7) and ipv6(7): the header is included; of IPv4 the kernel fills in the header's checksum. Needs CAP_NET_RAW.
    """

    def __init__(self, target: str) -> None:
        """`target` is the address that the packets are routed to, whatever their headers say. Raises OSError."""
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        self._target = _sockaddr(family, target)
        self._socket = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
        if family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
        self.refused = 0

    def pool(self, packets: Sequence[bytes]) -> Pool:
        return Pool(packets, self._target)

    def send(self, pool: Pool, count: int) -> tuple[int, int]:
        """The next `count` packets of the pool, round and round. Returns how many packets and bytes went.

        What the kernel has no room for is passed over and counted in `refused`. Raises OSError for anything else.
        """
        packets = sent_bytes = 0
        while count > 0:
            wanted = min(count, BATCH, len(pool) - pool.at)
            gone = self._some(pool, wanted)
            packets += gone
            sent_bytes += sum(pool.sizes[pool.at : pool.at + gone])
            passed = gone or 1
            pool.at = (pool.at + passed) % len(pool)
            count -= passed
        return packets, sent_bytes

    def _some(self, pool: Pool, wanted: int) -> int:
        first = ctypes.byref(pool.messages, pool.at * ctypes.sizeof(_Mmsghdr))
        gone = _libc.sendmmsg(self._socket.fileno(), ctypes.cast(first, ctypes.POINTER(_Mmsghdr)), wanted, 0)
        if gone >= 0:
            return int(gone)
        number = ctypes.get_errno()
        if number not in (errno.ENOBUFS, errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number))
        if number != errno.EINTR:
            self.refused += 1
        return 0

    def close(self) -> None:
        self._socket.close()


def _sockaddr(family: int, address: str) -> bytes:
    """struct sockaddr_in or sockaddr_in6 with port 0."""
    packed = socket.inet_pton(family, address)
    head = struct.pack("=H", family)
    if family == socket.AF_INET:
        return head + bytes(2) + packed + bytes(8)
    return head + bytes(6) + packed + bytes(4)
