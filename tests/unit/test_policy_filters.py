"""Which uplinks a policy leaves out, by transport, device, network and cost, and what a client makes of it."""

from dataclasses import replace
from typing import Any

import pytest
from core_pair import CorePair, every_pair_is_sound, fast_policy

from jvpn.agent.admin import ClientAdmin
from jvpn.observability.admin import AdminError
from jvpn.observability.events import TransportSwitch
from jvpn.policy.decisions import Action, Candidate, History, Phase, choose, excluded, ranked
from jvpn.policy.model import Policy
from jvpn.protocol.constants import PacketType

__all__ = ["every_pair_is_sound"]

DEFAULT = Policy.default()
WIFI = Candidate("a", "udp", answering=True, device="wlan0", network="home", steady_since_ms=0)
LTE = Candidate("b", "udp", answering=True, device="wwan0", network="lte", cost=100, steady_since_ms=0)


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, []),
        ({"allowed_interfaces": ("wlan0",)}, ["b"]),
        ({"allowed_interfaces": ("wlan*",)}, ["b"]),
        ({"allowed_interfaces": ("wlan",)}, ["a", "b"]),
        ({"allowed_interfaces": ("w*",)}, []),
        ({"allowed_networks": ("lte", "office")}, ["a"]),
        ({"max_cost": 99}, ["b"]),
        ({"max_cost": 100}, []),
        ({"allowed_transports": ("tcp",)}, ["a", "b"]),
    ],
)
def test_what_a_policy_leaves_out(changes: dict[str, Any], left: list[str]) -> None:
    policy = replace(DEFAULT, **changes)
    assert [c.id for c in (WIFI, LTE) if excluded(policy, c)] == left
    assert [c.id for c in ranked(policy, [LTE, WIFI])] == [c.id for c in (WIFI, LTE) if c.id not in left]


def test_an_uplink_without_a_name_for_its_network_is_in_none() -> None:
    policy = replace(DEFAULT, allowed_networks=("home",))
    assert "without a name" in excluded(policy, replace(WIFI, network=""))


def test_metered_uplinks_come_last_among_equals() -> None:
    assert [
        c.id for c in ranked(DEFAULT, [replace(LTE, latency_ms=1.0), replace(WIFI, latency_ms=90.0)])
    ] == ["a", "b"]


def on(active: str, phase: Phase = Phase.ATTACHED) -> History:
    return History(phase, 0, active)


def test_a_path_that_is_left_out_is_left_for_one_that_is_not_and_kept_without() -> None:
    policy = replace(DEFAULT, max_cost=50)
    decision = choose(policy, [WIFI, LTE], on("b"), 10_000)
    assert (decision.action, decision.reason, decision.candidate) == (Action.SWITCH, "PREFERENCE_SWITCH", "a")
    stays = choose(policy, [replace(WIFI, answering=False), LTE], on("b"), 10_000)
    assert (stays.action, stays.candidate) == (Action.DENY, None)
    assert choose(policy, [LTE], on("b"), 10_000).candidate is None


def test_nothing_leads_to_a_path_that_is_left_out() -> None:
    policy = replace(DEFAULT, max_cost=50)
    assert choose(policy, [replace(WIFI, dead=True, answering=False), LTE], on("a"), 10_000).candidate == "a"
    assert choose(policy, [replace(WIFI, up=False), LTE], on("a"), 10_000).candidate is None


# A client


def pair_with(**changes: Any) -> CorePair:
    pair = CorePair(fast_policy(**changes))
    for uplink, (cost, network) in zip(pair.client.uplinks, ((100, "lte"), (0, "home")), strict=True):
        uplink.cost, uplink.network = cost, network
    return pair


@pytest.mark.parametrize(
    "changes", [{"max_cost": 99}, {"allowed_networks": ("home",)}, {"allowed_interfaces": ("upB",)}]
)
def test_a_session_leaves_the_uplink_of_its_handshake_where_the_policy_would_not_have_it(
    changes: dict[str, Any],
) -> None:
    pair = pair_with(**changes)
    pair.wait_for(
        lambda: pair.attached and pair.client.session and pair.client.session.paths.active == 1, 20_000
    )
    (switch,) = pair.events(TransportSwitch)
    assert (switch.reason_code, switch.explicit) == ("PREFERENCE_SWITCH", True)
    # Nothing is spent on it any more, and nobody gets the session back there.
    pair.advance(2_000)
    pair.sent.clear()
    pair.advance(60_000)
    assert [f for f in pair.of_kind(PacketType.PATH, up=True) if f.uplink == 0] == []
    pair.link(1, False)
    pair.advance(20_000)
    assert pair.of_kind(PacketType.REATTACH_REQUEST, up=True) == []
    pair.link(1, True)
    pair.wait_for(lambda: pair.attached, 30_000)


def test_an_operator_cannot_switch_to_what_the_policy_leaves_out() -> None:
    pair = pair_with(allowed_interfaces=("upA",))
    pair.wait_for(lambda: pair.attached)
    agent: Any = type("Agent", (), {"core": pair.client})()
    with pytest.raises(AdminError, match="device upB is not in allowed_interfaces"):
        ClientAdmin(agent).switch("upB")


def test_costs_order_candidates_of_equal_preference() -> None:
    pair = pair_with()
    pair.wait_for(
        lambda: pair.attached and pair.client.session and pair.client.session.paths.active == 1, 20_000
    )
    (switch,) = pair.events(TransportSwitch)
    assert switch.reason_code == "PREFERENCE_SWITCH"
