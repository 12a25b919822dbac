"""What a whole life of a session puts on the wire: every datagram of it keeps the rules that the page has for all."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache

import pytest
from core_pair import CorePair, Flight, every_pair_is_sound, fast_policy
from cryptography.exceptions import InvalidTag

from jvpn.protocol import keys
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import (
    COUNTERLESS_TYPES,
    DATA_KINDS,
    HANDSHAKE_TYPES,
    MAX_CONTROL_DATAGRAM,
    Direction,
    PacketType,
)
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.wire import Header
from jvpn.session.machine import split_version
from workers.commands import AddSession, Endpoint

__all__ = ["every_pair_is_sound"]

_SMALL = HANDSHAKE_TYPES | {
    PacketType.CONTROL,
    PacketType.REATTACH_REQUEST,
    PacketType.REATTACH_ACK,
    PacketType.REATTACH_FAIL,
    PacketType.RESET,
}


class Life:
    """One session from its first INIT to its CLOSE: traffic, a dead path, a switch, a new source address, rekeys, a
    restart of the gateway's host. `secrets` are those of every phase, `told` every command a worker had."""

    def __init__(self) -> None:
        policy = fast_policy(rekey_interval_ms=10_000, switch_cooldown_ms=500)
        pair = self.pair = CorePair(policy, seed=7).attach()
        self.secrets: list[SessionSecrets] = []
        self.told: list[object] = [command for w in pair.workers.values() for command in w.commands]
        self.session_id = pair.live.session_id
        self._talk()
        pair.link(0, False)
        self._steady()
        pair.link(0, True)
        pair.advance(3_000)
        assert pair.client.switch("upA", pair.now_ns)
        self._steady()
        pair.addresses[0] = Endpoint(to_bytes("10.201.1.102"), 777)
        self._talk()
        self._steady()
        pair.advance(12_000)
        self._note()
        pair.restart_gateway()
        pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
        pair.wait_for(lambda: pair.attached and split_version(pair.live.machine.state_version).epoch == 2)
        self._talk()
        pair.advance(12_000)
        self._note()
        pair.client.stop(pair.now_ns)
        pair.advance(1_000)

    def _talk(self) -> None:
        for number in range(3):
            self.pair.data_up(bytes(8) + bytes((number,)) * 40)
            self.pair.data_down(bytes(8) + bytes((number,)) * 40)
            self.pair.advance(20)

    def _steady(self) -> None:
        pair = self.pair
        pair.wait_for(lambda: pair.attached)
        self._talk()
        self._note()

    def _note(self) -> None:
        live = self.pair.live
        known = (live.old_secrets, live.secrets, live.next_secrets)
        self.secrets += [s for s in known if s is not None and s not in self.secrets]
        for worker in self.pair.workers.values():
            self.told += [command for command in worker.commands if command not in self.told]

    def of(self, *kinds: PacketType) -> list[Flight]:
        return [flight for flight in self.pair.sent if flight.kind in kinds]


@cache
def lived() -> Life:
    return Life()


@pytest.fixture
def life() -> Life:
    return lived()


def test_a_life_shows_every_type_that_a_healthy_session_has(life: Life) -> None:
    seen = {flight.kind for flight in life.pair.sent}
    assert seen >= {
        PacketType.HANDSHAKE_INIT,
        PacketType.HANDSHAKE_RESPONSE,
        PacketType.REATTACH_REQUEST,
        PacketType.REATTACH_ACK,
        PacketType.DATA,
        PacketType.CONTROL,
        PacketType.PATH,
    }
    assert len({secrets.phase_number for secrets in life.secrets}) > 2
    assert life.pair.client.handshakes_done == 1


def test_headers_keep_the_rules_that_the_receiver_checks(life: Life) -> None:
    for flight in life.pair.sent:
        header = Header.decode(flight.data)
        assert header.type < 0x40
        assert header.encode() == flight.data[:20]
        assert (header.suite != 0) == (header.type in HANDSHAKE_TYPES)
        if header.type in COUNTERLESS_TYPES:
            assert (header.counter, header.phase) == (0, 0)


def test_what_is_no_traffic_fits_an_ipv6_path_of_1280_bytes(life: Life) -> None:
    sizes = {len(flight.data) for flight in life.of(*_SMALL)}
    assert max(sizes) <= MAX_CONTROL_DATAGRAM
    assert 40 + 8 + MAX_CONTROL_DATAGRAM <= 1280


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        (PacketType.HANDSHAKE_INIT, (PacketType.HANDSHAKE_RESPONSE, PacketType.COOKIE)),
        (PacketType.REATTACH_REQUEST, (PacketType.REATTACH_ACK, PacketType.REATTACH_FAIL, PacketType.RESET)),
    ],
)
def test_no_answer_is_longer_than_its_question(
    life: Life, question: PacketType, answers: tuple[PacketType, ...]
) -> None:
    asked = life.of(question)
    answered = life.of(*answers)
    assert answered
    assert len(answered) <= len(asked)
    assert max(len(flight.data) for flight in answered) <= min(len(flight.data) for flight in asked)


def test_probes_are_answered_in_their_own_length(life: Life) -> None:
    up = sorted({len(flight.data) for flight in life.of(PacketType.PATH) if flight.up})
    down = sorted({len(flight.data) for flight in life.of(PacketType.PATH) if not flight.up})
    assert set(down) <= set(up)


def test_the_session_id_is_in_no_datagram(life: Life) -> None:
    assert [flight.kind for flight in life.pair.sent if life.session_id in flight.data] == []


def test_every_path_and_every_change_of_network_has_an_id_of_its_own(life: Life) -> None:
    sources: dict[bytes, set[Endpoint]] = {}
    for flight in life.pair.sent:
        if flight.up and flight.kind not in HANDSHAKE_TYPES | DATA_KINDS:
            sources.setdefault(flight.data[4:12], set()).add(flight.source)
    shared = [ends for ends in sources.values() if len(ends) > 1]
    # Only a client that cannot know that its NAT has given it another address shows one id on two of them.
    assert shared in ([], [{Endpoint(to_bytes("10.201.1.2"), 40_000), life.pair.addresses[0]}])
    assert len(sources) >= 5


def _sealing(flight: Flight, life: Life, indexes: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Key and nonce that a datagram with a counter was sealed under, found by opening it."""
    secrets = life.secrets[0]
    header, sealed = flight.data[:20], flight.data[20:]
    nonce = keys.nonce(indexes[header[4:12]], int.from_bytes(header[12:], "big"))
    if flight.kind is PacketType.REATTACH_REQUEST:
        candidates, sealed = {keys.reattach_key(secrets)}, flight.data[64:]
    else:
        derive = keys.control_key if flight.kind is PacketType.CONTROL else keys.data_key
        candidates = _secret_keys(derive, life)
    for key in candidates:
        with suppress(InvalidTag):
            secrets.suite.aead(key).decrypt(nonce, sealed, header)
            return key, nonce
    raise AssertionError(f"a {flight.kind.name} of this life opens under none of its keys")


def test_every_datagram_opens_under_a_key_of_the_page_and_no_nonce_is_used_twice(life: Life) -> None:
    indexes = {keys.steering_id(life.secrets[0], n): n for n in range(64)}
    counted = [flight for flight in life.pair.sent if flight.kind not in COUNTERLESS_TYPES]
    used = [_sealing(flight, life, indexes) for flight in counted]
    assert len(set(used)) == len(used)
    assert len({key for key, _nonce in used}) > 8


def test_counters_of_requests_go_on_through_the_restart(life: Life) -> None:
    used = [(flight.data[4:12], flight.data[12:20]) for flight in life.of(PacketType.REATTACH_REQUEST)]
    assert len(set(used)) == len(used)


def _secret_keys(derive: Callable[..., bytes], life: Life) -> set[bytes]:
    return {
        derive(secrets, direction, epoch)
        for secrets in life.secrets
        for direction in Direction
        for epoch in (1, 2)
    }


def test_a_worker_has_data_keys_and_nothing_that_could_bind_or_rekey(life: Life) -> None:
    added = [command for command in life.told if isinstance(command, AddSession)]
    assert added
    theirs = {key for command in added for p in command.phases for key in (p.send_key, p.receive_key)}
    assert theirs <= _secret_keys(keys.data_key, life)
    shown = b"".join(repr(command).encode() + _bytes_of(command) for command in life.told)
    kept = _secret_keys(keys.control_key, life)
    kept |= {s.session for s in life.secrets} | {s.phase for s in life.secrets}
    kept |= {keys.reattach_key(s) for s in life.secrets}
    assert not [secret for secret in kept if secret in shown]


def test_with_a_kem_no_worker_ever_has_the_keys_of_phase_0(life: Life) -> None:
    """So no user traffic can leave before the first hybrid rekey, whatever else goes wrong."""
    pair = life.pair
    sent = [*pair.client_worker.commands, *life.told]
    phases = {p.phase for command in sent if isinstance(command, AddSession) for p in command.phases}
    assert phases
    assert min(phases) == 1
    data = [Header.decode(flight.data).phase for flight in life.of(*DATA_KINDS, PacketType.PATH)]
    assert data
    assert 0 not in data


def test_the_first_data_follows_the_first_configuration(life: Life) -> None:
    kinds = [flight.kind for flight in life.pair.sent]
    first = min(n for n, kind in enumerate(kinds) if kind in DATA_KINDS)
    assert kinds[:first].count(PacketType.HANDSHAKE_RESPONSE) == 1
    assert any(flight.kind is PacketType.CONTROL and not flight.up for flight in life.pair.sent[:first])


def _bytes_of(command: object) -> bytes:
    if isinstance(command, bytes):
        return command
    if isinstance(command, list | tuple):
        return b"".join(_bytes_of(item) for item in command)
    fields = getattr(command, "__struct_fields__", ())
    return b"".join(_bytes_of(getattr(command, name)) for name in fields)
