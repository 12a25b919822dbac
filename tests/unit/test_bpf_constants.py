"""What C and Python both say about JVP/1 and about the maps is the same."""

import re
from pathlib import Path

import pytest

from jvpn.holder import loader
from jvpn.protocol import constants
from jvpn.protocol.constants import PacketType, Role
from jvpn.session.bucket import DATAGRAM_RATE
from jvpn.supervisor import bound_table, steering, steering_backend
from jvpn.supervisor.steering_backend import Rate, cpumap_supported

BPF = Path(__file__).resolve().parents[2] / "bpf"
HEADER = (BPF / "jvp.h").read_text()


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def enumeration(name: str) -> dict[str, int]:
    """Members of a C enum, explicit values or counted on."""
    body = re.search(rf"enum {name} {{(.*?)}};", without_comments(HEADER), re.DOTALL)
    assert body, f"bpf/jvp.h has no enum {name}"
    values: dict[str, int] = {}
    following = 0
    for member in filter(None, (part.strip() for part in body[1].split(","))):
        label, _, value = (piece.strip() for piece in member.partition("="))
        following = int(value, 0) if value else following
        values[label] = following
        following += 1
    return values


def define(name: str) -> int:
    found = re.search(rf"^#define {name} (\w+)", HEADER, re.MULTILINE)
    assert found, f"bpf/jvp.h does not define {name}"
    return int(found[1], 0)


def test_packet_types() -> None:
    assert enumeration("jvp_type") == {f"JVP_TYPE_{t.name}": t.value for t in PacketType}


def test_roles() -> None:
    assert enumeration("jvp_role") == {f"JVP_ROLE_{r.name}": r.value for r in Role}


@pytest.mark.parametrize(
    "name",
    [
        "VERSION",
        "HEADER_SIZE",
        "OFFSET_STEERING_ID",
        "OFFSET_COUNTER",
        "TAG_SIZE",
        "REATTACH_REQUEST_SIZE",
        "SLOT_SUPERVISOR",
        "SLOT_UNAUTHENTICATED",
        "SLOT_FIRST_WORKER",
    ],
)
def test_protocol_numbers(name: str) -> None:
    assert define(f"JVP_{name}") == getattr(constants, name)


def test_implementation_numbers() -> None:
    assert define("JVP_MAX_PORTS") == steering_backend.MAX_PORTS
    assert define("JVP_BOUND_PLACES") == bound_table.PLACES
    assert define("JVP_MAX_SLOTS") == steering_backend.MAX_SLOTS
    assert define("JVP_CAPACITY") == loader.DEFAULT_CAPACITY
    assert define("JVP_ANY_CPU") == steering.ANY_CPU
    assert define("JVP_FLAG_CPUMAP") == steering.FLAG_CPUMAP
    assert define("JVP_FLAG_SUPERPACKETS") == steering.FLAG_SUPERPACKETS


def test_counters() -> None:
    names = [name.removeprefix("JVP_COUNT_").lower() for name in enumeration("jvp_counter")]
    assert names == ["none", *steering.COUNTERS, "jvp_counters"]


def test_every_counter_is_counted_somewhere() -> None:
    sources = "".join(without_comments((BPF / name).read_text()) for name in loader.SOURCES)
    for name in steering.COUNTERS:
        assert len(re.findall(rf"\bJVP_COUNT_{name.upper()}\b", sources)) > 1, name


def test_every_map_and_program_is_pinned() -> None:
    maps = re.findall(
        r'^BPF_(?:HASH|ARRAY|LPM_TRIE|CPUMAP|PERCPU_ARRAY)\((\w+)|^BPF_(?:F_)?TABLE\("\w+", [^,]+, [^,]+, (\w+)',
        HEADER,
        re.MULTILINE,
    )
    assert {a or b for a, b in maps} == set(loader.MAPS)
    sources = "".join((BPF / name).read_text() for name in loader.SOURCES)
    assert re.findall(r"^int (jvp_\w+)\(", sources, re.MULTILINE) == list(loader.PROGRAMS)


@pytest.mark.parametrize(
    ("release", "supported"),
    [
        ("6.1.0-56-amd64", False),
        ("6.14.9", False),
        ("6.15.0", True),
        ("6.18.44-cloud-2", True),
        ("7.0-rc1", True),
        ("5.19.0+", False),
    ],
)
def test_cpumap_needs_linux_6_15(release: str, supported: bool) -> None:
    assert cpumap_supported(release) is supported


def test_the_bucket_of_requests_is_shelter_for_the_supervisors() -> None:
    found = re.search(r"^#define JVP_REATTACH_INTERVAL_NS (\d+)ULL$", HEADER, re.MULTILINE)
    ahead = re.search(
        r"^#define JVP_REATTACH_BURST_NS \((\d+) \* JVP_REATTACH_INTERVAL_NS\)$", HEADER, re.MULTILINE
    )
    assert found
    assert ahead
    assert 10**9 / int(found[1]) >= 4 * DATAGRAM_RATE.per_s
    assert int(ahead[1]) + 1 >= 4 * DATAGRAM_RATE.burst


def test_rates_become_intervals() -> None:
    assert Rate(100, 200).pack() == (10_000_000, 1_990_000_000)
    assert Rate(0, 5).pack() == (0, 0), "no limit"
    assert Rate(10, 1).pack() == (100_000_000, 0)
