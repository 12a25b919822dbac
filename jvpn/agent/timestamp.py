"""The newest handshake timestamp that was sent, kept over restarts: message 1 carries a higher one each time."""

import os
from pathlib import Path

FILE_NAME = "handshake-timestamp"


def read(state_dir: Path) -> int:
    """Microseconds; 0 when there is none."""
    try:
        return int((state_dir / FILE_NAME).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def write(state_dir: Path, timestamp_us: int) -> None:
    """Durable when it returns: a client that crashed must not repeat a timestamp. Raises OSError."""
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / FILE_NAME
    new = path.with_name(path.name + ".new")
    with new.open("w") as file:
        file.write(f"{timestamp_us}\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
