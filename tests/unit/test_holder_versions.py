"""A supervisor and a holder of two versions: adopt, or refuse and say what to do; nobody ends by a foreign word."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from jvpn.holder import descriptors, inventory
from jvpn.holder.inventory import PROTOCOL, HolderPlan, Inventory
from jvpn.holder.process import _is_shutdown
from jvpn.supervisor.dataplane import DataPlane, DataPlaneError, HolderLink


def plan(tmp_path: Path, slots: int = 2) -> HolderPlan:
    return HolderPlan(str(tmp_path), [("::", 51820)], slots, [0], "jvpn0", 1400, 64, 65534, 65534)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ours, theirs
    ours.close()
    theirs.close()


def announced(ends: tuple[socket.socket, socket.socket], message: bytes) -> HolderLink:
    """What a supervisor hears from a holder that begins with `message`, one descriptor beside it."""
    ours, theirs = ends
    reader, writer = os.pipe()
    os.close(writer)
    descriptors.send(theirs, message, [reader])
    os.close(reader)
    return HolderLink(ours)


def of_version(tmp_path: Path, protocol: int, **fields: object) -> bytes:
    """An Inventory as another version may write it."""
    told = msgspec.to_builtins(Inventory(2, plan(tmp_path), 4711, [], protocol=PROTOCOL))
    told |= {"protocol": protocol, **fields}
    return msgspec.msgpack.encode(told)


def test_the_same_version_is_understood_with_what_it_has_in_addition(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    link = announced(ends, of_version(tmp_path, PROTOCOL, later="something"))
    assert link.inventory is not None
    assert link.inventory.plan == plan(tmp_path)
    link.let_go()


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1])
def test_another_version_is_not_joined_and_runs_on(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path, protocol: int
) -> None:
    link = announced(ends, of_version(tmp_path, protocol, seats="in another form"))
    kept = link.passed[0]
    with pytest.raises(
        DataPlaneError, match=rf"4711.*messages is {protocol}.*systemctl restart jvpn-dataplane"
    ):
        DataPlane(plan(tmp_path), link, joins=True)
    # Let go of: not told to end, and nothing of it held.
    assert ends[1].recv(100) == b""
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)


def test_a_version_from_before_there_were_numbers_is_another(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    told = msgspec.msgpack.decode(of_version(tmp_path, 0))
    del told["protocol"]
    link = announced(ends, msgspec.msgpack.encode(told))
    assert (link.inventory, link.protocol, link.pid) == (None, 0, 4711)
    link.let_go()


@pytest.mark.parametrize(
    "word", [b"", b"\xc1", b"\x81\xa4type\xa6Future", msgspec.msgpack.encode({"type": "Inventory"})]
)
def test_a_holder_takes_no_foreign_word_for_an_order_to_end(word: bytes) -> None:
    assert not _is_shutdown(word)
    assert _is_shutdown(inventory.encode(inventory.Shutdown()))
