"""Policies: what a file may say, what an error tells, what goes over the wire."""

import dataclasses
import json
from pathlib import Path

import pytest

from jvpn.policy.document import BEGIN, END, policy_table
from jvpn.policy.model import MAX_WIRE_BYTES, Policy, PolicyError, load
from jvpn.policy.parameters import MAX_LABELS, PARAMETERS, Kind, Parameter

ROOT = Path(__file__).parents[2]
POLICIES = sorted((ROOT / "policies").glob("*.yaml"))


def refused(text: str, filename: str = "some.yaml") -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        load(text, filename)
    assert "\n" not in str(caught.value)
    return caught.value


def test_four_policies_ship_and_each_is_valid_under_its_own_name():
    assert {path.stem for path in POLICIES} >= {"default", "mobile", "satellite", "strict"}
    for path in POLICIES:
        assert load(path.read_text(), str(path)).name == path.stem


def test_the_default_file_states_every_parameter_with_its_default():
    text = (ROOT / "policies" / "default.yaml").read_text()
    assert load(text, "default.yaml") == Policy.default()
    for parameter in PARAMETERS:
        assert f"\n{parameter.name}:" in text


def test_model_and_table_have_the_same_fields():
    fields = [field.name for field in dataclasses.fields(Policy)]
    assert sorted(fields) == sorted(["name", *(parameter.name for parameter in PARAMETERS)])


def test_named_values_of_the_shipped_policies():
    strict, mobile = (
        load((ROOT / f"policies/{n}.yaml").read_text(), f"{n}.yaml") for n in ("strict", "mobile")
    )
    assert strict.transport_loss_ttl_ms == 15_000
    assert mobile.transport_loss_ttl_ms >= 3_600_000
    assert Policy.default().kem == "mlkem768"


def test_a_policy_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy.default().session_ttl_ms = 1  # type: ignore[misc]


def test_the_version_is_of_the_values_and_not_of_the_text():
    plain = load("loss_floor: 0.3\nmax_candidates: 2\n", "a.yaml")
    commented = load("# why\nmax_candidates:   2\nloss_floor: 0.30   # thirty\n", "a.yaml")
    assert plain.version == commented.version
    assert len(plain.version) == 8
    assert int(plain.version, 16) >= 0
    assert load("loss_floor: 0.31\nmax_candidates: 2\n", "a.yaml").version != plain.version
    assert load("loss_floor: 0.3\nmax_candidates: 2\n", "b.yaml").version != plain.version


@pytest.mark.parametrize(
    ("text", "line", "field", "says"),
    [
        ("loss_floor: 0.2\nlosss_floor: 0.2\n", 2, "losss_floor", "did you mean loss_floor?"),
        ("\n\nloss_floor: 1.5\n", 3, "loss_floor", "1.0"),
        ("probe_interval_ms: 9\n", 1, "probe_interval_ms", "10"),
        ("probe_interval_ms: 40.5\n", 1, "probe_interval_ms", "whole number"),
        ("probe_interval_ms: '40'\n", 1, "probe_interval_ms", "without quotes"),
        ("probe_interval_ms: true\n", 1, "probe_interval_ms", "whole number"),
        ("probe_interval_ms:\n", 1, "probe_interval_ms", "empty"),
        ("loss_floor: .nan\n", 1, "loss_floor", "not a number"),
        ("kem: rot13\n", 1, "kem", "none"),
        ("on_recovery_window_exceeded: explode\n", 1, "on_recovery_window_exceeded", "degrade, terminate"),
        ("allowed_interfaces: [wlan*, 'eth 0']\n", 1, "allowed_interfaces[1]", "letters, digits"),
        ("allowed_interfaces: ['*lan']\n", 1, "allowed_interfaces[0]", "any end"),
        ("allowed_networks: [a, b, c, d]\n", 1, "allowed_networks", "at most 3"),
        ("allowed_networks: [home, home]\n", 1, "allowed_networks", "twice"),
        ("allowed_transports: []\n", 1, "allowed_transports", "udp, quic, tcp"),
        ("allowed_transports:\n  - udp\n  - sctp\n", 3, "allowed_transports[1]", "udp, quic, tcp"),
        ("allowed_transports: [udp, udp]\n", 1, "allowed_transports", "twice"),
        ("hysteresis: 0.5\nhysteresis: 0.6\n", 2, "hysteresis", "remove one"),
        ("transport_loss_ttl_ms: 9000\nrecovery_window_ms: 10000\n", 2, "recovery_window_ms", "lower"),
        ("name: other\n", 1, "name", "write some"),
        ("a: [1\n", 2, "", "not valid YAML"),
        ("- one\n", 1, "", "name: value"),
        ("", 0, "", "empty"),
        ("a: 1\n---\nb: 2\n", 2, "", "not valid YAML"),
        ("[" * 5_000, 1, "", "nested"),
        ("loss_floor: \x01\n", 0, "", "UTF-8"),
        ("resend_bytes: " + "9" * 5_000 + "\n", 1, "resend_bytes", "whole number"),
    ],
)
def test_a_broken_file_is_refused_with_line_field_and_remedy(text: str, line: int, field: str, says: str):
    error = refused(text)
    assert (error.file, error.line, error.field) == ("some.yaml", line, field)
    assert error.remedy
    assert says in str(error)
    assert str(error).startswith(f"some.yaml:{line}: " if line else "some.yaml: ")


def test_a_file_name_that_cannot_be_a_policy_name_is_refused():
    assert refused("loss_floor: 0.2\n", "Bad Name.yaml").field == "name"


def problem_with(text: str) -> str:
    try:
        load(text, "x.yaml")
    except PolicyError as error:
        return error.problem
    return ""


NUMBERS = [parameter for parameter in PARAMETERS if parameter.kind in (Kind.INTEGER, Kind.RATIO)]


@pytest.mark.parametrize("parameter", NUMBERS, ids=lambda parameter: parameter.name)
def test_bounds_are_inclusive_and_hold(parameter: Parameter):
    step = 1 if parameter.kind is Kind.INTEGER else 0.001
    wide = "".join(
        f"{name}: {value}\n"
        for name, value in (
            ("session_ttl_ms", 2_592_000_000),
            ("transport_loss_ttl_ms", 604_800_000),
            ("recovery_window_ms", 500),
            ("volatile_to_degraded_ms", 600_000),
            ("volatility_hold_ms", 100),
            ("probe_interval_ms", 10),
            ("idle_probe_interval_ms", 60_000),
        )
        if name != parameter.name
    )
    for value in (parameter.low, parameter.high):
        objection = problem_with(f"{parameter.name}: {value}\n{wide}")
        # Only the order of two parameters may object to a bound.
        assert not objection or "is more than" in objection
    for value in (parameter.low - step, parameter.high + step):
        assert refused(f"{parameter.name}: {round(value, 4)}\n{wide}").field == parameter.name


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_the_wire_carries_a_policy_unchanged_in_one_chunk(path: Path):
    policy = load(path.read_text(), str(path))
    data = policy.to_wire()
    assert len(data) <= MAX_WIRE_BYTES
    assert list(json.loads(data)) == sorted(json.loads(data))
    assert Policy.from_wire(data) == policy
    assert Policy.from_wire(data).version == policy.version


def test_the_longest_policy_still_fits():
    values = {parameter.name: parameter.default for parameter in PARAMETERS}
    for parameter in PARAMETERS:
        if parameter.kind is Kind.INTEGER:
            values[parameter.name] = int(parameter.high)
        elif parameter.kind is Kind.RATIO:
            values[parameter.name] = 0.1234567890123456
        elif parameter.kind is Kind.WORDS:
            values[parameter.name] = parameter.choices
        elif parameter.kind is Kind.LABELS:
            values[parameter.name] = tuple(f"{number}{'n' * 14}" for number in range(MAX_LABELS))
        else:
            values[parameter.name] = max(parameter.choices, key=len)
    assert len(Policy(name="n" * 32, **values).to_wire()) <= MAX_WIRE_BYTES  # type: ignore[arg-type]


def _changed(**changes: object) -> bytes:
    fields = json.loads(Policy.default().to_wire())
    fields.update(changes)
    return json.dumps({key: value for key, value in fields.items() if value is not None}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * 1_000,
        b" " * (MAX_WIRE_BYTES + 1),
        _changed(extra=1),
        _changed(kem=None),
        _changed(kem="rot13"),
        _changed(name="../x"),
        _changed(name=1),
        _changed(loss_floor="0.2"),
        _changed(loss_floor=float("nan")),
        _changed(probe_interval_ms=40.0),
        _changed(probe_interval_ms=True),
        _changed(probe_interval_ms=-1),
        _changed(allowed_interfaces=["a b"]),
        _changed(allowed_networks=["a", "b", "c", "d"]),
        _changed(allowed_networks=["a", "a"]),
        _changed(allowed_transports=[]),
        _changed(allowed_transports=["udp", "udp"]),
        _changed(allowed_transports=[[]]),
        _changed(recovery_window_ms=600_000, transport_loss_ttl_ms=1_000),
    ],
)
def test_a_snapshot_that_is_not_a_policy_is_refused(data: bytes):
    with pytest.raises(PolicyError) as caught:
        Policy.from_wire(data)
    assert caught.value.file == "CONFIG"


def test_the_manual_has_the_generated_table():
    text = (ROOT / "docs" / "configuration.md").read_text()
    between = text.split(BEGIN)[1].split(END)[0]
    assert between.strip() == policy_table().strip(), "regenerate it: python -m jvpn.policy.document"
