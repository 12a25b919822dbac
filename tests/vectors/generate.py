"""Test vectors of JVP/1: fixed keys in, bytes out, one JSON file an area (docs/protocol.md, "Test vectors").

    python tests/vectors/generate.py [directory]

makes them from the code again; the directory is this one unless named. `mlkem768.json` is an input, not made here:
encapsulation draws its own randomness, so one ciphertext is given.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import area_control
import area_data
import area_handshake
import area_paths
from common import Vector

HERE = Path(__file__).parent

AREAS: dict[str, tuple[str, Callable[[], list[Vector]]]] = {
    "keys": ("Key schedule, steering ids and nonces.", area_handshake.key_vectors),
    "header": ("Headers of every type, and headers that are refused.", area_handshake.header_vectors),
    "handshake": (
        "INIT, COOKIE, INIT with mac2, RESPONSE, session and phase secrets.",
        area_handshake.handshake_vectors,
    ),
    "control": ("CONTROL frames, chunks, ACKs, and sealed datagrams.", area_control.control_vectors),
    "rekey": ("REKEY_INIT, REKEY_RESPONSE and the next phase.", area_control.rekey_vectors),
    "path": ("PATH datagrams and challenges.", area_paths.path_vectors),
    "reattach": (
        "REATTACH_REQUEST, REATTACH_ACK, REATTACH_FAIL, tickets, RESET.",
        area_paths.reattach_vectors,
    ),
    "data": (
        "DATA plaintexts, the packets that come of them, DATA, RESENT and FRAGMENT datagrams.",
        area_data.data_vectors,
    ),
}


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes | bytearray) else str(value)


def document(area: str) -> str:
    """The text of one file."""
    about, make = AREAS[area]
    return (
        json.dumps({"about": about, "vectors": make()}, default=_plain, indent=1, ensure_ascii=False) + "\n"
    )


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for area in AREAS:
        (directory / f"{area}.json").write_text(document(area))


if __name__ == "__main__":
    main()
