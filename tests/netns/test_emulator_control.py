"""The emulator asked by others over its Unix socket: impairments on top, which go with who asked for them."""

import json
import os
import socket
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from routed import GATEWAY, PORT, Routed

from jvpn.lab.link_model import LinkParams
from jvpn.lab.namespaces import Lab
from jvpn.lab.running import wait_for

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]


class Asking:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")

    def say(self, data: bytes) -> dict[str, Any]:
        self._socket.sendall(data)
        answer: dict[str, Any] = json.loads(self._answers.readline())
        return answer

    def ask(self, op: str, direction: str = "up", **params: Any) -> dict[str, Any]:
        request = {"op": op, "link": "A", "direction": direction, "params": params}
        return self.say(json.dumps(request).encode() + b"\n")

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


@pytest.fixture
def routed(lab: Lab, tmp_path: Path) -> Routed:
    return Routed(lab, tmp_path, LinkParams(delay_ms=2))


def passes(routed: Routed, count: int = 20) -> int:
    """How many of *count* datagrams to the gateway arrive; one that cannot be told apart is no arrival."""
    before = routed.counters("up")
    with (
        closing(routed.socket(routed.gateway, GATEWAY, PORT)) as there,
        closing(routed.socket(routed.client, "10.201.1.2")) as here,
    ):
        for n in range(count):
            here.sendto(b"%d" % n, (GATEWAY, PORT))
        wait_for("the wire to see all", lambda: routed.counters("up")["offered"] >= before["offered"] + count)
        there.settimeout(0.2)
        try:
            found: set[bytes] = set()
            while len(found) < count:
                found.add(there.recv(100))
        except TimeoutError:
            pass
        return len(found)


def test_an_impairment_lasts_as_long_as_its_connection(routed: Routed) -> None:
    assert passes(routed) == 20
    with closing(Asking(routed.control)) as first, closing(Asking(routed.control)) as second:
        assert first.ask("impair", drop=True) == {"ok": True}
        assert second.ask("impair", delay_ms=3.0) == {"ok": True}
        assert passes(routed) == 0
        assert first.ask("impair") == {"ok": True}
        assert passes(routed) == 20
        assert first.ask("impair", drop=True) == {"ok": True}
    wait_for("the hole to go with who made it", lambda: passes(routed) == 20)


def test_nobody_elses_words_do_harm(routed: Routed) -> None:
    assert stat.S_IMODE(routed.control.stat().st_mode) == 0o600
    with closing(Asking(routed.control)) as asking:
        for words in (
            b"hello\n",
            b'{"op":"halt"}\n',
            b'{"op":"impair","link":"Z","direction":"up","params":{}}\n',
        ):
            assert not asking.say(words)["ok"]
        assert not asking.ask("impair", loss=2.0)["ok"]
        assert asking.ask("impair", burst_loss=0.2)["ok"]
        with closing(Asking(routed.control)) as other:
            refused = other.ask("impair", burst_loss=0.3)
            assert "end it first" in refused["error"]
            assert other.ask("impair", loss=0.0)["ok"]
    with closing(socket.socket(socket.AF_UNIX)) as endless:
        endless.connect(str(routed.control))
        with pytest.raises(OSError, match=r"reset|Broken"):
            endless.sendall(bytes(4 << 20))
    with closing(Asking(routed.control)) as asking:
        assert asking.ask("set", delay_ms=1.0) == {"ok": True}
        counters = asking.say(b'{"op":"read"}\n')["counters"]
    assert counters["A/up"]["offered"] >= 0
    assert passes(routed) == 20


def test_a_corrupted_datagram_is_found_by_its_checksum(routed: Routed) -> None:
    with closing(Asking(routed.control)) as asking:
        asking.ask("impair", corrupt=1.0)
        assert (
            passes(routed) < 3
        )  # a bit of padding may flip, or one of the payload of what is no datagram of ours
        assert routed.counters("up")["corrupted"] >= 20
    wait_for("whole frames again", lambda: passes(routed) == 20)
