"""Several ways over one device, damped devices, and a machine that has slept."""

import pytest
from core_pair import DELAY_MS, GATEWAY, NS, CorePair, Flight, Rule, every_pair_is_sound, fast_policy, silent

from jvpn.agent import damping, sleeping
from jvpn.agent.damping import Damping
from jvpn.agent.paths import Uplink
from jvpn.agent.sleeping import Sleeping
from jvpn.agent.ways import share_out, shares
from jvpn.observability.events import TransportSwitch
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]

HOUR_MS = 3_600_000
#: The verdict on a path that loses nothing, and a round trip.
SILENCE_MS = 180 + 2 * DELAY_MS
REQUEST = PacketType.REATTACH_REQUEST
OTHER = Endpoint(to_bytes("203.0.113.2"), GATEWAY.port)
V6 = [Endpoint(to_bytes(f"2001:db8::{n}"), 1) for n in range(1, 4)]
V4 = [Endpoint(to_bytes(f"192.0.2.{n}"), 1) for n in range(1, 4)]


def ways(count: int) -> list[Uplink]:
    nowhere = Endpoint(bytes(16), 0)
    return [Uplink(n, "up", 100, nowhere, link_up=False, socket=0, rank=n) for n in range(count)]


# Which ways there are


@pytest.mark.parametrize(
    ("devices", "most", "given"),
    [
        ([(100, 2)], 4, [2]),
        ([(100, 9)], 4, [4]),
        ([(100, 2), (100, 2)], 4, [2, 2]),
        ([(100, 2), (200, 2)], 3, [1, 2]),
        ([(100, 1), (200, 1), (300, 3)], 4, [1, 1, 2]),
        ([(100, 5)] * 6, 2, [1] * 6),
        ([], 4, []),
    ],
)
def test_devices_share_the_paths_that_are_kept_warm(
    devices: list[tuple[int, int]], most: int, given: list[int]
):
    assert shares(devices, most) == given


def test_ways_divide_the_endpoints_and_the_families_go_apart():
    two = ways(2)
    share_out(two, [*V6, *V4], 2, None)
    assert [way.remote for way in two] == [V6[0], V4[0]]
    assert sorted([*two[0].remotes, *two[1].remotes], key=str) == sorted([*V6, *V4], key=str)
    assert not set(two[0].remotes) & set(two[1].remotes)


def test_what_a_way_leads_to_it_keeps_and_the_active_one_is_never_turned_off():
    two = ways(2)
    share_out(two, V4, 2, None)
    led_to = [way.remote for way in two]
    share_out(two, [V6[0], *V4], 2, two[1])
    assert [way.remote for way in two] == led_to
    share_out(two, [V6[0], *V4], 1, two[1])
    assert (two[0].remotes, two[1].remote) == ((), led_to[1])


# Both cores


def two_ways(uplinks: int = 1) -> CorePair:
    """The first uplink reaches the gateway at a second address."""
    pair = CorePair(uplinks=uplinks)
    pair.wait_for(lambda: pair.attached)
    way = Uplink(uplinks, "upA", 100, OTHER, link_up=False, remotes=(OTHER,), socket=0, rank=1)
    pair.client.uplinks.append(way)
    pair.client.ways_event([way], True, pair.now_ns)
    pair.settle()
    return pair.attach()


def dead_address(remote: Endpoint) -> Rule:
    return lambda flight: [] if remote in (flight.source, flight.destination) else None


def stream(pair: CorePair, ms: int) -> int:
    """A datagram each 5 ms, up; how many arrived. Workers here keep nothing to send again."""
    slot = pair.live.slot
    sent = [f"{n}".encode() for n in range(ms // 5)]
    for payload in sent:
        pair.data_up(payload)
        pair.advance(5)
    pair.advance(500)
    arrived = pair.workers[slot].delivered
    return sum(arrived.count(payload) == 1 for payload in sent)


def test_an_address_of_the_gateway_that_dies_is_left_for_another_over_the_same_device():
    pair = two_ways()
    session_id = pair.live.session_id
    pair.advance(1_000)
    pair.rules.append(dead_address(GATEWAY))
    assert stream(pair, 1_500) >= 300 - SILENCE_MS // 5
    assert pair.live.session_id == session_id
    (switch,) = pair.events(TransportSwitch)
    assert switch.explicit is False
    session = pair.client.session
    assert session is not None
    active = session.paths.active_path
    assert active is not None
    assert active.uplink.remote == OTHER
    assert pair.live.bindings.active is not None
    assert pair.live.bindings.active.local[0] == "203.0.113.2"


def test_a_device_that_dies_takes_all_its_ways_and_no_request_goes_over_it():
    pair = two_ways(uplinks=2)
    pair.advance(1_000)
    pair.sent.clear()
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached, 1_000)
    assert {flight.uplink for flight in pair.of_kind(REQUEST, up=True)} == {1}


def test_in_a_blackhole_who_shares_nothing_with_the_dead_path_is_asked_first():
    pair = two_ways(uplinks=2)
    pair.advance(1_000)
    pair.rules.append(silent(0))
    pair.sent.clear()
    assert stream(pair, 1_000) >= 200 - SILENCE_MS // 5
    assert pair.of_kind(REQUEST, up=True)[0].uplink == 1
    assert {flight.uplink for flight in pair.of_kind(REQUEST, up=True)} == {1}


def test_the_operators_switch_names_a_device_whichever_way_is_active():
    pair = two_ways(uplinks=2)
    pair.advance(1_000)
    assert not pair.client.switch("upA", pair.now_ns), "it is there already"
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: pair.attached)
    pair.advance(2_000)
    assert pair.client.switch("upA", pair.now_ns)
    pair.wait_for(lambda: pair.attached)


# Devices that come and go


def test_a_penalty_grows_decays_and_is_bounded():
    flapping = Damping()
    flapping.lost(0)
    flapping.lost(100)
    assert flapping.until_ms == 0, "two losses may happen to anybody"
    for n in range(3):
        flapping.lost(1_000 * n)
    few_ms = flapping.until_ms
    for n in range(100):
        flapping.lost(3_000 + 100 * n)
    last_ms = 3_000 + 9_900
    assert last_ms + few_ms < flapping.until_ms <= last_ms + damping.LONGEST_MS
    flapping.lost(flapping.until_ms + HOUR_MS)
    assert flapping.until_ms < last_ms + HOUR_MS, "forgiven"


def flap(pair: CorePair, uplink: int, times: int, apart_ms: int = 5_000) -> None:
    for _ in range(times):
        pair.link(uplink, False)
        pair.advance(500)
        pair.link(uplink, True)
        pair.advance(apart_ms)


def test_a_preferred_link_that_flaps_is_returned_to_only_when_it_has_calmed_down():
    pair = CorePair(fast_policy(switch_cooldown_ms=0, max_switches_per_minute=60), uplinks=2)
    pair.client.uplinks[0].preference = 200
    pair.attach()
    flap(pair, 0, 10)
    told = pair.events(TransportSwitch)
    assert 4 <= len(told) <= 8, "it went back a few times, then no more"
    pair.advance(damping.LONGEST_MS)
    pair.wait_for(lambda: pair.attached)
    session = pair.client.session
    assert session is not None
    assert session.paths.active == 0


def test_a_damped_link_that_is_the_only_one_is_asked_at_once():
    pair = CorePair(uplinks=1).attach()
    flap(pair, 0, 8, 200)
    assert pair.client.uplinks[0].damped_until_ms > pair.now_ms
    pair.link(0, False)
    pair.advance(1_000)
    pair.link(0, True)
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached, 1_000)
    assert pair.now_ms - began_ms <= 4 * DELAY_MS + 10


def test_a_damped_link_joins_when_the_others_are_late():
    pair = CorePair(uplinks=3).attach()
    flap(pair, 2, 6, 200)
    pair.advance(2_000)
    assert pair.client.uplinks[2].damped_until_ms > pair.now_ms
    pair.rules.append(silent(1))
    pair.sent.clear()
    pair.link(0, False)
    began_ms = pair.now_ms
    pair.wait_for(lambda: pair.attached, 1_000)
    assert pair.of_kind(REQUEST, up=True)[0].uplink == 1
    assert pair.now_ms - began_ms < 150


# Sleep


def sleep(pair: CorePair, ms: int) -> None:
    """The machine sleeps: BOOTTIME goes on, the client's process does not; the gateway's does."""
    client, wake_ns = pair.client, pair.now_ns + ms * NS
    get_timer = client.get_timer
    client.get_timer = lambda: wake_ns / NS  # type: ignore[method-assign]
    asleep: list[Flight] = []

    def lost(flight: Flight) -> list[int]:
        asleep.append(flight)
        return []

    pair.rules.insert(0, lost)
    pair.advance(ms - 1)
    pair.rules.pop(0)
    client.get_timer = get_timer  # type: ignore[method-assign]
    pair.now_ns = wake_ns
    pair.client.woke(pair.now_ns)
    assert not [flight for flight in asleep if flight.up], "a machine that sleeps sends nothing"


def test_on_wake_every_path_is_probed_at_once_and_nothing_fires_in_a_burst():
    pair = CorePair(fast_policy(transport_loss_ttl_ms=4 * HOUR_MS), uplinks=3).attach()
    pair.advance(5_000)
    sleep(pair, HOUR_MS)
    pair.sent.clear()
    pair.settle()
    probed = [flight.uplink for flight in pair.of_kind(PacketType.PATH, up=True)]
    assert {0, 1, 2} <= set(probed)
    assert len(pair.sent) <= 3 + 3, "probes, and at most an MTU probe, a rekey and HEALTH"
    pair.wait_for(lambda: pair.attached, 500)
    assert pair.client.handshakes_done == 1


def test_probes_that_sleep_left_without_an_answer_kill_no_path():
    pair = CorePair(fast_policy(idle_probe_interval_ms=60_000), uplinks=2)
    pair.rules.append(lambda flight: [150])
    pair.attach()
    for _ in range(40):
        pair.data_up(b"just before the lid closes")
        pair.advance(5)
    sleep(pair, 60_000)
    pair.advance(1_000)
    session = pair.client.session
    assert session is not None
    assert pair.attached
    assert session.paths.active == 0
    assert pair.events(TransportSwitch) == []


def test_time_asleep_counts_against_the_ttl():
    pair = CorePair(fast_policy(session_ttl_ms=HOUR_MS)).attach()
    sleep(pair, HOUR_MS)
    pair.settle()
    assert [over.reason for over in pair.over] == ["SESSION_TTL_EXPIRED"]


def test_a_sleep_is_told_from_a_slow_process_and_from_time_passing():
    clocks = [0, 0]
    watch = Sleeping(lambda: (clocks[0], clocks[1]))

    def pass_by(boot_ns: int, monotonic_ns: int) -> int:
        clocks[0] += boot_ns
        clocks[1] += monotonic_ns
        return watch.slept_ns()

    assert pass_by(5_000 * NS, 5_000 * NS) == 0
    assert pass_by(10 * NS, 0) == 0, "read one after the other"
    assert pass_by(0, 10 * NS) == 0
    assert pass_by(HOUR_MS * NS, 0) == HOUR_MS * NS
    assert pass_by(5_000 * NS, 5_000 * NS) == 0, "told once"
    short_ns = sleeping.LEAST_SLEEP_NS // 2 + 1
    assert [pass_by(short_ns, 0), pass_by(short_ns, 0)] == [0, 2 * short_ns]
