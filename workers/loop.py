"""The worker's loop: one epoll, one thread, a bounded share for each descriptor per turn."""

import select
import socket
import time
from typing import Final

from workers.channel import Channel, ChannelClosed
from workers.pipelines import TICK_S
from workers.tun import TunQueue
from workers.udp import UdpSocket
from workers.worker import Worker

#: Commands carried out before traffic gets its turn.
_COMMANDS_PER_TURN: Final = 64
#: What waits to be sent again is half a second old at most, and goes twice as fast as it came.
_FINISH_S: Final = 0.5


class Loop:
    """Runs until Stop or until the other end of the channel is gone."""

    def __init__(self, opened: socket.socket) -> None:
        self._epoll = select.epoll()
        self._channel = Channel(opened)
        self._sources: dict[int, TunQueue | UdpSocket] = {}
        self._worker = Worker(self._channel, self._watch, self._unwatch)
        self._channel_events = select.EPOLLIN
        self._epoll.register(self._channel.fileno(), self._channel_events)

    @property
    def channel(self) -> Channel:
        return self._channel

    def run(self) -> None:
        try:
            while not self._worker.stopped:
                self._turn()
            self._finish()
            self._channel.flush()
        except ChannelClosed:
            return

    def _turn(self) -> None:
        self._watch_channel()
        pipelines = self._worker.pipelines
        timeout_s = None if pipelines is None else pipelines.timeout_s()
        due = timeout_s is not None
        for descriptor, events in self._epoll.poll(timeout_s):
            source = self._sources.get(descriptor)
            if source is not None:
                self._traffic(source, descriptor, events)
            elif descriptor == self._channel.fileno():
                self._commands(events)
                # They may have given the pipelines something to go on with.
                due = True
        if pipelines is not None and due:
            pipelines.tick(time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def _finish(self) -> None:
        """Send what has been read. Nothing more is: it is the successor's."""
        pipelines = self._worker.pipelines
        until = time.monotonic() + _FINISH_S
        while pipelines is not None and pipelines.unfinished and time.monotonic() < until:
            time.sleep(TICK_S)
            pipelines.tick(time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def _traffic(self, source: TunQueue | UdpSocket, descriptor: int, events: int) -> None:
        pipelines = self._worker.pipelines
        if pipelines is None:
            return
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if isinstance(source, UdpSocket):
            if pipelines.decryptor is not None:
                pipelines.decryptor.turn(source, now_ns)
        elif events & select.EPOLLIN:
            if pipelines.encryptor is not None:
                pipelines.encryptor.turn(now_ns)
        elif events & (select.EPOLLERR | select.EPOLLHUP):
            # The interface was deleted; level-triggered, it would wake the loop for ever.
            self._unwatch(descriptor)

    def _commands(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._channel.flush()
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        for _ in range(_COMMANDS_PER_TURN):
            received = self._channel.receive()
            if received is None:
                return
            self._worker.handle(*received)
            if self._worker.stopped:
                return

    def _watch_channel(self) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if self._channel.wants_write else 0)
        if events != self._channel_events:
            self._epoll.modify(self._channel.fileno(), events)
            self._channel_events = events

    def _watch(self, source: TunQueue | UdpSocket, descriptor: int) -> None:
        self._sources[descriptor] = source
        self._epoll.register(descriptor, select.EPOLLIN)

    def _unwatch(self, descriptor: int) -> None:
        if self._sources.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
