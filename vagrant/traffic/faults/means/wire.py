"""Impairments by the lab's emulator, over its control socket: in force as long as the connection is."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

import msgspec

from jvpn.lab.link_model import LinkParams
from vagrant.traffic.script import Failed

ANSWER_TIMEOUT_S = 10.0
#: The emulator's counters of frames that never arrive.
_DROPPED = ("lost", "burst_lost", "queue_dropped", "swallowed", "too_big")
_SHOWN = (*_DROPPED, "duplicated", "reordered", "corrupted", "unsplit_superpackets")


class Wire:
    """One link of the emulator that answers at *path*. Raises Failed, then and later, when it does not or refuses."""

    seeded = True

    def __init__(self, path: str, link: str, seed: int) -> None:
        self._path, self._link, self._seed = path, link, seed
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise Failed(
                f"no emulator answers at {path} ({error.strerror or error}): is the lab up, and was its emulator "
                "started with --control?"
            ) from error
        self._answers = self._socket.makefile("rb")
        self._before = self._read()

    def impair(self, changes: Mapping[str, LinkParams]) -> None:
        """Put them in force by direction, in place of those before; what they draw begins with the seed."""
        for direction, params in changes.items():
            request = {"op": "impair", "link": self._link, "direction": direction, "seed": self._seed}
            self._ask({**request, "params": msgspec.to_builtins(params)})

    def counters(self) -> dict[str, int]:
        """By "DIRECTION_NAME", since this script came; packets of others that passed meanwhile count as well."""
        found = {}
        for direction, now in self._read().items():
            since = {key: now[key] - value for key, value in self._before[direction].items()}
            found[f"{direction}_offered"] = since["offered"]
            found[f"{direction}_dropped"] = sum(since[key] for key in _DROPPED)
            found |= {f"{direction}_{key}": since[key] for key in _SHOWN if since[key]}
        return found

    def close(self) -> None:
        """Take the impairments back."""
        self._answers.close()
        self._socket.close()

    def _read(self) -> dict[str, dict[str, int]]:
        counters: dict[str, dict[str, int]] = self._ask({"op": "read"})["counters"]
        found = {
            key.rpartition("/")[2]: counts
            for key, counts in counters.items()
            if key.rpartition("/")[0] == self._link
        }
        if not found:
            links = ", ".join(sorted({key.rpartition("/")[0] for key in counters}))
            raise Failed(f"the emulator at {self._path} has no link {self._link}: it has {links}")
        return found

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._answers.readline()
        except OSError as error:
            raise Failed(
                f"the emulator at {self._path} does not answer ({error}): is the lab still up?"
            ) from error
        if not line:
            raise Failed(f"the emulator at {self._path} has gone: is the lab still up?")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise Failed(f"the emulator refuses: {answer['error']}")
        return answer
