"""The simulator can fail: bugs that are planted are caught within so many seeds, and the same seeds pass without them.

The seeds are ordinary ones, from 0 on, but where `shape` says that what the bug needs comes more often than it would.
docs/simulator.md has this table too.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
from planted import BUGS

from jvpn.sim.faults import FAULTS, FLEET_FAULTS, Fault
from jvpn.sim.plan import Plan, plan
from jvpn.sim.run import Run

Shape = Callable[[Plan], Plan]


def as_it_is(chosen: Plan) -> Plan:
    return chosen


def often(*names: str) -> Shape:
    """Faults of these kinds only, each when the plan has one."""

    def shaped(chosen: Plan) -> Plan:
        faults = []
        for fault in chosen.faults:
            name = names[fault.draw % len(names)]
            least, most = FAULTS[name].lasts_ms
            faults.append(replace(fault, name=name, lasts_ms=min(max(fault.lasts_ms, least), most)))
        return replace(chosen, faults=tuple(faults))

    return shaped


def fleet(*names: str) -> Shape:
    """Three gateways and eight faults, all of these kinds."""

    def shaped(chosen: Plan) -> Plan:
        draw = random.Random(chosen.seed)
        faults = []
        for number in range(8):
            name = names[number % len(names)]
            least, most = (FAULTS | FLEET_FAULTS)[name].lasts_ms
            lasts_ms = draw.randrange(min(max(least, 2_000), most), most + 1)
            at_ms = draw.randrange(2_000, chosen.chaos_ms)
            uplink = draw.randrange(len(chosen.uplinks))
            faults.append(Fault(number, at_ms, lasts_ms, name, uplink, draw.randrange(1 << 32)))
        return replace(chosen, faults=tuple(faults), nodes=3, fair=False)

    return shaped


def cut_off(chosen: Plan) -> Plan:
    """Nothing gets through for longer than the transport-loss TTL."""
    policy = replace(chosen.policy, transport_loss_ttl_ms=4_000, recovery_window_ms=1_000)
    faults = (Fault(0, 2_000, 9_000, "partition", 0, 1),)
    return replace(chosen, policy=policy, faults=faults, fair=False, chaos_ms=14_000)


def fair(chosen: Plan) -> Plan:
    """Nothing goes wrong, and a rekey comes."""
    policy = replace(chosen.policy, rekey_interval_ms=10_000)
    calm = plan(FAIR_SEED).uplinks
    return replace(chosen, policy=policy, uplinks=calm, faults=(), fair=True, chaos_ms=17_000)


FAIR_SEED: Final = next(seed for seed in range(1_000) if plan(seed).fair)


@dataclass(frozen=True, slots=True)
class Case:
    """What it is caught as, and within how many seeds."""

    codes: frozenset[str]
    within: int
    shape: Shape = as_it_is


def case(codes: str, within: int, shape: Shape = as_it_is) -> Case:
    return Case(frozenset(codes.split()), within, shape)


CASES: Final = {
    "accepts_a_replay": case("DELIVERED_TWICE", 10),
    "binds_before_proof": case("ATTACKER", 20, often("race", "nat_rebinding")),
    "moves_before_proof": case("MOVED", 20, often("race", "link_down")),
    "counts_replays_against_the_session": case("MOVED", 20, often("replay", "nat_rebinding")),
    "roams_by_data": case("ATTACKER WRONG_PATH", 20),
    "believes_any_reset": case("MOVED", 20, often("race", "blackhole")),
    "takes_data_from_anywhere": case("ATTACKER", 20),
    "reuses_nonces_after_a_bind": case("NONCE_TWICE", 20),
    "reuses_nonces_in_a_new_worker": case("NONCE_TWICE NOT_CARRIED", 20, often("worker_killed")),
    "repeats_the_counter_of_requests": case("NONCE_TWICE", 20),
    "takes_over_in_the_same_epoch": case("EVENTS NONCE_TWICE", 20),
    "has_two_bindings": case("ONE_BINDING", 20),
    "sends_on_the_old_path": case("WRONG_PATH REFUSED", 20),
    "replaces_a_session_in_silence": case("ID_REPLACED", 20),
    "uses_a_steering_id_again": case("LINKED", 20),
    "forgets_a_version": case("EVENTS", 20),
    "moves_without_an_event": case("EVENTS", 20),
    "tells_a_wrong_reason": case("EVENTS", 20),
    "ignores_the_recovery_window": case("OVERDUE", 10, cut_off),
    "forgets_the_loss_ttl": case("OVERDUE", 10, cut_off),
    "restarts_the_loss_ttl": case("OVERDUE", 10, cut_off),
    "delivers_twice": case("DELIVERED_TWICE", 20),
    "sends_again_without_a_window": case("DELIVERED_TWICE", 20),
    "delivers_what_is_too_old": case("TOO_OLD", 20, often("blackhole", "partition")),
    "drops_the_old_phase_at_once": case("LOST", 20, fair),
    "answers_only_once": case("STRANDED", 20, often("partition", "nat_rebinding")),
    "claims_without_comparing": case("HISTORY TWO_OWNERS", 20, fleet("asked_at_once", "node_killed")),
    "ignores_the_fence": case("FENCED", 20, fleet("cut_from_the_store", "node_paused")),
    "takes_from_a_living_owner": case("TWO_OWNERS", 20, fleet("cut_from_the_client")),
    "hands_over_and_keeps": case("TWO_OWNERS", 20, fleet("cut_from_the_client")),
    "resets_what_it_cannot_read": case("SESSION_LOST", 20, fleet("slow_store", "node_killed", "no_quorum")),
}


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_caught(name: str) -> None:
    wanted = CASES[name]
    caught = ""
    for seed in range(wanted.within):
        with BUGS[name]():
            result = Run(wanted.shape(plan(seed))).run()
        if result.code:
            caught = result.code
            break
    assert caught in wanted.codes, f"{name}: {caught or 'not caught'}, {result.text}"
    without = Run(wanted.shape(plan(seed))).run()
    assert not without.code, f"seed {seed} without {name}: {without.code}: {without.text}"


def test_the_table_says_what_is_held() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"]
    told = {row[0]: (row[2], int(row[3])) for row in rows if row[0] in BUGS}
    assert told.keys() == BUGS.keys() == CASES.keys()
    for name, (code, within) in told.items():
        assert code in CASES[name].codes
        assert within == CASES[name].within
