"""Reliable CONTROL: frames, chunks, repeats, acknowledgements, and the sealed datagrams around them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpn.protocol.constants import (
    CONTROL_MESSAGE_MAX,
    CONTROL_REASSEMBLIES,
    CONTROL_REMEMBERED_IDS,
    CONTROL_REPEAT_MIN_MS,
    CONTROL_REPLAY_WINDOW,
    GENERATION_SHIFT,
    MAX_CONTROL_DATAGRAM,
    Direction,
)
from jvpn.protocol.control import (
    MAX_CHUNK,
    MAX_PLAINTEXT,
    WANTS_ACK,
    ControlChannel,
    ControlType,
    Frame,
    Message,
    decode_frames,
)
from jvpn.protocol.keys import SessionSecrets, steering_id
from jvpn.protocol.sealed_control import SealedControl
from jvpn.protocol.suites import suite
from jvpn.protocol.wire import Header, WireError

LONG = bytes(range(256)) * 20


def pump(sender: ControlChannel, receiver: ControlChannel, now_ms: int) -> list[Message]:
    """Everything due, once each way."""
    received = [m for plaintext in sender.plaintexts_to_send(now_ms) for m in receiver.receive(plaintext)]
    for plaintext in receiver.plaintexts_to_send(now_ms):
        sender.receive(plaintext)
    return received


# Frames


@given(
    st.lists(
        st.builds(
            Frame,
            st.sampled_from(ControlType),
            st.sampled_from((0, WANTS_ACK)),
            st.integers(0, 2**32 - 1),
            st.integers(0, 4),
            st.integers(5, 255),
            st.binary(max_size=100),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_frames_come_back_as_they_were(frames: list[Frame]) -> None:
    assert decode_frames(b"".join(frame.encode() for frame in frames)) == frames


GOOD = Frame(ControlType.CONFIG, WANTS_ACK, 7, 0, 1, b"value").encode()


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        GOOD[:9],
        GOOD[:-1],
        GOOD + b"\1",
        b"\0" + GOOD[1:],
        b"\x0a" + GOOD[1:],
        GOOD[:1] + b"\2" + GOOD[2:],
        GOOD[:8] + b"\1\1" + GOOD[10:],
        GOOD[:8] + b"\0\0" + GOOD[10:],
        GOOD[:2] + b"\xff\xff" + GOOD[4:],
    ],
    ids=["empty", "short", "cut", "rest", "kind 0", "kind 10", "flag", "chunk", "no chunks", "length"],
)
def test_any_byte_out_of_place_refuses_the_whole_plaintext(plaintext: bytes) -> None:
    channel = ControlChannel()
    with pytest.raises(WireError, match="bad_control"):
        channel.receive(plaintext)
    assert channel.get_timer() is None


# The channel


def test_reliable_messages_are_repeated_until_acknowledged() -> None:
    sender, receiver = ControlChannel(), ControlChannel()
    sender.send(ControlType.CONFIG, b"value", 0)
    first = sender.plaintexts_to_send(0)
    assert sender.plaintexts_to_send(CONTROL_REPEAT_MIN_MS - 1) == []
    assert sender.get_timer() == CONTROL_REPEAT_MIN_MS
    assert sender.plaintexts_to_send(CONTROL_REPEAT_MIN_MS) == first
    assert receiver.receive(first[0]) == [Message(ControlType.CONFIG, b"value")]
    (acknowledgement,) = receiver.plaintexts_to_send(60)
    assert sender.receive(acknowledgement) == []
    assert (sender.unacknowledged, sender.get_timer()) == (0, None)


@pytest.mark.parametrize("kind", [ControlType.HEALTH, ControlType.STATE, ControlType.CLOSE])
def test_others_go_once(kind: ControlType) -> None:
    channel = ControlChannel()
    channel.send(kind, b"now", 0)
    assert channel.get_timer() == 0
    assert len(channel.plaintexts_to_send(0)) == 1
    assert channel.plaintexts_to_send(10_000) == []


def test_a_repeat_gets_its_acknowledgement_again_and_no_second_effect() -> None:
    sender, receiver = ControlChannel(), ControlChannel()
    sender.send(ControlType.SWITCH, b"NODE_DRAIN", 0)
    (plaintext,) = sender.plaintexts_to_send(0)
    assert len(receiver.receive(plaintext)) == 1
    (once,) = receiver.plaintexts_to_send(0)
    for _ in range(3):
        assert receiver.receive(plaintext) == []
        assert receiver.plaintexts_to_send(0) == [once]


def test_long_messages_travel_in_chunks_that_fit_a_datagram() -> None:
    sender, receiver = ControlChannel(), ControlChannel()
    sender.send(ControlType.CONFIG, LONG, 0)
    plaintexts = sender.plaintexts_to_send(0)
    assert len(plaintexts) == -(-len(LONG) // MAX_CHUNK)
    assert all(len(plaintext) <= MAX_PLAINTEXT for plaintext in plaintexts)
    random.Random(3).shuffle(plaintexts)
    received = [m for plaintext in plaintexts for m in receiver.receive(plaintext)]
    assert received == [Message(ControlType.CONFIG, LONG)]


def test_only_missing_chunks_are_repeated() -> None:
    sender, receiver = ControlChannel(), ControlChannel()
    sender.send(ControlType.CONFIG, LONG, 0)
    first, *rest = sender.plaintexts_to_send(0)
    for plaintext in rest:
        receiver.receive(plaintext)
    for plaintext in receiver.plaintexts_to_send(0):
        sender.receive(plaintext)
    assert sender.plaintexts_to_send(CONTROL_REPEAT_MIN_MS) == [first]


@pytest.mark.parametrize("seed", range(10))
def test_everything_arrives_exactly_once_over_a_bad_network(seed: int) -> None:
    dice = random.Random(seed)
    ends = ControlChannel(1), ControlChannel()
    sent: list[list[bytes]] = [[], []]
    got: list[list[bytes]] = [[], []]
    now_ms = 0
    while now_ms < 30_000 and (now_ms < 2_000 or any(end.unacknowledged for end in ends)):
        for number, end in enumerate(ends):
            if now_ms < 2_000 and dice.random() < 0.1:
                value = dice.randbytes(dice.choice((3, 3_000)))
                end.send(ControlType.REKEY_INIT, value, now_ms)
                sent[number].append(value)
            plaintexts = end.plaintexts_to_send(now_ms) * dice.choice((1, 1, 2))
            dice.shuffle(plaintexts)
            for plaintext in plaintexts:
                if dice.random() < 0.7:
                    got[1 - number] += [m.value for m in ends[1 - number].receive(plaintext)]
        now_ms += 10
    assert [sorted(values) for values in got] == [sorted(sent[1]), sorted(sent[0])]


def test_ids_carry_the_prefix_and_do_not_repeat() -> None:
    channel = ControlChannel(id_prefix=0x1AB)
    for _ in range(5):
        channel.send(ControlType.STATE, b"", 0)
    ids = [frame.message_id for p in channel.plaintexts_to_send(0) for frame in decode_frames(p)]
    assert ids == [0xAB00_0000 + n for n in range(5)]


def test_memory_of_others_messages_is_bounded() -> None:
    receiver = ControlChannel()
    for number in range(CONTROL_REASSEMBLIES + 1):
        receiver.receive(Frame(ControlType.SWITCH, WANTS_ACK, number, 0, 2, b"half").encode())
    last = Frame(ControlType.SWITCH, WANTS_ACK, CONTROL_REASSEMBLIES, 1, 2, b"done").encode()
    assert receiver.receive(last) == [Message(ControlType.SWITCH, b"halfdone")]
    pushed_out = Frame(ControlType.SWITCH, WANTS_ACK, 0, 1, 2, b"done").encode()
    assert receiver.receive(pushed_out) == []
    for number in range(100, 100 + CONTROL_REMEMBERED_IDS):
        receiver.receive(Frame(ControlType.SWITCH, WANTS_ACK, number, 0, 1, b"").encode())
    again = Frame(ControlType.SWITCH, WANTS_ACK, 100, 0, 1, b"").encode()
    assert receiver.receive(again) == []
    receiver.receive(Frame(ControlType.SWITCH, WANTS_ACK, 99, 0, 1, b"").encode())
    assert len(receiver.receive(again)) == 1


def test_a_config_that_was_replaced_is_acknowledged_and_not_taken() -> None:
    receiver = ControlChannel()

    def taken(number: int) -> bool:
        return bool(receiver.receive(Frame(ControlType.CONFIG, WANTS_ACK, number, 0, 1, b"{}").encode()))

    assert [taken(number) for number in (7, 9, 8, 10)] == [True, True, False, True]
    acknowledged = decode_frames(receiver.plaintexts_to_send(0)[0])
    assert [int.from_bytes(frame.value[:4], "big") for frame in acknowledged] == [7, 9, 8, 10]
    # The ids of a gateway that was restarted 256 times go round.
    assert [taken(number) for number in (0x7F << 24, 0xFE << 24, 3, 0xFF << 24)] == [True, True, True, False]


def test_too_long_messages_are_neither_sent_nor_put_together() -> None:
    channel = ControlChannel()
    with pytest.raises(ValueError, match="exceeds"):
        channel.send(ControlType.CONFIG, bytes(CONTROL_MESSAGE_MAX + 1), 0)
    chunks = CONTROL_MESSAGE_MAX // MAX_CHUNK + 2
    for chunk in range(chunks):
        frame = Frame(ControlType.CONFIG, WANTS_ACK, 1, chunk, chunks, bytes(MAX_CHUNK))
        assert channel.receive(frame.encode()) == []


def test_chunks_that_contradict_each_other_are_ignored() -> None:
    receiver = ControlChannel()
    receiver.receive(Frame(ControlType.CONFIG, WANTS_ACK, 1, 0, 2, b"a").encode())
    assert receiver.receive(Frame(ControlType.CONFIG, WANTS_ACK, 1, 1, 3, b"b").encode()) == []
    assert receiver.receive(Frame(ControlType.SWITCH, WANTS_ACK, 1, 1, 2, b"b").encode()) == []
    assert receiver.receive(Frame(ControlType.CONFIG, WANTS_ACK, 1, 1, 2, b"b").encode()) != []


@pytest.mark.parametrize("value", [b"", b"\0\0\0\0", b"\0\0\0\x09\x01"])
def test_acknowledgements_of_nothing_do_nothing(value: bytes) -> None:
    channel = ControlChannel()
    channel.send(ControlType.CONFIG, b"value", 0)
    channel.receive(Frame(ControlType.ACK, 0, 0, 0, 1, value).encode())
    assert channel.unacknowledged == 1


def test_an_unreliable_message_in_chunks_is_ignored() -> None:
    assert ControlChannel().receive(Frame(ControlType.HEALTH, 0, 1, 0, 2, b"").encode()) == []


# Sealed


@pytest.fixture(params=[1, 2])
def ends(request: pytest.FixtureRequest) -> tuple[SealedControl, SealedControl, bytes]:
    secrets = SessionSecrets(suite(request.param), b"s" * 32, b"p" * 32)
    client = SealedControl(secrets, 1, Direction.CLIENT_TO_GATEWAY)
    gateway = SealedControl(secrets, 1, Direction.GATEWAY_TO_CLIENT, generation=5)
    return client, gateway, steering_id(secrets, 3)


def test_each_end_opens_what_the_other_sealed_once(ends: tuple[SealedControl, SealedControl, bytes]) -> None:
    client, gateway, sid = ends
    for sender, receiver in ((client, gateway), (gateway, client)):
        datagram = sender.seal(3, sid, GOOD)
        assert receiver.open(3, datagram).plaintext == GOOD
        with pytest.raises(WireError, match="replay"):
            receiver.open(3, datagram)
        with pytest.raises(WireError, match="bad_tag"):
            sender.open(3, datagram)


def test_what_is_overtaken_by_less_than_the_window_is_opened(
    ends: tuple[SealedControl, SealedControl, bytes],
) -> None:
    client, gateway, sid = ends
    sealed = [client.seal(3, sid, GOOD) for _ in range(CONTROL_REPLAY_WINDOW + 1)]
    gateway.open(3, sealed[-1])
    with pytest.raises(WireError, match="replay"):
        gateway.open(3, sealed[0])
    assert gateway.open(3, sealed[1]).plaintext == GOOD


def test_a_full_plaintext_makes_the_largest_datagram(
    ends: tuple[SealedControl, SealedControl, bytes],
) -> None:
    client, gateway, sid = ends
    datagram = client.seal(3, sid, bytes(MAX_PLAINTEXT))
    assert len(datagram) == MAX_CONTROL_DATAGRAM
    assert gateway.open(3, datagram).plaintext == bytes(MAX_PLAINTEXT)
    with pytest.raises(WireError, match="bad_length"):
        gateway.open(3, client.seal(3, sid, bytes(MAX_PLAINTEXT + 1)))


def test_no_bit_can_be_changed_and_a_forgery_uses_up_nothing(
    ends: tuple[SealedControl, SealedControl, bytes],
) -> None:
    client, gateway, sid = ends
    datagram = client.seal(3, sid, GOOD)
    for at in range(len(datagram)):
        forged = datagram[:at] + bytes((datagram[at] ^ 0x10,)) + datagram[at + 1 :]
        with pytest.raises(WireError):
            gateway.open(3, forged)
    with pytest.raises(WireError, match="bad_tag"):
        gateway.open(4, datagram)
    assert gateway.open(3, datagram).plaintext == GOOD


def test_counters_rise_by_index_under_the_generation(
    ends: tuple[SealedControl, SealedControl, bytes],
) -> None:
    _client, gateway, sid = ends
    counters = [Header.decode(gateway.seal(index, sid, b"x")).counter for index in (3, 3, 4, 3)]
    assert counters == [(5 << GENERATION_SHIFT) + n for n in (0, 1, 0, 2)]
