"""state_version = epoch (24 bit) ‖ count (40 bit), one integer that only ever grows within a session."""

from dataclasses import dataclass
from typing import Final

COUNT_BITS: Final = 40
EPOCH_BITS: Final = 24
MAX_COUNT: Final = 2**COUNT_BITS - 1
MAX_EPOCH: Final = 2**EPOCH_BITS - 1
MAX_VERSION: Final = 2 ** (EPOCH_BITS + COUNT_BITS) - 1


@dataclass(frozen=True, slots=True, order=True)
class Version:
    epoch: int
    count: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.count}"


def pack_version(epoch: int, count: int) -> int:
    """Raises ValueError when a part does not fit its bits."""
    if not 0 <= epoch <= MAX_EPOCH:
        raise ValueError(f"epoch {epoch} does not fit {EPOCH_BITS} bits")
    if not 0 <= count <= MAX_COUNT:
        raise ValueError(f"count {count} does not fit {COUNT_BITS} bits")
    return epoch << COUNT_BITS | count


def last_of_epoch(version: int) -> int:
    """The highest version of the same epoch. Raises ValueError when `version` does not fit 64 bits."""
    return epoch_of(version) << COUNT_BITS | MAX_COUNT


def epoch_of(version: int) -> int:
    """Raises ValueError when `version` does not fit 64 bits."""
    if not 0 <= version <= MAX_VERSION:
        raise ValueError(f"state_version {version} does not fit {EPOCH_BITS + COUNT_BITS} bits")
    return version >> COUNT_BITS


def first_of_epoch(version: int) -> int:
    """The lowest version of the same epoch. Raises ValueError when `version` does not fit 64 bits."""
    return epoch_of(version) << COUNT_BITS


def split_version(version: int) -> Version:
    """Raises ValueError when `version` does not fit 64 bits."""
    return Version(epoch_of(version), version & MAX_COUNT)
