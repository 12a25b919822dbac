"""The policy at work, with both cores on virtual time: quality states, switches by choice, limits, and what is told.

Traffic is a datagram each way every 20 ms. A path's damage is a rule of the network in memory, so that nothing but the
damage differs from run to run.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from core_pair import GATEWAY, NS, CorePair, Flight, Rule, every_pair_is_sound, fast_policy, silent
from hypothesis import given, settings
from hypothesis import strategies as st

from jvpn.agent.paths import ClientPath, Uplink
from jvpn.cli import main
from jvpn.observability import events as ev
from jvpn.observability.redecide import replay
from jvpn.policy.decisions import Action, Candidate, History, Phase, choose
from jvpn.policy.health import PathHealth
from jvpn.policy.model import Policy
from jvpn.policy.pmtud import PathMtu
from jvpn.policy.quality import Quality, judge
from jvpn.protocol.constants import DATA_KINDS, PacketType
from jvpn.session.machine import State

__all__ = ["every_pair_is_sound"]

STEP_MS = 20


class Stage:
    """A pair with numbered payloads both ways."""

    def __init__(self, *, uplinks: int = 2, seed: int = 1, **policy: Any) -> None:
        self.pair = CorePair(fast_policy(**policy), uplinks=uplinks, seed=seed).attach()
        self.sent: dict[bool, list[bytes]] = {True: [], False: []}

    def run(self, ms: int, until: Callable[[], object] = lambda: False) -> bool:
        """Traffic for `ms`, or until something holds; returns whether it does."""
        end_ms = self.pair.now_ms + ms
        while self.pair.now_ms < end_ms and not until():
            self._say()
            self.pair.advance(STEP_MS)
        return bool(until())

    def _say(self) -> None:
        pair = self.pair
        for up, send in ((True, pair.data_up), (False, pair.data_down)):
            payload = b"%d %d" % (up, len(self.sent[up]))
            if (up or pair.live.bindings.active is not None) and send(payload):
                self.sent[up].append(payload)

    def delivered(self, *, up: bool) -> list[bytes]:
        if not up:
            return self.pair.client_worker.delivered
        return [payload for worker in self.pair.workers.values() for payload in worker.delivered]

    @property
    def state(self) -> State:
        return self.pair.live.machine.state

    def active(self) -> str:
        session = self.pair.client.session
        assert session is not None
        path = session.paths.active_path
        return "" if path is None else path.uplink.name

    def told(self, kind: type[Any]) -> list[Any]:
        """Of the client."""
        return [event for event in self.pair.client_sink.events if isinstance(event, kind)]

    def steps(self) -> list[str]:
        return [event.reason_code for event in self.pair.events(ev.StateChange)]

    def switches(self) -> list[str]:
        return [event.reason_code for event in self.pair.events(ev.TransportSwitch)]

    def replays(self) -> None:
        """Both streams come out the same again, and have decisions."""
        for sink in (self.pair.client_sink, self.pair.gateway_sink):
            done = replay(sink.lines())
            assert [str(one) for one in done.differences] == []
        assert replay(self.pair.client_sink.lines()).decisions > 0


def damaged(uplink: int | None, delays: Callable[[Flight], list[int] | None]) -> Rule:
    """`delays` for what goes over `uplink`, None: over any."""
    return lambda flight: delays(flight) if uplink is None or flight.uplink == uplink else None


def lossy(stage: Stage, uplink: int | None, share: float, *, up: bool | None = None) -> Rule:
    """Loss that grows to `share` within five seconds."""
    draw, begun_ms = stage.pair.random.random, stage.pair.now_ms

    def lost(flight: Flight) -> bool:
        grown = min(1.0, (stage.pair.now_ms - begun_ms) / 5_000)
        return up in (None, flight.up) and draw() < share * grown

    return damaged(uplink, lambda flight: [] if lost(flight) else None)


def late(stage: Stage, uplink: int | None, ms: int) -> Rule:
    """A round trip that grows to `ms`, slowly enough for no answer to be overdue."""
    begun_ms = stage.pair.now_ms
    return damaged(uplink, lambda _f: [10 + min(ms // 2, (stage.pair.now_ms - begun_ms) // 50)])


def jittery(stage: Stage, uplink: int | None, ms: int) -> Rule:
    """Delays that spread further and further, to `ms` more than usual."""
    draw, begun_ms = stage.pair.random.randrange, stage.pair.now_ms
    return damaged(uplink, lambda _f: [draw(10, 11 + min(ms, (stage.pair.now_ms - begun_ms) // 30))])


DAMAGES: dict[str, Callable[[Stage, int | None], Rule]] = {
    "loss": lambda stage, uplink: lossy(stage, uplink, 0.32),
    "loss up": lambda stage, uplink: lossy(stage, uplink, 0.35, up=True),
    "loss down": lambda stage, uplink: lossy(stage, uplink, 0.35, up=False),
    "latency_ms": lambda stage, uplink: late(stage, uplink, 400),
    "jitter_ms": lambda stage, uplink: jittery(stage, uplink, 138),
}


# Quality states


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_floor_makes_the_session_volatile_and_then_degraded(damage: str) -> None:
    """Without another path. Its floors, and how long it took, stand in the stream."""
    stage = Stage(uplinks=1)
    stage.run(3_000)
    assert stage.state is State.ATTACHED
    stage.pair.rules.append(DAMAGES[damage](stage, 0))
    began_ms = stage.pair.now_ms
    assert stage.run(20_000, lambda: "QUALITY_FLOOR_VIOLATION" in stage.steps())
    assert stage.pair.now_ms - began_ms >= stage.pair.policy.volatility_hold_ms
    (broken,) = stage.told(ev.QualityEvent)
    assert broken.record.breaches[0].signal == damage.split()[0]
    # By counters, of what each direction carries: probes alone are fewer.
    assert broken.record.signals.loss_samples > 60
    since_ms = broken.record.before.bad_since_ms
    assert broken.record.now_ms - since_ms >= stage.pair.policy.volatility_hold_ms
    volatile_ms = stage.pair.live.machine.since_ms
    assert stage.run(20_000, lambda: stage.state is State.DEGRADED)
    assert stage.steps()[-2:] == ["QUALITY_FLOOR_VIOLATION", "VOLATILITY_PERSISTED"]
    assert stage.pair.live.machine.since_ms - volatile_ms >= stage.pair.policy.volatile_to_degraded_ms
    limits = {event.limit: event for event in stage.told(ev.PolicyEvent)}
    assert limits[damage.split()[0]].observed > limits[damage.split()[0]].threshold
    assert limits["volatile_to_degraded_ms"].observed >= limits["volatile_to_degraded_ms"].threshold
    stage.replays()


@pytest.mark.parametrize("damage", DAMAGES)
def test_quality_is_restored_after_the_stability_window(damage: str) -> None:
    stage = Stage(uplinks=1)
    stage.pair.rules.append(DAMAGES[damage](stage, 0))
    assert stage.run(20_000, lambda: stage.state in (State.VOLATILE, State.DEGRADED))
    stage.run(2_000)
    stage.pair.rules.clear()
    healed_ms = stage.pair.now_ms
    assert stage.run(20_000, lambda: stage.state is State.ATTACHED)
    assert stage.pair.now_ms - healed_ms >= stage.pair.policy.stability_window_ms
    assert stage.steps()[-1] == "QUALITY_RESTORED"
    assert stage.run(100, lambda: stage.pair.attached), "both ends have it"
    stage.replays()


def test_one_packet_changes_nothing() -> None:
    stage = Stage()
    stage.run(3_000)
    for delays in ([], [130], [10, 10, 10]):
        left = iter([delays])
        stage.pair.rules[:] = [
            lambda f, left=left: next(left, None) if f.uplink == 0 else None  # type: ignore[misc]
        ]
        stage.run(4_000)
    assert stage.steps() == ["HANDSHAKE_OK"]
    assert stage.told(ev.QualityEvent) == stage.told(ev.DecisionEvent) == []


def test_a_proposal_that_is_lost_is_made_again() -> None:
    stage = Stage(uplinks=1)
    stage.run(1_000)
    stage.pair.rules.append(lambda f: [] if f.kind is PacketType.CONTROL and f.up else None)
    stage.pair.rules.append(late(stage, 0, 400))
    assert stage.run(20_000, lambda: stage.told(ev.QualityEvent))
    stage.run(1_000)
    assert stage.state is State.ATTACHED
    del stage.pair.rules[0]
    assert stage.run(3_000, lambda: stage.state is State.VOLATILE)
    assert len(stage.told(ev.QualityEvent)) == 1


# Switches by choice


@pytest.mark.parametrize("damage", sorted(set(DAMAGES) - {"jitter_ms"}))
def test_a_better_path_is_taken(damage: str) -> None:
    stage = Stage()
    stage.run(2_000)
    stage.pair.rules.append(DAMAGES[damage](stage, 0))
    assert stage.run(20_000, lambda: stage.active() == "upB")
    stage.run(5_000)
    assert stage.switches() == ["QUALITY_SWITCH"]
    assert stage.state is State.ATTACHED
    assert "switch_improvement_factor" in {event.limit for event in stage.told(ev.PolicyEvent)}
    stage.replays()


def test_jitter_alone_moves_nothing() -> None:
    """A session's own traffic makes it, or a busy machine; then it would be on every path."""
    stage = Stage()
    stage.pair.rules.append(jittery(stage, 0, 138))
    assert stage.run(20_000, lambda: stage.state is State.DEGRADED)
    assert stage.switches() == []


def test_an_equally_bad_path_is_not_taken() -> None:
    stage = Stage()
    stage.run(2_000)
    stage.pair.rules.append(late(stage, None, 400))
    stage.run(20_000)
    assert stage.switches() == []
    assert stage.state is State.DEGRADED


@pytest.mark.parametrize("cause", ["QUALITY_SWITCH", "TRANSPORT_RETURNED"])
@pytest.mark.parametrize("seed", range(4))
def test_a_switch_by_choice_loses_and_doubles_nothing(cause: str, seed: int) -> None:
    """Both paths stay up; the one that is left is slow or merely less wanted, and both reorder."""
    stage = Stage(seed=seed)
    pair = stage.pair
    draw = pair.random.randrange
    if cause == "QUALITY_SWITCH":
        pair.rules.append(late(stage, 0, 400))
        pair.rules.append(damaged(1, lambda _f: [draw(5, 40)]))
    else:
        pair.rules.append(damaged(None, lambda _f: [draw(5, 40)]))
        pair.client.uplinks[1].preference = 200
        stage.run(1_000)
        pair.link(1, False)
        stage.run(500)
        pair.link(1, True)
    assert stage.run(20_000, lambda: stage.switches() == [cause])
    stage.run(2_000)
    pair.advance(1_000)
    for up in (True, False):
        assert sorted(stage.delivered(up=up)) == sorted(stage.sent[up])
    assert pair.of_kind(PacketType.RESENT, up=True) == pair.of_kind(PacketType.RESENT, up=False) == []
    stage.replays()


def test_a_preferred_path_is_returned_to_after_its_own_stability_window() -> None:
    stage = Stage(stability_window_ms=3_000)
    stage.pair.client.uplinks[0].preference = 200
    stage.pair.link(0, False)
    stage.run(3_000, lambda: stage.active() == "upB")
    stage.pair.link(0, True)
    up_ms = stage.pair.now_ms
    assert stage.run(10_000, lambda: stage.active() == "upA")
    assert stage.pair.now_ms - up_ms >= 3_000
    assert stage.switches() == ["TRANSPORT_DEAD", "TRANSPORT_RETURNED"]
    stage.replays()


# Limits


def test_a_flapping_path_is_returned_to_no_oftener_than_the_limit_says() -> None:
    """The wanted path comes and goes for two minutes, and loses little enough to be wanted. Each death is left at once
    all the same."""
    stage = Stage(max_switches_per_minute=2)
    pair = stage.pair
    pair.client.uplinks[0].preference = 200
    for _ in range(12):
        pair.rules.append(silent(0))
        assert stage.run(400, lambda: pair.attached and stage.active() == "upB"), (
            "recovery waits for no limit"
        )
        stage.run(1_000)
        pair.rules.clear()
        stage.run(8_600)
    at_ms = [event.ts_ms for event in pair.events(ev.TransportSwitch)]
    assert len(at_ms) > 4
    by_choice = [e.ts_ms for e in pair.events(ev.TransportSwitch) if e.explicit]
    for since_ms in by_choice:
        within = [one for one in at_ms if since_ms - 60_000 < one <= since_ms]
        assert len(within) <= 2
    denied = stage.told(ev.TransportSwitchDenied)
    assert {(event.cause, event.reason_code) for event in denied} == {
        ("TRANSPORT_RETURNED", "SWITCH_RATE_LIMITED")
    }
    assert all(event.retry_after_ms > 0 for event in denied)
    assert "max_switches_per_minute" in {event.limit for event in stage.told(ev.PolicyEvent)}
    stage.replays()


def test_relief_that_is_not_allowed_makes_degraded_by_that_reason() -> None:
    stage = Stage(max_switches_per_minute=0)
    stage.run(1_000)
    stage.pair.rules.append(late(stage, 0, 400))
    assert stage.run(20_000, lambda: stage.state is State.DEGRADED)
    assert stage.steps()[-1] == "SWITCH_RATE_LIMITED"
    assert stage.switches() == []
    (denied,) = stage.told(ev.TransportSwitchDenied)
    assert (denied.cause, denied.reason_code, denied.retry_after_ms) == (
        "QUALITY_SWITCH",
        "SWITCH_RATE_LIMITED",
        60_000,
    )
    stage.replays()


def test_a_switch_that_the_gateway_refuses_is_not_asked_for_at_once_again() -> None:
    """The gateway's limits are tighter than the client's: it still counts a switch that the client has forgotten."""
    stage = Stage()
    stage.pair.live.switches.times_ms += [stage.pair.now_ms] * stage.pair.policy.max_switches_per_minute
    stage.pair.rules.append(late(stage, 0, 400))
    stage.run(30_000)
    assert stage.switches() == []
    refused = stage.told(ev.ReattachResult)
    assert [event.reason_code for event in refused] == ["SWITCH_RATE_LIMITED"]
    assert stage.run(40_000, lambda: stage.active() == "upB")
    assert stage.switches() == ["QUALITY_SWITCH"]
    stage.replays()


def test_what_lasts_is_told_once() -> None:
    stage = Stage(uplinks=1)
    stage.pair.rules.append(late(stage, 0, 400))
    stage.run(30_000)
    assert stage.state is State.DEGRADED
    kinds = (ev.DecisionEvent, ev.QualityEvent, ev.PolicyEvent, ev.PolicySnapshot)
    assert [len(stage.told(kind)) for kind in kinds] == [1, 1, 2, 1]


# False alarms


def test_a_noisy_but_good_network_is_left_alone() -> None:
    """One datagram in a hundred is lost, some come twice, delays spread over tens of milliseconds; for two minutes,
    with traffic now and then."""
    stage = Stage()
    draw = stage.pair.random

    def noise(_flight: Flight) -> list[int]:
        delay_ms = 20 + min(60, int(draw.expovariate(1 / 8)))
        share = draw.random()
        return [] if share < 0.01 else [delay_ms, delay_ms + 3] if share < 0.02 else [delay_ms]

    stage.pair.rules.append(noise)
    for _ in range(12):
        stage.run(2_000)
        stage.pair.advance(8_000)
    assert stage.steps() == ["HANDSHAKE_OK"]
    assert stage.told(ev.DecisionEvent) == stage.told(ev.QualityEvent) == []


# What is recorded


def stream(*, choice: bool, seed: int) -> list[bytes]:
    """Of a client whose paths go bad, die and return."""
    stage = Stage(seed=seed, max_switches_per_minute=3 if choice else 0)
    pair = stage.pair
    pair.client.uplinks[seed % 2].preference = 200
    for name in sorted(DAMAGES, key=lambda _name: pair.random.random())[:1]:
        pair.rules[:] = [DAMAGES[name](stage, pair.random.randrange(2))]
        stage.run(pair.random.randrange(3_000, 7_000))
        pair.rules.clear()
        pair.link(0 if stage.active() == "upA" else 1, False)
        stage.run(1_500)
        for uplink in range(2):
            pair.link(uplink, True)
        stage.run(3_500)
    return [*pair.client_sink.lines(), *pair.gateway_sink.lines()]


@settings(max_examples=4, deadline=None)
@given(st.booleans(), st.integers(0, 1_000))
def test_a_recorded_stream_is_decided_again_alike(choice: bool, seed: int) -> None:
    done = replay(stream(choice=choice, seed=seed))
    assert [str(one) for one in done.differences] == []
    assert done.decisions > 0


@cache
def recorded() -> tuple[list[bytes], list[int]]:
    """A stream, and which of its lines have decisions."""
    lines = stream(choice=True, seed=5)
    return lines, [n for n, line in enumerate(lines) if b'"record"' in line]


def _tampered(line: bytes, number: int) -> bytes:
    """With another outcome of its decision."""
    event = msgspec.json.decode(line)
    record = event["record"]
    if "decision" in record:
        field = ("action", "reason", "candidate", "retry_after_ms", "because")[number % 5]
        new = {"action": "STAY", "reason": "X", "candidate": "X/9", "retry_after_ms": 77, "because": {"a": 1}}
        record["decision"][field] = new[field]
    elif "commitment" in record:
        record["commitment"] = {"reason": "X", "breaches": []}
    else:
        record["breaches"] = [{"signal": "loss", "observed": 0.123, "threshold": 0.2}]
    return msgspec.json.encode(event) + b"\n"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1_000), st.integers(0, 4))
def test_a_decision_that_was_changed_is_found_with_its_line(which: int, field: int) -> None:
    lines, decisions = recorded()
    at = decisions[which % len(decisions)]
    lines = [*lines[:at], _tampered(lines[at], field), *lines[at + 1 :]]
    assert at + 1 in [one.line for one in replay(lines).differences]


def test_arguments_policies_and_missing_decisions_that_were_changed_are_found() -> None:
    lines, decisions = recorded()
    assert replay(lines).differences == []
    acts = [n for n in decisions if isinstance(event := ev.decode(lines[n]), ev.DecisionEvent)]
    switch = next(n for n in acts if ev.decode(lines[n]).record.decision.action is Action.SWITCH)  # type: ignore[union-attr]
    event = msgspec.json.decode(lines[switch])
    event["record"]["history"]["binds_ms"] = [event["record"]["now_ms"] - 1] * 9
    assert replay([*lines[:switch], msgspec.json.encode(event), *lines[switch + 1 :]]).differences
    without = replay([*lines[:switch], *lines[switch + 1 :]]).differences
    assert "no decision says so" in without[0].problem
    snapshot = next(n for n, line in enumerate(lines) if b"POLICY_SNAPSHOT" in line)
    changed = lines[snapshot].replace(b'"loss_floor":0.2', b'"loss_floor":0.3')
    assert changed != lines[snapshot]
    found = [one.line for one in replay([*lines[:snapshot], changed, *lines[snapshot + 1 :]]).differences]
    assert found[0] == snapshot + 1
    assert replay(lines[snapshot + 1 :]).differences


def test_the_command_says_which_line_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, decisions = recorded()
    path = tmp_path / "events.jsonl"

    def run() -> int:
        monkeypatch.setattr("sys.argv", ["jvpn", "policy", "replay", str(path)])
        return main()

    path.write_bytes(b"".join(lines))
    assert run() == 0
    assert f"{len(decisions)} decisions taken again, 0 differences" in capsys.readouterr().out
    at = decisions[-1]
    path.write_bytes(b"".join([*lines[:at], _tampered(lines[at], 0), *lines[at + 1 :]]))
    assert run() == 1
    assert f"{path}:{at + 1}: session " in capsys.readouterr().err
    path.unlink()
    assert run() == 1


def test_no_data_goes_out_for_a_decision() -> None:
    """Deciding costs probes and HEALTH, nothing of the tunnel's own."""
    stage = Stage(uplinks=1)
    stage.pair.rules.append(late(stage, 0, 400))
    before = len([f for f in stage.pair.sent if f.kind in DATA_KINDS])
    stage.pair.advance(30_000)
    assert len([f for f in stage.pair.sent if f.kind in DATA_KINDS]) == before


class _Noisy:
    """One path for an hour, without cryptography: probes every 40 ms while it is active, each second as a candidate."""

    def __init__(self, name: str, *, active: bool, draw: Random, share: float) -> None:
        self.name, self.active, self._draw, self._share = name, active, draw, share
        self.health = PathHealth(Policy.default(), 0, active=active)
        self.quality = Quality()
        self._probe = 0
        self._answers: list[tuple[int, int]] = []

    def turn(self, now_ns: int) -> None:
        while self._answers and self._answers[0][0] <= now_ns:
            at_ns, probe = heappop(self._answers)
            self.health.on_probe_acked(probe, at_ns)
        if self.active:
            self.health.on_data_sent(now_ns)
        if self.health.next_probe_at(now_ns) <= now_ns:
            self._probe += 1
            self.health.on_probe_sent(self._probe, now_ns)
            if self._draw.random() >= self._share:
                late_ms = 40 + min(60, int(self._draw.expovariate(1 / 8)))
                heappush(self._answers, (now_ns + late_ms * NS, self._probe))

    def look(self, now_ns: int) -> Candidate:
        policy, now_ms = Policy.default(), now_ns // NS
        self.quality, _, _ = judge(policy, self.quality, self.health.signals(now_ns), now_ms)
        path = ClientPath(
            Uplink(0, self.name, 100, GATEWAY), GATEWAY, 0, b"", self.health, PathMtu(0), b"c", now_ms
        )
        path.quality = self.quality
        return path.candidate(now_ms)


def _actions(share: float, hours: float) -> Counter[str]:
    """What would be done on two such paths, by reason."""
    draw = Random(7)
    paths = [
        _Noisy("a", active=True, draw=draw, share=share),
        _Noisy("b", active=False, draw=draw, share=share),
    ]
    found: Counter[str] = Counter()
    for step in range(int(hours * 3_600_000) // STEP_MS):
        now_ns = (step + 1) * STEP_MS * NS
        # Busy for twenty seconds of each minute; an idle path has less to be mistaken about.
        if now_ns // NS % 60_000 > 20_000:
            continue
        for path in paths:
            path.turn(now_ns)
        if step % 5 == 0:
            history = History(Phase.ATTACHED, 0, "a/0", 0)
            found[
                choose(Policy.default(), [path.look(now_ns) for path in paths], history, now_ns // NS).reason
            ] += 1
    del found[""]
    return found


def test_an_hour_of_noise_gives_no_reason_to_move() -> None:
    """With 2 % of round trips lost, and delays that spread over tens of milliseconds."""
    assert _actions(0.02, 1) == Counter()
    assert _actions(0.95, 0.1), "what is no noise any more is noticed"
