"""An uplink that keeps coming and going is trusted less, for a while.

Each loss of a link adds to the device's penalty, which halves every HALF_LIFE_S (after RFC 2439). From DAMPED_FROM on
the device is damped until the penalty has decayed to TRUSTED_AT: it is no reason to leave a path that delivers, and in
a recovery it is asked after the others. It is still probed, still asked when the others are late, and asked at once
when there is no other. The penalty is bounded: LONGEST_MS after its last loss a device is trusted again.
"""

import math
from dataclasses import dataclass
from typing import Final

HALF_LIFE_S: Final = 20.0
DAMPED_FROM: Final = 3.0
TRUSTED_AT: Final = 1.0
MOST: Final = 8.0
LONGEST_MS: Final = round(HALF_LIFE_S * 1_000 * math.log2(MOST / TRUSTED_AT))


@dataclass(slots=True)
class Damping:
    """The penalty of one device. Times are CLOCK_BOOTTIME ms."""

    _penalty: float = 0.0
    _at_ms: int = 0
    #: Until then the device is damped.
    until_ms: int = 0

    def lost(self, now_ms: int) -> None:
        """Its link went."""
        self._penalty = min(MOST, self.penalty(now_ms) + 1.0)
        self._at_ms = now_ms
        if self._penalty >= DAMPED_FROM or now_ms < self.until_ms:
            decay_s = HALF_LIFE_S * math.log2(max(self._penalty, TRUSTED_AT) / TRUSTED_AT)
            self.until_ms = now_ms + math.ceil(decay_s * 1_000)

    def penalty(self, now_ms: int) -> float:
        return self._penalty * math.exp2(-max(0, now_ms - self._at_ms) / (HALF_LIFE_S * 1_000))
