"""What a supervisor tells its workers arrives, whole and in order, however much it is at once."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from jvpn.holder import descriptors, inventory
from jvpn.holder.inventory import PROTOCOL, HolderPlan, Inventory, Succeeded, WorkerReplaced, WorkerSeat
from jvpn.supervisor.dataplane import DataPlane, HolderLink
from workers import commands
from workers.page import Page
from workers.udp import open_socket

#: A session's whole AddSession is about as long; so many are more than any channel holds.
SESSIONS, LONG = 4000, "x" * 500


class Holding:
    """The holder's end of a data plane with one worker, and that worker's end of its channel."""

    def __init__(self, tmp_path: Path) -> None:
        supervisors, self.holder = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        plan = HolderPlan(str(tmp_path), [("::1", 0)], 1, [0], "jvpn0", 1400, 64, 65534, 65534)
        page, queue = Page.create(64, bytes(32)), os.open("/dev/null", os.O_RDWR)
        members = [open_socket("::1", 0), open_socket("::1", 0)]
        passed = [page, queue, *(member.fileno() for member in members), channel.fileno()]
        first = Inventory(2, plan, os.getpid(), [WorkerSeat(0, 1, 0)], protocol=PROTOCOL)
        descriptors.send(self.holder, inventory.encode(first), passed)
        self.plane = DataPlane(plan, HolderLink(supervisors), joins=True)
        for opened in (*members, channel):
            opened.close()
        os.close(page)
        os.close(queue)
        self.worker.setblocking(False)

    def heard(self) -> list[int]:
        """The sequence numbers of what the worker finds in its channel now."""
        found = []
        try:
            while message := self.worker.recv(commands.MAX_MESSAGE):
                found.append(commands.decode_command(message).seq)
        except BlockingIOError:
            pass
        return found

    def close(self) -> None:
        self.plane.release()
        self.plane.page.close()
        self.holder.close()
        self.worker.close()


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Holding]:
    made = Holding(tmp_path)
    yield made
    made.close()


def add(seq: int) -> commands.AddSession:
    return commands.AddSession(seq, 0, bytes(32), 1, 0, [], [LONG], [], [], None)


def test_more_than_a_channel_holds_goes_on_with_each_answer(holding: Holding) -> None:
    assert all(holding.plane.tell(0, add(seq)) for seq in range(SESSIONS))
    assert holding.plane.tell(0, commands.Serve(SESSIONS))
    heard = holding.heard()
    assert 0 < len(heard) < SESSIONS
    while len(heard) <= SESSIONS:
        holding.worker.send(commands.encode(commands.Done(heard[-1])))
        assert holding.plane.reports(0)
        more = holding.heard()
        assert more
        heard += more
    assert heard == list(range(SESSIONS + 1))


def test_what_waited_for_a_worker_that_ended_is_not_its_successors(holding: Holding) -> None:
    for seq in range(SESSIONS):
        holding.plane.tell(0, add(seq))
    channel, successor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel, successor:
        told = WorkerReplaced(WorkerSeat(0, 2, 0), -9)
        descriptors.send(holding.holder, inventory.encode(told), [channel.fileno()])
        assert holding.plane.holder_message() == told
        holding.plane.tell(0, commands.Serve(SESSIONS))
        assert commands.decode_command(successor.recv(commands.MAX_MESSAGE)) == commands.Serve(SESSIONS)


def test_who_has_gone_is_told_nothing(holding: Holding) -> None:
    holding.worker.close()
    assert not holding.plane.tell(0, commands.Serve(1))


@pytest.mark.parametrize("word", [b"\xc1", b"\x81\xa4type\xa6Future", inventory.encode(inventory.Refused(1))])
def test_a_word_of_another_version_is_passed_over(holding: Holding, word: bytes) -> None:
    holding.holder.send(word)
    holding.holder.send(inventory.encode(Succeeded("9.9")))
    assert holding.plane.holder_message() is None
    assert holding.plane.holder_message() == Succeeded("9.9")
