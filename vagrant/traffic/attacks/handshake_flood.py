"""Handshakes from forged sources: HANDSHAKE_INITs that nobody will go on with.

With --public-key they have the mac1 that only who knows the gateway's key can make, and so cost it a Diffie-Hellman
until it asks for cookies; without, mac1 is wrong.

Must hold while it runs: no session begins, no memory is taken for one, answers come to fewer bytes than were sent, and
running sessions keep nine tenths of the throughput that they have when as much goes to a sink beside them.
"""

import argparse
import base64
import binascii
import sys
from typing import Final

from jvpn.protocol import keys
from jvpn.protocol.constants import KEY_SIZE, MAC_SIZE, TAG_SIZE
from jvpn.protocol.suites import suite
from vagrant.traffic.attacks.means import options
from vagrant.traffic.attacks.means.place import Place, paced, variety
from vagrant.traffic.attacks.means.sources import forged_sources
from vagrant.traffic.jvp import JVP, JVPHandshakeInit
from vagrant.traffic.script import Run, main

VARIETY: Final = 128
#: Timestamp, capabilities, the length of the policy's name and "default".
_PAYLOAD: Final = 8 + 4 + 1 + 7 + TAG_SIZE


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=None)
    options.add_sink(parser)
    options.add_sources(parser)
    parser.add_argument(
        "--public-key", type=_public_key, metavar="KEY", help="the gateway's, base64 as in client.yaml"
    )
    parser.add_argument("--suite", type=int, choices=(1, 2), default=1, help="default 1")


def work(run: Run) -> None:
    network = forged_sources(run.options)
    key = run.options.public_key
    run.parameters["public_key"] = key and base64.b64encode(key).decode()
    with Place(run, forged=network) as place:
        pool = place.from_everywhere([bytes(init(place, key)) for _ in range(variety(run, VARIETY))], network)
        run.in_force()
        for size in paced(run):
            place.flood(pool, size)


def init(place: Place, public_key: bytes | None) -> JVP:
    """A HANDSHAKE_INIT as far as one can judge it by its mac1 (docs/protocol.md, "HANDSHAKE_INIT")."""
    octets, number = place.dice.randbytes, place.run.options.suite
    made = JVP(suite=number, steering_id=octets(8)) / JVPHandshakeInit(
        ephemeral=octets(KEY_SIZE),
        sealed_static=octets(KEY_SIZE + TAG_SIZE),
        sealed_payload=octets(_PAYLOAD),
        mac1=octets(MAC_SIZE),
    )
    if public_key is not None:
        covered = bytes(made)[: -2 * MAC_SIZE]
        made[JVPHandshakeInit].mac1 = keys.mac1(suite(number), public_key, covered)
    return made


def _public_key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_SIZE:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no public key: 32 bytes in base64, as `jvpn keygen` prints"
        )
    return key


if __name__ == "__main__":
    sys.exit(main("attack", "handshake_flood", __doc__, arguments, work, options.check))
