"""jvp_steer as data: a packet and the state of the maps in, a verdict and a counter out (BPF_PROG_TEST_RUN)."""

import os
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from bpf_support import ID, OTHER_ID, PORT, counted, datagram, loaded_pins, steering
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from jvpn.holder import bpf_syscall as bpf
from jvpn.protocol.constants import DATA_KINDS, PacketType, Role
from jvpn.protocol.wire import Header, WireError
from jvpn.supervisor.steering import Rate, Rates, Steering

__all__ = ["steering"]

pytestmark = pytest.mark.netns

DROP, PASS, REDIRECT = 1, 2, 4
SPORT = 40_000
T = PacketType
#: With addresses, so that Scapy asks no network for them.
ETHERNET = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
IPV4 = IP(src="198.51.100.7", dst="192.0.2.1")
IPV6 = IPv6(src="2001:db8:7::7", dst="2001:db8::1")
HOUR_NS = 3600 * 10**9
#: Refills within no test's life.
NEVER = 1e-6


class Family(NamedTuple):
    name: str
    bound: str
    other: str

    def ip(self, source: str) -> Packet:
        if self.name == "IPv4":
            return IP(src=source, dst="192.0.2.1")
        return IPv6(src=source, dst="2001:db8::1")

    def mapped(self, source: str) -> bytes:
        if self.name == "IPv4":
            return bytes(10) + b"\xff\xff" + socket.inet_aton(source)
        return socket.inet_pton(socket.AF_INET6, source)


FAMILIES = [
    Family("IPv4", "198.51.100.7", "198.51.100.8"),
    Family("IPv6", "2001:db8:7::7", "2001:db8:8::8"),
]


@pytest.fixture(params=FAMILIES, ids=lambda f: f.name)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@pytest.fixture
def on_cpu_0() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    yield
    os.sched_setaffinity(0, before)


def frame(
    family: Family, payload: bytes, source: str | None = None, sport: int = SPORT, dport: int = PORT
) -> bytes:
    return bytes(ETHERNET / family.ip(source or family.bound) / UDP(sport=sport, dport=dport) / Raw(payload))


def run(steering: Steering, packet: bytes) -> tuple[int, dict[str, int]]:
    before = steering.counters()
    verdict = bpf.prog_test_run(steering.steer_fd, packet).verdict
    return verdict, counted(steering, before)


def put(steering: Steering, family: Family, role: Role, drain_until_ns: int = 0) -> None:
    bound = None if role is Role.INSTALLED else family.mapped(family.bound)
    steering.put_id(ID, 3, role, bound, SPORT if bound else 0, drain_until_ns)


class Row(NamedTuple):
    """One cell of "Who lets what pass": a type from a source, and the counter it ends under."""

    role: str
    types: frozenset[PacketType]
    source: str
    counter: str


ALL = frozenset(PacketType)
NOT_TO_GATEWAY = frozenset({T.HANDSHAKE_RESPONSE, T.COOKIE, T.REATTACH_ACK, T.REATTACH_FAIL, T.RESET})


def one(kind: PacketType) -> frozenset[PacketType]:
    return frozenset({kind})


TABLE = [
    Row("pending", one(T.CONTROL), "bound", "pass_control"),
    Row("pending", one(T.CONTROL), "other", "drop_wrong_source"),
    Row("pending", one(T.CONTROL), "other port", "drop_wrong_source"),
    Row("pending", one(T.HANDSHAKE_INIT), "bound", "pass_handshake"),
    Row("pending", ALL - {T.CONTROL, T.HANDSHAKE_INIT}, "bound", "drop_wrong_role"),
    Row("installed", one(T.REATTACH_REQUEST), "other", "pass_reattach"),
    Row("installed", one(T.PATH), "other", "owner_path"),
    Row("installed", DATA_KINDS, "other", "owner_data"),
    Row("installed", NOT_TO_GATEWAY | {T.CONTROL}, "other", "drop_wrong_role"),
    *(
        row
        for role in ("active", "draining")
        for row in (
            Row(role, DATA_KINDS, "bound", "owner_data"),
            Row(role, DATA_KINDS, "other", "owner_sample"),
            Row(role, DATA_KINDS, "other port", "owner_sample"),
            Row(role, one(T.PATH), "bound", "owner_path"),
            Row(role, one(T.PATH), "other", "owner_path"),
            Row(role, one(T.REATTACH_REQUEST), "other", "pass_reattach"),
            Row(role, one(T.CONTROL), "other", "pass_control"),
            Row(role, one(T.HANDSHAKE_INIT), "other", "pass_handshake"),
            Row(role, NOT_TO_GATEWAY, "bound", "drop_wrong_role"),
        )
    ),
    Row("drained", one(T.REATTACH_REQUEST), "bound", "pass_reattach"),
    Row("drained", ALL - {T.REATTACH_REQUEST, T.HANDSHAKE_INIT}, "bound", "drop_drained"),
    Row("unknown", one(T.HANDSHAKE_INIT), "bound", "pass_handshake"),
    Row("unknown", one(T.REATTACH_REQUEST), "bound", "pass_reattach_unknown"),
    Row("unknown", ALL - {T.HANDSHAKE_INIT, T.REATTACH_REQUEST}, "bound", "drop_unknown_id"),
]
CELLS = [
    pytest.param(row, kind, id=f"{row.role}-{kind.name}-{row.source}".replace(" ", "_"))
    for row in TABLE
    for kind in sorted(row.types)
]


@pytest.mark.parametrize(("row", "kind"), CELLS)
def test_who_lets_what_pass(steering: Steering, family: Family, row: Row, kind: PacketType) -> None:
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    match row.role:
        case "draining":
            put(steering, family, Role.DRAINING, now_ns + HOUR_NS)
        case "drained":
            put(steering, family, Role.DRAINING, now_ns)
        case "unknown":
            pass
        case name:
            put(steering, family, Role[name.upper()])
    source = family.other if row.source == "other" else family.bound
    sport = SPORT + 1 if row.source == "other port" else SPORT
    verdict, counters = run(steering, frame(family, datagram(kind), source, sport))
    assert counters == {row.counter: 1}
    assert verdict == (DROP if row.counter.startswith("drop") else PASS)


def test_table_says_something_about_every_type_in_every_role() -> None:
    for role in ("pending", "installed", "active", "draining", "drained", "unknown"):
        said = frozenset[PacketType]().union(*(row.types for row in TABLE if row.role == role))
        assert said | {T.HANDSHAKE_INIT} == ALL, role


# --- the fence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.INSTALLED, Role.ACTIVE, Role.DRAINING])
def test_past_the_fence_only_the_supervisors_datagrams_pass(
    steering: Steering, family: Family, role: Role
) -> None:
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    put(steering, family, role, now_ns + HOUR_NS)
    frames = {kind: frame(family, datagram(kind)) for kind in (*DATA_KINDS, T.PATH)}
    before = {kind: run(steering, one) for kind, one in frames.items()}
    assert {verdict for verdict, _ in before.values()} == {PASS}
    steering.set_fence(now_ns)
    assert {kind: run(steering, one) for kind, one in frames.items()} == dict.fromkeys(
        frames, (DROP, {"drop_fenced": 1})
    )
    assert run(steering, frame(family, datagram(T.REATTACH_REQUEST))) == (PASS, {"pass_reattach": 1})
    assert run(steering, frame(family, datagram(T.HANDSHAKE_INIT))) == (PASS, {"pass_handshake": 1})
    assert run(steering, frame(family, datagram(T.CONTROL))) == (
        (DROP, {"drop_wrong_role": 1}) if role is Role.INSTALLED else (PASS, {"pass_control": 1})
    )
    assert run(steering, frame(family, datagram(T.DATA, OTHER_ID))) == (DROP, {"drop_unknown_id": 1})
    steering.set_fence(now_ns + HOUR_NS)
    assert {kind: run(steering, one) for kind, one in frames.items()} == before
    steering.set_fence(0)
    assert {kind: run(steering, one) for kind, one in frames.items()} == before


# --- samples and buckets -------------------------------------------------------------------------------------


def test_wrong_source_is_sampled_once_then_dropped(steering: Steering, family: Family) -> None:
    put(steering, family, Role.ACTIVE)
    wrong = frame(family, datagram(T.DATA), family.other)
    assert run(steering, wrong) == (PASS, {"owner_sample": 1})
    assert (DROP, {"drop_wrong_source": 1}) in [run(steering, wrong) for _ in range(5)]
    assert run(steering, frame(family, datagram(T.DATA))) == (PASS, {"owner_data": 1}), (
        "bound source unharmed"
    )


def test_first_wrong_source_after_a_bind_is_sampled_again(steering: Steering, family: Family) -> None:
    put(steering, family, Role.ACTIVE)
    wrong = frame(family, datagram(T.DATA), family.other)
    run(steering, wrong)
    put(steering, family, Role.ACTIVE)
    assert run(steering, wrong) == (PASS, {"owner_sample": 1})


def test_probes_do_not_use_up_the_sample(steering: Steering, family: Family) -> None:
    steering.set_rates(Rates(id=Rate(NEVER, 1)))
    put(steering, family, Role.ACTIVE)
    for _ in range(3):
        run(steering, frame(family, datagram(T.PATH)))
    assert run(steering, frame(family, datagram(T.DATA), family.other)) == (PASS, {"owner_sample": 1})


def test_source_bucket(steering: Steering, family: Family) -> None:
    steering.set_rates(Rates(source=Rate(NEVER, 3)))
    kinds = [T.HANDSHAKE_INIT, T.REATTACH_REQUEST, T.HANDSHAKE_INIT, T.REATTACH_REQUEST, T.HANDSHAKE_INIT]
    results = [run(steering, frame(family, datagram(kind, OTHER_ID))) for kind in kinds]
    assert [verdict for verdict, _ in results] == [PASS, PASS, PASS, DROP, DROP]
    assert results[-1][1] == {"drop_bucket_source": 1}
    assert run(steering, frame(family, datagram(T.HANDSHAKE_INIT), family.other))[0] == PASS, (
        "others unharmed"
    )


def test_source_bucket_counts_an_ipv6_network_as_one(steering: Steering) -> None:
    steering.set_rates(Rates(source=Rate(NEVER, 1)))
    init = datagram(T.HANDSHAKE_INIT)
    assert run(steering, frame(FAMILIES[1], init, "2001:db8:1:1::1"))[0] == PASS
    assert run(steering, frame(FAMILIES[1], init, "2001:db8:1:1::2")) == (DROP, {"drop_bucket_source": 1})
    assert run(steering, frame(FAMILIES[1], init, "2001:db8:1:2::1"))[0] == PASS


def test_global_bucket(steering: Steering) -> None:
    steering.set_rates(Rates(unauthenticated=Rate(NEVER, 4)))
    init = datagram(T.HANDSHAKE_INIT)
    results = [run(steering, frame(FAMILIES[0], init, f"198.51.100.{n}")) for n in range(6)]
    assert [verdict for verdict, _ in results] == [PASS] * 4 + [DROP] * 2
    assert results[-1][1] == {"drop_bucket_global": 1}
    steering.put_id(ID, 3, Role.INSTALLED)
    assert run(steering, frame(FAMILIES[0], datagram(T.REATTACH_REQUEST)))[0] == PASS, "known ids unharmed"


@pytest.mark.parametrize("role", [Role.INSTALLED, Role.ACTIVE])
def test_id_bucket(steering: Steering, family: Family, role: Role) -> None:
    steering.set_rates(Rates(id=Rate(NEVER, 2)))
    put(steering, family, role)
    kind = T.DATA if role is Role.INSTALLED else T.PATH
    elsewhere = SPORT + 1
    results = [run(steering, frame(family, datagram(kind), sport=elsewhere)) for _ in range(4)]
    assert [verdict for verdict, _ in results] == [PASS, PASS, DROP, DROP]
    assert results[-1][1] == {"drop_bucket_id": 1}
    if role is Role.ACTIVE:
        assert run(steering, frame(family, datagram(kind)))[0] == PASS, "the bound source is not harmed"
    assert run(steering, frame(family, datagram(T.REATTACH_REQUEST)))[0] == PASS


@pytest.mark.parametrize("role", [Role.INSTALLED, Role.ACTIVE, Role.DRAINING])
def test_requests_on_one_id_have_a_bucket(steering: Steering, family: Family, role: Role) -> None:
    put(steering, family, role, time.clock_gettime_ns(time.CLOCK_BOOTTIME) + HOUR_NS)
    steering.put_id(OTHER_ID, 3, Role.INSTALLED)
    forged = frame(family, datagram(T.REATTACH_REQUEST), family.other)
    assert [run(steering, forged) for _ in range(20)] == [(PASS, {"pass_reattach": 1})] * 20, (
        "a client's burst"
    )
    before = steering.counters()
    flood = 20_000
    bpf.prog_test_run(steering.steer_fd, forged, repeat=flood)
    counters = counted(steering, before)
    assert counters.keys() == {"pass_reattach", "drop_bucket_id"}
    assert sum(counters.values()) == flood
    assert run(steering, frame(family, datagram(T.REATTACH_REQUEST, OTHER_ID)))[0] == PASS, (
        "other ids unharmed"
    )
    # The buckets of PATH and of samples are others.
    assert run(steering, frame(family, datagram(T.PATH), family.other))[0] == PASS
    if role is not Role.INSTALLED:
        assert run(steering, frame(family, datagram(T.DATA), family.other)) == (PASS, {"owner_sample": 1})


def test_no_limit(steering: Steering, family: Family) -> None:
    steering.set_rates(Rates(Rate(0, 0), Rate(0, 0), Rate(0, 0)))
    init = frame(family, datagram(T.HANDSHAKE_INIT))
    assert {run(steering, init)[0] for _ in range(50)} == {PASS}


# --- the header's own rules ------------------------------------------------------------------------------------

BROKEN = [
    ("empty", b"", "truncated"),
    ("19 bytes", datagram(T.DATA, size=19), "truncated"),
    ("no tag", datagram(T.DATA, size=35), "bad_length"),
    ("short request", datagram(T.REATTACH_REQUEST, size=255), "bad_length"),
    ("long request", datagram(T.REATTACH_REQUEST, size=257), "bad_length"),
    ("long reset", datagram(T.RESET, size=37), "bad_length"),
    ("type 0", datagram(0), "unknown_type"),
    ("QUIC", datagram(0x40), "unknown_type"),
    ("version 0", datagram(T.DATA, version_phase=0x00), "bad_version"),
    ("version 2", datagram(T.DATA, version_phase=0x20), "bad_version"),
    ("suite in DATA", datagram(T.DATA, suite=1), "reserved_bits"),
    ("byte 3", datagram(T.DATA, zero=1), "reserved_bits"),
    ("phase in INIT", datagram(T.HANDSHAKE_INIT, version_phase=0x11), "reserved_bits"),
    ("counter in INIT", datagram(T.HANDSHAKE_INIT, counter=1), "reserved_bits"),
]


@pytest.mark.parametrize(("payload", "reason"), [pytest.param(p, r, id=n) for n, p, r in BROKEN])
def test_broken_headers_are_dropped(steering: Steering, family: Family, payload: bytes, reason: str) -> None:
    put(steering, family, Role.ACTIVE)
    assert run(steering, frame(family, payload)) == (DROP, {f"drop_{reason}": 1})


@pytest.mark.parametrize("kind", [T.DATA, T.HANDSHAKE_INIT])
def test_shortest_datagram_and_legal_bits(steering: Steering, family: Family, kind: PacketType) -> None:
    put(steering, family, Role.ACTIVE)
    suite, phase, counter = (2, 0, 0) if kind is T.HANDSHAKE_INIT else (0, 15, 2**64 - 1)
    payload = datagram(kind, size=36, suite=suite, version_phase=0x10 | phase, counter=counter)
    assert run(steering, frame(family, payload))[0] == PASS


octets = st.integers(0, 255)
headers = st.builds(
    datagram,
    st.sampled_from(list(PacketType)) | octets,
    size=st.sampled_from([0, 19, 20, 35, 36, 37, 255, 256, 257, 1200]),
    version_phase=st.sampled_from([0x10, 0x11, 0x1F]) | octets,
    suite=st.sampled_from([0, 0, 1]),
    zero=st.sampled_from([0, 0, 0, 1]),
    counter=st.sampled_from([0, 0, 1, 2**63]),
)


@given(payload=headers)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_agrees_with_the_python_parser(steering: Steering, payload: bytes) -> None:
    """The drop counter is the reason that jvpn/protocol/wire.py gives, and there is none where it gives none."""
    try:
        Header.decode(payload)
        expected = None
    except WireError as error:
        expected = f"drop_{error.reason}"
    _, counters = run(steering, frame(FAMILIES[0], payload))
    (name,) = counters
    formal = {"truncated", "unknown_type", "bad_version", "reserved_bits", "bad_length"}
    assert (name if name.removeprefix("drop_") in formal else None) == expected


def test_udp_length_beyond_the_frame(steering: Steering, family: Family) -> None:
    whole = (
        ETHERNET / family.ip(family.bound) / UDP(sport=SPORT, dport=PORT, len=8 + 100) / Raw(datagram(T.DATA))
    )
    assert run(steering, bytes(whole)) == (DROP, {"drop_truncated": 1})


def test_udp_length_below_its_header(steering: Steering, family: Family) -> None:
    whole = ETHERNET / family.ip(family.bound) / UDP(sport=SPORT, dport=PORT, len=7) / Raw(datagram(T.DATA))
    assert run(steering, bytes(whole)) == (DROP, {"drop_truncated": 1})


def test_ethernet_padding_is_not_payload(steering: Steering, family: Family) -> None:
    put(steering, family, Role.ACTIVE)
    packet = frame(family, datagram(T.DATA, size=19)) + bytes(40)
    assert run(steering, packet) == (DROP, {"drop_truncated": 1})


def test_generic_mode_sees_superpackets(steering: Steering, family: Family) -> None:
    """Behind GRO a REQUEST's header may stand before DATA that followed it."""
    put(steering, family, Role.INSTALLED)
    superpacket = frame(family, datagram(T.REATTACH_REQUEST, size=512))
    assert run(steering, superpacket) == (DROP, {"drop_bad_length": 1})
    steering.set_xdp_mode("generic")
    assert run(steering, superpacket) == (PASS, {"pass_reattach": 1})
    short = frame(family, datagram(T.REATTACH_REQUEST, size=255))
    assert run(steering, short) == (DROP, {"drop_bad_length": 1})


# --- what is not ours passes ----------------------------------------------------------------------------------

JVP = UDP(sport=SPORT, dport=PORT) / Raw(datagram(T.DATA))
PASSES: list[tuple[str, Any, str]] = [
    ("ARP", ETHERNET / ARP(psrc="192.0.2.2", pdst="192.0.2.1", hwsrc=ETHERNET.src), "not_ours"),
    ("VLAN", ETHERNET / Dot1Q(vlan=5) / IPV4 / JVP, "not_ours"),
    ("TCP", ETHERNET / IPV4 / TCP(dport=PORT) / Raw(bytes(60)), "not_ours"),
    ("ICMP", ETHERNET / IPV4 / ICMP() / Raw(bytes(60)), "not_ours"),
    ("other port", ETHERNET / IPV4 / UDP(dport=PORT + 1) / Raw(bytes(60)), "not_ours"),
    ("port zero", ETHERNET / IPV4 / UDP(dport=0) / Raw(bytes(60)), "not_ours"),
    ("our port as source", ETHERNET / IPV4 / UDP(sport=PORT, dport=53) / Raw(bytes(60)), "not_ours"),
    ("IPv6 other port", ETHERNET / IPV6 / UDP(dport=PORT + 1) / Raw(bytes(60)), "not_ours"),
    ("IPv6 TCP", ETHERNET / IPV6 / TCP(dport=PORT) / Raw(bytes(60)), "not_ours"),
    ("first fragment", ETHERNET / IP(src="198.51.100.7", dst="192.0.2.1", flags="MF") / JVP, "fragment"),
    ("last fragment", ETHERNET / IP(src="198.51.100.7", dst="192.0.2.1", frag=100) / JVP, "fragment"),
    ("IPv6 fragment", ETHERNET / IPV6 / IPv6ExtHdrFragment(m=1) / JVP, "fragment"),
    ("hop-by-hop", ETHERNET / IPV6 / IPv6ExtHdrHopByHop() / JVP, "extension_header"),
    ("destination options", ETHERNET / IPV6 / IPv6ExtHdrDestOpt() / JVP, "extension_header"),
    ("IPv4 cut off", bytes(ETHERNET / IPV4 / JVP)[:30], "not_ours"),
    ("IPv6 cut off", bytes(ETHERNET / IPV6 / JVP)[:50], "not_ours"),
    ("UDP cut off", bytes(ETHERNET / IPV4 / JVP)[:40], "not_ours"),
    (
        "options cut off",
        bytes(ETHERNET / IP(src="198.51.100.7", dst="192.0.2.1", ihl=15) / JVP)[:44],
        "not_ours",
    ),
    ("header length below 20", ETHERNET / IP(src="198.51.100.7", dst="192.0.2.1", ihl=4) / JVP, "not_ours"),
]


@pytest.mark.parametrize(("packet", "reason"), [pytest.param(p, r, id=n) for n, p, r in PASSES])
def test_what_is_not_ours_passes(steering: Steering, packet: Packet | bytes, reason: str) -> None:
    assert run(steering, bytes(packet)) == (PASS, {f"pass_{reason}": 1})


def test_do_not_fragment_is_no_fragment(steering: Steering) -> None:
    assert run(steering, bytes(ETHERNET / IP(src="198.51.100.7", dst="192.0.2.1", flags="DF") / JVP)) == (
        DROP,
        {"drop_unknown_id": 1},
    )


@pytest.mark.parametrize("count", [4, 40])
def test_ipv4_options_are_skipped(steering: Steering, count: int) -> None:
    put(steering, FAMILIES[0], Role.ACTIVE)
    ip = IP(src=FAMILIES[0].bound, dst="192.0.2.1", options=[IPOption_NOP()] * count)
    assert run(steering, bytes(ETHERNET / ip / JVP)) == (PASS, {"owner_data": 1})


def test_every_configured_port_is_ours(steering: Steering, family: Family) -> None:
    ports = list(range(PORT, PORT + 8))
    steering.set_ports(ports)
    for port in ports:
        packet = frame(family, datagram(T.DATA), dport=port)
        assert run(steering, packet) == (DROP, {"drop_unknown_id": 1})
    steering.set_ports([])
    assert run(steering, frame(family, datagram(T.DATA))) == (PASS, {"pass_not_ours": 1})


# --- to the owner -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_cpu_0")
class TestToTheOwnersCpu:
    pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")

    @pytest.fixture(autouse=True)
    def crossing(self, steering: Steering, family: Family) -> None:
        steering.set_cpu(1)
        steering.allow_cpumap(True)
        put(steering, family, Role.ACTIVE)

    def test_crosses(self, steering: Steering, family: Family) -> None:
        steering.set_slot(3, 1, 3, 1)
        for kind, name in ((T.DATA, "owner_data"), (T.PATH, "owner_path")):
            assert run(steering, frame(family, datagram(kind))) == (REDIRECT, {name: 1, "redirected": 1})
        wrong = frame(family, datagram(T.DATA), family.other)
        assert run(steering, wrong) == (REDIRECT, {"owner_sample": 1, "redirected": 1})

    def test_what_is_for_the_supervisor_stays(self, steering: Steering, family: Family) -> None:
        steering.set_slot(3, 1, 3, 1)
        for kind in (T.CONTROL, T.REATTACH_REQUEST, T.HANDSHAKE_INIT):
            assert run(steering, frame(family, datagram(kind)))[0] == PASS

    def test_moving_the_slot_moves_the_session(self, steering: Steering, family: Family) -> None:
        steering.set_slot(3, 1, 3, 1)
        steering.set_slot(3, 0, 3, 1)
        assert run(steering, frame(family, datagram(T.DATA))) == (PASS, {"owner_data": 1})

    def test_worker_on_any_cpu(self, steering: Steering, family: Family) -> None:
        assert run(steering, frame(family, datagram(T.DATA))) == (PASS, {"owner_data": 1})

    def test_not_when_it_is_off_or_generic(self, steering: Steering, family: Family) -> None:
        steering.set_slot(3, 1, 3, 1)
        steering.set_xdp_mode("generic")
        assert run(steering, frame(family, datagram(T.DATA)))[0] == PASS
        steering.allow_cpumap(True)
        assert run(steering, frame(family, datagram(T.DATA)))[0] == PASS
        steering.set_xdp_mode("native")
        assert run(steering, frame(family, datagram(T.DATA)))[0] == REDIRECT
        steering.allow_cpumap(False)
        assert run(steering, frame(family, datagram(T.DATA)))[0] == PASS

    @pytest.mark.parametrize(("allowed", "verdict"), [(True, REDIRECT), (False, PASS)])
    def test_a_new_supervisor_leaves_it_as_it_is(
        self, steering: Steering, family: Family, allowed: bool, verdict: int
    ) -> None:
        steering.set_slot(3, 1, 3, 1)
        steering.allow_cpumap(allowed)
        with Steering(loaded_pins()) as again:
            again.set_ports([PORT])
            assert run(again, frame(family, datagram(T.DATA)))[0] == verdict
