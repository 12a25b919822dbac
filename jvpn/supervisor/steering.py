"""What the supervisor tells the BPF programs: which steering id may do what, and who owns it.

`Steering` writes the maps that the loader pinned, active ids into two of them (bound_table.py). The contract of its
verbs stands in steering_backend.py, beside `NoSteering`, which takes its place where BPF is not to be had, so that the
supervisor does not branch. Layouts are those of bpf/jvp.h (a test holds them against each other). Nothing here is the
gate: the worker judges every datagram again.
"""

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Final

from jvpn.holder import bpf_syscall as bpf
from jvpn.protocol.constants import Role
from jvpn.supervisor.bound_table import BoundTable
from jvpn.supervisor.steering_backend import (
    MAX_PORTS,
    MAX_SLOTS,
    NoSteering,
    Rate,
    Rates,
    SteeringBackend,
    XdpMode,
    cpumap_supported,
)

__all__ = ["NoSteering", "Rate", "Rates", "Steering", "SteeringBackend", "XdpMode", "cpumap_supported"]

#: enum jvp_counter, in its order, without its first member.
COUNTERS: Final = (
    "pass_not_ours",
    "pass_fragment",
    "pass_extension_header",
    "pass_handshake",
    "pass_reattach_unknown",
    "pass_reattach",
    "pass_control",
    "owner_data",
    "owner_path",
    "owner_sample",
    "drop_truncated",
    "drop_unknown_type",
    "drop_bad_version",
    "drop_reserved_bits",
    "drop_bad_length",
    "drop_unknown_id",
    "drop_wrong_role",
    "drop_wrong_source",
    "drop_drained",
    "drop_bucket_global",
    "drop_bucket_source",
    "drop_bucket_id",
    "drop_fenced",
    "redirected",
    "pick_supervisor",
    "pick_unauthenticated",
    "pick_owner",
    "tun_owner",
    "tun_default",
)
ANY_CPU: Final = 0xFFFF_FFFF
FLAG_CPUMAP: Final = 1
FLAG_SUPERPACKETS: Final = 2

_ID_ENTRY: Final = struct.Struct("=IBB2s16sQ")
_SLOT_ENTRY: Final = struct.Struct("=III")
_SETTINGS: Final = struct.Struct(f"=6QI{2 * MAX_PORTS}sI")
_SLOT: Final = struct.Struct("=I")
_FENCE: Final = struct.Struct("=Q")
#: Frames that may wait for another CPU.
_CPUMAP_QUEUE: Final = 2048

_SO_ATTACH_REUSEPORT_EBPF: Final = 52
_TUNSETSTEERINGEBPF: Final = 0x800454E0


class Steering(SteeringBackend):
    """The pinned maps of one gateway instance. Raises OSError from the constructor when the loader has not run.

    What an earlier supervisor wrote stays in force until it is overwritten, ports and mode included.
    """

    def __init__(self, pin_dir: str | Path) -> None:
        self._fds: dict[str, int] = {}
        try:
            for name in (
                "ids",
                "slots",
                "inner4",
                "inner6",
                "cpus",
                "settings",
                "fence",
                "counters",
                "id_buckets",
            ):
                self._fds[name] = bpf.obj_get(Path(pin_dir) / name)
            for name in ("jvp_steer", "jvp_pick", "jvp_tun_queue"):
                self._fds[name] = bpf.obj_get(Path(pin_dir) / name)
            self._bound = BoundTable.of_map(Path(pin_dir) / "bound")
        except OSError:
            self._close_descriptors()
            raise
        self._cpus = bpf.possible_cpus()
        *rates, flags, ports, _ = _SETTINGS.unpack(self._lookup("settings", _SLOT.pack(0), _SETTINGS.size))
        self._rates: tuple[int, ...] = tuple(rates)
        self._ports: bytes = ports
        self._mode: XdpMode = "generic" if flags & FLAG_SUPERPACKETS else "native"
        # As it is in force: an earlier supervisor knew the interfaces, this one does not know them yet.
        self._cpumap_allowed = bool(flags & FLAG_CPUMAP)
        if not any(rates):
            self.set_rates(Rates())

    @property
    def available(self) -> bool:
        return True

    @property
    def steer_fd(self) -> int:
        """The XDP program, for jvpn.holder.xdp.attach; owned by this object."""
        return self._fds["jvp_steer"]

    def set_ports(self, ports: Iterable[int]) -> None:
        chosen = sorted(set(ports))
        if len(chosen) > MAX_PORTS or any(not 0 < port < 65_536 for port in chosen):
            raise ValueError(f"at most {MAX_PORTS} UDP ports from 1 to 65535 can be steered, not {chosen}")
        self._ports = struct.pack(f"!{MAX_PORTS}H", *chosen, *[0] * (MAX_PORTS - len(chosen)))
        self._write_settings()

    def set_rates(self, rates: Rates) -> None:
        self._rates = (*rates.unauthenticated.pack(), *rates.source.pack(), *rates.id.pack())
        self._write_settings()

    def set_xdp_mode(self, mode: XdpMode) -> None:
        self._mode = mode
        self._write_settings()

    def allow_cpumap(self, allowed: bool) -> None:
        self._cpumap_allowed = allowed
        self._write_settings()

    def _write_settings(self) -> None:
        flags = FLAG_SUPERPACKETS if self._mode == "generic" else 0
        if self._cpumap_allowed and self._mode == "native":
            flags |= FLAG_CPUMAP
        self._update("settings", _SLOT.pack(0), _SETTINGS.pack(*self._rates, flags, self._ports, 0))

    def set_fence(self, until_ns: int) -> None:
        self._update("fence", _SLOT.pack(0), _FENCE.pack(until_ns))

    def set_cpu(self, cpu: int) -> None:
        self._update("cpus", _SLOT.pack(cpu), _SLOT.pack(_CPUMAP_QUEUE))

    def set_slot(self, slot: int, cpu: int | None, socket_index: int, queue: int) -> None:
        entry = _SLOT_ENTRY.pack(ANY_CPU if cpu is None else cpu, socket_index, queue)
        self._update("slots", _SLOT.pack(slot), entry)

    def put_id(
        self,
        steering_id: bytes,
        slot: int,
        role: Role,
        source: bytes | None = None,
        port: int = 0,
        drain_until_ns: int = 0,
    ) -> None:
        if len(steering_id) != 8 or len(source or bytes(16)) != 16 or not 0 <= slot < MAX_SLOTS:
            raise ValueError("a steering id has 8 bytes, a source 16, and a slot is below 256")
        address = source or bytes(16)
        entry = _ID_ENTRY.pack(slot, role, 0, port.to_bytes(2, "big"), address, drain_until_ns)
        self._bound.remove(steering_id)
        self._update("ids", steering_id, entry)
        if role is Role.ACTIVE:
            self._bound.put(steering_id, slot, address, port)
        # The first datagram from another source than the new one is a sample again.
        bpf.map_delete(self._fds["id_buckets"], steering_id)

    def remove_id(self, steering_id: bytes) -> bool:
        self._bound.remove(steering_id)
        return bpf.map_delete(self._fds["ids"], steering_id)

    def steering_ids(self) -> list[bytes]:
        return list(bpf.map_keys(self._fds["ids"], 8))

    def put_prefix(self, prefix: str, slot: int) -> None:
        name, key = _prefix_key(prefix)
        self._update(name, key, _SLOT.pack(slot))

    def remove_prefix(self, prefix: str) -> bool:
        name, key = _prefix_key(prefix)
        return bpf.map_delete(self._fds[name], key)

    def prefixes(self) -> list[str]:
        return list(self._walk_prefixes("inner4", 4)) + list(self._walk_prefixes("inner6", 16))

    def _walk_prefixes(self, name: str, address_size: int) -> Iterator[str]:
        for key in bpf.map_keys(self._fds[name], 4 + address_size):
            yield str(ip_network((key[4:], _SLOT.unpack_from(key)[0])))

    def attach_reuseport(self, sock: socket.socket) -> None:
        program = struct.pack("i", self._fds["jvp_pick"])
        with _named("the reuseport program"):
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, program)

    def attach_tun(self, tun_fd: int) -> None:
        with _named("the TUN program"):
            fcntl.ioctl(tun_fd, _TUNSETSTEERINGEBPF, struct.pack("i", self._fds["jvp_tun_queue"]))

    def counters(self) -> dict[str, int]:
        values = {}
        for number, name in enumerate(COUNTERS, start=1):
            raw = self._lookup("counters", _SLOT.pack(number), 8 * self._cpus)
            values[name] = sum(struct.unpack(f"={self._cpus}Q", raw))
        return values

    def close(self) -> None:
        self._bound.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _update(self, name: str, key: bytes, value: bytes) -> None:
        with _named(f"steering map {name!r}"):
            bpf.map_update(self._fds[name], key, value)

    def _lookup(self, name: str, key: bytes, size: int) -> bytes:
        value = bpf.map_lookup(self._fds[name], key, size)
        assert value is not None, f"the array {name} has no entry {key.hex()}"
        return value


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors of the kernel say what it was about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from error


def _prefix_key(prefix: str) -> tuple[str, bytes]:
    network = ip_network(prefix)
    name = "inner4" if isinstance(network, IPv4Network) else "inner6"
    return name, _SLOT.pack(network.prefixlen) + network.network_address.packed
