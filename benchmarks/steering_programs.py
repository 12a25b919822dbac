"""bpf/steer.c as the product has it and the programs of steering.c beside it, compiled as one module."""

from pathlib import Path
from typing import Any

from bcc import BPF

from jvpn.holder import bpf_syscall as bpf
from jvpn.holder.loader import MAPS, PROGRAMS, SOURCES, LoaderError, kernel_headers

HERE = Path(__file__).resolve().parent
PRODUCT = HERE.parent / "bpf"
BENCH = (
    "bench_fill",
    "bench_empty",
    "bench_same",
    "bench_generate",
    "bench_lookup",
    "bench_read",
    "bench_steer",
)


class NoProgram(Exception):
    """A program cannot be had, or does not do what is to be measured; says why."""


def _callable(file: Path) -> str:
    """The source; of steer.c with the program's body in a function that other programs may call, as bcc wants it."""
    text = file.read_text()
    if file.name != "steer.c":
        return text
    head = "int jvp_steer(struct xdp_md *ctx)\n"
    if text.count(head) != 1:
        raise NoProgram(f"{file} has no {head.strip()!r}")
    body = text.replace(head, "static __always_inline int bench_real(struct xdp_md *ctx)\n")
    return f"{body}{head}{{\n\treturn bench_real(ctx);\n}}\n"


class Programs:
    """Loaded programs and their maps, with room for `capacity` steering ids. Raises NoProgram."""

    def __init__(self, capacity: int) -> None:
        try:
            kernel_headers()
        except LoaderError as error:
            raise NoProgram(str(error)) from error
        files = [*(PRODUCT / name for name in SOURCES), HERE / "steering.c"]
        text = "".join(f'#line 1 "{file.name}"\n{_callable(file)}' for file in files)
        # The loader's own flags: other bounds would be another program.
        flags = [f"-I{PRODUCT}", f"-DJVP_CAPACITY={capacity}", f"-DJVP_CPUS={bpf.possible_cpus()}"]
        try:
            self._module: Any = BPF(text=text, cflags=["-Wno-unknown-warning-option", *flags])
            kinds = {"jvp_pick": BPF.SOCKET_FILTER, "jvp_tun_queue": BPF.SOCKET_FILTER}
            self._fds = {
                name: int(self._module.load_func(name, kinds.get(name, BPF.XDP)).fd)
                for name in (*PROGRAMS, *BENCH)
            }
        except Exception as error:  # bcc raises the bare class
            raise NoProgram(f"bcc: {error}") from error

    def fd(self, name: str) -> int:
        """Of a program."""
        return self._fds[name]

    def pin(self, folder: Path) -> None:
        """Where jvpn.supervisor.steering finds them."""
        for name in PROGRAMS:
            bpf.obj_pin(self._fds[name], folder / name)
        for name in MAPS:
            bpf.obj_pin(self._module[name].map_fd, folder / name)

    def fill(self, frame: bytes, sessions: int) -> None:
        """Give `sessions` drawn ids the entry that the id in `frame` has. Raises NoProgram."""
        numbers = self._module["bench_numbers"]
        numbers[1] = numbers.Leaf(sessions)
        verdict = bpf.prog_test_run(self._fds["bench_fill"], frame, sessions).verdict
        if verdict != 2 or numbers[0].value != sessions:
            raise NoProgram(f"the map took {numbers[0].value:,} ids of {sessions:,}")
