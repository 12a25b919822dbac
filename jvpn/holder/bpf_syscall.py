"""bpf(2) without libraries: what a process that faces the internet needs of it, and no compiler in its memory.

Every function raises OSError with the kernel's errno and a text that says which operation on which object failed.
Layouts: include/uapi/linux/bpf.h, union bpf_attr. Keys and values are bytes, as the map's C types lay them out.
"""

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_NUMBERS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY, _PROG_LOAD = 0, 1, 2, 3, 4, 5
_OBJ_PIN, _OBJ_GET, _PROG_TEST_RUN = 6, 7, 10
_PROG_FD_BY_ID, _MAP_FD_BY_ID, _OBJ_INFO = 13, 14, 15

#: Bytes for what the verifier says of a program that it refuses; it says something of every instruction.
_LOG_SIZE: Final = 1 << 24
#: Characters of it that are shown: the reason is at the end.
_LOG_TAIL: Final = 2000

_HINTS: Final = {
    1: "it needs CAP_BPF and CAP_NET_ADMIN (or root)",
    2: "there is no such entry or pin",
    7: "the map is full",
    17: "it exists already",
    22: "the kernel refuses the arguments; the object may be of another kind",
}

_libc = ctypes.CDLL(None, use_errno=True)


class ProgramInfo(NamedTuple):
    id: int
    type: int
    name: str


class MapInfo(NamedTuple):
    """`value_size` in bytes, of one CPU's value in a per-CPU map."""

    id: int
    type: int
    name: str
    key_size: int
    value_size: int
    max_entries: int


class MapShape(NamedTuple):
    """What a map is made from; `type` is its BPF_MAP_TYPE, sizes in bytes as in MapInfo."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class TestRun(NamedTuple):
    verdict: int
    duration_ns: int


def _bpf(command: int, attributes: bytes, what: str) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(38, f"bpf {what}: the system call's number is not known for {platform.machine()}")
    # A copy in memory of our own: the kernel writes results into it.
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _bpf_in_place(number, command, buffer, what)


def _bpf_in_place(number: int, command: int, buffer: "ctypes.Array[ctypes.c_char]", what: str) -> int:
    result: int = _libc.syscall(number, command, buffer, len(buffer))
    if result < 0:
        error = ctypes.get_errno()
        hint = _HINTS.get(error)
        raise OSError(error, f"bpf {what}: {os.strerror(error)}" + (f" ({hint})" if hint else ""))
    return result


def _path_attributes(path: str | Path, fd: int) -> tuple[bytes, "ctypes.Array[ctypes.c_char]"]:
    text = ctypes.create_string_buffer(os.fsencode(path))
    return struct.pack("=QII", ctypes.addressof(text), fd, 0), text


def obj_pin(fd: int, path: str | Path) -> None:
    """Give a program or map a name in a bpffs, so that it outlives this process."""
    attributes, _text = _path_attributes(path, fd)
    _bpf(_OBJ_PIN, attributes, f"pin {path}")


def obj_get(path: str | Path) -> int:
    """A new descriptor of a pinned program or map; the caller closes it."""
    attributes, _text = _path_attributes(path, 0)
    return _bpf(_OBJ_GET, attributes, f"open {path}")


def prog_fd_by_id(program_id: int) -> int:
    """A new descriptor of a loaded program; the caller closes it."""
    return _bpf(_PROG_FD_BY_ID, struct.pack("=III", program_id, 0, 0), f"open program {program_id}")


def map_fd_by_id(map_id: int) -> int:
    """A new descriptor of a map; the caller closes it."""
    return _bpf(_MAP_FD_BY_ID, struct.pack("=III", map_id, 0, 0), f"open map {map_id}")


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of `key`, None when there is none. Of a per-CPU map `value_size` counts all possible CPUs."""
    value = ctypes.create_string_buffer(value_size)
    try:
        _element(_MAP_LOOKUP, fd, key, value, 0, "look up an entry")
    except FileNotFoundError:
        return None
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Write an entry; hash and LPM maps replace it atomically."""
    _element(_MAP_UPDATE, fd, key, ctypes.create_string_buffer(value, len(value)), flags, "write an entry")


def map_delete(fd: int, key: bytes) -> bool:
    """Delete an entry; False when there was none."""
    try:
        _element(_MAP_DELETE, fd, key, None, 0, "delete an entry")
    except FileNotFoundError:
        return False
    return True


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """All keys. Changing the map meanwhile may repeat or skip some (a deleted key restarts the walk)."""
    following = ctypes.create_string_buffer(key_size)
    key: bytes | None = None
    while True:
        try:
            _element(_MAP_NEXT_KEY, fd, key, following, 0, "walk a map")
        except FileNotFoundError:
            return
        key = following.raw
        yield key


def _element(
    command: int,
    fd: int,
    key: bytes | None,
    value: "ctypes.Array[ctypes.c_char] | None",
    flags: int,
    what: str,
) -> None:
    key_buffer = None if key is None else ctypes.create_string_buffer(key, len(key))
    key_address = 0 if key_buffer is None else ctypes.addressof(key_buffer)
    value_address = 0 if value is None else ctypes.addressof(value)
    _bpf(command, struct.pack("=IIQQQ", fd, 0, key_address, value_address, flags), what)


def _object_info(fd: int, size: int, what: str) -> bytes:
    info = ctypes.create_string_buffer(size)
    _bpf(_OBJ_INFO, struct.pack("=IIQ", fd, size, ctypes.addressof(info)), what)
    return info.raw


def _name(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "replace")


def prog_info(fd: int) -> ProgramInfo:
    """struct bpf_prog_info: type @0, id @4, name 16 bytes @64."""
    raw = _object_info(fd, 80, "describe a program")
    kind, program_id = struct.unpack_from("=II", raw)
    return ProgramInfo(program_id, kind, _name(raw[64:80]))


def map_info(fd: int) -> MapInfo:
    """struct bpf_map_info: type, id, key_size, value_size, max_entries, flags, name 16 bytes @24."""
    raw = _object_info(fd, 40, "describe a map")
    kind, map_id, key_size, value_size, max_entries = struct.unpack_from("=5I", raw)
    return MapInfo(map_id, kind, _name(raw[24:40]), key_size, value_size, max_entries)


def map_shape(fd: int) -> MapShape:
    """To make another map like this one; it gets no BTF, which only map types that this project has not would need."""
    raw = _object_info(fd, 40, "describe a map")
    kind, _id, key_size, value_size, max_entries, flags = struct.unpack_from("=6I", raw)
    return MapShape(_name(raw[24:40]), kind, key_size, value_size, max_entries, flags)


def map_create(shape: MapShape) -> int:
    """A new and empty map; the caller closes it."""
    name, *sizes = shape
    attributes = struct.pack("=7I16s", *sizes, 0, 0, name.encode("ascii"))
    return _bpf(_MAP_CREATE, attributes, f"make map '{name}'")


def prog_load(kind: int, name: str, code: bytes) -> int:
    """A new program, verified; the caller closes it. `kind`: its BPF_PROG_TYPE.

    Raises OSError; where the verifier refuses it, its last words are in the text.
    """
    try:
        return _prog_load(kind, name, code, None)
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_SIZE)
        with contextlib.suppress(OSError):
            os.close(_prog_load(kind, name, code, log))
        said = log.value.decode(errors="replace").strip()[-_LOG_TAIL:]
        raise OSError(error.errno, f"{error.strerror}\n{said}".strip()) from error


def _prog_load(kind: int, name: str, code: bytes, log: "ctypes.Array[ctypes.c_char] | None") -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    # Helpers that are for free programs only ask what the license is.
    free = ctypes.create_string_buffer(b"GPL")
    told = (0, 0, 0) if log is None else (1, len(log), ctypes.addressof(log))
    addresses = ctypes.addressof(instructions), ctypes.addressof(free)
    attributes = struct.pack(
        "=IIQQIIQII16s", kind, len(code) // 8, *addresses, *told, 0, 0, name.encode("ascii")
    )
    return _bpf(_PROG_LOAD, attributes, f"load program '{name}'")


def prog_test_run(fd: int, packet: bytes, repeat: int = 1) -> TestRun:
    """Run an XDP or socket program over `packet` `repeat` times, on this CPU and on no interface."""
    data = ctypes.create_string_buffer(packet, len(packet))
    attributes = ctypes.create_string_buffer(
        struct.pack("=IIIIQQII", fd, 0, len(packet), 0, ctypes.addressof(data), 0, repeat, 0), 48
    )
    number = _NUMBERS[platform.machine()]
    _bpf_in_place(number, _PROG_TEST_RUN, attributes, "test a program")
    _, verdict, _, _, _, _, _, duration_ns = struct.unpack("=IIIIQQII", attributes.raw[:40])
    return TestRun(verdict, duration_ns)


def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace("-", ",").split(",")[-1]) + 1
