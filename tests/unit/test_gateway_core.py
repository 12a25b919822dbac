"""GatewayCore against a real client core: handshakes, ends, quality, workers."""

import random

import pytest
from core_pair import (
    DELAY_MS,
    CorePair,
    Flight,
    every_pair_is_sound,
    fast_policy,
    lose,
    silent,
)
from forge import NEW, RACER, Forge, forge
from frozen import differences, frozen

from jvpn.observability.events import OwnershipEvent, StateChange
from jvpn.protocol import messages
from jvpn.protocol.constants import GENERATION_SHIFT, PacketType, Role
from jvpn.protocol.control import ControlType
from jvpn.protocol.wire import Header
from jvpn.session.machine import Reason, State
from jvpn.supervisor import effects
from workers import commands

__all__ = ["every_pair_is_sound", "forge"]


@pytest.fixture
def pair() -> CorePair:
    return CorePair()


# Handshake


def test_handshake_attaches_both_ends(pair: CorePair) -> None:
    pair.attach()
    ours = pair.client.session
    assert ours is not None
    assert ours.session_id == pair.live.session_id
    assert (pair.live.machine.state, pair.version) == (State.ATTACHED, 1)
    assert pair.configured[0].addresses == ("10.8.0.2/32",)
    assert pair.steered.prefixes == {"10.8.0.2/32": pair.live.slot}
    assert {entry.role for entry in pair.steered.ids.values()} == {Role.ACTIVE, Role.INSTALLED}


def test_nothing_is_made_before_the_client_proves_its_keys(pair: CorePair) -> None:
    pair.rules.append(lose(PacketType.CONTROL, 1_000, up=True))
    pair.wait_for(lambda: pair.of_kind(PacketType.CONTROL, up=True))
    assert pair.context.sessions == {}
    assert pair.saved == []
    assert len(pair.context.free_records) == pair.context.facts.capacity
    assert all(worker.commands == [] for worker in pair.workers.values())
    assert [entry.role for entry in pair.steered.ids.values()] == [Role.PENDING]
    assert pair.gateway_sink.events == []


def test_ownership_is_durable_before_the_worker_hears_and_attached_follows_the_worker(pair: CorePair) -> None:
    pair.worker_delay_ms = 7
    pair.wait_for(lambda: any(isinstance(e, effects.TellWorker) for e in pair.done))
    kinds = [type(effect) for effect in pair.done]
    assert kinds.index(effects.SaveSession) < kinds.index(effects.WriteRow) < kinds.index(effects.TellWorker)
    assert pair.context.sessions == {}
    pair.advance(7)
    assert pair.live.machine.state is State.ATTACHED


def test_pending_entry_is_forgotten_after_its_time(pair: CorePair) -> None:
    pair.rules.append(silent(0, up=False))
    pair.rules.append(silent(1, up=False))
    pair.advance(50)
    pair.client.stop(pair.now_ns)
    assert pair.steered.ids
    pair.advance(5_000)
    assert pair.steered.ids == {}
    assert pair.context.by_steering_id == {}
    assert pair.context.counters["handshake_timeout"] == 1
    assert pair.context.sessions == {}


@pytest.mark.parametrize(
    ("kind", "up"),
    [
        (PacketType.HANDSHAKE_INIT, True),
        (PacketType.HANDSHAKE_RESPONSE, False),
        (PacketType.CONTROL, True),
        (PacketType.CONTROL, False),
    ],
)
def test_a_handshake_survives_any_lost_datagram(kind: PacketType, up: bool) -> None:
    pair = CorePair()
    pair.rules.append(lose(kind, 2, up=up))
    pair.attach()
    assert pair.context.counters["handshakes"] == 1
    assert len(pair.configured) == 1


def test_config_is_applied_once_however_often_its_acknowledgement_is_lost(pair: CorePair) -> None:
    pair.wait_for(lambda: pair.configured)
    pair.rules.append(lose(PacketType.CONTROL, 8, up=True))
    pair.advance(3_000)
    assert len(pair.configured) == 1
    assert pair.live.channel.unacknowledged == 0


@pytest.mark.parametrize("seed", range(12))
def test_handshake_over_a_network_that_loses_repeats_and_reorders(seed: int) -> None:
    pair = CorePair(seed=seed)
    dice = random.Random(seed)

    def weather(flight: Flight) -> list[int]:
        fate = dice.random()
        copies = 0 if fate < 0.3 else 3 if fate < 0.5 else 1
        return [dice.randrange(1, 80) for _ in range(copies)]

    pair.rules.append(weather)
    pair.wait_for(lambda: pair.attached)
    assert len(pair.context.sessions) == 1
    pair.rules.clear()
    pair.advance(6_000)
    assert pair.attached
    assert set(pair.steered.ids) == set(pair.context.by_steering_id) == set(pair.live.indexes.ids.values())


def test_a_new_handshake_supersedes_only_when_confirmed(pair: CorePair) -> None:
    pair.attach()
    first = pair.live
    pair.client = pair.new_client()
    pair.rules.append(lose(PacketType.CONTROL, 3, up=True))
    pair.advance(150)
    assert pair.live is first
    assert first.machine.state is State.ATTACHED
    pair.client_worker.table.remove(0)
    pair.wait_for(lambda: pair.context.sessions and pair.live is not first)
    assert first.machine.terminated
    ends = [event.reason_code for event in pair.events(StateChange) if event.to is State.TERMINATED]
    assert ends == ["SUPERSEDED"]
    pair.wait_for(lambda: pair.attached)
    assert pair.steered.prefixes == {"10.8.0.2/32": pair.live.slot}
    assert set(pair.steered.ids) == set(pair.live.indexes.ids.values())
    assert len(pair.context.free_records) == pair.context.facts.capacity - 1


def test_replayed_inits_are_stale(pair: CorePair) -> None:
    pair.attach()
    before = frozen(pair.gateway)
    for flight in pair.of_kind(PacketType.HANDSHAKE_INIT, up=True):
        pair.inject(flight.data, RACER)
        pair.inject(flight.data, flight.source)
    assert pair.context.counters["stale_timestamp"] == 2
    assert differences(before, frozen(pair.gateway)) == []


def test_a_client_that_closes_before_it_is_attached_leaves_nothing(pair: CorePair) -> None:
    pair.worker_delay_ms = 50
    pair.wait_for(lambda: pair.context.confirming)
    pair.client.stop(pair.now_ns)
    pair.advance(200)
    assert not pair.context.sessions
    assert not pair.context.confirming
    assert pair.steered.ids == {}
    assert pair.steered.prefixes == {}
    assert len(pair.context.free_records) == pair.context.facts.capacity
    assert all(worker.table.by_record == {} for worker in pair.workers.values())


def test_a_worker_that_never_takes_a_session_costs_it_its_birth(pair: CorePair) -> None:
    for worker in pair.workers.values():
        worker.alive = False
    pair.wait_for(lambda: pair.context.confirming)
    pair.client.stop(pair.now_ns)
    pair.advance(5_000)
    assert not pair.context.sessions
    assert not pair.context.confirming
    assert pair.steered.ids == {}
    assert len(pair.context.free_records) == pair.context.facts.capacity


def test_a_worker_lost_between_confirmation_and_attachment_is_replaced_with_the_session(
    pair: CorePair,
) -> None:
    slot = pair.context.least_loaded_slot()
    pair.workers[slot].alive = False
    pair.wait_for(lambda: pair.context.confirming)
    successor = pair.replace_worker(slot)
    pair.attach()
    assert pair.live.slot == slot
    assert successor.table.by_record[pair.live.record].session_id == pair.live.session_id
    assert pair.live.generation == 1


# Ends


def into(pair: CorePair, state: State) -> None:
    """Bring an attached pair into `state` at the gateway."""
    live = pair.live
    if state is State.VOLATILE:
        live.machine.apply(Reason.QUALITY_FLOOR_VIOLATION, pair.now_ms)
        return
    if state in (State.RECOVERING, State.DEGRADED):
        pair.rules += [silent(0), silent(1)]
        pair.wait_for(lambda: live.machine.state is state)


STATES = [State.ATTACHED, State.VOLATILE, State.RECOVERING, State.DEGRADED]
QUICK = fast_policy(idle_probe_interval_ms=500, transport_loss_ttl_ms=5_000, recovery_window_ms=1_000)


def assert_nothing_left(pair: CorePair) -> None:
    assert not pair.context.sessions
    assert not pair.context.by_peer
    assert not pair.context.by_steering_id
    assert pair.steered.ids == {}
    assert pair.steered.prefixes == {}
    assert not any(worker.table.by_record or worker.table.by_id for worker in pair.workers.values())
    assert sorted(pair.context.free_records) == list(range(pair.context.facts.capacity))


@pytest.mark.parametrize("state", STATES)
def test_an_operator_ends_a_session_in_every_state(state: State) -> None:
    pair = CorePair(QUICK).attach()
    into(pair, state)
    live = pair.live
    pair.gateway.terminate(live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    assert_nothing_left(pair)
    last = pair.events(StateChange)[-1]
    assert (last.from_, last.to, last.reason_code) == (state, State.TERMINATED, "OPERATOR_TERMINATED")
    pair.gateway.terminate(live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    assert pair.events(StateChange)[-1] is last


def test_a_client_told_of_the_end_ends_too(pair: CorePair) -> None:
    pair.attach()
    pair.gateway.terminate(pair.live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.advance(DELAY_MS)
    assert [(over.reason, over.again) for over in pair.over] == [("OPERATOR_TERMINATED", False)]
    assert pair.client_worker.table.by_record == {}


@pytest.mark.parametrize("state", STATES)
def test_a_lifetime_ends_a_session_in_every_state(state: State) -> None:
    policy = fast_policy(
        session_ttl_ms=60_000,
        idle_probe_interval_ms=10_000,
        transport_loss_ttl_ms=60_000,
        recovery_window_ms=10_000,
    )
    pair = CorePair(policy).attach()
    live = pair.live
    into(pair, state)
    pair.advance(live.created_ms + 59_999 - pair.now_ms)
    assert not live.machine.terminated
    pair.advance(1)
    assert live.machine.terminated
    ends = [event.reason_code for event in pair.events(StateChange) if event.to is State.TERMINATED]
    assert ends == ["SESSION_TTL_EXPIRED"]


def test_no_request_revives_a_session_that_is_over(forge: Forge) -> None:
    pair = forge.pair
    data = forge.request(1, 2, forge.challenge(NEW))
    pair.gateway.terminate(pair.live, Reason.SESSION_TTL_EXPIRED, pair.now_ms)
    pair.settle()
    before = frozen(pair.gateway)
    pair.inject(data, NEW)
    assert differences(before, frozen(pair.gateway)) == []
    assert pair.context.counters["unknown_id"] == 1


def test_without_a_path_a_session_degrades_and_ends_with_its_ttl_and_not_before() -> None:
    pair = CorePair(QUICK).attach()
    live = pair.live
    pair.rules += [silent(0), silent(1)]
    pair.wait_for(lambda: live.machine.active_bindings == 0)
    lost_ms = pair.now_ms
    pair.advance(999)
    assert live.machine.state.name == "RECOVERING"
    pair.advance(1)
    assert live.machine.state.name == "DEGRADED"
    pair.advance(lost_ms + 4_999 - pair.now_ms)
    pair.gateway.handle_timer(pair.now_ms)
    assert live.machine.state.name == "DEGRADED"
    pair.advance(1)
    assert live.machine.state.name == "TERMINATED"
    assert pair.events(StateChange)[-1].reason_code == "TRANSPORT_LOSS_TTL_EXPIRED"
    assert_nothing_left(pair)


def test_a_policy_that_terminates_ends_a_session_with_its_recovery_window() -> None:
    pair = CorePair(
        fast_policy(
            idle_probe_interval_ms=500,
            transport_loss_ttl_ms=5_000,
            recovery_window_ms=1_000,
            on_recovery_window_exceeded="terminate",
        )
    ).attach()
    live = pair.live
    pair.rules += [silent(0), silent(1)]
    pair.wait_for(lambda: live.machine.terminated)
    assert pair.events(StateChange)[-1].reason_code == "RECOVERY_WINDOW_EXCEEDED"


def test_a_session_without_a_path_leaves_the_supervisor_idle() -> None:
    pair = CorePair(QUICK).attach()
    live = pair.live
    pair.rules += [silent(0), silent(1)]
    pair.wait_for(lambda: live.machine.active_bindings == 0)
    pair.gateway.handle_timer(pair.now_ms)
    due = pair.gateway.get_timer()
    assert due is not None
    assert due > pair.now_ms


# Quality


def test_the_client_proposes_and_the_gateway_commits(forge: Forge) -> None:
    pair = forge.pair

    def propose(state: State, loss_ppm: int = 250_000) -> None:
        version = pair.live.machine.state_version
        health = messages.Health(version, state.number, loss_ppm, 40_000, 45_000, 5_000)
        pair.inject(forge.control(ControlType.HEALTH, health.encode()), pair.addresses[0])

    policy = pair.policy
    for wanted, loss_ppm, wait_ms in (
        (State.VOLATILE, 250_000, policy.volatility_hold_ms),
        (State.DEGRADED, 250_000, policy.volatile_to_degraded_ms),
        (State.ATTACHED, 10_000, policy.stability_window_ms),
    ):
        before = pair.live.machine.state
        pair.advance(pair.live.machine.since_ms + wait_ms - 1 - pair.now_ms)
        propose(wanted, loss_ppm)
        assert pair.live.machine.state is before, "sooner than any client can know"
        pair.advance(1)
        propose(wanted, 260_000 - loss_ppm)
        if wanted is not State.DEGRADED:
            assert pair.live.machine.state is before, "its own figures speak against it"
        propose(wanted, loss_ppm)
        assert pair.live.machine.state is wanted
    assert pair.version == 4
    propose(State.RECOVERING)
    propose(State.TERMINATED)
    assert pair.version == 4


# Workers


def test_a_replaced_worker_gets_its_sessions_under_a_higher_generation() -> None:
    pair = CorePair().attach()
    live, other = pair.live, 1 - pair.live.slot
    pair.data_down(b"before")
    pair.advance(50)
    untouched = len(pair.workers[other].commands)
    version = live.machine.state_version
    successor = pair.replace_worker(live.slot)
    assert live.generation == 1
    # It reads nothing before it has all its sessions.
    assert [type(command) for command in successor.commands] == [commands.AddSession, commands.Serve]
    assert len(pair.workers[other].commands) == untouched
    assert live.machine.state_version == version
    assert pair.events(OwnershipEvent)[-1].action == "transferred"
    pair.data_down(b"after")
    pair.data_up(b"up")
    pair.advance(50)
    assert pair.client_worker.delivered == [b"before", b"after"]
    assert successor.delivered == [b"up"]
    counters = [Header.decode(f.data).counter for f in pair.of_kind(PacketType.DATA, up=False)]
    assert [counter >> GENERATION_SHIFT for counter in counters] == [0, 1]
    assert pair.gateway_page.read_row(live.record).generation == 1


def test_an_ack_that_waited_for_a_dead_worker_comes_from_its_successor(forge: Forge) -> None:
    pair = forge.pair
    slot = pair.live.slot
    pair.workers[slot].alive = False
    assert forge.send(NEW, 1, 2, forge.challenge(NEW)) == []
    mark = len(pair.sent)
    pair.replace_worker(slot)
    answers = [flight for flight in pair.sent[mark:] if flight.kind is PacketType.REATTACH_ACK]
    assert forge.ack(answers).bound_index == 2
    assert pair.workers[slot].table.by_record[pair.live.record].path is not None


def test_an_older_session_keeps_its_return_traffic_when_a_newer_one_is_not_born(pair: CorePair) -> None:
    pair.attach()
    first = pair.live
    pair.client = pair.new_client()
    pair.client_worker.table.remove(0)
    for worker in pair.workers.values():
        worker.alive = False
    pair.wait_for(lambda: pair.context.confirming)
    pair.client.stop(pair.now_ns)
    pair.advance(5_000)
    assert pair.live is first
    assert pair.steered.prefixes == {"10.8.0.2/32": first.slot}
