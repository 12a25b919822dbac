"""Round trips of a session's paths as the gateway knows them: by acknowledged CONTROL, and by what HEALTH says."""

from collections.abc import Iterable

from jvpn.policy.estimators import MS, UNMEASURED_ROUND_TRIP_NS, SmoothedRoundTrip

#: HEALTH: not measured.
NOT_MEASURED_US = 0xFFFFFFFF
#: RFC 6298 section 2.1: what a round trip may take where none has been measured.
UNMEASURED_MS = UNMEASURED_ROUND_TRIP_NS / MS


class RoundTrips:
    """One estimate for each index; milliseconds in and out."""

    __slots__ = ("_paths",)

    def __init__(self) -> None:
        self._paths: dict[int, SmoothedRoundTrip] = {}

    def sample(self, index: int, round_trip_ms: float) -> None:
        path = self._paths.get(index)
        if path is None:
            path = self._paths[index] = SmoothedRoundTrip()
        path.smooth(round(round_trip_ms * MS))

    def srtt_ms(self, index: int) -> float | None:
        """None when nothing has been measured on this index."""
        path = self._paths.get(index)
        return None if path is None or path.srtt_ns is None else path.srtt_ns / MS

    def patience_ms(self, index: int) -> float:
        """srtt + 4·rttvar; 0 when nothing has been measured: then the protocol's least interval holds."""
        path = self._paths.get(index)
        return 0.0 if path is None else path.patience_ns(0) / MS

    def keep(self, indexes: Iterable[int]) -> None:
        """Forget all others."""
        kept = set(indexes)
        self._paths = {index: path for index, path in self._paths.items() if index in kept}
