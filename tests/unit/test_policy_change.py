"""Policies that change while sessions run: who gets the new one, who keeps the old one, what is told of it."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from core_pair import CLIENT_KEY, GATEWAY_KEY, CorePair, every_pair_is_sound, fast_policy, lose

from jvpn.agent.effects import Effect, Say
from jvpn.agent.handshaking import Identity
from jvpn.observability.events import AuditEvent, StateChange, TransportSwitch, TransportSwitchDenied
from jvpn.observability.redecide import replay
from jvpn.policy.health import PathHealth
from jvpn.policy.model import Policy
from jvpn.protocol.constants import PacketType
from jvpn.protocol.handshake import Kem
from jvpn.protocol.suites import suite, x25519_public
from jvpn.session.machine import State
from jvpn.supervisor.peers import Peer
from jvpn.supervisor.policies import Applied, Mode, PolicySet, told

__all__ = ["every_pair_is_sound"]

OLD = fast_policy()
NEW = fast_policy(
    transport_loss_ttl_ms=20_000, probe_interval_ms=50, max_candidates=5, resend_bytes=1_000_000
)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the client says to people."""
    texts: list[str] = []
    carry_out = CorePair._client_effect

    def listening(self: CorePair, effect: Effect) -> None:
        if isinstance(effect, Say):
            texts.append(effect.text)
        carry_out(self, effect)

    monkeypatch.setattr(CorePair, "_client_effect", listening)
    return texts


def files(
    *policies: Policy, own: str = "default", others: Iterable[str] = (), broken: dict[str, str] | None = None
) -> PolicySet:
    """What the files say: one peer, the pair's."""
    assigned = {x25519_public(CLIENT_KEY): (own, tuple(others))}
    return PolicySet(own, {policy.name: policy for policy in policies}, broken or {}, assigned)


def apply(pair: CorePair, found: PolicySet, mode: Mode) -> Applied:
    applied = pair.gateway.apply_policies(found, mode, "root", pair.now_ms)
    pair.settle()
    return applied


def audits(events: Iterable[object], reason: str) -> list[AuditEvent]:
    return [event for event in events if isinstance(event, AuditEvent) and event.reason_code == reason]


def policies(pair: CorePair) -> tuple[Policy, Policy]:
    assert pair.client.session is not None
    return pair.live.policy, pair.client.session.policy


def again(pair: CorePair) -> None:
    """The client ends its session and shakes hands anew."""
    pair.client.stop(pair.now_ns)
    pair.advance(1_000)
    pair.client = pair.new_client()
    pair.attach()


def test_grace_leaves_a_session_its_policy_and_gives_the_next_the_new_one() -> None:
    pair = CorePair(OLD).attach()
    applied = apply(pair, files(NEW), "grace")
    assert (applied.sessions, applied.changed, applied.kept, applied.ended) == (1, 0, 1, 0)
    pair.advance(5_000)
    assert policies(pair) == (OLD, OLD)
    again(pair)
    assert policies(pair) == (NEW, NEW)


def test_strict_gives_a_running_session_the_new_policy_at_both_ends(said: list[str]) -> None:
    pair = CorePair(OLD).attach()
    before = (pair.live.session_id, pair.live.bindings, pair.live.machine.state_version)
    applied = apply(pair, files(NEW), "strict")
    assert (applied.sessions, applied.changed, applied.kept, applied.ended) == (1, 1, 0, 0)
    pair.wait_for(lambda: policies(pair) == (NEW, NEW), 2_000)
    assert (pair.live.session_id, pair.live.bindings, pair.live.machine.state_version) == before
    assert pair.events(TransportSwitch) == []
    assert pair.data_up(b"u" * 80)
    assert pair.data_down(b"d" * 80)
    change = f"default@{OLD.version} → default@{NEW.version}"
    (gateway,) = [e for e in audits(pair.gateway_sink.events, "POLICY_CHANGED") if e.session_id]
    assert (gateway.check, gateway.session_id) == ("policy", pair.live.hex_id)
    assert gateway.result == f"{change}, asked by root"
    (client,) = audits(pair.client_sink.events, "POLICY_CHANGED")
    assert (client.check, client.result, client.policy_version) == (
        "policy",
        change,
        f"default@{NEW.version}",
    )
    (node,) = [e for e in audits(pair.gateway_sink.events, "POLICY_CHANGED") if not e.session_id]
    assert change in node.result
    assert [change in text for text in said] == [True]


def test_a_client_that_does_not_hear_is_told_until_it_does() -> None:
    pair = CorePair(OLD).attach()
    pair.rules.append(lose(PacketType.CONTROL, 4, up=False))
    apply(pair, files(NEW), "strict")
    pair.wait_for(lambda: policies(pair) == (NEW, NEW), 5_000)


def test_two_changes_at_once_end_in_the_newer_however_late_the_first_is() -> None:
    pair = CorePair(OLD).attach()
    newest = replace(NEW, max_candidates=2)
    delays = iter([[400], [400], [400]])
    pair.rules.append(
        lambda flight: next(delays, None) if flight.kind is PacketType.CONTROL and not flight.up else None
    )
    apply(pair, files(NEW), "strict")
    pair.rules.clear()
    apply(pair, files(newest), "strict")
    pair.advance(3_000)
    assert policies(pair) == (newest, newest)


def test_a_changed_session_takes_its_policy_along_through_a_restart() -> None:
    pair = CorePair(OLD).attach()
    apply(pair, files(NEW), "strict")
    pair.advance(1_000)
    assert pair.store.sessions()[0].policy_version == NEW.version
    pair.restart_gateway()
    pair.data_up(b"u" * 80)
    pair.wait_for(lambda: pair.context.sessions and pair.attached, 60_000)
    assert policies(pair) == (NEW, NEW)


@pytest.mark.parametrize(("ttl_ms", "ends"), [(60_000, True), (7_200_000, False)])
def test_a_lifetime_is_that_of_the_new_policy_counted_from_the_handshake(ttl_ms: int, ends: bool) -> None:
    old = replace(OLD, session_ttl_ms=600_000)
    pair = CorePair(old).attach()
    first = pair.live.session_id
    pair.advance(120_000)
    apply(pair, files(replace(old, session_ttl_ms=ttl_ms, transport_loss_ttl_ms=30_000)), "strict")
    pair.advance(600_000)
    over = [
        e.reason_code
        for e in pair.events(StateChange)
        if e.to is State.TERMINATED and e.session_id == first.hex()
    ]
    assert over == ["SESSION_TTL_EXPIRED"] * ends
    assert (pair.live.session_id == first) is not ends


def test_what_cannot_change_under_a_session_needs_a_new_handshake() -> None:
    pair = CorePair(replace(OLD, kem="mlkem768")).attach()
    first = pair.live.session_id
    assert pair.live.demanded_kem is Kem.MLKEM768
    known = Identity(suite(1), CLIENT_KEY, x25519_public(GATEWAY_KEY), bytes(32), "", Kem.NONE)
    pair.client._identity = known
    applied = apply(pair, files(replace(OLD, kem="none")), "strict")
    assert (applied.changed, applied.ended) == (0, 1)
    pair.wait_for(lambda: pair.context.sessions and pair.attached, 10_000)
    assert pair.live.session_id != first
    assert pair.live.demanded_kem is Kem.NONE
    assert [(over.reason, over.again) for over in pair.over] == [("SESSION_TTL_EXPIRED", True)]
    assert pair.data_up(b"u" * 80)


def test_nothing_changes_where_nothing_has_changed() -> None:
    pair = CorePair(OLD).attach()
    pair.sent.clear()
    applied = apply(pair, files(OLD), "strict")
    assert (applied.changes, applied.changed, applied.kept, applied.ended) == ([], 0, 0, 0)
    assert pair.of_kind(PacketType.CONTROL, up=False) == []
    assert audits(pair.gateway_sink.events, "POLICY_CHANGED") == []
    assert told(applied)[0] == "no policy has changed"


def test_a_peer_that_is_given_another_policy_by_name_has_it() -> None:
    pair = CorePair(OLD).attach()
    mobile = fast_policy(name="mobile", transport_loss_ttl_ms=3_600_000)
    apply(pair, files(OLD, mobile, own="mobile"), "strict")
    pair.wait_for(lambda: policies(pair) == (mobile, mobile), 2_000)


@pytest.mark.parametrize("mode", ["grace", "strict"])
def test_a_broken_file_refuses_new_sessions_and_running_ones_keep_the_last_valid_policy(mode: Mode) -> None:
    pair = CorePair(OLD).attach()
    problem = "policies/default.yaml:3: kem: 'rsa' is not one of the choices"
    applied = apply(pair, files(broken={"default": problem}), mode)
    assert [(change.name, change.problem) for change in applied.changes] == [("default", problem)]
    pair.advance(5_000)
    assert policies(pair) == (OLD, OLD)
    assert pair.data_up(b"u" * 80)
    (node,) = audits(pair.gateway_sink.events, "POLICY_BROKEN")
    assert problem in node.result
    assert "keep the last valid one: 1" in node.result
    pair.client.stop(pair.now_ns)
    pair.advance(1_000)
    pair.client = pair.new_client()
    pair.advance(20_000)
    assert pair.context.sessions == {}
    assert pair.context.counters["policy_broken"] > 1
    # Told for each peer, not for each of its attempts.
    (_node, refused) = audits(pair.gateway_sink.events, "POLICY_BROKEN")
    assert "peer laptop: no new session" in refused.result
    apply(pair, files(NEW), mode)
    pair.wait_for(lambda: pair.attached, 20_000)
    assert policies(pair) == (NEW, NEW)


def test_a_broken_policy_that_nobody_asks_for_keeps_nobody_out() -> None:
    pair = CorePair(OLD).attach()
    apply(pair, files(OLD, others=["mobile"], broken={"mobile": "mobile.yaml:1: kem: …"}), "strict")
    again(pair)
    assert policies(pair) == (OLD, OLD)


@pytest.mark.parametrize(
    ("asked", "refused"), [("", "own"), ("own", "own"), ("gone", "own"), ("mobile", ""), ("odd", "odd")]
)
def test_who_gets_no_session_while_files_are_broken(asked: str, refused: str) -> None:
    mobile = fast_policy(name="mobile")
    peer = Peer("a", b"k" * 32, (), OLD, others=(mobile,), own="own", broken={"own": "…", "odd": "…"})
    assert peer.refuses(asked) == refused


# The policy of the first CONFIG


def attached_by(policy: Policy) -> CorePair:
    """A client that knows the built-in policy alone until CONFIG gives it this one."""
    pair = CorePair(OLD)
    ((key, peer),) = pair.context.peers.peers.items()
    pair.context.peers.peers[key] = replace(peer, policy=policy)
    return pair.attach()


def test_the_path_of_the_handshake_is_probed_by_the_sessions_policy() -> None:
    pair = attached_by(fast_policy(idle_probe_interval_ms=30_000))
    pair.advance(15_000)
    pair.sent.clear()
    pair.advance(120_000)
    active = [f for f in pair.of_kind(PacketType.PATH, up=True) if f.uplink == 0 and len(f.data) < 200]
    assert 3 <= len(active) <= 5


def test_a_client_keeps_a_session_that_lives_longer_than_the_built_in_policy_says() -> None:
    week_ms = 7 * 24 * 3_600_000
    pair = attached_by(fast_policy(session_ttl_ms=week_ms))
    session = pair.client.session
    assert session is not None
    assert abs(session.ttl.session_deadline_ms - pair.live.ttl.session_deadline_ms) < 5_000


def test_a_path_follows_another_policy_and_keeps_what_was_measured() -> None:
    health = PathHealth(OLD, 10**9, active=True)
    health.on_probe_sent(1, 10**9)
    health.on_probe_acked(1, 10**9 + 20_000_000)
    health.follow(replace(OLD, idle_probe_interval_ms=20_000))
    assert health.next_probe_at(10**9 + 30_000_000) == 10**9 + 20_000_000_000
    assert health.srtt_ns == 20_000_000


# What a client is told of the policy it did not get


@pytest.mark.parametrize(("asked", "told_so"), [("mobile", True), ("default", False), ("", False)])
def test_a_client_that_is_given_another_policy_is_told_so(asked: str, told_so: bool, said: list[str]) -> None:
    pair = CorePair(OLD)
    pair.client = pair.new_client(
        Identity(suite(1), CLIENT_KEY, x25519_public(GATEWAY_KEY), bytes(32), asked)
    )
    pair.attach()
    pair.advance(10_000)
    assert len(said) == told_so
    assert all(f"policy default@{OLD.version}, not mobile" in text for text in said)
    refused = [e for e in pair.client_sink.events if e.reason_code == "POLICY_NOT_ALLOWED"]
    assert len(refused) == told_so


def _narrowed(*, other_up: bool) -> CorePair:
    """A session on upA, and then a policy that has only upB."""
    pair = CorePair(OLD).attach()
    if not other_up:
        pair.link(1, False)
    pair.advance(5_000)
    assert pair.client.session is not None
    assert pair.client.session.paths.active == 0
    apply(pair, files(fast_policy(allowed_interfaces=("upB",))), "strict")
    pair.advance(5_000)
    return pair


def _denials(pair: CorePair) -> list[tuple[str, str]]:
    found = [e for e in pair.client_sink.events if isinstance(e, TransportSwitchDenied)]
    return [(e.cause, e.reason_code) for e in found]


def test_a_path_that_the_new_policy_would_not_have_is_left_by_choice(said: list[str]) -> None:
    pair = _narrowed(other_up=True)
    (switch,) = pair.events(TransportSwitch)
    assert (switch.reason_code, switch.explicit) == ("PREFERENCE_SWITCH", True)
    assert pair.client.session is not None
    assert pair.client.session.paths.active == 1
    assert _denials(pair) == []


def test_where_there_is_no_other_the_session_stays_and_says_so_once_until_there_is(said: list[str]) -> None:
    pair = _narrowed(other_up=False)
    assert pair.attached
    assert pair.events(TransportSwitch) == []
    assert _denials(pair) == [("PREFERENCE_SWITCH", "NO_CANDIDATE")]
    assert sum("device upA is not in allowed_interfaces" in text for text in said) == 1
    assert replay(pair.client_sink.lines()).differences == []
    pair.link(1, True)
    pair.wait_for(lambda: bool(pair.events(TransportSwitch)), 10_000)
    (switch,) = pair.events(TransportSwitch)
    assert (switch.reason_code, switch.explicit) == ("PREFERENCE_SWITCH", True)
