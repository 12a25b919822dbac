"""Keys, headers, and the handshake."""

from common import DOWN, EPOCH, SALT, SESSION_ID, UP, Vector, pattern, phase_zero, vector

from jvpn.protocol import handshake, keys
from jvpn.protocol.constants import PacketType
from jvpn.protocol.handshake import Initiator, Kem
from jvpn.protocol.suites import SUITES, Suite, x25519_public
from jvpn.protocol.wire import Header, WireError


def key_vectors() -> list[Vector]:
    return [_key_schedule(suite) for suite in SUITES.values()] + [
        vector("nonce", None, {"index": n, "counter": counter}, {"nonce": keys.nonce(n, counter)})
        for n, counter in ((0, 0), (1, 2**48), (0xFFFFFFFF, 0x0001020304050607))
    ]


def _key_schedule(suite: Suite) -> Vector:
    secrets = phase_zero(suite)
    dh, kem_secret = pattern(0x80), pattern(0xA0)
    hybrid = keys.next_phase(
        secrets, dh=dh, kem_secret=kem_secret, rekey_init=b"init", rekey_response=b"response"
    )
    classical = keys.next_phase(secrets, dh=dh, rekey_init=b"init", rekey_response=b"response")
    given = {
        "handshake_hash": pattern(0x00),
        "k1": pattern(0x20),
        "k2": pattern(0x40),
        "epoch": EPOCH,
        "salt": SALT,
        "dh": dh,
        "kem_secret": kem_secret,
        "rekey_init": b"init",
        "rekey_response": b"response",
    }
    out = {
        "session": secrets.session,
        "phase_0": secrets.phase,
        "phase_1_hybrid": hybrid.phase,
        "phase_1_classical": classical.phase,
        "data_up": keys.data_key(secrets, UP, EPOCH),
        "data_down": keys.data_key(secrets, DOWN, EPOCH),
        "control_up": keys.control_key(secrets, UP, EPOCH),
        "control_down": keys.control_key(secrets, DOWN, EPOCH),
        "reattach": keys.reattach_key(secrets),
        "reply": keys.reply_key(secrets, SALT),
        "steering_ids": {str(n): keys.steering_id(secrets, n) for n in (0, 1, 2, 5, 0xFFFFFFFF)},
    }
    return vector(f"key schedule {suite.name}", suite, given, out)


def header_vectors() -> list[Vector]:
    good = []
    for kind in PacketType:
        is_counted = kind in (
            PacketType.DATA,
            PacketType.CONTROL,
            PacketType.PATH,
            PacketType.FRAGMENT,
            PacketType.RESENT,
        )
        header = Header(
            kind,
            bytes.fromhex("1122334455667788"),
            counter=0x0001000000000007 if is_counted else 0,
            phase=0x13 if is_counted else 0,
            suite=2 if kind.name.startswith("HANDSHAKE") or kind is PacketType.COOKIE else 0,
        )
        given = {
            "type": int(kind),
            "steering_id": header.steering_id,
            "counter": header.counter,
            "phase_number": header.phase,
            "suite": header.suite,
        }
        good.append(vector(kind.name, None, given, {"header": header.encode()}))
    return good + [_refused(name, datagram) for name, datagram in _broken_headers().items()]


def _broken_headers() -> dict[str, bytes]:
    data = Header(PacketType.DATA, bytes(8), 1).encode() + bytes(44)
    ack = Header(PacketType.REATTACH_ACK, bytes(8)).encode() + bytes(92)
    request = Header(PacketType.REATTACH_REQUEST, bytes(8)).encode() + bytes(235)
    return {
        "19 bytes": data[:19],
        "type 0x40": b"\x40" + data[1:],
        "version 2": data[:1] + b"\x20" + data[2:],
        "suite in DATA": data[:2] + b"\x01" + data[3:],
        "byte 3": data[:3] + b"\x01" + data[4:],
        "phase in REATTACH_ACK": ack[:1] + b"\x11" + ack[2:],
        "counter in REATTACH_ACK": ack[:19] + b"\x01" + ack[20:],
        "35 bytes": data[:35],
        "REATTACH_REQUEST of 255 bytes": request,
    }


def _refused(name: str, datagram: bytes) -> Vector:
    try:
        Header.decode(datagram)
    except WireError as error:
        return vector(f"refused: {name}", None, {"datagram": datagram}, {"reason": error.reason})
    raise AssertionError(f"{name} was not refused")


def handshake_vectors() -> list[Vector]:
    return [
        _handshake(suite, name, psk, policy, kem)
        for suite in SUITES.values()
        for name, psk, policy, kem in (
            ("no psk", handshake.NO_PSK, "", Kem.NONE),
            ("psk, policy name", pattern(0xE0), "mobile", Kem.MLKEM768),
        )
    ]


def _handshake(suite: Suite, name: str, psk: bytes, policy: str, kem: Kem) -> Vector:
    client, gateway = pattern(0x01), pattern(0x31)
    gateway_public = x25519_public(gateway)
    timestamp_us = 1_700_000_000_000_000
    client_random, cookie = pattern(0xC0, 8), pattern(0xD0, 16)
    initiator = Initiator(
        suite, client, gateway_public, psk, pattern(0x51), client_random, timestamp_us, 0, policy
    )
    init = initiator.init_datagram
    cookie_datagram = handshake.cookie_datagram(init, gateway_public, cookie, SALT)
    with_mac2 = initiator.read_cookie(cookie_datagram)
    opened = handshake.read_init(init, gateway)
    response, result = opened.respond(psk, pattern(0x71), SESSION_ID, EPOCH, kem)
    assert initiator.read_response(response) == result
    given = {
        "client_static_private": client,
        "client_ephemeral_private": pattern(0x51),
        "client_random": client_random,
        "gateway_static_private": gateway,
        "gateway_ephemeral_private": pattern(0x71),
        "psk": psk,
        "timestamp_us": timestamp_us,
        "capabilities": 0,
        "policy_name": policy,
        "cookie": cookie,
        "salt": SALT,
        "session_id": SESSION_ID,
        "epoch": EPOCH,
        "kem": int(kem),
    }
    out = {
        "client_static_public": x25519_public(client),
        "gateway_static_public": gateway_public,
        "init": init,
        "cookie_datagram": cookie_datagram,
        "init_with_mac2": with_mac2,
        "response": response,
        "session": result.secrets.session,
        "phase_0": result.secrets.phase,
    }
    return vector(f"handshake {suite.name}, {name}", suite, given, out)
