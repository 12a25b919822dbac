"""`jvpn sim run`: what it prints, and how it ends."""

import json

import pytest

from jvpn.cli import build_parser
from jvpn.sim import many
from jvpn.sim.run import Result, Run, run_seed


def call(*words: str) -> int:
    args = build_parser().parse_args(["sim", "run", *words])
    status: int = args.run(args)
    return status


def delivers_twice(run: Run) -> None:
    """A worker without replay window, as seen from the application."""
    once = run.traffic.delivered_down

    def twice(inner: bytes) -> None:
        once(inner)
        once(inner)

    run.traffic.delivered_down = twice  # type: ignore[method-assign]


@pytest.fixture
def a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_bug(seed: int) -> Result:
        return run_seed(seed, delivers_twice)

    monkeypatch.setattr(many, "run_seed", with_a_bug)


def test_it_says_what_ran_and_that_nothing_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--seeds", "2", "--seed", "5", "--jobs", "1") == 0
    text = capsys.readouterr().out
    assert "(seeds 5 to 6)" in text
    assert text.rstrip().endswith("violations  0")


def test_json_has_the_same_whatever_the_number_of_processes(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for jobs in ("1", "2"):
        assert call("--seeds", "4", "--json", "--jobs", jobs) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1]
    assert told[0]["runs"] == 4
    assert told[0]["events"] > 1_000
    assert told[0]["faults_injected"] == sum(told[0]["faults"].values()) > 0
    assert (told[0]["violations"], told[0]["failed_seeds"]) == (0, [])


@pytest.mark.usefixtures("a_bug")
def test_a_failing_seed_says_how_to_see_it_again_and_is_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert call("--seeds", "2", "--seed", "3", "--jobs", "1") == 1
    lines = capsys.readouterr().out.splitlines()
    assert "violations  2" in lines
    assert "again: jvpn sim run --seed 3 --seeds 1" in lines
    assert any("BIRTH → ATTACHED HANDSHAKE_OK" in line for line in lines)
    assert sum("✗ DELIVERED_TWICE" in line for line in lines) == 2
    assert max(map(len, lines)) <= 100


@pytest.mark.usefixtures("a_bug")
def test_json_names_failing_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--seeds", "1", "--seed", "3", "--json") == 1
    (failure,) = json.loads(capsys.readouterr().out)["failures"]
    assert (failure["seed"], failure["code"]) == (3, "DELIVERED_TWICE")
    assert failure["again"] == "jvpn sim run --seed 3 --seeds 1"


@pytest.mark.parametrize("words", [("--seeds", "0"), ("--seed", "-1"), ("--jobs", "x")])
def test_what_makes_no_sense_is_refused(words: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as refused:
        call(*words)
    assert refused.value.code == 2
