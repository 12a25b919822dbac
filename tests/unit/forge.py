"""A client's keys in the hands of a test: REQUESTs and CONTROL as no client of ours would send them."""

from typing import Any

import pytest
from core_pair import CorePair, Flight

from jvpn.protocol import paths, reattach
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType, Transport
from jvpn.protocol.control import ControlType, Frame
from jvpn.protocol.keys import steering_id
from jvpn.protocol.reattach import Cause, Request
from workers.commands import Endpoint

#: The client's second uplink, and somebody on the path.
NEW = Endpoint(to_bytes("10.201.2.2"), 40_001)
RACER = Endpoint(to_bytes("198.51.100.7"), 5555)
LOCAL = Endpoint(to_bytes("203.0.113.1"), 51820)


class Forge:
    """Makes REQUESTs as the client would, for any attempt, index, version and challenge."""

    def __init__(self, pair: CorePair) -> None:
        """From here on the test speaks for the client: its own core is stopped and hears nothing."""
        pair.client.stopped = True
        pair.rules.append(lambda flight: [] if not flight.up else None)
        self.pair = pair
        self.live = pair.live
        assert pair.client.session is not None
        self.secrets = pair.client.session.secrets
        self._counter = 1 << 40

    def challenge(self, source: Endpoint, age_s: int = 0, transport: Transport = Transport.UDP) -> bytes:
        slot = paths.challenge_slot(self.pair.now_ns - age_s * 1_000_000_000)
        key = self.pair.context.facts.challenge_key
        return paths.challenge(
            key,
            self.live.session_id,
            source.address,
            source.port,
            LOCAL.address,
            LOCAL.port,
            transport,
            slot,
        )

    def request(
        self, attempt: int, index: int, challenge: bytes = reattach.NO_CHALLENGE, **more: Any
    ) -> bytes:
        self._counter += 1
        version = more.get("version", self.live.machine.state_version)
        cause, transport = more.get("cause", Cause.TRANSPORT_DEAD), more.get("transport", Transport.UDP)
        request = Request(attempt, index, version, cause, transport, 0, challenge)
        return reattach.seal_request(self.secrets, steering_id(self.secrets, index), self._counter, request)

    def send(self, source: Endpoint, *args: Any, **more: Any) -> list[Flight]:
        """What the gateway answers to that REQUEST."""
        before = len(self.pair.sent)
        self.pair.inject(self.request(*args, **more), source)
        answers = (PacketType.REATTACH_ACK, PacketType.REATTACH_FAIL)
        return [flight for flight in self.pair.sent[before:] if flight.kind in answers]

    def ack(self, flights: list[Flight]) -> reattach.Ack:
        (flight,) = flights
        assert len(flight.data) <= 256
        return reattach.open_ack(self.secrets, flight.data)

    def fail(self, flights: list[Flight]) -> reattach.Fail:
        (flight,) = flights
        assert len(flight.data) <= 256
        return reattach.open_fail(self.secrets, flight.data)

    def control(self, kind: ControlType, value: bytes, index: int = 0) -> bytes:
        """An unreliable CONTROL message with one frame."""
        assert self.pair.client.session is not None
        frame = Frame(kind, 0, 1, 0, 1, value).encode()
        return self.pair.client.session.control.seal(index, steering_id(self.secrets, index), frame)


@pytest.fixture
def forge() -> Forge:
    """Of an attached pair."""
    return Forge(CorePair().attach())
