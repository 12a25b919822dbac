"""The verbs with which the supervisor steers, and what stands in for them without BPF."""

import ctypes
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

from jvpn.protocol.constants import SLOT_FIRST_WORKER, Role

MAX_PORTS: Final = 8
MAX_SLOTS: Final = 256
_NS_PER_S: Final = 1_000_000_000
_SO_ATTACH_REUSEPORT_CBPF: Final = 51
#: struct sock_filter (code, jt, jf, k) and struct sock_fprog (length, pointer).
_BPF_RETURN: Final = struct.Struct("=HBBI")
_SOCK_FPROG: Final = struct.Struct("HxxxxxxP")
_BPF_RET_K: Final = 0x06

XdpMode = Literal["native", "generic", "none"]


@dataclass(frozen=True)
class Rate:
    """A token bucket: `per_second` in the long run (0: no limit), `burst` at once after a pause."""

    per_second: float
    burst: int

    def pack(self) -> tuple[int, int]:
        """(interval_ns, burst_ns) of struct rate."""
        if self.per_second <= 0:
            return 0, 0
        interval_ns = max(1, int(_NS_PER_S / self.per_second))
        return interval_ns, interval_ns * max(0, self.burst - 1)


@dataclass(frozen=True)
class Rates:
    """Bounds on datagrams before anything is proven. `source` counts an IPv4 address or an IPv6 /64; `id` counts PATH
    and, until a source is bound, DATA of one steering id: a reattaching client sends 64 of these at once."""

    unauthenticated: Rate = Rate(20_000, 4_000)
    source: Rate = Rate(100, 200)
    id: Rate = Rate(500, 512)


def cpumap_supported(release: str | None = None) -> bool:
    """Whether GRO works behind a cpumap (Linux 6.15); before, crossing costs more than it saves."""
    numbers = (release or os.uname().release).split("-", 1)[0].split(".")
    major, minor = (int("".join(c for c in n if c.isdigit()) or 0) for n in (*numbers, "0")[:2])
    return (major, minor) >= (6, 15)


class SteeringBackend(ABC):
    """The verbs. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; slots and sockets as in jvpn/protocol/constants.py."""

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether sessions are steered to their workers; without, there must be one worker only."""

    @abstractmethod
    def set_ports(self, ports: Iterable[int]) -> None:
        """The UDP ports that are ours, at most MAX_PORTS. Raises ValueError."""

    @abstractmethod
    def set_rates(self, rates: Rates) -> None: ...

    @abstractmethod
    def set_xdp_mode(self, mode: XdpMode) -> None:
        """How steer.c is attached: decides about the cpumap, and in generic mode it sees GRO superpackets."""

    @abstractmethod
    def allow_cpumap(self, allowed: bool) -> None:
        """Let frames cross to the owner's CPU; in force in native mode only."""

    @abstractmethod
    def set_fence(self, until_ns: int) -> None:
        """Deliver DATA and PATH until `until_ns` (CLOCK_BOOTTIME; 0: for ever). From any thread."""

    @abstractmethod
    def set_cpu(self, cpu: int) -> None:
        """Give a CPU the queue through which frames cross to it; before any slot names it."""

    @abstractmethod
    def set_slot(self, slot: int, cpu: int | None, socket_index: int, queue: int) -> None:
        """Who answers for `slot`: its CPU (None: any), its socket in the reuseport group, its TUN queue."""

    @abstractmethod
    def put_id(
        self,
        steering_id: bytes,
        slot: int,
        role: Role,
        source: bytes | None = None,
        port: int = 0,
        drain_until_ns: int = 0,
    ) -> None:
        """Install or atomically replace an id; `drain_until_ns` in CLOCK_BOOTTIME. Raises OSError when full."""

    @abstractmethod
    def remove_id(self, steering_id: bytes) -> bool:
        """False when it was not installed."""

    @abstractmethod
    def steering_ids(self) -> list[bytes]:
        """All ids installed now, also by an earlier supervisor."""

    @abstractmethod
    def put_prefix(self, prefix: str, slot: int) -> None:
        """Send inner packets for `prefix` ("10.8.0.2/32", "fd00::2/128") to `slot`. Raises ValueError."""

    @abstractmethod
    def remove_prefix(self, prefix: str) -> bool: ...

    @abstractmethod
    def prefixes(self) -> list[str]:
        """All inner prefixes installed now."""

    @abstractmethod
    def attach_reuseport(self, sock: socket.socket) -> None:
        """Let jvp_pick choose in the reuseport group of `sock`, for all its members. Raises OSError."""

    @abstractmethod
    def attach_tun(self, tun_fd: int) -> None:
        """Let jvp_tun_queue choose the queue of the TUN that `tun_fd` is one of. Raises OSError."""

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """Every counter of bpf/jvp.h since the programs were loaded, over all CPUs."""

    @abstractmethod
    def close(self) -> None:
        """Let go of maps and programs; they stay pinned and in force."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NoSteering(SteeringBackend):
    """No BPF: remembers nothing; all datagrams go to the one worker, which forwards what is not for it.

    Left to itself the kernel would spread a listener's datagrams over all sockets of the group, the supervisor's too.
    A classic filter that names one socket takes no privilege (socket(7), SO_ATTACH_REUSEPORT_CBPF).
    """

    @property
    def available(self) -> bool:
        return False

    def set_ports(self, ports: Iterable[int]) -> None:
        return

    def set_rates(self, rates: Rates) -> None:
        return

    def set_xdp_mode(self, mode: XdpMode) -> None:
        return

    def allow_cpumap(self, allowed: bool) -> None:
        return

    def set_fence(self, until_ns: int) -> None:
        return

    def set_cpu(self, cpu: int) -> None:
        return

    def set_slot(self, slot: int, cpu: int | None, socket_index: int, queue: int) -> None:
        return

    def put_id(
        self,
        steering_id: bytes,
        slot: int,
        role: Role,
        source: bytes | None = None,
        port: int = 0,
        drain_until_ns: int = 0,
    ) -> None:
        return

    def remove_id(self, steering_id: bytes) -> bool:
        return False

    def steering_ids(self) -> list[bytes]:
        return []

    def put_prefix(self, prefix: str, slot: int) -> None:
        return

    def remove_prefix(self, prefix: str) -> bool:
        return False

    def prefixes(self) -> list[str]:
        return []

    def attach_reuseport(self, sock: socket.socket) -> None:
        program = ctypes.create_string_buffer(_BPF_RETURN.pack(_BPF_RET_K, 0, 0, SLOT_FIRST_WORKER), 8)
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, _SOCK_FPROG.pack(1, ctypes.addressof(program))
        )

    def attach_tun(self, tun_fd: int) -> None:
        return

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        return
