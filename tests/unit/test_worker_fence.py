"""A gateway's worker past its fence: nothing of its sessions goes in or out, and all of it goes on when that moves."""

import pytest
from test_worker_pipelines import Worker, data, datagram, packet, probe

from jvpn.protocol.constants import PacketType
from jvpn.protocol.wire import Header
from workers.commands import Datagram
from workers.counters import Counter

NOW = 10_000_000_000


@pytest.fixture
def gateway() -> Worker:
    return Worker()


def outgoing(gateway: Worker, now_ns: int, count: int = 1) -> int:
    """How many datagrams left for so many packets from the TUN."""
    gateway.tun.pending.extend([bytes(10) + packet(1, destination=2)] * count)
    gateway.turn(now_ns)
    return len(gateway.take_sent())


def test_without_a_fence_everything_goes_at_any_time(gateway: Worker) -> None:
    assert len(gateway.get(datagram(data(), 0), now_ns=2**63)) == 1
    assert outgoing(gateway, 2**63) == 1


def test_until_its_fence_a_gateway_carries_traffic_and_then_none(gateway: Worker) -> None:
    gateway.page.write_fence(NOW)
    assert len(gateway.get(datagram(data(), 0), now_ns=NOW - 1)) == 1
    assert outgoing(gateway, NOW - 1) == 1
    assert gateway.get(datagram(data(), 1), datagram(data(), 2), now_ns=NOW) == []
    assert outgoing(gateway, NOW, 3) == 0
    assert gateway.dropped() == {"RECEIVED_FENCED": 2, "SENT_FENCED": 3}


def test_what_was_dropped_was_not_received_and_goes_on_when_the_fence_moves(gateway: Worker) -> None:
    gateway.page.write_fence(NOW)
    lost = datagram(data(), 5)
    assert gateway.get(lost, now_ns=NOW + 1) == []
    assert gateway.page.read_highest(3, 0) is None
    gateway.page.write_fence(NOW + 100)
    assert len(gateway.get(lost, now_ns=NOW + 2)) == 1
    assert outgoing(gateway, NOW + 2) == 1


def test_probes_are_not_answered_past_the_fence(gateway: Worker) -> None:
    gateway.page.write_fence(NOW)
    gateway.get(probe(1, 0), now_ns=NOW)
    assert gateway.take_sent() == []
    assert gateway.dropped() == {"RECEIVED_FENCED": 1}
    gateway.page.write_fence(2 * NOW)
    gateway.get(probe(1, 0), now_ns=NOW)
    assert len(gateway.take_sent()) == 1


def test_the_supervisor_still_hears_what_is_for_it(gateway: Worker) -> None:
    gateway.page.write_fence(1)
    request = Header(PacketType.REATTACH_REQUEST, b"whatever").encode() + b"x" * 236
    control = datagram(b"control", 0, kind=PacketType.CONTROL)
    gateway.get(request, now_ns=NOW)
    gateway.get(control, datagram(data(), 1), now_ns=NOW)
    assert [one.data for one in gateway.reports if isinstance(one, Datagram)] == [request, control]
    assert gateway.dropped() == {"RECEIVED_FENCED": 1}


def test_garbage_is_counted_as_what_it_is(gateway: Worker) -> None:
    gateway.page.write_fence(1)
    gateway.get(bytes(40), now_ns=NOW)
    assert gateway.dropped() == {"UNKNOWN_TYPE": 1}


def test_what_waits_since_a_flood_is_dropped(gateway: Worker) -> None:
    session = gateway.table.route(bytes((10, 8, 0, 2)))
    assert session is not None
    gateway.encryptor.crowd.active = True
    gateway.encryptor.crowd.add(session, bytes(10) + packet(1, destination=2), 1, 37)
    gateway.page.write_fence(NOW)
    gateway.turn(NOW)
    assert gateway.take_sent() == []
    assert gateway.counters[Counter.SENT_FENCED] == 1
    assert not gateway.encryptor.crowd.waits
    gateway.page.write_fence(3 * NOW)
    assert outgoing(gateway, NOW) == 1
    assert len(gateway.get(datagram(data(), 0), now_ns=NOW)) == 1
