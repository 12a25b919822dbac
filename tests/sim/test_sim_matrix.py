"""Every row of the failure matrix that needs no kernel, under a few seeds; `jvpn sim run --scenario` takes more."""

import json

import pytest

from jvpn.cli import build_parser
from jvpn.sim.matrix.holds import moves
from jvpn.sim.matrix.rows import SCENARIOS, named
from jvpn.sim.matrix.scene import Scene, run_scenario

SEEDS = 3
#: Of rows that take long.
FEW = 2


def findings(row: str, seeds: int = SEEDS) -> list[str]:
    results = [run_scenario(scenario, seed) for scenario in named(row) for seed in range(seeds)]
    return [f"{r.again}: {r.code}: {r.text} {r.trace}" for r in results if r.code]


def test_f1_a_link_that_goes_down_costs_one_switch_and_no_packet() -> None:
    assert findings("F1") == []


def test_f2_a_silent_path_is_left_within_the_bound() -> None:
    assert findings("F2") == []


def test_f3_without_a_path_the_ttl_ends_the_session_and_not_before() -> None:
    assert findings("F3") == []


def test_f4_the_only_path_returns_and_nothing_old_is_delivered() -> None:
    assert findings("F4") == []


def test_f5_lost_and_late_packets_move_nothing() -> None:
    assert findings("F5", FEW) == []


def test_f6_a_lossy_path_is_left_for_a_clean_one() -> None:
    assert findings("F6") == []


def test_f6_loss_is_seldom_taken_for_a_death() -> None:
    """The seeds draw the round trip, 10 to 100 ms, and what is lost."""
    scenes = [Scene(scenario, seed) for scenario in named("F6") for seed in range(10)]
    for scene in scenes:
        scene.run()
    dead = [s.plan.seed for s in scenes if any("TRANSPORT_DEAD" in move for move in moves(s))]
    assert len(dead) <= 2, f"of {len(scenes)}: {dead}"


def test_f7_a_session_without_any_good_path_stays_alive() -> None:
    assert findings("F7", FEW) == []


def test_f8_flapping_is_bounded_and_death_still_recovered() -> None:
    assert findings("F8", FEW) == []


def test_f9_another_source_is_bound_within_two_round_trips() -> None:
    assert findings("F9") == []


def test_f10_bad_proofs_change_nothing_and_hinder_nobody() -> None:
    assert findings("F10") == []


def test_f11_replays_change_nothing_wherever_they_come_from() -> None:
    assert findings("F11") == []


def test_f12_a_racer_wins_nothing_and_spoils_nothing() -> None:
    assert findings("F12") == []


def test_f13_lost_repeated_and_late_control_strands_nobody() -> None:
    assert findings("F13", FEW) == []


def test_f14_requests_at_once_have_one_winner() -> None:
    assert findings("F14") == []


def test_f15_a_version_that_the_session_never_had_is_refused() -> None:
    assert findings("F15") == []


def test_f16_a_lifetime_ends_a_session_in_every_state_for_good() -> None:
    assert findings("F16", FEW) == []


def test_f17_the_recovery_window_ends_as_the_policy_says() -> None:
    assert findings("F17") == []


def test_f18_an_operator_ends_and_moves_a_session_in_every_state() -> None:
    assert findings("F18", FEW) == []


def test_f25_a_broken_policy_file_ends_no_session_and_begins_none() -> None:
    assert findings("F25") == []


def test_f28_transfers_go_on_over_a_narrow_path() -> None:
    assert findings("F28") == []


def test_f29_wall_clocks_jump_and_nothing_expires_early_or_late() -> None:
    assert findings("F29") == []


def test_f30_a_rekey_at_the_worst_moment_has_one_outcome() -> None:
    assert findings("F30") == []


def test_f31_a_session_waits_while_everything_is_blocked() -> None:
    assert findings("F31") == []


def test_f33_a_policy_changes_under_a_session_by_its_mode() -> None:
    assert findings("F33") == []


def call(*words: str) -> int:
    args = build_parser().parse_args(["sim", *words])
    status: int = args.run(args)
    return status


def test_rows_are_listed_and_run_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list") == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(SCENARIOS)
    assert call("run", "--scenario", "f9-idle", "--seeds", "2", "--jobs", "1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"], told["violations"], list(told["scenarios"])) == (2, 0, ["F9-idle"])
    assert call("run", "--scenario", "F99") == 2
    assert "jvpn sim list" in capsys.readouterr().err


def test_a_scenario_that_goes_wrong_is_drawn_with_its_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jvpn.agent.core.ClientCore.link_event", lambda *_args: None)
    assert call("run", "--scenario", "F1", "--seeds", "1", "--jobs", "1") == 1
    text = capsys.readouterr().out
    assert "again: jvpn sim run --scenario F1 --seed 0 --seeds 1" in text
    assert "has no link" in text
