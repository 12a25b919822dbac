"""The BPF programs as the compiler left them, kept in a file: a gateway that starts again need not compile them again.

An image has all that the kernel is given: the maps' shapes, and the programs' instructions, in which a reference to a
map (BPF_PSEUDO_MAP_FD, Documentation/bpf/standardization/instruction-set.rst) names its place among the maps instead
of a descriptor. The kernel verifies what comes from a file as it verifies what was just compiled.
"""

import contextlib
import os
import resource
import stat
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from jvpn.holder import bpf_syscall

#: Programs of other versions, capacities and kernels that stay beside the newest.
KEPT_IMAGES: Final = 16
_PREFIX: Final = "programs-"
#: BPF_LD | BPF_IMM | BPF_DW takes two instructions; its source register says that the constant is a map's descriptor.
_LOAD_CONSTANT, _MAP_DESCRIPTOR = 0x18, 1
_INSTRUCTION = struct.Struct("=BBhi")


class Program(msgspec.Struct, frozen=True, array_like=True):
    """`kind`: its BPF_PROG_TYPE. `code`: instructions of 8 bytes."""

    name: str
    kind: int
    code: bytes


class Image(msgspec.Struct, frozen=True, array_like=True):
    maps: tuple[bpf_syscall.MapShape, ...]
    programs: tuple[Program, ...]


def of(maps: Mapping[str, int], programs: Mapping[str, tuple[int, bytes]]) -> Image:
    """What was compiled against these maps (descriptors by name). `programs`: type and instructions by name.

    Raises OSError, and ValueError when a program uses another map.
    """
    places = {descriptor: place for place, descriptor in enumerate(maps.values())}
    shapes = tuple(bpf_syscall.map_shape(descriptor) for descriptor in maps.values())
    made = (Program(name, kind, _related(code, places)) for name, (kind, code) in programs.items())
    return Image(shapes, tuple(made))


def _related(code: bytes, into: Mapping[int, int]) -> bytes:
    """With the constant of every reference to a map replaced. Raises ValueError for one that is not in `into`."""
    changed = bytearray(code)
    at = 0
    while at < len(code):
        operation, registers, offset, constant = _INSTRUCTION.unpack_from(code, at)
        if operation == _LOAD_CONSTANT and registers >> 4 == _MAP_DESCRIPTOR:
            if constant not in into:
                raise ValueError(f"the instruction at byte {at} refers to a map that is not known")
            _INSTRUCTION.pack_into(changed, at, operation, registers, offset, into[constant])
        at += 2 * _INSTRUCTION.size if operation == _LOAD_CONSTANT else _INSTRUCTION.size
    return bytes(changed)


def load(image: Image) -> tuple[dict[str, int], dict[str, int]]:
    """Descriptors by name of the programs and of the maps, all of them new, the programs verified.

    Raises OSError, with the verifier's words where it refuses a program, and ValueError as `of` does.
    """
    with contextlib.suppress(OSError, ValueError):  # kernels before 5.11 count maps as locked memory
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    made: list[int] = []
    try:
        for shape in image.maps:
            made.append(bpf_syscall.map_create(shape))
        maps = dict(zip((shape.name for shape in image.maps), made, strict=True))
        descriptors = dict(enumerate(made))
        for program in image.programs:
            code = _related(program.code, descriptors)
            made.append(bpf_syscall.prog_load(program.kind, program.name, code))
    except (OSError, ValueError):
        for descriptor in made:
            os.close(descriptor)
        raise
    return dict(zip((program.name for program in image.programs), made[len(maps) :], strict=True)), maps


def kept(folder: Path, digest: str) -> Image | None:
    """The image that was kept under this digest; None when there is none, or one that others could have written."""
    try:
        with open(folder / f"{_PREFIX}{digest}", "rb", opener=_no_link) as file:
            told = os.fstat(file.fileno())
            ours = stat.S_ISREG(told.st_mode) and told.st_uid in (0, os.geteuid())
            if not ours or stat.S_IMODE(told.st_mode) & 0o022:
                return None
            return msgspec.msgpack.decode(file.read(), type=Image)
    except (OSError, msgspec.MsgspecError):
        return None


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def keep(folder: Path, digest: str, image: Image) -> None:
    """For the next start, and forget the oldest of many. Where nothing can be written the next one compiles again."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(msgspec.msgpack.encode(image))
            os.rename(fresh, folder / f"{_PREFIX}{digest}")
        except OSError:
            os.unlink(fresh)
            raise
        ages = [(path.stat().st_mtime_ns, path) for path in folder.glob(f"{_PREFIX}*")]
        for _age, path in sorted(ages)[:-KEPT_IMAGES]:
            path.unlink(missing_ok=True)
