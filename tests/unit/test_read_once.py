"""A stored session whose client asks twice is read once; what is decided by the copy is no more than a claim."""

from dataclasses import replace

import pytest
from core_pair import GATEWAY, CorePair, Flight

from jvpn.protocol.constants import PacketType
from jvpn.session.machine import State, split_version
from jvpn.session.record import SessionRecord
from jvpn.store.memory import MemoryStore
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.proven import COPIES_KEPT, COPY_MS, Copies, Proven, opened, prove


class Reads:
    """Counts what is read of a store."""

    def __init__(self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        load = store.load

        def counted(session_id: bytes) -> SessionRecord | None:
            self.count += 1
            return load(session_id)

        monkeypatch.setattr(store, "load", counted)


@pytest.fixture
def pair() -> CorePair:
    pair = CorePair(uplinks=1)
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session.configured)
    pair.advance(500)
    return pair


def send_traffic(pair: CorePair) -> None:
    """User traffic is what makes the client notice that nobody knows it any more."""
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)


def back(pair: CorePair) -> bool:
    session = pair.client.session
    if session is None or session.view.state is not State.ATTACHED:
        return False
    return split_version(session.view.state_version).epoch == 2


def test_a_session_is_read_once_for_both_requests(pair: CorePair, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(pair.store, monkeypatch)
    pair.restart_gateway()
    send_traffic(pair)
    pair.wait_for(lambda: back(pair))
    assert pair.context.counters["takeover_pending"] == 1
    assert reads.count == 1


def test_it_is_read_again_when_the_client_was_slow(pair: CorePair, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(pair.store, monkeypatch)

    def late(flight: Flight) -> list[int] | None:
        return [COPY_MS + 1_000] if flight.kind is PacketType.REATTACH_ACK else None

    pair.rules.append(late)
    pair.restart_gateway()
    send_traffic(pair)
    pair.wait_for(lambda: back(pair))
    assert reads.count > 1


def test_what_another_node_may_change_is_read_again(pair: CorePair, monkeypatch: pytest.MonkeyPatch) -> None:
    (stored,) = pair.store.sessions()
    assert pair.store.claim(replace(stored, owner_node="other"), stored.state_version, stored.owner_node)
    reads = Reads(pair.store, monkeypatch)
    pair.restart_gateway()
    send_traffic(pair)
    pair.wait_for(lambda: back(pair))
    assert reads.count == 2


def test_a_copy_of_what_is_gone_claims_nothing(pair: CorePair) -> None:
    session = pair.client.session
    assert session is not None

    def forgotten(flight: Flight) -> list[int] | None:
        if flight.kind is PacketType.REATTACH_ACK:
            pair.store.forget(session.session_id)
        return None

    pair.rules.append(forgotten)
    pair.restart_gateway()
    send_traffic(pair)
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session is not session)
    assert pair.context.counters["claim_lost"] == 1
    assert pair.context.counters["takeovers"] == 0
    assert [over.again for over in pair.over] == [True]
    pair.wait_for(lambda: pair.client.session is not None and pair.client.session.configured)


def test_a_copy_ends_no_session(pair: CorePair) -> None:
    """By the copy the session is over, by the store it is not: the store is asked, and believed."""
    (stored,) = pair.store.sessions()
    dead = replace(stored, expires_wall_ms=pair.wall_ms() + 1, boot_id="another boot")
    pair.store.save(dead, 0)

    def renewed(flight: Flight) -> list[int] | None:
        if flight.kind is PacketType.REATTACH_ACK:
            pair.store.save(stored, 0)
        return None

    pair.rules.append(renewed)
    pair.restart_gateway()
    send_traffic(pair)
    pair.wait_for(lambda: back(pair))
    assert pair.over == []


def test_copies_are_few_and_short_lived(pair: CorePair) -> None:
    (stored,) = pair.store.sessions()
    proven = _proven(pair)
    copies = Copies()
    for number in range(COPIES_KEPT + 1):
        record = replace(stored, session_id=number.to_bytes(16, "big"))
        copies.put(replace(proven, stored=replace(proven.stored, record=record)), number)
    assert copies.get(bytes(16), COPIES_KEPT) is None
    newest = COPIES_KEPT.to_bytes(16, "big")
    assert copies.get(newest, COPIES_KEPT + COPY_MS - 1) is not None
    assert copies.get(newest, COPIES_KEPT + COPY_MS) is None
    copies.handle_timer(COPIES_KEPT + COPY_MS - 1)
    assert len(copies) == 1
    copies.handle_timer(COPIES_KEPT + COPY_MS)
    assert len(copies) == 0


def _proven(pair: CorePair) -> Proven:
    """A REQUEST of the pair's client, proven under what the store has."""
    pair.rules.append(lambda flight: [] if flight.kind is PacketType.REATTACH_ACK else None)
    pair.restart_gateway()
    send_traffic(pair)
    pair.wait_for(lambda: pair.context.counters["takeover_pending"])
    request = next(flight for flight in pair.sent if flight.kind is PacketType.REATTACH_REQUEST)
    (stored,) = pair.store.sessions()
    proven = prove(opened(stored), request.data, Arrival(0, GATEWAY, request.source))
    assert proven is not None
    return proven
