"""The admin socket: one JSON request a line, one JSON answer a line, over a Unix socket only its owner may open.

{"command": "status"}  →  {"ok": {...}} or {"error": "what happened and what to do"}
"""

import errno
import json
import os
import selectors
import socket
import traceback
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


class _Connection:
    """One reader of answers: what it has asked so far, and what of the answers its socket has not taken yet."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.asked = b""
        self.waiting = memoryview(b"")


class AdminServer:
    """Serves `handler(request) -> answer` from somebody's selector loop, whose keys carry a callback as data.

    Nobody here is waited for: an answer that does not fit the socket's buffer goes out as the reader takes it, the next
    question of the same connection is answered after that, and who asks too much at once is dropped.
    """

    def __init__(self, path: Path, selector: selectors.BaseSelector, handler: Handler) -> None:
        self._path = path
        self._selector = selector
        self._handler = handler
        self._open: list[_Connection] = []
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
        try:
            opened, _address = self._listener.accept()
        except BlockingIOError:
            return
        opened.setblocking(False)
        if len(self._open) >= MAX_CONNECTIONS:
            opened.close()
            return
        connection = _Connection(opened)
        self._open.append(connection)
        self._selector.register(opened, selectors.EVENT_READ, lambda: self._turn(connection))

    def _turn(self, connection: _Connection) -> None:
        try:
            self._read(connection)
            self._write(connection)
        except OSError:
            self._drop(connection)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.waiting else 0)
        self._selector.modify(connection.socket, events, lambda: self._turn(connection))

    def _read(self, connection: _Connection) -> None:
        """Raises OSError when the connection is to be dropped."""
        try:
            data = connection.socket.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        connection.asked += data
        if not data or len(connection.asked) > MAX_REQUEST:
            raise ConnectionAbortedError

    def _write(self, connection: _Connection) -> None:
        while connection.waiting or b"\n" in connection.asked:
            if not connection.waiting:
                line, _, connection.asked = connection.asked.partition(b"\n")
                connection.waiting = memoryview(self._answer(line))
            try:
                sent = connection.socket.send(connection.waiting)
            except BlockingIOError:
                return
            connection.waiting = connection.waiting[sent:]

    def _answer(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
            answer = {"ok": self._handler(request if isinstance(request, dict) else {})}
        except (AdminError, ValueError, RecursionError) as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001  what an operator asks must never end the traffic of others
            traceback.print_exc()
            answer = {"error": f"a mistake in this program: {error!r}; its log has where. Please report it"}
        return msgspec.json.encode(answer) + b"\n"

    def _drop(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        self._open.remove(connection)
        connection.socket.close()

    def close(self) -> None:
        for connection in list(self._open):
            self._drop(connection)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)


def make_run_dir(path: Path) -> None:
    """The directory for sockets and process ids. Raises OSError with what is wrong and what to do about it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o755)
        # On a file system that cannot be written an existing directory is no help either.
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        why = "it is not a directory, or lies below something that is none"
        if not isinstance(error, FileExistsError | NotADirectoryError):
            why = error.strerror or str(error)
        remedy = "name another run_dir in the configuration, or make this one a directory that root can write"
        raise OSError(f"run_dir {path} cannot be used: {why}; {remedy}") from error


def _unanswered(path: Path, error: OSError) -> str:
    """Why nobody could be asked, and what to do."""
    why = error.strerror or str(error)
    if isinstance(error, PermissionError):
        remedy = "only the user that it runs as may ask: try again as root"
    elif isinstance(error, NotADirectoryError):
        remedy = f"{path.parent} is no directory: give run_dir of the configuration with --run-dir"
    elif isinstance(error, ConnectionRefusedError):
        remedy = "what listened there has ended: start it again"
    elif isinstance(error, TimeoutError):
        remedy = "it runs and is busy, or hangs: try again, then look at its log"
    else:
        remedy = "is it running, and with this run_dir?"
    return f"nothing answers at {path} ({why}); {remedy}"


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
            raise AdminError(_unanswered(path, error)) from error
    answer = json.loads(line) if line else {"error": "the connection was closed without an answer"}
    if "error" in answer:
        raise AdminError(answer["error"])
    return answer["ok"]
