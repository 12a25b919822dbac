"""What a session remembers of what it did: voluntary switches, the newest rekey, the newest change of path."""

from dataclasses import dataclass, field
from typing import NamedTuple

from jvpn.policy.model import Policy

#: `max_switches_per_minute` counts in this.
MINUTE_MS = 60_000


@dataclass(slots=True)
class SwitchHistory:
    """Voluntary switches of the last minute, for max_switches_per_minute and the cooldown."""

    times_ms: list[int] = field(default_factory=list)

    def wait_ms(self, policy: Policy, now_ms: int) -> int:
        """0 when a voluntary switch may happen now, else how long until it may; a minute where none may ever."""
        if not policy.max_switches_per_minute:
            return MINUTE_MS
        self.times_ms = [at for at in self.times_ms if now_ms - at < MINUTE_MS]
        waits = [0]
        if self.times_ms:
            waits.append(self.times_ms[-1] + policy.switch_cooldown_ms - now_ms)
        if len(self.times_ms) >= policy.max_switches_per_minute:
            waits.append(self.times_ms[-policy.max_switches_per_minute] + MINUTE_MS - now_ms)
        return max(waits)


@dataclass(frozen=True, slots=True)
class Answered:
    """The newest REKEY_INIT and what was made of it: the same one gets the same answer."""

    init_value: bytes = field(repr=False)
    response_value: bytes = field(repr=False)


class LastSwitch(NamedTuple):
    """The newest change of path; `old` and `new` as people read them."""

    at_ms: int
    reason: str
    old: str
    new: str
    gap_ms: float | None
