"""A node that drains: its clients move to another one, and of what is under way nothing is lost or comes twice."""

from collections import Counter
from copy import copy
from itertools import count

import pytest
from core_pair import GATEWAY, every_pair_is_sound
from fleet_pair import SECOND, WATCH_MS, FleetPair
from test_adoption import restart

from jvpn.observability.events import AuditEvent, ReattachResult, TransportSwitch
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType
from jvpn.session.machine import Reason
from jvpn.supervisor.node_drain import NodeDrain
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]


@pytest.fixture
def pair() -> FleetPair:
    pair = FleetPair()
    pair.wait_for(lambda: pair.owned_by(pair))
    pair.advance(500)
    return pair


class Flow:
    """Packets both ways, every `apart_ms`, each known by its number."""

    def __init__(self, pair: FleetPair, apart_ms: float = 1.0) -> None:
        self.pair, self.apart_ms = pair, apart_ms
        self.sent = 0

    def run(self, for_ms: float) -> None:
        until_ms = self.pair.now_ms + for_ms
        while self.pair.now_ms < until_ms:
            assert self.pair.data_up(b"up %d" % self.sent)
            assert self.pair.data_down(b"down %d" % self.sent)
            self.sent += 1
            self.pair.advance(self.apart_ms)

    def came_once(self) -> None:
        """All of it has arrived, and nothing twice."""
        self.pair.advance(2_000)
        for name, came in (("up", self.pair.came_up()), ("down", self.pair.client_worker.delivered)):
            wanted = Counter(b"%s %d" % (name.encode(), number) for number in range(self.sent))
            assert Counter(came) == wanted


def test_a_client_moves_to_the_other_node_and_no_packet_is_lost(pair: FleetPair) -> None:
    flow = Flow(pair)
    flow.run(100)
    pair.drains("gw")
    flow.run(50)
    pair.gateway.switch(pair.session_at(pair), Reason.NODE_DRAIN, pair.now_ms)
    flow.run(400)
    assert pair.owned_by(pair.second)
    flow.came_once()
    assert pair.client.handshakes_done == 1
    assert pair.session_at(pair.second).epoch == 2
    told = [(e.reason_code, e.explicit) for e in pair.client_sink.events if isinstance(e, TransportSwitch)]
    assert told == [("NODE_DRAIN", True)]
    # Nothing is left of it at the first node, or at the client's worker.
    assert pair.context.sessions == pair.context.departing == {}
    assert pair.steered.ids == pair.steered.prefixes == {}
    assert sorted(pair.context.free_records) == list(range(pair.capacity))
    assert len(pair.client_worker.table.by_record) == 1


def ask_to_leave(pair: FleetPair) -> None:
    pair.gateway.switch(pair.session_at(pair), Reason.NODE_DRAIN, pair.now_ms)


def failed(pair: FleetPair) -> list[str]:
    results = [event for event in pair.client_sink.events if isinstance(event, ReattachResult)]
    return [event.reason_code for event in results if event.result != "bound"]


def test_acks_that_are_lost_cost_no_packet(pair: FleetPair) -> None:
    pair.drains("gw")
    flow = Flow(pair)
    flow.run(20)
    # The first is PENDING, the others are of the bind.
    acks = count(1)
    pair.rules.append(
        lambda f: [] if f.kind is PacketType.REATTACH_ACK and 2 <= next(acks) <= 4 else None,
    )
    ask_to_leave(pair)
    flow.run(600)
    assert pair.owned_by(pair.second)
    flow.came_once()


def test_a_client_without_an_answer_stays_and_moves_when_it_is_asked_again(pair: FleetPair) -> None:
    pair.drains("gw")
    flow = Flow(pair, apart_ms=10)
    pair.rules.append(lambda f: [] if SECOND in (f.source, f.destination) else None)
    ask_to_leave(pair)
    flow.run(pair.policy.recovery_window_ms + 100)
    assert pair.owned_by(pair)
    assert failed(pair) == ["RECOVERY_WINDOW_EXCEEDED"]
    pair.rules.clear()
    ask_to_leave(pair)
    flow.run(300)
    assert pair.owned_by(pair.second)
    flow.came_once()


def test_a_node_that_has_not_heard_of_the_drain_refuses_and_nothing_is_lost(pair: FleetPair) -> None:
    flow = Flow(pair)
    ask_to_leave(pair)
    flow.run(100)
    assert failed(pair) == ["NOT_OWNER"]
    pair.drains("gw")
    flow.run(10)
    ask_to_leave(pair)
    flow.run(200)
    assert pair.owned_by(pair.second)
    flow.came_once()


def test_a_path_that_dies_before_the_client_has_moved_is_left_by_whatever_way(pair: FleetPair) -> None:
    pair.drains("gw")
    pair.rules.append(lambda f: [400] if SECOND in (f.source, f.destination) else None)
    ask_to_leave(pair)
    pair.advance(50)
    pair.rules.append(lambda f: [] if GATEWAY in (f.source, f.destination) else None)
    pair.wait_for(lambda: pair.owned_by(pair.second), 5_000)
    pair.rules.clear()
    flow = Flow(pair)
    flow.run(100)
    flow.came_once()
    assert pair.client.handshakes_done == 1


def test_a_session_goes_there_and_back(pair: FleetPair) -> None:
    flow = Flow(pair)
    for here, there in ((pair, pair.second), (pair.second, pair)):
        pair.drains(here.node_id)
        pair.drains(there.node_id, False)
        flow.run(20)
        here.gateway.switch(pair.session_at(here), Reason.NODE_DRAIN, pair.now_ms)
        flow.run(300)
        assert pair.owned_by(there)
    flow.came_once()
    assert pair.session_at(pair).epoch == 3
    assert pair.client.handshakes_done == 1


def test_a_rekey_under_way_is_no_obstacle(pair: FleetPair) -> None:
    pair.drains("gw")
    session = pair.client.session
    assert session is not None
    flow = Flow(pair)
    flow.run(5_200)
    session.rekeying.require(pair.now_ms)
    ask_to_leave(pair)
    flow.run(2_000)
    assert pair.owned_by(pair.second)
    assert session.rekeying.secrets.phase_number == 2
    flow.came_once()


def test_a_way_that_may_lead_elsewhere_is_led_there() -> None:
    both = (GATEWAY, SECOND)
    pair = FleetPair(ways=(both, both), uplinks=2)
    pair.wait_for(lambda: pair.owned_by(pair))
    pair.advance(500)
    pair.drains("gw")
    flow = Flow(pair)
    flow.run(20)
    ask_to_leave(pair)
    flow.run(300)
    assert pair.owned_by(pair.second)
    flow.came_once()
    # Then the other way leads there too.
    assert [uplink.remote for uplink in pair.client.uplinks] == [SECOND, SECOND]


def test_a_node_that_does_not_answer_keeps_nobody_from_the_next_one() -> None:
    silent = Endpoint(to_bytes("203.0.113.3"), 51820)
    pair = FleetPair(ways=((GATEWAY,), (silent, SECOND)))
    pair.rules.append(lambda f: [] if f.destination == silent else None)
    pair.wait_for(lambda: pair.owned_by(pair))
    pair.advance(500)
    pair.drains("gw")
    flow = Flow(pair, apart_ms=10)
    flow.run(50)
    ask_to_leave(pair)
    flow.run(pair.policy.recovery_window_ms / 2)
    assert pair.owned_by(pair.second)
    assert failed(pair) == ["NO_ANSWER"]
    flow.came_once()


# The node's side


def begun(pair: FleetPair) -> list[str]:
    audits = [event for event in pair.gateway_sink.events if isinstance(event, AuditEvent)]
    return [event.result.split(":")[0] for event in audits if event.check == "drain"]


def test_a_node_sends_its_clients_away_and_says_when_it_is_empty(pair: FleetPair) -> None:
    flow = Flow(pair)
    flow.run(50)
    pair.gateway.drain.begin(50, "somebody", pair.now_ms)
    flow.run(1_000)
    assert pair.owned_by(pair.second)
    flow.came_once()
    progress = pair.gateway.drain.progress(pair.now_ms)
    assert progress is not None
    assert (progress.moved, progress.left, progress.away) == (1, 0, 0)
    assert begun(pair) == ["begun, asked by somebody", "ended"]


def test_nobody_is_asked_before_the_fleet_knows_of_it(pair: FleetPair) -> None:
    pair.announces = False
    pair.gateway.drain.begin(50, "", pair.now_ms)
    pair.advance(1_000)
    progress = pair.gateway.drain.progress(pair.now_ms)
    assert progress is not None
    assert not progress.announced
    assert pair.gateway.drain.asked == {}
    pair.drains("gw")
    pair.wait_for(lambda: pair.owned_by(pair.second), 1_000)


def test_a_node_that_drains_takes_nobody(pair: FleetPair) -> None:
    pair.gateway.drain.begin(50, "", pair.now_ms)
    pair.wait_for(lambda: pair.owned_by(pair.second))
    # Its client comes back to it, and then a new one, which goes on to the other node.
    pair.client.uplinks[0].remotes = pair.client.uplinks[1].remotes = (GATEWAY,)
    pair.client.ways_event([pair.client.uplinks[1]], False, pair.now_ns)
    pair.advance(1_000)
    assert pair.context.counters["draining"] > 0
    assert pair.context.sessions == {}
    pair._make_client()
    before = pair.context.counters["draining"]
    pair.advance(1_000)
    pair.wait_for(lambda: pair.second.context.counters["handshakes"] == 1)
    assert pair.context.counters["draining"] > before
    assert pair.context.counters["handshakes"] == 1


def test_a_drain_can_be_undone(pair: FleetPair) -> None:
    pair.gateway.drain.begin(50, "", pair.now_ms)
    pair.wait_for(lambda: pair.owned_by(pair.second))
    pair.gateway.drain.undo("")
    pair.second.gateway.drain.begin(50, "", pair.now_ms)
    pair.wait_for(lambda: pair.owned_by(pair))
    assert begun(pair) == ["begun", "undone", "begun"]
    assert pair.gateway.drain.progress(pair.now_ms) is None


def test_who_stays_is_asked_again_and_named() -> None:
    pair = FleetPair(ways=((GATEWAY,),))
    pair.wait_for(lambda: pair.owned_by(pair))
    pair.gateway.drain.begin(50, "", pair.now_ms)
    pair.wait_for(lambda: pair.gateway.drain.asked.get(pair.session_at(pair).session_id, 0) >= 3)
    progress = pair.gateway.drain.progress(pair.now_ms)
    assert progress is not None
    assert (progress.moved, progress.left) == (0, 1)
    assert pair.owned_by(pair)
    assert begun(pair) == ["begun"]


def test_another_address_of_the_same_node_is_no_other_node() -> None:
    # What goes to a third endpoint comes to the first node, too.
    same = Endpoint(to_bytes("203.0.113.3"), 51820)
    pair = FleetPair(ways=((GATEWAY,), (same, SECOND)))
    pair.rules.append(
        lambda f: [] if same in (f.source, f.destination) and f.kind is PacketType.PATH else None
    )
    pair.wait_for(lambda: pair.owned_by(pair))
    pair.gateway.drain.begin(50, "", pair.now_ms)
    flow = Flow(pair)
    flow.run(1_500)
    assert failed(pair) == ["SAME_NODE"]
    assert pair.owned_by(pair.second)
    flow.came_once()


def test_a_supervisor_that_starts_meanwhile_takes_what_has_left_from_the_workers(pair: FleetPair) -> None:
    pair.drains("gw")
    pair.advance(WATCH_MS)
    ask_to_leave(pair)
    pair.wait_for(lambda: pair.owned_by(pair.second) and pair.context.departing)
    assert [len(worker.table.by_record) for worker in pair.workers.values()] == [1, 0]
    assert restart(pair, records=pair.store.sessions()).sessions == 0
    assert [len(worker.table.by_record) for worker in pair.workers.values()] == [0, 0]
    assert pair.steered.ids == pair.steered.prefixes == {}
    assert pair.owned_by(pair.second)


def test_clients_are_asked_some_at_a_time(pair: FleetPair) -> None:
    asked: list[tuple[int, bytes]] = []
    drain = NodeDrain(
        pair.context, lambda session, _reason, now_ms: asked.append((now_ms, session.session_id))
    )
    session = pair.session_at(pair)
    others = [copy(session) for _ in range(30)]
    for number, other in enumerate(others):
        other.session_id = number.to_bytes(16, "big")
        pair.context.sessions[other.session_id] = other
    drain.begin(100, "", pair.now_ms)
    pair.drains("gw")
    pair.advance(WATCH_MS)
    for now_ms in range(pair.now_ms, pair.now_ms + 1_000, 10):
        due_ms = drain.get_timer()
        if due_ms is not None and due_ms <= now_ms:
            drain.handle_timer(now_ms)
    for other in others:
        del pair.context.sessions[other.session_id]
    assert len({session_id for _at, session_id in asked}) == len(asked) == 31
    at_once = Counter(at for at, _session_id in asked)
    assert max(at_once.values()) == 10
    assert len(at_once) == 4
