"""A REQUEST that has opened under the secrets of a stored session; and such sessions as they were read, for a moment.

A client that comes to a node which knows nothing of it asks twice: the ACK to the first REQUEST gives it the challenge
of its path. For the second one the session is not read, opened and decoded again.
"""

from dataclasses import dataclass
from itertools import chain

from jvpn.policy.model import Policy
from jvpn.protocol import reattach
from jvpn.protocol.constants import OFFSET_STEERING_ID
from jvpn.protocol.keys import SessionSecrets, steering_id
from jvpn.protocol.reattach import Request
from jvpn.session.record import SessionRecord
from jvpn.supervisor.arrival import Arrival
from jvpn.supervisor.remembered import Remembered, recall

#: How far above the stored highest index a client may have gone since that was stored.
SEARCH_ABOVE = 64
SEARCH_BELOW = 8
#: A copy of a stored session is believed for so long: a round trip and a repeat of the client's.
COPY_MS = 2_000
COPIES_KEPT = 4_096


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored session: its record, and what the sealed part of that says; `phases` oldest first."""

    record: SessionRecord
    memory: Remembered
    phases: list[SessionSecrets]
    policy: Policy


@dataclass(frozen=True, slots=True)
class Proven:
    """A REQUEST and the stored session that it has opened under, which lives nowhere here. `copied`: the session was
    not read for this REQUEST but for one before."""

    stored: Stored
    index: int
    steering_id: bytes
    request: Request
    data: bytes
    arrival: Arrival
    copied: bool


def opened(record: SessionRecord) -> Stored:
    """Raises NotRemembered."""
    memory = recall(record.secrets)
    return Stored(record, memory, memory.secrets(), memory.policy_snapshot())


def prove(stored: Stored, data: bytes, arrival: Arrival, before: Proven | None = None) -> Proven | None:
    """None when the REQUEST is on no index near those that the session has used. `before`: for which `stored` was read,
    if not for this one. Raises WireError."""
    wanted, secrets = wanted_id(data), stored.phases[0]
    if before is not None and before.steering_id == wanted:
        index: int | None = before.index
    else:
        index = find_index(secrets, wanted, stored.memory.highest_index)
    if index is None:
        return None
    request = reattach.open_request(secrets, index, data)
    return Proven(stored, index, wanted, request, data, arrival, copied=before is not None)


def wanted_id(data: bytes) -> bytes:
    return data[OFFSET_STEERING_ID : OFFSET_STEERING_ID + 8]


def find_index(secrets: SessionSecrets, wanted: bytes, highest: int) -> int | None:
    """The index of a steering id, near the highest that is known to have been used: most are there or just above."""
    above, below = range(highest, highest + SEARCH_ABOVE), range(max(0, highest - SEARCH_BELOW), highest)
    for index in chain(above, below):
        if steering_id(secrets, index) == wanted:
            return index
    return None


class Copies:
    """The sessions that were read last, by id, each with the REQUEST that it was read for: no more than COPIES_KEPT,
    for COPY_MS. Only what was proven comes here."""

    def __init__(self) -> None:
        # In the order in which they were read.
        self._kept: dict[bytes, tuple[int, Proven]] = {}

    def put(self, proven: Proven, now_ms: int) -> None:
        session_id = proven.stored.record.session_id
        self._kept.pop(session_id, None)
        self._kept[session_id] = now_ms + COPY_MS, proven
        if len(self._kept) > COPIES_KEPT:
            del self._kept[next(iter(self._kept))]

    def get(self, session_id: bytes, now_ms: int) -> Proven | None:
        found = self._kept.get(session_id)
        return None if found is None or found[0] <= now_ms else found[1]

    def drop(self, session_id: bytes) -> None:
        self._kept.pop(session_id, None)

    def __len__(self) -> int:
        return len(self._kept)

    def handle_timer(self, now_ms: int) -> None:
        """Forget those that are not believed any more: secrets are in them."""
        while self._kept:
            oldest = next(iter(self._kept))
            if self._kept[oldest][0] > now_ms:
                return
            del self._kept[oldest]
