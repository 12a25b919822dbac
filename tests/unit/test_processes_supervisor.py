"""The supervisor around its core: whose turn it is, and what is taken away at the end."""

import os
import socket

import pytest

from jvpn.supervisor.turns import Rank, Turns
from jvpn.supervisor.undo import Undo


def test_authenticated_control_comes_before_all_that_is_ready_with_it() -> None:
    turns, served, sockets = Turns(), [], []
    # Registered the other way round, and enough of each that no accident sorts them.
    for rank in (Rank.STRANGERS, Rank.INSIDE, Rank.AUTHENTICATED) * 5:
        near, far = socket.socketpair()
        sockets += [near, far]
        far.send(b"x")
        turns.register(near.fileno(), lambda rank=rank: served.append(rank), rank)
    for callback in turns.ready(0):
        callback()
    assert served == sorted(served)
    assert len(served) == 15
    for each in sockets:
        each.close()


def test_who_has_gone_is_not_waited_for() -> None:
    turns = Turns()
    read, write = os.pipe()
    os.write(write, b"x")
    turns.register(read, lambda: None)
    turns.unregister(read)
    assert turns.ready(0) == []
    os.close(read)
    os.close(write)


def test_the_newest_is_taken_away_first_and_a_failure_stops_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    undo, done = Undo(), []

    def fails() -> None:
        raise OSError("no such device")

    undo.add(lambda: done.append("store"))
    undo.add(fails)
    undo.add(lambda: done.append("sink"))
    undo.run()
    undo.run()
    assert done == ["sink", "store"]
    assert "no such device" in capsys.readouterr().err


def test_a_data_plane_that_is_left_running_keeps_what_it_needs() -> None:
    undo, done = Undo(), []
    undo.add(lambda: done.append("store"))
    undo.add_unless_left(lambda: done.append("pins"))
    undo.leave_running = True
    undo.run()
    assert done == ["store"]
