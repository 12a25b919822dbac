"""CONTROL and what it carries, the rekey among it."""

import base64
import json
from pathlib import Path

from common import DOWN, EPOCH, LATER_EPOCH, UP, Vector, given_secrets, pattern, phase_zero, vector

from jvpn.policy.model import Policy
from jvpn.protocol import keys, messages, rekey
from jvpn.protocol.constants import Direction
from jvpn.protocol.control import RELIABLE, ControlChannel, ControlType, Frame
from jvpn.protocol.handshake import Kem
from jvpn.protocol.rekey import RekeyInitiator
from jvpn.protocol.sealed_control import SealedControl
from jvpn.protocol.suites import SUITES, Suite, x25519, x25519_public

HERE = Path(__file__).parent


def control_vectors() -> list[Vector]:
    return [
        *_frames(),
        *_chunks(),
        *(_sealed_control(suite, way) for suite in SUITES.values() for way in (UP, DOWN)),
        *(_sealed_control(suite, UP, LATER_EPOCH) for suite in SUITES.values()),
    ]


#: The members of a policy that the page lists.
POLICY = (
    "name",
    "kem",
    "rekey_interval_ms",
    "probe_interval_ms",
    "idle_probe_interval_ms",
    "max_candidates",
    "allowed_transports",
    "max_switches_per_minute",
    "switch_cooldown_ms",
    "drain_window_ms",
    "reauthenticate_on",
    "session_ttl_ms",
    "transport_loss_ttl_ms",
    "recovery_window_ms",
    "on_recovery_window_exceeded",
)


def _values() -> dict[ControlType, tuple[Vector, bytes]]:
    policy = json.loads(Policy.default().to_wire())
    config = messages.Config(
        addresses=["10.8.0.2/32", "fd00:8::2/128"],
        routes=["10.8.0.0/24"],
        mtu=1400,
        policy=messages.raw_json(json.dumps({name: policy[name] for name in POLICY}, separators=(",", ":"))),
        dns=["10.8.0.1"],
        tickets={str(index): base64.b64encode(pattern(index, 44)).decode() for index in range(2)},
        reset_token=base64.b64encode(pattern(0xE0, 16)).decode(),
    )
    response = RekeyInitiator(
        phase_zero(SUITES[1]), Kem.NONE, pattern(0x91) + bytes(rekey.KEM_SEED_SIZE)
    ).init_value
    health = messages.Health(EPOCH << 40 | 1, 2, 12_500, 31_000, 45_500, 0xFFFFFFFF)
    state = messages.State(EPOCH << 40 | 2, 3, "TRANSPORT_DEAD")
    ack = (7).to_bytes(4, "big") + b"\x05\x02"
    return {
        ControlType.CONFIG: ({"addresses": config.addresses, "mtu": 1400}, messages.encode_config(config)),
        ControlType.HEALTH: (
            {
                "state_version": health.state_version,
                "proposed": 2,
                "loss_ppm": 12_500,
                "rtt_us": 31_000,
                "rtt_p95_us": 45_500,
                "jitter_us": 0xFFFFFFFF,
            },
            health.encode(),
        ),
        ControlType.STATE: (
            {"state_version": state.state_version, "state": 3, "reason": "TRANSPORT_DEAD"},
            state.encode(),
        ),
        ControlType.REKEY_RESPONSE: ({"kem": 0, "gateway_private": pattern(0x91)}, response),
        ControlType.REKEY_REQUIRED: ({"reason": "REKEY_OVERDUE"}, b"REKEY_OVERDUE"),
        ControlType.SWITCH: ({"reason": "NODE_DRAIN"}, b"NODE_DRAIN"),
        ControlType.CLOSE: ({"reason": "PEER_CLOSED"}, b"PEER_CLOSED"),
        ControlType.ACK: ({"acknowledged_id": 7, "acknowledged_chunks": [0, 2, 9]}, ack),
    }


def _frames() -> list[Vector]:
    vectors = []
    for kind, (given, value) in _values().items():
        message_id = 0 if kind is ControlType.ACK else 0x03000000 + kind
        frame = Frame(kind, int(kind in RELIABLE), message_id, 0, 1, value)
        vectors.append(
            vector(
                f"frame {kind.name}",
                None,
                {"type": int(kind), "message_id": message_id} | given,
                {"frame": frame.encode()},
            )
        )
    return vectors


def _chunks() -> list[Vector]:
    """A long message as the channel cuts it, and one in many small chunks, which another sender may prefer."""
    value = pattern(0, 3000)
    sender = ControlChannel()
    sender.send(ControlType.REKEY_INIT, value, 0)
    small = [
        Frame(ControlType.REKEY_INIT, 1, 1, chunk, 12, value[3 * chunk : 3 * chunk + 3]).encode()
        for chunk in range(12)
    ]
    return [
        _arriving("chunks", 0, value, sender.plaintexts_to_send(0), [1, 0, 2, 0]),
        _arriving("small chunks", 1, value[:36], small, [11, 0, 8, 1, 2, 3, 4, 5, 6, 7, 9, 10, 3]),
    ]


def _arriving(name: str, message_id: int, value: bytes, plaintexts: list[bytes], arrive: list[int]) -> Vector:
    """The ACKs of a receiver that gets the chunks in this order, a copy among them."""
    receiver, acks = ControlChannel(), []
    for at in arrive:
        receiver.receive(plaintexts[at])
        acks += receiver.plaintexts_to_send(0)
    given = {
        "type": int(ControlType.REKEY_INIT),
        "message_id": message_id,
        "value": value,
        "arrive": arrive,
    }
    return vector(name, None, given, {"plaintexts": plaintexts, "acks": acks})


def _sealed_control(suite: Suite, way: Direction, epoch: int = EPOCH) -> Vector:
    secrets, generation = phase_zero(suite), 2 if way is DOWN else 0
    control = SealedControl(secrets, epoch, way, generation)
    kinds = (ControlType.HEALTH, ControlType.CLOSE) if way is UP else (ControlType.CONFIG, ControlType.STATE)
    values = _values()
    plaintext = b"".join(
        Frame(kind, int(kind is ControlType.CONFIG), 5 + i, 0, 1, values[kind][1]).encode()
        for i, kind in enumerate(kinds)
    )
    steering_id = keys.steering_id(secrets, 3)
    datagrams = [control.seal(3, steering_id, plaintext), control.seal(3, steering_id, plaintext)]
    given = given_secrets(secrets) | {
        "epoch": epoch,
        "direction": int(way),
        "index": 3,
        "generation": generation,
        "plaintext": plaintext,
    }
    later = "" if epoch == EPOCH else " in a later epoch"
    return vector(f"CONTROL {way.name.lower()}{later} {suite.name}", suite, given, {"datagrams": datagrams})


def rekey_vectors() -> list[Vector]:
    given = json.loads((HERE / "mlkem768.json").read_text())
    seed, ciphertext = bytes.fromhex(given["seed"]), bytes.fromhex(given["ciphertext"])
    return [_rekey(suite, kem, seed, ciphertext) for suite in SUITES.values() for kem in Kem]


def _rekey(suite: Suite, kem: Kem, seed: bytes, ciphertext: bytes) -> Vector:
    secrets = phase_zero(suite)
    mine, theirs = pattern(0x11), pattern(0x91)
    initiator = RekeyInitiator(secrets, kem, mine + seed)
    if kem is Kem.NONE:
        response = rekey.answer(secrets, kem, initiator.init_value, theirs).response_value
    else:
        # As `answer` has it, with the given ciphertext in the place of a fresh one.
        classical = RekeyInitiator(secrets, Kem.NONE, theirs + bytes(rekey.KEM_SEED_SIZE)).init_value
        response = classical[:4] + bytes((kem,)) + classical[5:] + ciphertext
    after = initiator.finish(response)
    inputs = given_secrets(secrets) | {
        "kem": int(kem),
        "client_private": mine,
        "gateway_private": theirs,
        "kem_seed": seed if kem else b"",
        "kem_ciphertext": ciphertext if kem else b"",
        "epoch": EPOCH,
    }
    out = {
        "rekey_init": initiator.init_value,
        "rekey_response": response,
        "dh": x25519(mine, x25519_public(theirs)),
        "phase": after.phase,
        "phase_number": after.phase_number,
        "data_up": keys.data_key(after, UP, EPOCH),
        "control_up": keys.control_key(after, UP, EPOCH),
    }
    return vector(f"rekey {kem.name} {suite.name}", suite, inputs, out)
