"""A token bucket without a clock. Reattach requests pass two of them per id: datagrams, and binds."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, NamedTuple


class Rate(NamedTuple):
    per_s: float
    burst: float


#: Datagrams taken from one id, before any cryptography.
DATAGRAM_RATE: Final = Rate(40, 20)
#: Recoveries from death; voluntary switches have the policy's limits instead.
BIND_RATE: Final = Rate(2, 5)


@dataclass(slots=True)
class TokenBucket:
    """Starts full at the first call. A clock that steps back adds nothing and takes nothing."""

    rate: Rate
    _tokens: float = field(init=False)
    _last_ms: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.rate.per_s <= 0 or self.rate.burst < 1:
            raise ValueError(f"a bucket needs a positive rate and a burst of at least 1, not {self.rate}")
        self._tokens = self.rate.burst

    def take(self, now_ms: float) -> bool:
        """One token, if there is one."""
        self._refill(now_ms)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait_ms(self, now_ms: float) -> int:
        """Milliseconds until `take` would succeed, rounded up; 0 if it would now."""
        self._refill(now_ms)
        missing = 1 - self._tokens
        return 0 if missing <= 0 else -int(-missing * 1000 // self.rate.per_s)

    def _refill(self, now_ms: float) -> None:
        if self._last_ms is not None and now_ms > self._last_ms:
            # Rounded so that adding up many small steps never leaves a token a hair short of whole.
            gained = (now_ms - self._last_ms) * self.rate.per_s / 1000
            self._tokens = min(self.rate.burst, round(self._tokens + gained, 9))
        if self._last_ms is None or now_ms > self._last_ms:
            self._last_ms = now_ms


class Buckets:
    """A bucket for each key, the `kept` that were used last: whoever else comes finds a full one."""

    def __init__(self, rate: Rate, kept: int) -> None:
        self._rate = rate
        self._kept = kept
        self._buckets: dict[Hashable, TokenBucket] = {}

    def take(self, key: Hashable, now_ms: float) -> bool:
        bucket = self._buckets.pop(key, None) or TokenBucket(self._rate)
        self._buckets[key] = bucket
        if len(self._buckets) > self._kept:
            del self._buckets[next(iter(self._buckets))]
        return bucket.take(now_ms)

    def __len__(self) -> int:
        return len(self._buckets)
