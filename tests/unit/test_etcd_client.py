"""Whatever answers in place of etcd: a call ends in time and says what is wrong."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdAccess, EtcdClient
from jvpn.store.etcd_watch import FleetWatch

Behaviour = Callable[[socket.socket, threading.Event], None]


def drip(connection: socket.socket, over: threading.Event) -> None:
    """A header that never ends, a byte at a time, each well within the timeout."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not over.wait(0.05):
        connection.sendall(b"x")


def drip_body(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
    while not over.wait(0.05):
        connection.sendall(b" ")


def hang_up(connection: socket.socket, _over: threading.Event) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def say(text: bytes) -> Behaviour:
    def behave(connection: socket.socket, _over: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))

    return behave


class Server:
    """Reads a request on each connection, then behaves."""

    def __init__(self, behave: Behaviour) -> None:
        self._behave = behave
        self._over = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.requests = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    self.requests += 1
                    self._behave(connection, self._over)

    def close(self) -> None:
        self._over.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], Server]]:
    servers: list[Server] = []

    def start(behave: Behaviour) -> Server:
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


STRANGE = {
    "drips a header": drip,
    "drips a body": drip_body,
    "hangs up": hang_up,
    "no JSON": say(b"hello"),
    "a list": say(b"[]"),
    "a result that is none": say(b'{"result": 7}'),
    "not HTTP": lambda connection, _over: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"),
}


@pytest.mark.parametrize("how", STRANGE)
def test_a_stranger_ends_no_call_late(serve: Callable[[Behaviour], Server], how: str) -> None:
    server = serve(STRANGE[how])
    client = EtcdClient(EtcdAccess([server.url], 0.5))
    with pytest.raises(StoreError, match="no member of etcd answers"):
        client.read("/v3/kv/range", {})
    with pytest.raises(StoreError, match="may or may not"):
        client.write("/v3/kv/put", {})
    assert server.requests == 2
    client.close()


def test_a_watch_on_a_stranger_says_so(serve: Callable[[Behaviour], Server]) -> None:
    watch = FleetWatch(EtcdAccess([serve(say(b"hello\n")).url], 0.5), revision=1)
    with pytest.raises(StoreError, match="broken"):
        watch.poll(5)
    watch.close()


def test_a_member_that_refuses_connections_leaves_the_write_to_another(
    serve: Callable[[Behaviour], Server],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        nobody = f"http://127.0.0.1:{held.getsockname()[1]}"
    server = serve(say(b'{"header": {"revision": "7"}}'))
    client = EtcdClient(EtcdAccess([nobody, server.url], 5))
    assert client.write("/v3/kv/put", {})["header"]["revision"] == "7"
    assert server.requests == 1
    client.close()


def test_a_member_that_died_between_two_calls_costs_no_write(serve: Callable[[Behaviour], Server]) -> None:
    """Its connection is seen to be closed before anything is sent on it, so it is certain that nothing was done."""
    first, second = serve(say(b'{"n": 1}')), serve(say(b'{"n": 2}'))
    client = EtcdClient(EtcdAccess([first.url, second.url], 5))
    assert client.write("/v3/kv/put", {}) == {"n": 1}
    first.close()
    assert client.write("/v3/kv/put", {}) == {"n": 2}
    assert (first.requests, second.requests) == (1, 1)
    client.close()
