"""docs/protocol.md says what the code does: every table of it that has numbers is read and held against them.

A comment before a table says what it is: `enum: Name`, `layout: name [total]`, `numbers: which`, `members: Name`.
"""

import re
import struct
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest

import jvpn.protocol.handshake
import jvpn.protocol.messages
import jvpn.protocol.offload
import jvpn.protocol.paths
import jvpn.protocol.reattach
import jvpn.protocol.rekey
import jvpn.protocol.wire
from jvpn.agent import core, handshaking, owners, paths, reattaching, rekeying, switching
from jvpn.agent import upkeep as client_upkeep
from jvpn.policy import health
from jvpn.policy.model import Policy
from jvpn.protocol import constants, control, messages, offload, sealed_control
from jvpn.protocol.constants import PathKind, Transport
from jvpn.protocol.control import ControlType
from jvpn.protocol.handshake import Kem
from jvpn.protocol.key_limits import KEY_LIMITS
from jvpn.protocol.reattach import Cause, Result
from jvpn.protocol.suites import SUITES
from jvpn.session import bucket
from jvpn.session.machine import LOSS_CAUSES, VOLUNTARY_CAUSES, Reason, State
from jvpn.session.ownership import Code
from jvpn.supervisor import admission, controlling, handshakes, proven, takeover
from workers import fragments, sessions, singles
from workers import paths as worker_paths

PAGE = (Path(__file__).parent.parent.parent / "docs" / "protocol.md").read_text()
Table = list[list[str]]


def tables() -> dict[str, Table]:
    """Marked tables by their mark, header and ruler lines left out."""
    found: dict[str, Table] = {}
    for match in re.finditer(r"<!-- (.+?) -->\n((?:\|.*\n)+)", PAGE):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in match[2].splitlines()]
        assert match[1] not in found, f"{match[1]} stands twice"
        found[match[1]] = rows[2:]
    return found


TABLES = tables()
LAYOUTS = {mark.split()[1]: rows for mark, rows in TABLES.items() if mark.startswith("layout: ")}
TOTALS = {
    mark.split()[1]: int(mark.split()[2])
    for mark in TABLES
    if mark.startswith("layout: ") and mark.count(" ") > 1
}


def test_every_mark_has_a_table() -> None:
    assert len(re.findall(r"<!-- ", PAGE)) == len(TABLES)


def test_no_table_with_offsets_is_unmarked() -> None:
    assert PAGE.count("| offset | size |") == len(LAYOUTS)


# --- numbered names -------------------------------------------------------------------------------------------------

STATES = {state.name: state.number for state in State}
ENUMS: dict[str, dict[str, int]] = {
    "State": STATES,
    **{
        kind.__name__: {member.name: int(member) for member in kind}
        for kind in (
            constants.PacketType,
            PathKind,
            Transport,
            ControlType,
            Kem,
            Cause,
            Result,
            offload.Segmentation,
        )
    },
}


def test_every_enum_of_the_page_is_known() -> None:
    assert {mark.removeprefix("enum: ") for mark in TABLES if mark.startswith("enum: ")} == set(ENUMS)


@pytest.mark.parametrize("name", ENUMS)
def test_enum(name: str) -> None:
    assert {row[1]: int(row[0], 0) for row in TABLES[f"enum: {name}"]} == ENUMS[name]


def test_which_control_types_want_an_ack() -> None:
    said = {row[1] for row in TABLES["enum: ControlType"] if row[3] == "yes"}
    assert said == {kind.name for kind in control.RELIABLE}


def test_kinds_of_causes() -> None:
    kinds = {row[1]: row[2] for row in TABLES["enum: Cause"]}
    assert {name for name, kind in kinds.items() if kind == "loss"} == {reason.name for reason in LOSS_CAUSES}
    assert {n for n, kind in kinds.items() if kind == "voluntary"} == {r.name for r in VOLUNTARY_CAUSES}


def test_reason_codes() -> None:
    said = set(re.findall(r"`([A-Z_]+)`", "".join(row[1] for row in TABLES["reasons"])))
    assert said == {reason.name for reason in Reason}


def test_reasons_of_fail() -> None:
    after_fail = PAGE[PAGE.index("| reason | the client |") : PAGE.index("### The client's duties")]
    said = set(re.findall(r"`([A-Z_]+)`", after_fail))
    never_in_fail = {"REATTACH_OK", "CHALLENGE_REQUIRED", "ALREADY_BOUND", "UNKNOWN_SESSION", "BAD_PROOF"}
    assert said == {code.name for code in Code} - never_in_fail - {"NOT_ATTACHED", "STALE_ATTEMPT"}


def test_key_limits() -> None:
    for number, limits in KEY_LIMITS.items():
        sent, forged = (power.bit_length() - 1 for power in (limits.sent, limits.forged))
        row = next(
            line
            for line in PAGE.split("<!-- key limits -->")[1].splitlines()
            if line.startswith(f"| {number} |")
        )
        told = row.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789"))
        assert told.startswith(f"| {number} | 2{sent}")
        assert told.endswith(f"| 2{forged} |")
        assert (1 << sent, 1 << forged) == (limits.sent, limits.forged)


def test_suites() -> None:
    said = {int(row[0]): row[1] for row in TABLES["suites"]}
    assert said == {n: f"Noise_IKpsk2_25519_{suite.name}" for n, suite in SUITES.items()}


# --- layouts --------------------------------------------------------------------------------------------------------


def sizes_of(packed: struct.Struct) -> list[int]:
    """Field sizes of a big-endian struct."""
    unit = {"B": 1, "H": 2, "I": 4, "Q": 8}
    parts = re.findall(r"(\d*)([BHIQsx])", packed.format)
    sizes = []
    for number, code in parts:
        sizes += [int(number)] if code == "s" else [unit[code]] * int(number or 1)
    return sizes


def fixed(rows: Table) -> list[int]:
    """Sizes of the leading fields whose place and size are numbers."""
    sizes = []
    for row in rows:
        if not (row[0].isdigit() and row[1].isdigit()):
            break
        sizes.append(int(row[1]))
    return sizes


@pytest.mark.parametrize("name", LAYOUTS)
def test_fields_follow_each_other(name: str) -> None:
    at = 0
    for row, size in zip(LAYOUTS[name], fixed(LAYOUTS[name]), strict=False):
        assert int(row[0]) == at, f"{name}: {row}"
        at += size
    if name in TOTALS:
        variable = [row for row in LAYOUTS[name] if not row[1].isdigit()]
        assert variable or at == TOTALS[name], name
    rest = LAYOUTS[name][len(fixed(LAYOUTS[name])) :]
    if rest and rest[0][0].isdigit():
        assert int(rest[0][0]) == at, f"{name}: {rest[0]}"


STRUCTS = {
    "init_payload": (jvpn.protocol.handshake._INIT_PAYLOAD, 0),
    "response_payload": (jvpn.protocol.handshake._RESPONSE_PAYLOAD, 0),
    "frame": (control._FRAME, 0),
    "health": (messages._HEALTH, 0),
    "state": (messages._STATE, 0),
    "rekey": (jvpn.protocol.rekey._FIXED, 0),
    "probe": (jvpn.protocol.paths._PROBE, 0),
    "probe_ack": (jvpn.protocol.paths._ACK, 0),
    "mtu_probe": (jvpn.protocol.paths._MTU, 0),
    "request_plaintext": (jvpn.protocol.reattach._REQUEST, 0),
    "ack_plaintext": (jvpn.protocol.reattach._ACK, 0),
    "fail_plaintext": (jvpn.protocol.reattach._FAIL, 1),
    "offload": (offload.OFFLOAD, 0),
    "fragment": (fragments._HEADER, 0),
}


@pytest.mark.parametrize("name", STRUCTS)
def test_layout_is_the_struct_of_the_code(name: str) -> None:
    packed, behind = STRUCTS[name]
    said = fixed(LAYOUTS[name])
    assert said[: len(said) - behind] == sizes_of(packed)


def test_header_layout_and_sizes_of_datagrams() -> None:
    # The header's struct keeps version and phase in one byte, as the table does.
    assert fixed(LAYOUTS["header"]) == sizes_of(jvpn.protocol.wire._HEADER)
    ranges = jvpn.protocol.handshake._SIZES
    said = {row[1]: [int(n) for n in re.findall(r"\d+", row[3])] for row in TABLES["enum: PacketType"]}
    init = ranges[constants.PacketType.HANDSHAKE_INIT]
    assert said["HANDSHAKE_INIT"] == [min(init), max(init)]
    assert (
        said["HANDSHAKE_RESPONSE"]
        == [*ranges[constants.PacketType.HANDSHAKE_RESPONSE]]
        == [TOTALS["response"]]
    )
    assert said["COOKIE"] == [*ranges[constants.PacketType.COOKIE]] == [TOTALS["cookie"]]
    outside = constants.HEADER_SIZE + constants.TAG_SIZE
    answer = outside + constants.SALT_SIZE
    assert said["REATTACH_REQUEST"] == [constants.REATTACH_REQUEST_SIZE] == [TOTALS["request"]]
    most = constants.REATTACH_ACK_MAX_SIZE
    assert said["REATTACH_ACK"] == [answer + jvpn.protocol.reattach._ACK.size, most]
    assert said["REATTACH_FAIL"] == [answer + jvpn.protocol.reattach._FAIL.size + 2, most]
    assert said["CONTROL"] == [outside + constants.CONTROL_FRAME_HEADER, constants.MAX_CONTROL_DATAGRAM]
    assert said["PATH"] == [outside + jvpn.protocol.paths.PATH_SIZE, constants.MAX_UDP_PAYLOAD]
    least_data = outside + constants.OFFLOAD_HEADER_SIZE + 20
    assert said["DATA"] == [least_data, constants.MAX_UDP_PAYLOAD]
    assert sum(fixed(LAYOUTS["resent"])) == singles._RESENT_HEADER
    assert said["RESENT"] == [least_data + singles._RESENT_HEADER, constants.MAX_UDP_PAYLOAD]
    assert said["RESET"] == [jvpn.protocol.wire._EXACT[constants.PacketType.RESET]] == [TOTALS["reset"]]
    assert said["FRAGMENT"] == [jvpn.protocol.wire._MINIMUM[constants.PacketType.FRAGMENT]]


def test_sealed_sizes() -> None:
    assert TOTALS["request_plaintext"] == jvpn.protocol.reattach._PLAINTEXT
    assert f"so the plaintext has at most {control.MAX_PLAINTEXT}" in PAGE
    assert f"longer than {control.MAX_CHUNK} bytes" in PAGE
    fixed_part, rekey = jvpn.protocol.rekey._FIXED.size, jvpn.protocol.rekey
    with_kem = fixed_part + rekey.ENCAPSULATION_KEY_SIZE, fixed_part + rekey.CIPHERTEXT_SIZE
    assert f"REKEY_INIT has {with_kem[0]} bytes with KEM" in PAGE
    assert f"{fixed_part} without, REKEY_RESPONSE {with_kem[1]} or {fixed_part}" in PAGE


# --- numbers --------------------------------------------------------------------------------------------------------


def test_constants() -> None:
    said = {row[0].strip("`"): int(row[1]) for row in TABLES["numbers: constants"]}
    implementation = {
        "MAX_SEGMENTS",
        "MAX_UDP_PAYLOAD",
        "TUN_MTU",
        *(n for n in vars(constants) if n.startswith("SLOT_")),
    }
    in_code = {
        name: value
        for name, value in vars(constants).items()
        if name.isupper() and isinstance(value, int) and not isinstance(value, IntEnum)
    }
    assert said == {name: value for name, value in in_code.items() if name not in implementation}


def test_numbers_of_the_implementation() -> None:
    said = {row[0]: int(row[1]) for row in TABLES["numbers: implementation"]}
    assert said == {
        "INIT without cookie before COOKIE, rate": admission.UNPROVEN_RATE.per_s,
        "INIT without cookie before COOKIE, burst": admission.UNPROVEN_RATE.burst,
        "INIT from one source address, rate": admission.SOURCE_RATE.per_s,
        "INIT from one source address, burst": admission.SOURCE_RATE.burst,
        "INIT in all, rate": admission.GLOBAL_RATE.per_s,
        "INIT in all, burst": admission.GLOBAL_RATE.burst,
        "cookie time slot; this and the last are accepted": admission.COOKIE_SLOT_MS,
        "REQUEST on one index, rate": bucket.DATAGRAM_RATE.per_s,
        "REQUEST on one index, burst": bucket.DATAGRAM_RATE.burst,
        "binds after a loss, rate": bucket.BIND_RATE.per_s,
        "binds after a loss, burst": bucket.BIND_RATE.burst,
        "REQUEST by ticket, in all, rate": takeover.RATE.per_s,
        "REQUEST by ticket, in all, burst": takeover.RATE.burst,
        "REQUEST by ticket, of one session, rate": takeover.SESSION_RATE.per_s,
        "REQUEST by ticket, of one session, burst": takeover.SESSION_RATE.burst,
        "REQUEST by ticket, from one source address, rate": takeover.SOURCE_RATE.per_s,
        "REQUEST by ticket, from one source address, burst": takeover.SOURCE_RATE.burst,
        "handshakes answered to one client key, rate": handshakes.KEY_RATE.per_s,
        "handshakes answered to one client key, burst": handshakes.KEY_RATE.burst,
        "tickets in CONFIG for indexes above the installed ones": controlling.TICKETS_AHEAD,
        "indexes searched above the highest stored": proven.SEARCH_ABOVE,
        "indexes searched below the highest stored": proven.SEARCH_BELOW,
        "PROBE on one index, rate": worker_paths.PROBES_PER_S,
        "PROBE on one index, burst": worker_paths.PROBE_BURST,
        "PROBE again from another source than the bound one, rate": worker_paths.STRAY_PER_S,
        "PROBE again from another source than the bound one, burst": worker_paths.STRAY_BURST,
        "replay windows of DATA kept, indexes": sessions.WINDOWS,
        "replay windows of CONTROL kept, indexes": sealed_control._WINDOWS_KEPT,
        "idle probe intervals of silence before a binding is dropped": health.GATEWAY_SILENCE_INTERVALS,
        "client: first INIT repeated after": handshaking.FIRST_RETRY_MS,
        "client: INIT repeated at most every": handshaking.LAST_RETRY_MS,
        "client: gives up confirming after": core.CONFIRM_TIMEOUT_MS,
        "client: confirmation repeated every": client_upkeep.CONFIRM_REPEAT_MS,
        "client: REKEY_INIT said again after": rekeying.AGAIN_MS,
        "client: datagrams under a phase before a rekey": rekeying.PACKETS_PER_PHASE,
        "client: REQUEST repeated every, at first": reattaching.RETRY_MS,
        "client: REQUEST repeated every, at last": reattaching.RETRY_MAX_MS,
        "client: REQUESTs on `max_candidates` paths before others": reattaching.TRIES_PER_CANDIDATE,
        "client: challenge kept for": paths.CHALLENGE_LIFE_MS,
        "client: other ways have to contradict a RESET": owners.RESET_PATIENCE_MS,
        'client: waits for a "retry after" without a path at most': switching.RETRY_AFTER_MAX_MS,
        "tunnel MTU": constants.TUN_MTU,
        "segments in one send": constants.MAX_SEGMENTS,
    }


# --- CONFIG ---------------------------------------------------------------------------------------------------------


def test_members_of_config() -> None:
    said = [row[0].strip("`") for row in TABLES["members: Config"]]
    in_code = [field.name for field in msgspec.structs.fields(messages.Config)]
    assert sorted(said) == sorted(in_code)


def test_defaults_of_the_policy_members() -> None:
    default: dict[str, Any] = msgspec.json.decode(Policy.default().to_wire())
    for row in TABLES["members: Policy"]:
        assert msgspec.json.decode(row[1]) == default[row[0].strip("`")], row[0]
