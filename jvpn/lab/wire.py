"""The lab's end of the emulator process: start it, change a direction's properties, read its counters."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from jvpn.lab.link_model import LinkParams
from jvpn.lab.namespaces import LabError, Namespace

ANSWER_TIMEOUT_S = 10.0


class Wire:
    """One emulator process in *namespace* for *links*, (name, near device, far device) each.

    *turn* spreads several processes over the CPUs.

    Every method returns when the emulator has acknowledged. Methods may be called from any thread.
    LabError when the emulator cannot start, has died or refuses.
    """

    def __init__(
        self, namespace: Namespace, links: Sequence[tuple[str, str, str]], seed: int | str, turn: int = 0
    ) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] = namespace.popen_module(
            "jvpn.lab.emulator", "--seed", str(seed), "--turn", str(turn), *(":".join(link) for link in links),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._receive()

    def set(self, link: str, direction: str, params: LinkParams) -> None:
        """Put *params* in force for *direction* ("up" or "down") of *link*."""
        self._ask({"op": "set", "link": link, "direction": direction, "params": params})

    def counters(self) -> dict[str, dict[str, int]]:
        """Counters by "LINK/DIRECTION"; see ``LinkCounters`` and ``emulator.Direction.read``."""
        answer: dict[str, dict[str, int]] = self._ask({"op": "read"})["counters"]
        return answer

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with self._lock:
            with contextlib.suppress(OSError):  # a dead emulator is reported by _receive, with its last words
                self._process.stdin.write(msgspec.json.encode(request) + b"\n")
                self._process.stdin.flush()
            return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        watchdog = threading.Timer(ANSWER_TIMEOUT_S, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line:
            self._process.wait()
            words = self._process.stderr.read().decode(errors="replace").strip()
            raise LabError(f"the link emulator is gone: {words or 'it gave no answer'}")
        answer: dict[str, Any] = msgspec.json.decode(line)
        if not answer["ok"]:
            raise LabError(f"the link emulator refused: {answer['error']}")
        return answer
