"""What a run says to who watches it: lines that stay, and on a terminal one that passes."""

from __future__ import annotations

import shutil
from typing import Final, TextIO

_BACK_TO_BEGINNING: Final = "\r\x1b[K"


class Teller:
    """Writes to *stream*."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._passing = False
        #: Whether anybody sees what passes.
        self.live: Final = stream.isatty()

    def line(self, text: str) -> None:
        """One that stays."""
        self._write(f"{_BACK_TO_BEGINNING if self._passing else ''}{text}\n")
        self._passing = False

    def now(self, text: str) -> None:
        """One that the next takes the place of."""
        if self.live:
            width = shutil.get_terminal_size((100, 24)).columns - 1
            self._write(f"{_BACK_TO_BEGINNING}{text[:width]}")
            self._passing = True

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
