"""The one-shot BPF loader: compiles bpf/*.c with bcc, has the kernel verify them, pins programs and maps, exits.

    python -m jvpn.holder.loader --pin-dir /sys/fs/bpf/jvpn/<instance> [--capacity N] [--compile] [--json]

It is a process of its own because bcc brings LLVM into memory. What it compiled is kept (bpf_image.py) and serves as
long as sources, bounds, headers, compiler and kernel are the same; it is verified each time. Pins of an earlier run
in the same directory are replaced one by one by rename, after everything was compiled and verified: when that fails,
the old ones remain. The result, or {"stage", "error", "remedy"}, goes to standard output; the exit status names the
stage that failed.
"""

import argparse
import ctypes
import errno
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from jvpn.holder import bpf_image, bpf_syscall, bpffs, headers

#: BPF_PROG_TYPE_XDP, and BPF_PROG_TYPE_SOCKET_FILTER twice.
PROGRAM_TYPES: Final = {"jvp_steer": 6, "jvp_pick": 1, "jvp_tun_queue": 1}
PROGRAMS: Final = tuple(PROGRAM_TYPES)
MAPS: Final = (
    "ids",
    "bound",
    "slots",
    "inner4",
    "inner6",
    "cpus",
    "settings",
    "fence",
    "counters",
    "global_bucket",
    "source_buckets",
    "id_buckets",
)
SOURCES: Final = ("jvp.h", "steer.c", "pick.c", "tun_queue.c")
DEFAULT_CAPACITY: Final = 262_144
#: Exit status by stage; 0 is success, 2 a wrong command line.
EXIT_STATUS: Final = {"headers": 10, "bcc": 11, "compile": 12, "verify": 13, "mount": 14, "pin": 15}

_BPFFS: Final = Path("/sys/fs/bpf")
_LOG_TAIL: Final = 2000
#: Descriptors by name: programs, maps.
_Loaded = tuple[dict[str, int], dict[str, int]]
T = TypeVar("T")


class LoaderError(Exception):
    """What failed (`stage`), why, and what a person can do about it."""

    def __init__(self, stage: str, error: str, remedy: str) -> None:
        super().__init__(f"{stage}: {error}\n{remedy}")
        self.stage, self.error, self.remedy = stage, error, remedy


def load(
    pin_dir: Path,
    capacity: int = DEFAULT_CAPACITY,
    source_dir: Path | None = None,
    run_dir: Path | None = None,
    compile_anew: bool = False,
) -> dict[str, Any]:
    """Compile, verify and pin. `capacity`: steering ids at most (about 165 bytes of kernel memory each).
    `compile_anew`: also where an earlier start has left what it compiled.

    Returns {"pin_dir", "headers", "capacity", "compiled": whether it had to be, "compile_ms", "verify_ms",
    "programs": {name: id}, "maps": {name: id}}; its `pin_dir` differs from the one asked for when no bpffs could be
    mounted there. Raises LoaderError.
    """
    if not bpf_privileged():
        raise LoaderError("verify", "BPF programs may be loaded by root only", "start the loader as root")
    tree = kernel_headers(run_dir)
    started = time.monotonic()
    source = _source(source_dir or Path(__file__).resolve().parents[2] / "bpf", capacity)
    digest = _digest(source, tree)
    image = None if compile_anew else bpf_image.kept(headers.CACHE, digest)
    loaded = None if image is None else _loaded_again(image)
    compiled, verified = started, time.monotonic()
    if loaded is None:
        image = _compile(source)
        compiled = time.monotonic()
        loaded = _verified(image)
        verified = time.monotonic()
        bpf_image.keep(headers.CACHE, digest, image)
    programs, maps = loaded
    pinned = ensure_bpffs(pin_dir, run_dir)
    _pin_all(pinned, programs | maps)
    return {
        "pin_dir": str(pinned),
        "headers": str(tree) if tree else "/sys/kernel/kheaders.tar.xz",
        "capacity": capacity,
        "compiled": compiled > started,
        "compile_ms": round((compiled - started) * 1000),
        "verify_ms": round((verified - compiled) * 1000),
        "programs": {name: bpf_syscall.prog_info(fd).id for name, fd in programs.items()},
        "maps": {name: bpf_syscall.map_info(fd).id for name, fd in maps.items()},
    }


def bpf_privileged() -> bool:
    """Whether this process holds CAP_SYS_ADMIN, which loading and mounting take together."""
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> 21 & 1)


def kernel_headers(run_dir: Path | None = None) -> Path | None:
    """Find headers and tell bcc. None when it will unpack the kernel's own /sys/kernel/kheaders.tar.xz.

    Raises LoaderError when there are none.
    """
    try:
        try:
            tree = headers.find()
        except OSError:
            if run_dir is None:
                raise
            tree = headers.find(run_dir)
    except OSError as error:
        raise LoaderError(
            "headers",
            f"the merged header tree cannot be written: {error}",
            "make /var/cache/jvpn or --run-dir writable",
        ) from error
    if tree is None and not Path("/sys/kernel/kheaders.tar.xz").exists():
        raise LoaderError("headers", "bcc needs kernel headers and none are installed", headers.remedy())
    if tree is not None:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    return tree


class _Source(NamedTuple):
    text: str
    #: Of clang, besides where to find the folder that the text came from.
    flags: list[str]
    folder: Path


def _source(folder: Path, capacity: int) -> _Source:
    try:
        text = "".join(f'#line 1 "bpf/{name}"\n{(folder / name).read_text()}' for name in SOURCES)
    except OSError as error:
        raise LoaderError(
            "compile", f"a source is missing: {error}", "name the folder bpf/ with --source-dir"
        ) from error
    bounds = [f"-DJVP_CAPACITY={capacity}", f"-DJVP_CPUS={bpf_syscall.possible_cpus()}"]
    return _Source(text, ["-Wall", "-Wno-unknown-warning-option", *bounds], folder)


def _digest(source: _Source, tree: Path | None) -> str:
    """One name for all that decides over what the compiler makes, the compiler itself too."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        raise _no_bcc("it is not installed")
    compiler = os.stat(spec.origin)
    kernel = os.uname()
    parts: list[object] = [source.text, *source.flags, tree, kernel.release, kernel.version, kernel.machine]
    parts += [spec.origin, compiler.st_size, compiler.st_mtime_ns]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _no_bcc(why: object) -> LoaderError:
    return LoaderError(
        "bcc",
        f"the Python module bcc cannot be imported: {why}",
        "apt-get install python3-bpfcc, and run in an environment with system site packages "
        "(the package named bcc on PyPI is something else)",
    )


def _compile(source: _Source) -> bpf_image.Image:
    try:
        from bcc import BPF, lib
    except ImportError as error:
        raise _no_bcc(error) from error

    def compiled() -> bpf_image.Image:
        module = BPF(text=source.text, cflags=[f"-I{source.folder}", *source.flags])
        programs = {
            name: (kind, ctypes.string_at(*_instructions(lib, module.module, name.encode())))
            for name, kind in PROGRAM_TYPES.items()
        }
        made = bpf_image.of({name: int(module[name].map_fd) for name in MAPS}, programs)
        module.cleanup()
        return made

    return _logged("compile", "check that the headers fit: " + headers.remedy(), compiled)


def _instructions(lib: Any, module: Any, name: bytes) -> tuple[int, int]:
    """Address and size in bytes."""
    return int(lib.bpf_function_start(module, name)), int(lib.bpf_function_size(module, name))


def _verified(image: bpf_image.Image) -> _Loaded:
    remedy = "the gateway needs Linux 5.10 or later; without BPF it runs with one worker"
    return _logged("verify", remedy, lambda: bpf_image.load(image))


def _loaded_again(image: bpf_image.Image) -> _Loaded | None:
    """None where it cannot be: the file may have been damaged, and the compiler's messages say more."""
    try:
        return bpf_image.load(image)
    except (OSError, ValueError):
        return None


def _logged(stage: str, remedy: str, action: Callable[[], T]) -> T:
    """Run `action`; when it fails, say what LLVM or the verifier wrote to standard error."""
    with captured_stderr() as log:
        try:
            return action()
        except Exception as error:  # bcc raises the bare class
            raise LoaderError(stage, f"{error}\n{log()[-_LOG_TAIL:]}".strip(), remedy) from error


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Redirect descriptor 2, which LLVM writes to from C; yields a function that returns what came so far."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def text() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield text
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def ensure_bpffs(pin_dir: Path, run_dir: Path | None = None) -> Path:
    """Make `pin_dir` a folder of a bpffs, mounting one when there is none; returns the folder to use.

    Below /sys/fs/bpf the file system is mounted there; when the kernel refuses, and for a folder elsewhere, on a
    folder of its own. Raises LoaderError.
    """
    private = pin_dir
    if pin_dir.is_relative_to(_BPFFS):
        private = (run_dir or Path("/run/jvpn") / pin_dir.name) / "bpf"
        try:
            bpffs.mount(_BPFFS)
            pin_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            return pin_dir
        except OSError:
            pass  # a read-only /sys, as in some containers
    try:
        private.mkdir(parents=True, exist_ok=True, mode=0o700)
        bpffs.mount(private)
    except OSError as error:
        raise LoaderError(
            "mount",
            f"no BPF file system can be mounted on {private}: {error}",
            "mount one by hand: mount -t bpf bpf /sys/fs/bpf",
        ) from error
    return private


def _pin_all(directory: Path, objects: dict[str, int]) -> None:
    """Pin under a second name, then rename over the old pin: there is always one."""
    try:
        for name, fd in objects.items():
            fresh = directory / f"{name}_next"
            fresh.unlink(missing_ok=True)
            bpf_syscall.obj_pin(fd, fresh)
        for name in objects:
            (directory / f"{name}_next").rename(directory / name)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        raise LoaderError(
            "pin",
            str(error),
            "free kernel memory or lower --capacity" if full else f"check who may write to {directory}",
        ) from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="jvpn.holder.loader", description="compile, verify and pin the BPF programs"
    )
    parser.add_argument("--pin-dir", type=Path, default=_BPFFS / "jvpn" / "default")
    parser.add_argument("--run-dir", type=Path, help="writable folder of this instance, for fallbacks")
    parser.add_argument("--source-dir", type=Path, help="the folder bpf/")
    parser.add_argument("--capacity", type=int, default=DEFAULT_CAPACITY, help="steering ids at most")
    parser.add_argument("--compile", action="store_true", help="also what an earlier start has compiled")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    options = parser.parse_args(arguments)
    if not 1 <= options.capacity <= 1 << 24:
        parser.error("--capacity must be 1 to 16777216")
    try:
        result = load(options.pin_dir, options.capacity, options.source_dir, options.run_dir, options.compile)
    except LoaderError as failure:
        report = {"stage": failure.stage, "error": failure.error, "remedy": failure.remedy}
        print(json.dumps(report) if options.json else f"BPF loader failed at {failure}")
        return EXIT_STATUS[failure.stage]
    if options.json:
        print(json.dumps(result))
    else:
        print(f"pinned {len(PROGRAMS)} programs and {len(MAPS)} maps in {result['pin_dir']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
