"""A running holder becomes another version of the program: who asks for it, the rehearsal, and the change itself.

Whoever asks names the program. It is run first beside this process, on the same descriptors, and looks at everything
that it would take over (estate.py); only when it finds no fault does this process become it by execve(2). Until then it
is the holder and serves on, whatever becomes of the rehearsal.
"""

import contextlib
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from jvpn.holder import descriptors, estate
from jvpn.holder.estate import Estate
from jvpn.holder.inventory import HolderPlan
from workers import privileges

SOCKET_NAME: Final = "handover.sock"
#: The rehearsal is ended after that (alarm(2)).
REHEARSAL_S: Final = 30
_OURS: Final = ("PYTHON", "JVPN_")
MAX_MESSAGE: Final = 65_536


class HandOver(msgspec.Struct, frozen=True, tag=True):
    """Become the `jvpn.holder.process` of this Python, with these variables; `plan` is what is configured."""

    executable: str
    environment: dict[str, str]
    plan: HolderPlan


class Declined(msgspec.Struct, frozen=True, tag=True):
    """The holder is the one that it was."""

    why: str


class Taken(msgspec.Struct, frozen=True, tag=True):
    """Process `pid` is of this `version` now; so many `workers` follow, once a supervisor is at work (`supervised`)."""

    pid: int
    version: str
    workers: int
    supervised: bool


encode = msgspec.msgpack.Encoder().encode
decode_answer = msgspec.msgpack.Decoder(Declined | Taken).decode
_decode_request = msgspec.msgpack.Decoder(HandOver).decode


def request(plan: HolderPlan, executable: str) -> HandOver:
    """For the program that asks, to become the same."""
    ours = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
    return HandOver(executable, ours, plan)


def ask(run_dir: Path, asked: HandOver) -> Taken:
    """Have the holder of `run_dir` become another. Raises estate.EstateError when it stays what it is, or is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as holder:
        try:
            holder.connect(str(run_dir / SOCKET_NAME))
            holder.settimeout(REHEARSAL_S * 2)
            descriptors.send(holder, encode(asked))
            answer = holder.recv(MAX_MESSAGE)
        except OSError as error:
            raise estate.EstateError(
                f"no data plane of {run_dir} answers that could be handed over ({error.strerror or error}): none runs, "
                "or one of a version that does not know how; systemctl restart jvpn-dataplane begins anew"
            ) from error
    if not answer:
        raise estate.EstateError("the data plane ended before it answered; its log says why")
    said: Declined | Taken = decode_answer(answer)
    if isinstance(said, Declined):
        raise estate.EstateError(f"the data plane runs on as it was: {said.why}")
    return said


class Succession:
    """`bequeath(asker)` says what there is to hand over now."""

    def __init__(
        self, plan: HolderPlan, selector: selectors.BaseSelector, bequeath: Callable[[int], Estate]
    ) -> None:
        self._plan = plan
        self._selector = selector
        self._bequeath = bequeath
        self._rehearsal: subprocess.Popen[bytes] | None = None

    def listen(self, listener: socket.socket) -> None:
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._on_connect(listener))

    def _on_connect(self, listener: socket.socket) -> None:
        asker, _address = listener.accept()
        asker.setblocking(False)
        self._selector.register(asker, selectors.EVENT_READ, lambda: self._on_request(asker))

    def _on_request(self, asker: socket.socket) -> None:
        self._selector.unregister(asker)
        try:
            asked = _decode_request(asker.recv(MAX_MESSAGE))
        except (OSError, msgspec.MsgspecError) as error:
            self._decline(asker, f"not a request that it understands: {error}")
            return
        differing = [
            name
            for name in self._plan.__struct_fields__
            if getattr(asked.plan, name) != getattr(self._plan, name)
        ]
        if differing:
            what = f"other {', '.join(differing)} than configured"
            self._decline(asker, f"{what}, which a restart takes up: systemctl restart jvpn-dataplane")
        elif self._rehearsal is not None:
            self._decline(asker, "another hand-over is under way")
        else:
            self._rehearse(asker, asked)

    @staticmethod
    def _decline(asker: socket.socket, why: str) -> None:
        with contextlib.suppress(OSError):
            asker.send(encode(Declined(why)))
        asker.close()

    def _rehearse(self, asker: socket.socket, asked: HandOver) -> None:
        left = self._bequeath(asker.fileno())
        written = estate.write(left)
        holder = os.getpid()

        def bound_to_us() -> None:
            # It has our descriptors open: it must neither stay nor outlive us.
            privileges.die_with_parent(holder)
            signal.alarm(REHEARSAL_S)

        command = [asked.executable, "-P", "-m", "jvpn.holder.estate", str(written)]
        try:
            rehearsal = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(asked),
                pass_fds=[written, *left.descriptors()],
                preexec_fn=bound_to_us,
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._decline(asker, f"the successor cannot be started: {asked.executable}: {error}")
            return
        finally:
            os.close(written)
        self._rehearsal = rehearsal
        pidfd = os.pidfd_open(rehearsal.pid)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._on_rehearsed(pidfd, asker, asked))

    def _on_rehearsed(self, pidfd: int, asker: socket.socket, asked: HandOver) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        rehearsal, self._rehearsal = self._rehearsal, None
        assert rehearsal is not None
        assert rehearsal.stdout is not None
        said = rehearsal.stdout.read(MAX_MESSAGE).decode(errors="replace").strip()
        rehearsal.stdout.close()
        status = rehearsal.wait()
        if status:
            reason = said.splitlines()[-1] if said else f"it ended with status {status}"
            self._decline(asker, f"the successor was tried and failed: {reason}")
            return
        self._become(asker, asked)

    def _become(self, asker: socket.socket, asked: HandOver) -> None:
        left = self._bequeath(asker.fileno())
        written = estate.write(left)
        handed = [written, *left.descriptors()]
        command = [asked.executable, "-P", "-m", "jvpn.holder.process", "--estate", str(written)]
        try:
            for descriptor in handed:
                os.set_inheritable(descriptor, True)
            os.execve(asked.executable, command, _environment(asked))
        except OSError as error:
            for descriptor in handed:
                os.set_inheritable(descriptor, False)
            os.close(written)
            self._decline(asker, f"the successor cannot be started: {error}")


def _environment(asked: HandOver) -> dict[str, str]:
    """Ours, but what tells Python and this program where things are."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return kept | asked.environment
