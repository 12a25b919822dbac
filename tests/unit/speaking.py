"""Every type of datagram, genuine, as either end of a session could make it: sealed under the session's own keys."""

from dataclasses import dataclass, field

from core_pair import CLIENT_KEY, GATEWAY, GATEWAY_KEY, WALL_MS, CorePair

from jvpn.protocol import keys, messages, paths, reattach, tickets
from jvpn.protocol.constants import GENERATION_SHIFT, Direction, PacketType, Transport
from jvpn.protocol.control import ControlType, Frame
from jvpn.protocol.handshake import Initiator
from jvpn.protocol.keys import SessionSecrets, steering_id
from jvpn.protocol.reattach import Ack, Cause, Fail, Request, Result
from jvpn.protocol.suites import suite, x25519_public
from jvpn.protocol.wire import Header
from jvpn.session.machine import State
from workers.commands import Endpoint

EPOCH = 1
_SALT = b"\x05" * 16
#: Above whatever the cores have used themselves, whose generations are 0 and 1.
_FIRST_COUNTER = 2 << GENERATION_SHIFT


@dataclass
class Voice:
    """Speaks for the end that sends in `direction`. Nobody may have sent under the counters it uses."""

    pair: CorePair
    session_id: bytes
    secrets: SessionSecrets
    direction: Direction
    token: bytes = b""
    _counter: int = field(default=_FIRST_COUNTER)

    def _header(self, kind: PacketType, index: int) -> bytes:
        self._counter += 1
        phase = self.secrets.phase_number & 15
        return Header(kind, steering_id(self.secrets, index), self._counter, phase).encode()

    def _sealed(self, key: bytes, kind: PacketType, index: int, plaintext: bytes) -> bytes:
        header = self._header(kind, index)
        nonce = keys.nonce(index, self._counter)
        return header + self.secrets.suite.aead(key).encrypt(nonce, plaintext, header)

    def data(self, kind: PacketType, index: int, plaintext: bytes) -> bytes:
        """DATA, FRAGMENT, RESENT or PATH."""
        return self._sealed(keys.data_key(self.secrets, self.direction, EPOCH), kind, index, plaintext)

    def probe(self, index: int) -> bytes:
        return self.data(PacketType.PATH, index, paths.Probe(1, 0, 0).encode())

    def probe_ack(self, index: int, flags: int) -> bytes:
        ack = paths.ProbeAck(flags, paths.UNSOLICITED, 0, 0, bytes(16), 3)
        return self.data(PacketType.PATH, index, ack.encode())

    def control(self, index: int, kind: ControlType, value: bytes) -> bytes:
        self._counter += 1
        frame = Frame(kind, 0, self._counter & 0xFFFFFF, 0, 1, value).encode()
        return self._sealed(
            keys.control_key(self.secrets, self.direction, EPOCH), PacketType.CONTROL, index, frame
        )

    def health(self, index: int, version: int, proposed: int = 0) -> bytes:
        """With measures that bear the proposal out."""
        loss_ppm = 10_000 if proposed == State.ATTACHED.number else 400_000
        health = messages.Health(version, proposed, loss_ppm, 40_000, 45_000, 5_000)
        return self.control(index, ControlType.HEALTH, health.encode())

    def state(self, index: int, version: int, state: int, reason: str) -> bytes:
        return self.control(index, ControlType.STATE, messages.State(version, state, reason).encode())

    def close(self, index: int) -> bytes:
        return self.control(index, ControlType.CLOSE, b"PEER_CLOSED")

    def challenge(self, source: Endpoint) -> bytes:
        slot = paths.challenge_slot(self.pair.now_ns)
        return paths.challenge(
            self.pair.context.facts.challenge_key,
            self.session_id,
            source.address,
            source.port,
            GATEWAY.address,
            GATEWAY.port,
            Transport.UDP,
            slot,
        )

    def request(self, index: int, attempt: int, version: int, challenge: bytes = bytes(16)) -> bytes:
        self._counter += 1
        wanted = steering_id(self.secrets, index)
        ticket = tickets.seal_ticket(self.pair.store.fleet_key, wanted, self.session_id, bytes(12))
        request = Request(attempt, index, version, Cause.TRANSPORT_DEAD, Transport.UDP, 0, challenge)
        return reattach.seal_request(self.secrets, wanted, self._counter, request, ticket)

    def ack(self, index: int, attempt: int, version: int, result: Result, bound: int) -> bytes:
        ack = Ack(attempt, result, bound, version, 6, bytes(16), 1, bytes(16))
        return reattach.seal_ack(self.secrets, _SALT, steering_id(self.secrets, index), ack)

    def fail(self, index: int, attempt: int, version: int) -> bytes:
        fail = Fail(attempt, version, 100, "RATE_LIMITED")
        return reattach.seal_fail(self.secrets, _SALT, steering_id(self.secrets, index), fail)

    def reset(self, index: int) -> bytes:
        token = tickets.reset_token(self.pair.store.fleet_key, self.session_id)
        return tickets.reset_datagram(steering_id(self.secrets, index), token)

    def init(self) -> bytes:
        """A new handshake of the same client, newer than all before."""
        self._counter += 1
        return Initiator(
            suite(1),
            CLIENT_KEY,
            x25519_public(GATEWAY_KEY),
            bytes(32),
            self._counter.to_bytes(32, "big"),
            self._counter.to_bytes(8, "big"),
            (WALL_MS + self.pair.now_ms) * 1000 + self._counter - _FIRST_COUNTER,
            0,
            "default",
        ).init_datagram

    def unsealed(self, kind: PacketType, size: int, index: int = 0) -> bytes:
        """RESPONSE or COOKIE: what no end of a session that stands would make."""
        header = Header(kind, steering_id(self.secrets, index), suite=1).encode()
        return header + bytes(range(size - len(header)))


def voice(pair: CorePair, direction: Direction) -> Voice:
    session = pair.client.session
    assert session is not None
    return Voice(pair, session.session_id, session.rekeying.secrets, direction)


def forged(data: bytes) -> bytes:
    """One bit differs, in what the last tag or MAC covers."""
    altered = bytearray(data)
    altered[-17] ^= 1
    return bytes(altered)
