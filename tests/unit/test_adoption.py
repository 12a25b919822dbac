"""A supervisor dies without a word; its successor finds the shared page, the store and workers that went on."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from core_pair import CorePair, every_pair_is_sound, fast_policy, lose
from forge import NEW, Forge

from jvpn.observability.events import AuditEvent, KeyEvent, OwnershipEvent, StateChange
from jvpn.protocol.constants import GENERATION_SHIFT, PacketType
from jvpn.protocol.reattach import Result
from jvpn.protocol.wire import Header
from jvpn.session.machine import Reason, State
from jvpn.session.record import SessionRecord
from jvpn.sim.worker import make_page
from jvpn.supervisor.adoption import Adopted, Adoption, Found
from jvpn.supervisor.context import GatewayContext
from jvpn.supervisor.core import GatewayCore
from jvpn.supervisor.effects import TellWorker
from jvpn.supervisor.peers import PeerTable
from jvpn.supervisor.remembered import NotRemembered, recall
from workers.page import RECORD_BYTES, RECORDS, TornRow

__all__ = ["every_pair_is_sound"]


@pytest.fixture
def pair() -> CorePair:
    return CorePair()


def stored(pair: CorePair) -> list[SessionRecord]:
    """What a store would have: the newest record of each session that was not forgotten."""
    kept = {effect.record.session_id: effect.record for effect in pair.saved}
    for effect in pair.done:
        if type(effect).__name__ == "ForgetSession":
            kept.pop(effect.session_id, None)  # type: ignore[union-attr]
    return list(kept.values())


def restart(pair: CorePair, *, records: list[SessionRecord] | None = None, peers: bool = True) -> Adopted:
    """Another supervisor takes over; nothing of the old one's memory is left but timestamps."""
    old = pair.context
    facts = replace(old.facts, generation=old.facts.generation + 1)
    known = PeerTable(dict(old.peers.peers) if peers else {}, dict(old.peers.timestamps_us))
    pair.context = GatewayContext(
        facts,
        known,
        old.narrator,
        old.random_bytes,
        old.wall_ms,
        pair.gateway_page,
        fleet=old.fleet,
        note_keys=old.note_keys,
    )
    pair.gateway = GatewayCore(pair.context)
    rows, torn = {}, []
    for record in range(pair.gateway_page.capacity):
        try:
            rows[record] = pair.gateway_page.read_row(record)
        except TornRow:
            torn.append(record)
    kept = stored(pair) if records is None else records
    found = Found(rows, torn, kept, list(pair.steered.ids), list(pair.steered.prefixes))
    pair.keep()
    result = Adoption(pair.gateway, pair.now_ms).run(found)
    pair.settle()
    return result


def carries_traffic(pair: CorePair) -> bool:
    before = [len(worker.delivered) for worker in (*pair.workers.values(), pair.client_worker)]
    pair.data_up(b"up" * 40)
    pair.data_down(b"down" * 40)
    pair.advance(50)
    after = [len(worker.delivered) for worker in (*pair.workers.values(), pair.client_worker)]
    return sum(after) - sum(before) == 2


def test_the_same_session_goes_on_at_the_same_version(pair: CorePair) -> None:
    pair.attach()
    before = SimpleNamespace(id=pair.live.session_id, version=pair.live.machine.state_version)
    assert str(restart(pair)) == "1 sessions adopted, 0 ended"
    pair.advance(2_000)
    assert pair.attached
    assert (pair.live.session_id, pair.live.machine.state_version) == (before.id, before.version)
    assert [event.reason_code for event in pair.events(StateChange)] == ["HANDSHAKE_OK"]
    assert pair.events(OwnershipEvent)[-1].reason_code == "SUPERVISOR_RESTARTED"
    assert pair.events(AuditEvent)[-1].result == "1 sessions adopted, 0 ended"


def test_reattach_works_after_it(pair: CorePair) -> None:
    pair.attach()
    restart(pair)
    pair.link(0, up=False)
    pair.wait_for(lambda: pair.attached)
    assert pair.live.bindings.active is not None
    assert pair.live.bindings.active.source[0] == "10.201.2.2"
    assert pair.version == 3


def test_no_counter_comes_twice(pair: CorePair) -> None:
    pair.attach()
    pair.data_down(b"x" * 80)
    restart(pair)
    pair.data_down(b"x" * 80)
    pair.advance(2_000)
    for kind in (PacketType.DATA, PacketType.CONTROL):
        headers = [Header.decode(flight.data) for flight in pair.of_kind(kind, up=False)]
        used = [(header.steering_id, header.phase, header.counter) for header in headers]
        assert len(set(used)) == len(used) > 1
    newest = max(Header.decode(flight.data).counter for flight in pair.of_kind(PacketType.CONTROL, up=False))
    assert newest >> GENERATION_SHIFT == 2


def test_a_worker_that_was_replaced_unseen_gets_the_session_under_a_higher_generation(pair: CorePair) -> None:
    pair.attach()
    slot = pair.live.slot
    generation = pair.live.generation
    pair.workers[slot].alive = False
    pair.workers[slot] = pair._gateway_worker(slot)
    restart(pair)
    assert pair.live.generation > generation
    assert pair.data_down(b"x" * 80)


def test_a_control_datagram_that_the_old_supervisor_took_is_a_replay_to_the_new(pair: CorePair) -> None:
    pair.attach()
    pair.advance(100)
    taken = pair.of_kind(PacketType.CONTROL, up=True)[-1]
    restart(pair)
    pair.inject(taken.data, taken.source)
    assert pair.context.counters["replay"] == 1


def test_the_peers_timestamps_still_count(pair: CorePair) -> None:
    pair.attach()
    init = pair.of_kind(PacketType.HANDSHAKE_INIT, up=True)[0]
    restart(pair)
    pair.inject(init.data, init.source)
    assert pair.context.counters["stale_timestamp"] == 1


def test_a_rekey_under_way_ends_in_the_phase_that_both_know(pair: CorePair) -> None:
    pair = CorePair(fast_policy(rekey_interval_ms=10_000)).attach()
    lost = lose(PacketType.CONTROL, 1_000, up=False)
    pair.rules.append(lost)
    pair.wait_for(lambda: pair.live.next_secrets is not None)
    phase = pair.live.secrets.phase_number
    answer = pair.live.answered
    restart(pair)
    assert pair.live.next_secrets is not None
    assert pair.live.answered == answer
    pair.rules.remove(lost)
    pair.wait_for(lambda: pair.live.secrets.phase_number == phase + 1, 5_000)
    pair.advance(1_000)
    assert pair.attached
    assert pair.refusals() == []


def test_after_a_rekey_the_page_says_which_phase_is_in_force(pair: CorePair) -> None:
    pair = CorePair(fast_policy(rekey_interval_ms=10_000)).attach()
    pair.wait_for(lambda: pair.live.secrets.phase_number == 2)
    assert pair.live.old_secrets is not None
    restart(pair)
    assert pair.live.secrets.phase_number == 2
    assert pair.live.old_secrets is not None
    pair.wait_for(lambda: pair.live.old_secrets is None, 6_000)
    pair.wait_for(lambda: pair.live.secrets.phase_number == 3, 20_000)
    assert [event.phase for event in pair.events(KeyEvent) if event.action == "rekeyed"] == [1, 2, 3]


def test_deadlines_are_the_old_ones(pair: CorePair) -> None:
    pair.attach()
    lifetime = pair.live.ttl.session_deadline_ms
    pair.rules.append(lambda flight: [])
    pair.wait_for(lambda: pair.live.bindings.active is None)
    pair.advance(1_000)
    ttl = pair.live.ttl
    restart(pair)
    assert pair.live.ttl == ttl
    assert pair.live.ttl.session_deadline_ms == lifetime


def test_a_session_that_the_store_does_not_know_ends_with_an_event(pair: CorePair) -> None:
    pair.attach()
    version = pair.live.machine.state_version
    result = restart(pair, records=[])
    assert (result.sessions, len(result.ended)) == (0, 1)
    assert pair.context.sessions == {}
    assert pair.steered.ids == {}
    assert pair.steered.prefixes == {}
    last = pair.events(StateChange)[-1]
    assert (last.to, last.reason_code) == (State.TERMINATED, Reason.INVARIANT_VIOLATION)
    assert last.state_version == version + 1


def test_a_session_whose_peer_is_not_configured_any_more_is_told_so(pair: CorePair) -> None:
    pair.attach()
    restart(pair, peers=False)
    assert pair.context.sessions == {}
    assert pair.events(StateChange)[-1].reason_code == "KEY_REVOKED"
    pair.advance(100)
    assert pair.client.session is None or pair.client.session.ended is not None


def test_an_ended_session_stays_ended_when_its_end_did_not_reach_the_store(pair: CorePair) -> None:
    pair.attach()
    live = pair.live
    records = stored(pair)
    pair.client.stopped = True
    pair.gateway.terminate(live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    told = len(pair.events(StateChange))
    pair.store.save(records[0], 0)
    result = restart(pair, records=records)
    assert (result.sessions, result.ended) == (0, [])
    assert pair.store.sessions() == []
    assert len(pair.events(StateChange)) == told


def test_of_two_sessions_of_a_peer_the_older_ends(pair: CorePair) -> None:
    """The supervisor died after the new session's handshake, before it could end the older one."""
    pair.attach()
    older = pair.live
    record, row = stored(pair)[0], pair.gateway_page.read_row(older.record)
    pair.client = pair.new_client()
    pair.wait_for(lambda: older.machine.terminated)
    newer = pair.live
    pair.gateway_page.write_row(older.record, row)
    pair.store.save(record, 0)
    pair.gateway_sink.events.remove(pair.events(StateChange)[-1])
    result = restart(pair, records=pair.store.sessions())
    assert result.sessions == 2
    assert list(pair.context.sessions) == [newer.session_id]
    last = pair.events(StateChange)[-1]
    assert (last.session_id, last.reason_code) == (older.hex_id, "SUPERSEDED")
    assert pair.steered.prefixes == {"10.8.0.2/32": newer.slot}


def test_no_answer_to_the_old_supervisors_commands_is_taken_for_one_to_the_new_ones(pair: CorePair) -> None:
    pair.attach()
    before = [effect.command.seq for effect in pair.done if isinstance(effect, TellWorker)]
    mark = len(pair.done)
    restart(pair)
    after = [effect.command.seq for effect in pair.done[mark:] if isinstance(effect, TellWorker)]
    assert after
    assert min(after) > max(before) + 1_000_000


def test_what_the_client_probes_on_stays_open(pair: CorePair) -> None:
    pair.attach()
    for _ in range(8):
        pair.link(1, up=False)
        pair.link(1, up=True)
        pair.advance(300)
    assert pair.live.indexes.highest_seen > pair.policy.max_candidates
    before = {steering_id: entry.role for steering_id, entry in pair.steered.ids.items()}
    restart(pair)
    assert {steering_id: entry.role for steering_id, entry in pair.steered.ids.items()} == before


def test_the_client_is_told_the_state_again(pair: CorePair) -> None:
    pair.attach()
    pair.link(0, up=False)
    pair.wait_for(lambda: pair.attached)
    ours = pair.client.session
    assert ours is not None
    restart(pair)
    assert pair.live.last_reason == "REATTACH_OK"
    pair.advance(200)
    assert ours.view.state is State.ATTACHED
    assert pair.client.counters["bad_control"] == 0


def test_a_half_written_row_is_never_believed(pair: CorePair) -> None:
    pair.attach()
    page, record = pair.gateway_page, pair.live.record
    row = page.read_row(record)
    start = RECORDS + record * RECORD_BYTES
    page._map[start] |= 1  # the lock is held by nobody, the bytes are whole
    assert page.read_row(record) == row
    page._map[start + 8] ^= 0xFF
    with pytest.raises(TornRow):
        page.read_row(record)
    result = restart(pair)
    assert result.sessions == 0
    assert "half written" in result.ended[0]
    assert pair.steered.ids == {}


def test_a_row_comes_back_as_it_was_written(pair: CorePair) -> None:
    pair.attach()
    row = pair.live.page_row()
    page = make_page(2, bytes(32))
    page.write_row(1, row)
    assert page.read_row(1) == row
    assert page.read_row(0).session_id == bytes(16)


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x95\x01\xc4\x00\x90\xc0\xc4\x00"])
def test_damaged_memory_is_not_recalled(damage: bytes) -> None:
    with pytest.raises(NotRemembered):
        recall(damage)


def test_the_page_is_believed_where_the_store_is_older(pair: CorePair) -> None:
    """The supervisor died between a bind and the store's row of it."""
    pair.attach()
    older = stored(pair)
    pair.link(0, up=False)
    pair.wait_for(lambda: pair.attached)
    active, version = pair.live.bindings.active, pair.live.machine.state_version
    assert active is not None
    assert older[0].state_version < version
    restart(pair, records=older)
    again = pair.live.bindings.active
    assert again is not None
    assert pair.live.machine.state_version == version
    assert (again.index, again.source) == (active.index, active.source)
    assert pair.live.last_attempt > older[0].last_bound_attempt
    pair.advance(1_000)
    assert carries_traffic(pair)


# What is not forgotten


def test_a_refused_attempt_stays_refused_and_what_counts_against_a_session_counts_on() -> None:
    pair = CorePair().attach()
    forge = Forge(pair)
    later = pair.live.machine.state_version + 1
    first = forge.fail(forge.send(NEW, 1, 2, forge.challenge(NEW), version=later))
    assert (first.reason, pair.live.security_failures) == ("VERSION_CONFLICT", 1)
    restart(pair)
    forge.live = pair.live
    assert pair.live.security_failures == 1
    again = forge.fail(forge.send(NEW, 1, 2, forge.challenge(NEW)))
    assert (again.reason, again.attempt) == ("VERSION_CONFLICT", 1)
    assert pair.live.security_failures == 1
    assert forge.ack(forge.send(NEW, 2, 2, forge.challenge(NEW))).result is Result.BOUND


def test_a_restart_gives_nobody_another_voluntary_switch() -> None:
    pair = CorePair(fast_policy(switch_cooldown_ms=20_000)).attach()
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: pair.attached)
    pair.advance(1_000)
    restart(pair)
    pair.advance(100)
    assert pair.client.switch("upA", pair.now_ns)
    pair.advance(1_000)
    assert pair.client.session is not None
    assert pair.client.session.switching.refused == "SWITCH_RATE_LIMITED"


def test_an_ack_asked_for_again_after_a_restart_says_what_has_arrived() -> None:
    pair = CorePair().attach()
    for _ in range(5):
        pair.data_up(b"u" * 80)
    pair.advance(100)
    forge = Forge(pair)
    before = forge.ack(forge.send(NEW, 1, 2, forge.challenge(NEW)))
    assert {report.path_index: report.next_counter for report in before.reports}[0] > 5
    restart(pair)
    forge.live = pair.live
    again = forge.ack(forge.send(NEW, 1, 2, forge.challenge(NEW)))
    assert (again.result, again.bound_index, again.reports) == (Result.BOUND, 2, before.reports)


def test_a_bind_that_the_worker_has_not_heard_of_is_promised_only_when_it_has() -> None:
    pair = CorePair().attach()
    forge = Forge(pair)
    for worker in pair.workers.values():
        worker.alive = False
    assert forge.send(NEW, 1, 2, forge.challenge(NEW)) == []
    for worker in pair.workers.values():
        worker.alive = True
    pair.worker_delay_ms = 30
    restart(pair)
    forge.live = pair.live
    assert forge.send(NEW, 1, 2, forge.challenge(NEW)) == []
    pair.advance(30)
    path = pair.workers[pair.live.slot].table.by_record[pair.live.record].path
    assert path is not None
    assert path.index == 2
    assert forge.ack(forge.send(NEW, 1, 2, forge.challenge(NEW))).result is Result.BOUND
