"""Spoilt copies of a session's real datagrams: of every type, by every kind, the same again with the same seed."""

import random

import pytest
from scapy.config import conf
from scapy_capture import Capture, capture, strict_scapy

from jvpn.protocol.constants import PacketType
from vagrant.traffic import jvp
from vagrant.traffic.attacks.means.mutation import KINDS, LONGEST, mutated

__all__ = ["capture", "strict_scapy"]
TIMES = 200


@pytest.fixture(scope="module")
def samples(capture: Capture) -> dict[PacketType, bytes]:
    return {flight.kind: flight.data for flight in capture.pair.sent}


@pytest.mark.parametrize("how", sorted(KINDS))
def test_no_copy_is_what_it_was_and_each_fits_a_packet(samples: dict[PacketType, bytes], how: str) -> None:
    dice = random.Random(1)
    for data in (*samples.values(), b"\x20", bytes(LONGEST)):
        made = [mutated(dice, data, how)[1] for _ in range(TIMES)]
        assert data not in made
        assert max(map(len, made)) <= LONGEST
        # They differ from each other too, as far as there is anything to differ in.
        assert len(set(made)) > TIMES // 4 or len(data) == 1 or how == "truncated"


def test_each_kind_does_what_its_name_says(samples: dict[PacketType, bytes]) -> None:
    dice = random.Random(2)
    for data in samples.values():
        cut, longer, turned = (mutated(dice, data, how)[1] for how in ("truncated", "extended", "flipped"))
        assert data.startswith(cut)
        assert longer.startswith(data)
        different = sum((a ^ b).bit_count() for a, b in zip(data, turned, strict=True))
        assert 1 <= different <= 8


def test_fields_of_the_header_are_edited_in_every_type(samples: dict[PacketType, bytes]) -> None:
    dice = random.Random(3)
    for data in samples.values():
        headers = {mutated(dice, data, "edited")[1][:20] for _ in range(TIMES)}
        assert len(headers) > 5
        bodies = {mutated(dice, data, "edited")[1][20:] for _ in range(TIMES)}
        assert len(bodies) > 5


def test_with_a_key_log_a_field_of_what_is_sealed_is_edited_and_stays_authentic(capture: Capture) -> None:
    # What is spoilt does not always dissect.
    conf.debug_dissector = False
    jvp.use_keylog(capture.log)
    dice = random.Random(4)
    flight = capture.flights(PacketType.REATTACH_REQUEST)[0]
    original = jvp.JVP(flight.data)[jvp.JVPRequest]
    inside = []
    for _ in range(TIMES):
        packet = jvp.JVP(mutated(dice, flight.data, "edited")[1])
        if jvp.JVPRequest in packet:
            inside.append(packet[jvp.JVPRequest])
    changed = {
        name
        for request in inside
        for name in ("attempt", "path_index", "state_version", "cause", "challenge")
        if request.getfieldval(name) != original.getfieldval(name)
    }
    assert changed == {"attempt", "path_index", "state_version", "cause", "challenge"}


def test_the_same_seed_gives_the_same_copies(samples: dict[PacketType, bytes]) -> None:
    runs = []
    for seed in (7, 7, 8):
        dice = random.Random(seed)
        runs.append([mutated(dice, data) for data in samples.values() for _ in range(20)])
    assert runs[0] == runs[1] != runs[2]
