"""The line of a key log, in the spirit of SSLKEYLOGFILE: what opens the sealed part of captured datagrams.

    JVP1 <suite> <epoch> <phase number> <session secret, 64 hex digits> <phase secret, 64 hex digits>

One line a session, epoch and phase; numbers are decimal, secrets those of the key schedule (keys.py).
"""

from typing import Final

from jvpn.protocol.keys import SessionSecrets

LABEL: Final = "JVP1"


def line(secrets: SessionSecrets, epoch: int) -> str:
    """The line of a key log, without its end. It opens everything of the phase: keep it as you would a private key."""
    numbers = f"{secrets.suite.number} {epoch} {secrets.phase_number}"
    return f"{LABEL} {numbers} {secrets.session.hex()} {secrets.phase.hex()}"
