"""The link model alone: no I/O, time is an argument."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpn.lab.link_model import NS_PER_MS, LinkModel, LinkParams, compose, merge
from jvpn.lab.vnet import DATA_VALID, NEEDS_CSUM, VNET_BYTES, damage, wire_size

FRAME = 1_514
seeds = st.integers(0, 2**32)
arrival_steps_ns = st.lists(st.integers(0, 3 * NS_PER_MS), min_size=1, max_size=200)
sane_params = st.builds(
    LinkParams,
    delay_ms=st.floats(0, 100),
    jitter_ms=st.floats(0, 20),
    loss=st.floats(0, 0.5),
    burst_loss=st.floats(0, 0.3),
    burst_frames=st.floats(2, 20),
    reorder=st.floats(0, 0.5),
    duplicate=st.floats(0, 0.5),
    corrupt=st.floats(0, 0.5),
    rate_mbit=st.sampled_from([0.0, 1.0, 10.0, 1000.0]),
)


def offer_all(model: LinkModel, steps_ns: list[int]) -> list[tuple[int, tuple[int, ...]]]:
    now_ns, result = 0, []
    for step_ns in steps_ns:
        now_ns += step_ns
        result.append((now_ns, model.offer(now_ns, FRAME)))
    return result


@given(seeds, sane_params, arrival_steps_ns)
def test_same_seed_same_fate(seed: int, params: LinkParams, steps_ns: list[int]) -> None:
    assert offer_all(LinkModel(seed, params), steps_ns) == offer_all(LinkModel(seed, params), steps_ns)


@given(seeds, sane_params, arrival_steps_ns)
def test_nothing_arrives_before_the_delay(seed: int, params: LinkParams, steps_ns: list[int]) -> None:
    for now_ns, arrivals in offer_all(LinkModel(seed, params), steps_ns):
        assert all(at_ns >= now_ns + round(params.delay_ms * NS_PER_MS) for at_ns in arrivals)


@given(seeds, sane_params, arrival_steps_ns)
def test_every_frame_is_accounted_for_once(seed: int, params: LinkParams, steps_ns: list[int]) -> None:
    model = LinkModel(seed, params)
    copies = sum(len(arrivals) for _, arrivals in offer_all(model, steps_ns))
    c = model.counters
    assert c.offered == len(steps_ns) == c.delivered + c.lost + c.burst_lost + c.queue_dropped
    assert c.bytes_offered == FRAME * len(steps_ns)
    assert copies == c.delivered + c.duplicated


@given(seeds, arrival_steps_ns, st.floats(0, 20), st.floats(0, 30))
def test_jitter_keeps_order(seed: int, steps_ns: list[int], delay_ms: float, jitter_ms: float) -> None:
    model = LinkModel(seed, LinkParams(delay_ms=delay_ms, jitter_ms=jitter_ms))
    times = [arrivals[0] for _, arrivals in offer_all(model, steps_ns)]
    assert times == sorted(times)


@given(seeds, arrival_steps_ns, st.floats(0, 50), st.floats(0, 50))
def test_a_shorter_delay_does_not_overtake(
    seed: int, steps_ns: list[int], before_ms: float, after_ms: float
) -> None:
    model = LinkModel(seed, LinkParams(delay_ms=before_ms))
    last = model.offer(0, FRAME)[0]
    model.configure(LinkParams(delay_ms=after_ms))
    assert all(arrivals[0] >= last for _, arrivals in offer_all(model, steps_ns))


def test_reorder_lets_later_frames_overtake() -> None:
    model = LinkModel(1, LinkParams(reorder=0.1, reorder_ms=5))
    times = [arrivals[0] for _, arrivals in offer_all(model, [NS_PER_MS] * 1_000)]
    overtaken = sum(1 for earlier, later in pairwise(times) if later < earlier)
    assert 50 < model.counters.reordered < 200
    assert overtaken > 0


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_loss_is_the_share_asked_for(share: float) -> None:
    model = LinkModel(7, LinkParams(loss=share))
    offer_all(model, [1000] * 40_000)
    assert model.counters.lost / 40_000 == pytest.approx(share, rel=0.1)


def test_burst_loss_has_the_share_and_the_length_asked_for() -> None:
    model = LinkModel(7, LinkParams(burst_loss=0.05, burst_frames=10))
    lost = [not arrivals for _, arrivals in offer_all(model, [1000] * 200_000)]
    bursts = sum(1 for before, now in pairwise([False, *lost]) if now and not before)
    assert sum(lost) / len(lost) == pytest.approx(0.05, rel=0.15)
    assert sum(lost) / bursts == pytest.approx(10, rel=0.15)


def test_jitter_does_not_change_which_frames_are_lost() -> None:
    plain = LinkModel(3, LinkParams(loss=0.3))
    shaken = LinkModel(3, LinkParams(loss=0.3, jitter_ms=5, duplicate=0.2))
    steps_ns = [NS_PER_MS] * 500
    lost = [[not arrivals for _, arrivals in offer_all(model, steps_ns)] for model in (plain, shaken)]
    assert lost[0] == lost[1]


@given(st.floats(0.5, 900), st.integers(2, 300))
def test_a_bottleneck_is_never_faster_than_its_rate(rate_mbit: float, frames: int) -> None:
    model = LinkModel(1, LinkParams(rate_mbit=rate_mbit, queue_ms=1e6))
    times = [model.offer(0, FRAME)[0] for _ in range(frames)]
    assert times[-1] >= frames * FRAME * 8_000 / rate_mbit - frames
    assert model.counters.queue_dropped == 0


@given(st.floats(0.5, 900), st.floats(1, 100), arrival_steps_ns)
def test_the_queue_is_bounded(rate_mbit: float, queue_ms: float, steps_ns: list[int]) -> None:
    model = LinkModel(1, LinkParams(rate_mbit=rate_mbit, queue_ms=queue_ms))
    longest_ns = queue_ms * NS_PER_MS + FRAME * 8_000 / rate_mbit + 2
    for now_ns, arrivals in offer_all(model, steps_ns):
        assert all(at_ns - now_ns <= longest_ns for at_ns in arrivals)


def test_a_full_queue_drops_its_tail() -> None:
    model = LinkModel(1, LinkParams(rate_mbit=10, queue_ms=20))
    offer_all(model, [0] * 100)
    assert (
        model.counters.delivered == 17
    )  # frames of 1.21 ms each; the 17th waits 19.4 ms, an 18th would 20.6
    assert model.counters.queue_dropped == 83


def test_a_hole_swallows_everything_and_counts() -> None:
    model = LinkModel(1, LinkParams(drop=True))
    assert all(not arrivals for _, arrivals in offer_all(model, [1000] * 50))
    assert model.counters.swallowed == 50
    model.configure(LinkParams())
    assert model.offer(10**9, FRAME) == (10**9,)


def test_mtu_drops_only_what_is_larger() -> None:
    model = LinkModel(1, LinkParams(mtu=1_280))
    assert model.offer(0, 1_280 + 14)
    assert not model.offer(0, 1_280 + 15)
    assert model.counters.too_big == 1


def test_a_superpacket_counts_its_frames_and_is_reported_when_it_should_have_been_split() -> None:
    model = LinkModel(1, LinkParams(delay_ms=1))
    model.offer(0, 43 * FRAME, 43)
    assert (model.counters.delivered, model.counters.unsplit_superpackets) == (43, 0)
    model.configure(LinkParams(loss=1e-9))
    model.offer(0, 43 * FRAME, 43)
    assert model.counters.unsplit_superpackets == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"loss": 1.1}, "loss"),
        ({"delay_ms": -1.0}, "delay_ms"),
        ({"burst_loss": 0.5, "burst_density": 0.4}, "burst_loss"),
        ({"burst_loss": 0.9, "burst_frames": 1.0}, "burst_frames"),
        ({"rate_mbit": float("nan")}, "rate_mbit"),
    ],
)
def test_bad_values_are_named(changes: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        merge(LinkParams(), changes)


def test_unknown_property_is_refused() -> None:
    with pytest.raises(TypeError):
        merge(LinkParams(), {"latency": 1.0})


def vnet_frame(gso_type: int, gso_size: int, header: bytes, payload_bytes: int, transport: int) -> bytearray:
    vnet = struct.pack("=BBHHHH", 1 if gso_type else 0, gso_type, 0, gso_size, transport, 6)
    return bytearray(vnet + header + bytes(payload_bytes))


def test_wire_size_of_single_and_superpackets() -> None:
    tcp = bytes(14 + 20 + 12) + bytes([8 << 4]) + bytes(19)  # 32 bytes of TCP header
    udp = bytes(14 + 40 + 8)
    single = vnet_frame(0, 0, udp, 100, 54)
    assert wire_size(single, len(single)) == (162, 1)
    tso = vnet_frame(1, 1_448, tcp, 1_448 * 3 + 1, 34)
    assert wire_size(tso, len(tso)) == (len(tso) - VNET_BYTES + 3 * 66, 4)
    ecn = vnet_frame(1 | 0x80, 1_448, tcp, 1_448 * 2, 34)
    assert wire_size(ecn, len(ecn)) == (2 * FRAME, 2)
    uso = vnet_frame(5, 1_000, udp, 40_000, 54)
    assert wire_size(uso, len(uso)) == (40 * (1_000 + 62), 40)


def test_corruption_flips_one_bit_of_the_share_asked_for_and_the_same_ones_again() -> None:
    def bits() -> list[int | None]:
        model = LinkModel(5, LinkParams(corrupt=0.2))
        assert all(model.offer(n, FRAME) for n in range(10_000))
        found = [model.damaged_bit(12_000) for _ in range(10_000)]
        assert model.counters.corrupted == sum(bit is not None for bit in found)
        return found

    flipped = [bit for bit in bits() if bit is not None]
    assert len(flipped) / 10_000 == pytest.approx(0.2, rel=0.1)
    assert all(0 <= bit < 12_000 for bit in flipped)
    assert len(set(flipped)) > 1_000
    assert bits() == bits()


def udp_frame(payload: bytes, checksum: int, flags: int) -> bytearray:
    addresses = bytes([10, 201, 1, 2, 10, 201, 1, 1])
    ip = struct.pack("!BBHIBBH", 0x45, 0, 28 + len(payload), 0, 64, 17, 0) + addresses
    udp = struct.pack("!HHHH", 7, 9, 8 + len(payload), checksum)
    return bytearray(
        struct.pack("=BBHHHH", flags, 0, 0, 0, 34, 6) + bytes(12) + b"\x08\x00" + ip + udp + payload
    )


def folded(data: bytes) -> int:
    """The ones' complement sum of 16-bit words, RFC 1071."""
    total = sum(data[n] << (8 if n % 2 == 0 else 0) for n in range(len(data)))
    return total % 0xFFFF


@given(st.binary(max_size=200), st.integers(0))
def test_a_flipped_bit_is_behind_the_ethernet_header_and_no_checksum_hides_it(
    payload: bytes, draw: int
) -> None:
    pseudo = bytes([10, 201, 1, 2, 10, 201, 1, 1, 0, 17]) + struct.pack("!H", 8 + len(payload))
    frame = udp_frame(payload, folded(pseudo), NEEDS_CSUM)
    whole = udp_frame(payload, 0, 0)
    bit = draw % ((len(frame) - VNET_BYTES - 14) * 8)
    damage(frame, len(frame), bit)
    assert frame[0] & (NEEDS_CSUM | DATA_VALID) == 0
    frame[VNET_BYTES + 14 + bit // 8] ^= 1 << bit % 8  # flipped back, it is what a NIC would have sent
    sent = frame[VNET_BYTES + 14 + 20 :]
    assert folded(pseudo + sent) == 0
    assert sent[6:8] != b"\0\0"
    assert frame[VNET_BYTES:][:40] + sent[8:] == whole[VNET_BYTES:][:40] + payload


def test_a_seed_begins_anew_only_what_it_is_for() -> None:
    params = LinkParams(loss=0.3, duplicate=0.3)
    model, fresh = LinkModel(1, params), LinkModel(9, params)
    offer_all(model, [1000] * 50)
    model.reseed(9, LinkParams(loss=0.1))
    lost = [not model.offer(n, FRAME) for n in range(100)]
    assert lost == [not fresh.offer(n, FRAME) for n in range(100)]
    assert model.counters.duplicated != fresh.counters.duplicated


def test_impairments_at_the_same_time_are_stretches_of_one_way() -> None:
    both = compose(
        LinkParams(delay_ms=10, rate_mbit=50, queue_ms=20, loss=0.1),
        LinkParams(delay_ms=5, jitter_ms=2, loss=0.2, mtu=1400, burst_loss=0.1, burst_frames=20),
        LinkParams(rate_mbit=2, queue_ms=100, mtu=1280, drop=True, corrupt=0.01),
    )
    assert both.loss == pytest.approx(0.28)
    assert merge(both, {"loss": 0.0}) == LinkParams(
        delay_ms=15, jitter_ms=2, rate_mbit=2, queue_ms=100, mtu=1280, burst_loss=0.1, burst_frames=20,
        drop=True, corrupt=0.01,
    )  # fmt: skip


@given(sane_params)
def test_alone_an_impairment_is_what_it_is(params: LinkParams) -> None:
    assert compose(params) == params
    assert compose(params, LinkParams()) == params


def test_two_burst_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="end it first"):
        compose(LinkParams(burst_loss=0.1), LinkParams(burst_loss=0.2))
