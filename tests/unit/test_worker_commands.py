"""A worker's answers to its supervisor: every message is answered once, bad ones change nothing and leak nothing."""

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from workers import commands
from workers.channel import Channel, ChannelClosed
from workers.fakes import FakeNetwork, FakeWorker
from workers.page import Page
from workers.udp import open_socket
from workers.worker import Worker


class Driven:
    """A worker's command handling in this process, never started: it keeps its privileges and has no loop."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs = theirs
        self.channel = Channel(theirs)
        self.worker = Worker(self.channel, lambda source, descriptor: None, lambda descriptor: None)

    def send(self, message: bytes, *descriptors: int) -> commands.Done:
        socket.send_fds(self.ours, [message], list(descriptors))
        received = self.channel.receive()
        assert received is not None
        self.worker.handle(*received)
        done = commands.decode_report(self.ours.recv(commands.MAX_MESSAGE))
        assert isinstance(done, commands.Done)
        return done


@pytest.fixture
def driven() -> Iterator[Driven]:
    made = Driven()
    yield made
    made.ours.close()
    made.theirs.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def tell(kind: type[Any], *values: Any) -> bytes:
    return commands.encode(kind(7, *values))


@pytest.mark.parametrize(
    "message",
    [
        b"\xff garbage",
        commands.encode(commands.Done(7)),
        tell(commands.Start, -1, -1, True, -1, -1),
        tell(commands.Start, 2, -1, True, -1, -1),
        tell(commands.RemoveSession, 0),
        tell(commands.Rebind, 0, None, None, 0, []),
        tell(commands.AttachPage),
        tell(commands.AttachTun, True, 1400),
        tell(commands.AttachSocket, 0, True, True),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_answered_with_why(driven: Driven, message: bytes) -> None:
    done = driven.send(message)
    assert done.error
    assert "\n" not in done.error
    assert driven.worker.pipelines is None
    assert driven.send(tell(commands.DetachSocket, 5)) == commands.Done(7)


@pytest.mark.parametrize(
    "message",
    [
        tell(commands.AttachPage),
        tell(commands.AttachTun, True, 1400),
        tell(commands.AttachTun, False, 1400),
        tell(commands.AttachSocket, 0, True, True),
        tell(commands.Stop),
        b"garbage",
    ],
)
def test_descriptors_that_are_not_taken_are_closed(driven: Driven, message: bytes) -> None:
    before = open_descriptors()
    wrong = os.open("/dev/null", os.O_RDWR)
    assert driven.send(message, wrong).error
    assert driven.send(message, wrong, wrong).error
    os.close(wrong)
    assert open_descriptors() == before


def test_a_socket_replaces_the_one_with_its_number_and_can_be_detached(driven: Driven) -> None:
    before = open_descriptors()
    for _ in range(3):
        opened = open_socket("::1", 0)
        assert driven.send(tell(commands.AttachSocket, 4, True, True), opened.fileno()) == commands.Done(7)
        opened.close()
    assert open_descriptors() == before + 1
    assert driven.send(tell(commands.DetachSocket, 4)) == commands.Done(7)
    assert driven.send(tell(commands.DetachSocket, 4)) == commands.Done(7)
    assert open_descriptors() == before


def test_a_page_is_mapped_and_its_descriptor_closed(driven: Driven) -> None:
    before = open_descriptors()
    page = Page.create(4, b"c" * 32)
    assert driven.send(tell(commands.AttachPage), page) == commands.Done(7)
    os.close(page)
    # The mapping keeps a descriptor of its own.
    assert open_descriptors() <= before + 1


def test_stop_is_answered_before_the_worker_stops(driven: Driven) -> None:
    assert driven.send(tell(commands.Stop)) == commands.Done(7)
    assert driven.worker.stopped


def test_answers_wait_for_a_slow_supervisor_and_datagrams_do_not(driven: Driven) -> None:
    datagram = commands.Datagram(0, commands.Endpoint(b"", 0), commands.Endpoint(b"", 0), b"x" * 1000)
    offered = 0
    while driven.channel.offer(datagram):
        offered += 1
    assert offered > 0
    for number in range(3):
        driven.channel.post(commands.Done(number))
    assert driven.channel.wants_write
    for _ in range(offered):
        driven.ours.recv(commands.MAX_MESSAGE)
    driven.channel.flush()
    assert not driven.channel.wants_write
    numbers = [commands.decode_report(driven.ours.recv(commands.MAX_MESSAGE)) for _ in range(3)]
    assert numbers == [commands.Done(n) for n in range(3)]


def test_the_end_of_the_channel_is_noticed(driven: Driven) -> None:
    assert driven.channel.receive() is None
    driven.ours.close()
    with pytest.raises(ChannelClosed):
        driven.channel.receive()
    with pytest.raises(ChannelClosed):
        driven.channel.post(commands.Done(1))


def test_layouts_are_bounded_and_made_only_for_authentic_senders() -> None:
    gateway = FakeWorker(FakeNetwork(), ("::ffff:192.0.2.1", 5000), gateway=True)
    for size in range(100, 300):
        gateway.socket.arrived.append((b"\x20\x10" + bytes(size * 2 - 2), size, ("::ffff:192.0.2.2", 1)))
    gateway.turn()
    assert gateway.dropped() == {"UNKNOWN_ID": 200, "UNKNOWN_TYPE": 200}
    assert len(gateway.decryptor.layouts) == 0
