"""The admin socket: one JSON request a line, one JSON answer a line, over a Unix socket only its owner may open.

{"command": "status"}  →  {"ok": {...}} or {"error": "what happened and what to do"}
"""

import json
import os
import selectors
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

MAX_REQUEST = 64 * 1024
MAX_CONNECTIONS = 16
ADMIN_SOCKET = "admin.sock"

Handler = Callable[[dict[str, Any]], object]


class AdminError(Exception):
    """A request that cannot be fulfilled, in words for the operator."""


class AdminServer:
    """Serves `handler(request) -> answer` from somebody's selector loop. Slow or broken readers are dropped."""

    def __init__(self, path: Path, selector: selectors.BaseSelector, handler: Handler) -> None:
        self._path = path
        self._selector = selector
        self._handler = handler
        self._open: dict[socket.socket, bytes] = {}
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(mask)
        self._listener.listen(8)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        connection, _address = self._listener.accept()
        connection.setblocking(False)
        if len(self._open) >= MAX_CONNECTIONS:
            connection.close()
            return
        self._open[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(connection))

    def _read(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(MAX_REQUEST)
        except OSError:
            data = b""
        self._open[connection] += data
        if not data or len(self._open[connection]) > MAX_REQUEST:
            self._drop(connection)
            return
        while b"\n" in self._open[connection]:
            line, _, self._open[connection] = self._open[connection].partition(b"\n")
            try:
                connection.sendall(self._answer(line))
            except OSError:
                self._drop(connection)
                return

    def _answer(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
            answer = {"ok": self._handler(request if isinstance(request, dict) else {})}
        except (AdminError, ValueError) as error:
            answer = {"error": str(error)}
        return msgspec.json.encode(answer) + b"\n"

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._open[connection]
        connection.close()

    def close(self) -> None:
        for connection in list(self._open):
            self._drop(connection)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)


def ask(run_dir: Path, request: dict[str, object], timeout_s: float = 5.0) -> Any:
    """Ask the process that runs in `run_dir`. Raises AdminError when it does not run or refuses."""
    path = run_dir / ADMIN_SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as reader:
                line = reader.readline()
        except OSError as error:
            raise AdminError(
                f"nothing answers at {path} ({error.strerror or error}); is it running, and with this run_dir?"
            ) from error
    answer = json.loads(line) if line else {"error": "the connection was closed without an answer"}
    if "error" in answer:
        raise AdminError(answer["error"])
    return answer["ok"]
