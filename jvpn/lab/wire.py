"""The lab's end of the emulator process: start it, change a direction's properties, read its counters."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from jvpn.lab.answers import answer_of
from jvpn.lab.link_model import LinkParams
from jvpn.lab.namespaces import LabError, Namespace


class Wire:
    """One emulator process in *namespace* for *links*, (name, near device, far device) each.

    *turn* spreads several processes over the CPUs. Over the Unix socket *control* others can impair the links as well.

    Every method returns when the emulator has acknowledged. Methods may be called from any thread.
    LabError when the emulator cannot start, has died or refuses.
    """

    def __init__(
        self,
        namespace: Namespace,
        links: Sequence[tuple[str, str, str]],
        seed: int | str,
        turn: int = 0,
        control: Path | None = None,
    ) -> None:
        self._lock = threading.Lock()
        door = ("--control", str(control)) if control else ()
        self._process: subprocess.Popen[bytes] = namespace.popen_module(
            "jvpn.lab.emulator", "--seed", str(seed), "--turn", str(turn), *door,
            *(":".join(link) for link in links),
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
        answer: dict[str, Any] = msgspec.json.decode(answer_of(self._process, "the link emulator"))
        if not answer["ok"]:
            raise LabError(f"the link emulator refused: {answer['error']}")
        return answer
