"""A virtual machine of the lab over SSH: one connection, over which everything that runs there is multiplexed.

ssh(1), ControlMaster. The connection ends with the process that opened it, however that dies: it runs `cat` there,
whose stdin is a pipe from here. A command over it loses its stdin when it is ended here, and so it ends there.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from jvpn.lab.namespaces import LabError

#: Where Vagrant puts the checkout (the Vagrantfile's synced folder).
CHECKOUT: Final = Path("/opt/jvpn")
PYTHON: Final = str(CHECKOUT / ".venv" / "bin" / "python")
FOLDER: Final = Path("/run/jvpn-lab")
CONNECT_TIMEOUT_S: Final = 120.0
_CLOCK_SAMPLES: Final = 12
#: Of the interpreter alone, which starts quickly; a line in, a line out.
_CLOCK: Final = "import sys, time\nfor _ in sys.stdin: print(time.monotonic_ns(), flush=True)"


class SshMachine:
    """A machine with the checkout at /opt/jvpn whose root may be reached as *config*, an ssh_config(5), says.

    *devices*: role → interface name; *slower*: what limits for commands are multiplied by. LabError as Machine says.
    """

    def __init__(self, name: str, config: Path, devices: Mapping[str, str], slower: float = 1.0) -> None:
        self.name = name
        self.folder = FOLDER
        self.python: Sequence[str] = (PYTHON,)
        self.slower = slower
        self.devices = devices
        self._ssh = ("ssh", "-F", str(config), "-S", str(config.with_name(f"{name}.ssh")))
        self._master = subprocess.Popen(
            [*self._ssh, "-M", self.name, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._greet()

    def _greet(self) -> None:
        assert self._master.stdin is not None
        assert self._master.stdout is not None
        assert self._master.stderr is not None
        watchdog = threading.Timer(CONNECT_TIMEOUT_S, self._master.kill)
        watchdog.start()
        try:
            self._master.stdin.write(b"\n")
            self._master.stdin.flush()
            answered = bool(self._master.stdout.readline())
        except OSError:
            answered = False
        finally:
            watchdog.cancel()
        if not answered:
            self._master.kill()
            said = self._master.stderr.read().decode(errors="replace").strip() or "no answer"
            raise LabError(
                f"{self.name} cannot be reached over SSH ({said}): look at `jvpn lab ssh {self.name}`"
            )

    def close(self) -> None:
        """End the connection, and with it what still runs over it."""
        self._master.terminate()
        self._master.wait()
        for stream in (self._master.stdin, self._master.stdout, self._master.stderr):
            if stream is not None:
                stream.close()

    def run(
        self, argv: Sequence[str], *, check: bool = True, input: bytes = b"", timeout_s: float = 30.0
    ) -> subprocess.CompletedProcess[bytes]:
        limit_s = timeout_s * self.slower
        try:
            done = subprocess.run(
                self._command(argv), input=input, capture_output=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{shlex.join(argv)!r} on {self.name} did not end in {limit_s:g} s") from None
        if check and done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace") or "it said nothing"
            raise LabError(
                f"{shlex.join(argv)!r} on {self.name} failed with status {done.returncode}: {said}"
            )
        return subprocess.CompletedProcess(list(argv), done.returncode, done.stdout, done.stderr)

    def popen(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def _command(self, argv: Sequence[str]) -> list[str]:
        return [*self._ssh, self.name, f"cd {CHECKOUT} && exec {shlex.join(argv)}"]

    def read(self, path: Path) -> bytes:
        return self.run(["cat", str(path)], timeout_s=120.0).stdout

    def write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        # The mode comes before what is written, so that no key is ever readable for others.
        quoted = shlex.quote(str(path))
        self.run(["sh", "-c", f"touch {quoted} && chmod {mode:o} {quoted} && cat > {quoted}"], input=data)

    def device(self, role: str) -> str:
        if role not in self.devices:
            raise LabError(f"{self.name} has no interface {role}, only {', '.join(self.devices)}")
        return self.devices[role]

    def clock_offset_ns(self) -> int:
        """Of several questions the one that was answered quickest, halfway between asking and answer."""
        process = self.popen(["/usr/bin/python3", "-I", "-S", "-c", _CLOCK])
        assert process.stdin is not None
        assert process.stdout is not None
        best = (1 << 62, 0)
        try:
            for _ in range(_CLOCK_SAMPLES):
                asked_ns = time.monotonic_ns()
                process.stdin.write(b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
                answered_ns = time.monotonic_ns()
                if not line:
                    raise LabError(f"{self.name} does not say what its clock shows")
                best = min(best, (answered_ns - asked_ns, int(line) - (asked_ns + answered_ns) // 2))
        except BrokenPipeError:
            raise LabError(f"{self.name} does not say what its clock shows") from None
        finally:
            process.communicate()
        return best[1]
