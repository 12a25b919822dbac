"""Captures of a real gateway and client, kept with the key log of their session, which nobody uses any more.

One for each of the client's uplinks; docs/traffic.md, "Kept captures", says what is in them and how they are made.
"""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
PCAPS: Final = (FOLDER / "upA.pcap", FOLDER / "upB.pcap")
KEYS: Final = FOLDER / "session.keys"
