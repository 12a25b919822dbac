"""`jvpn policy check` and `explain` as their users meet them."""

import json
from pathlib import Path

import pytest

from jvpn.cli import build_parser, main
from jvpn.config import load_policies
from jvpn.policy.model import Policy

SHIPPED = Path(__file__).parents[2] / "policies"


def jvpn(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["jvpn", *map(str, arguments)])
    return main()


def file(directory: Path, name: str, text: str) -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(text)
    return path


# check


def test_every_problem_of_a_file_is_said_with_line_field_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "session_ttl_ms: 5\nlatencyfloor_ms: 3\nkem: [rsa]\nhysteresis: 0.8\nhysteresis: 0.9\n"
    path = file(tmp_path, "broken", text)
    assert jvpn(monkeypatch, "policy", "check", path) == 1
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{path}:1", "session_ttl_ms"],
        [f"{path}:2", "latencyfloor_ms"],
        [f"{path}:3", "kem"],
        [f"{path}:5", "hysteresis"],
    ]
    assert "did you mean latency_floor_ms?" in lines[1]
    assert all("; " in line for line in lines)


def test_a_directory_is_all_of_its_policies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jvpn(monkeypatch, "policy", "check", SHIPPED) == 0
    said = capsys.readouterr()
    assert said.err == ""
    names = {line.split(" ok, ")[1].split("@")[0] for line in said.out.splitlines()}
    assert names == {path.stem for path in SHIPPED.glob("*.yaml")}


def test_one_broken_file_among_good_ones_is_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, broken = file(tmp_path, "good", "max_candidates: 2\n"), file(tmp_path, "bad", "{")
    assert jvpn(monkeypatch, "policy", "check", good, broken, tmp_path / "absent.yaml") == 1
    said = capsys.readouterr()
    assert f"{good}: ok, good@" in said.out
    assert str(broken) in said.err
    assert str(tmp_path / "absent.yaml") in said.err


def test_an_empty_directory_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jvpn(monkeypatch, "policy", "check", tmp_path) == 1
    assert "no *.yaml" in capsys.readouterr().err


def test_what_is_more_often_a_mistake_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "idle_probe_interval_ms: 40_000\nloss_window_ms: 500\nreauthenticate_interval_h: 9\n"
    path = file(tmp_path, "odd", text + "probe_interval_ms: 100\n")
    assert jvpn(monkeypatch, "policy", "check", "--json", path) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["ok"], one["name"]) == (True, "odd")
    assert {(r["level"], r["field"]) for r in one["remarks"]} == {
        ("warning", "idle_probe_interval_ms"),
        ("warning", "loss_window_ms"),
        ("warning", "reauthenticate_interval_h"),
    }


def test_a_policy_that_no_client_could_connect_by_is_refused_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(tmp_path, "streams", "max_candidates: 2\nallowed_transports: [tcp, quic]\n")
    assert jvpn(monkeypatch, "policy", "check", path) == 1
    assert f"{path}:2: allowed_transports: this build carries none of tcp, quic" in capsys.readouterr().err
    policies, broken = load_policies(tmp_path)
    assert "streams" not in policies
    assert "add udp" in str(broken["streams"])


# explain


def test_the_built_in_policy_is_explained_where_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jvpn(monkeypatch, "policy", "explain", "--run-dir", tmp_path) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"policy default@{Policy.default().version}, built in\n")
    assert all(len(line) <= 100 for line in said.splitlines())


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_policies_are_explained(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert jvpn(monkeypatch, "policy", "explain", path, "--run-dir", tmp_path) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"policy {path.stem}@")
    assert all(len(line) <= 100 for line in said.splitlines())
    assert jvpn(monkeypatch, "policy", "explain", path, "--run-dir", tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["policy"] == path.stem
    assert {row["use"] for row in told["probe_budget"]} == {"idle", "busy", "watched", "candidate", "lost"}
    assert told["now"] is None


def test_a_name_that_is_nowhere_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "gateway.yaml"
    assert jvpn(monkeypatch, "policy", "explain", "gone", "-c", absent, "--run-dir", tmp_path) == 1
    assert "there is no policy gone" in capsys.readouterr().err


def test_a_broken_file_is_not_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(tmp_path, "bad", "kem: rsa\n")
    assert jvpn(monkeypatch, "policy", "explain", path, "--run-dir", tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"{path}:1: kem:")


@pytest.mark.parametrize("verb", ["check", "explain"])
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["policy", verb, "--help"])
    assert ended.value.code == 0
    assert f"jvpn policy {verb}" in capsys.readouterr().out
