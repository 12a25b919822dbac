"""The admin socket: one line in, one line out, for its owner only; bad clients harm nobody."""

import json
import selectors
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jvpn.observability.admin import (
    ADMIN_SOCKET,
    MAX_CONNECTIONS,
    MAX_REQUEST,
    AdminError,
    AdminServer,
    ask,
    make_run_dir,
)


class Served:
    """An admin server in a loop of its own thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.selector = selectors.DefaultSelector()
        self.server = AdminServer(folder / ADMIN_SOCKET, self.selector, self.handle)
        self._wake, self._woken = socket.socketpair()
        self.selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def handle(self, request: dict[str, Any]) -> object:
        if request.get("command") == "broken":
            raise KeyError("a mistake of ours")
        if request.get("command") == "big":
            return "x" * int(request["size"])
        if request.get("command") != "echo":
            raise AdminError(f"unknown command {request.get('command')!r}; this one knows echo")
        return request

    def _run(self) -> None:
        while True:
            for key, _events in self.selector.select():
                if key.data is None:
                    return
                key.data()

    def close(self) -> None:
        self._wake.send(b".")
        self._thread.join()
        self.server.close()
        self._wake.close()
        self._woken.close()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(self.folder / ADMIN_SOCKET))
        connection.settimeout(10)
        return connection


@pytest.fixture
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="jvpn-admin-") as folder:
        served = Served(Path(folder))
        yield served
        served.close()


def test_an_answer(served: Served) -> None:
    assert ask(served.folder, {"command": "echo", "text": "ü"}) == {"command": "echo", "text": "ü"}


def test_a_mistake_of_ours_ends_no_gateway(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AdminError, match="a mistake in this program"):
        ask(served.folder, {"command": "broken"})
    assert "Traceback" in capfd.readouterr().err
    assert ask(served.folder, {"command": "echo"}) == {"command": "echo"}


def test_a_refusal_is_an_error_in_words(served: Served) -> None:
    with pytest.raises(AdminError, match="unknown command 'nonsense'"):
        ask(served.folder, {"command": "nonsense"})


def test_nobody_at_home_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="is it running, and with this run_dir"):
        ask(tmp_path, {"command": "echo"})


def test_the_socket_is_its_owners_and_goes_with_the_server(tmp_path: Path) -> None:
    selector = selectors.DefaultSelector()
    path = tmp_path / ADMIN_SOCKET
    path.write_text("left by a crash")
    server = AdminServer(path, selector, lambda request: None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.close()
    assert not path.exists()
    assert len(selector.get_map()) == 0


def test_several_requests_in_one_piece_and_one_in_several(served: Served) -> None:
    with served.connect() as connection, connection.makefile("rb") as lines:
        connection.sendall(b'{"command": "echo", "n": 1}\n{"command": "echo", "n": 2}\n{"comm')
        connection.sendall(b'and": "echo", "n": 3}\n')
        assert [json.loads(lines.readline())["ok"]["n"] for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    "line", [b"", b"nonsense", b"[1, 2]", b"7", b'"text"', b"\xff\xfe", b'{"command": 7}']
)
def test_nonsense_is_answered_with_an_error_and_the_next_request_is_served(
    served: Served, line: bytes
) -> None:
    with served.connect() as connection, connection.makefile("rb") as lines:
        connection.sendall(line + b'\n{"command": "echo"}\n')
        assert "error" in json.loads(lines.readline())
        assert "ok" in json.loads(lines.readline())


def test_an_endless_line_is_cut_off(served: Served) -> None:
    with served.connect() as connection:
        assert cut_off(connection)
    assert ask(served.folder, {"command": "echo"})


def cut_off(connection: socket.socket) -> bool:
    """Whether the other end hangs up on somebody who writes without an end."""
    try:
        for _ in range(8):
            connection.sendall(b"x" * MAX_REQUEST)
        return connection.recv(1) == b""
    except (BrokenPipeError, ConnectionResetError):
        return True


def test_those_who_only_connect_are_bounded_and_do_not_keep_others_out_for_ever(served: Served) -> None:
    idle = [served.connect() for _ in range(MAX_CONNECTIONS)]
    with served.connect() as one_too_many:
        assert one_too_many.recv(1) == b""
    for connection in idle:
        connection.close()
    until = time.monotonic() + 10
    while not served_again(served):
        assert time.monotonic() < until


def served_again(served: Served) -> bool:
    """False while the server has not noticed yet that others are gone."""
    try:
        return bool(ask(served.folder, {"command": "echo"}))
    except AdminError:
        return False


def test_one_who_does_not_read_is_dropped_and_others_are_served(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b'{"command": "big", "size": 60000}\n' * 500)
        assert ask(served.folder, {"command": "echo"})


def test_an_answer_may_be_long(served: Served) -> None:
    assert len(ask(served.folder, {"command": "big", "size": 8_000_000})) == 8_000_000


# The run directory


def test_a_run_dir_that_is_none_says_what_to_do(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    for path in (taken, taken / "below"):
        with pytest.raises(OSError, match="not a directory") as refused:
            make_run_dir(path)
        assert str(path) in str(refused.value)
        assert "name another run_dir in the configuration" in str(refused.value)
    make_run_dir(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").is_dir()


def test_nobody_to_ask_says_why_and_what_to_do(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(AdminError, match="is no directory: give run_dir of the configuration with --run-dir"):
        ask(taken, {"command": "status"})
    with pytest.raises(AdminError, match="is it running, and with this run_dir"):
        ask(tmp_path, {"command": "status"})
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / ADMIN_SOCKET))
    with pytest.raises(AdminError, match="has ended: start it again"):
        ask(tmp_path, {"command": "status"})
