"""A session's data keys of one phase, and the AEAD objects made from them when traffic needs them.

An AEAD object takes about 2.5 KB, what a bulk one needs (bulk.py) another, a key 32 bytes: a dormant session keeps keys
only. At most WARM phases have such objects at a time, the first made first dropped (and made again when needed).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol, cast

from jvpn.protocol.suites import suite
from workers.bulk import Bulk, BulkKey
from workers.commands import PhaseKeys

WARM: Final = 8192

Buffer = bytes | bytearray | memoryview
#: (nonce, data, associated data, output) → bytes written; decryption raises InvalidTag.
IntoCall = Callable[[Buffer, Buffer, Buffer, Buffer], int]


class _BatchAead(Protocol):
    """The part of `cryptography`'s AEADs (50 and later) that writes into a given buffer."""

    encrypt_into: IntoCall
    decrypt_into: IntoCall


class Warm:
    """The phases that have AEAD objects, and bulk ones if there is a `bulk`."""

    def __init__(self, limit: int = WARM, bulk: Bulk | None = None) -> None:
        self.bulk = bulk
        self._limit = limit
        self._phases: OrderedDict[Phase, None] = OrderedDict()

    def admit(self, phase: "Phase") -> None:
        self._phases[phase] = None
        if len(self._phases) > self._limit:
            self._phases.popitem(last=False)[0].cool()

    def drop(self, phase: "Phase") -> None:
        self._phases.pop(phase, None)


class Phase:
    """One PhaseKeys of a session. `nibble` is what the header carries of the phase number."""

    __slots__ = ("_bulk_open", "_bulk_seal", "_open", "_seal", "_suite", "_warm", "keys", "nibble")

    def __init__(self, suite_number: int, keys: PhaseKeys, warm: Warm) -> None:
        """Raises ValueError on an unknown suite or keys of another length than 32 bytes."""
        if len(keys.send_key) != 32 or len(keys.receive_key) != 32:
            raise ValueError("data keys have 32 bytes")
        suite(suite_number)
        self.keys = keys
        self.nibble = keys.phase & 15
        self._suite = suite_number
        self._warm = warm
        self._seal: IntoCall | None = None
        self._open: IntoCall | None = None
        self._bulk_seal: BulkKey | None = None
        self._bulk_open: BulkKey | None = None

    def matches(self, suite_number: int, keys: PhaseKeys) -> bool:
        return self._suite == suite_number and self.keys == keys

    def sealer(self) -> IntoCall:
        if self._seal is None:
            self._seal = self._aead(self.keys.send_key).encrypt_into
            self._warm.admit(self)
        return self._seal

    def opener(self) -> IntoCall:
        if self._open is None:
            self._open = self._aead(self.keys.receive_key).decrypt_into
            self._warm.admit(self)
        return self._open

    def bulk_sealer(self) -> BulkKey | None:
        """For whole runs; None when there is no such thing here."""
        if self._bulk_seal is None:
            self._bulk_seal = self._bulk_key(self.keys.send_key)
        return self._bulk_seal

    def bulk_opener(self) -> BulkKey | None:
        if self._bulk_open is None:
            self._bulk_open = self._bulk_key(self.keys.receive_key)
        return self._bulk_open

    def reopener(self) -> IntoCall:
        """Opens what this end sealed itself; made anew for each use, which is rare."""
        return self._aead(self.keys.send_key).decrypt_into

    def cool(self) -> None:
        """Drop the AEAD objects."""
        self._seal = self._open = None
        for key in (self._bulk_seal, self._bulk_open):
            if key is not None:
                key.wipe()
        self._bulk_seal = self._bulk_open = None

    def discard(self) -> None:
        """The session has no more use for this phase."""
        self.cool()
        self._warm.drop(self)

    def _aead(self, key: bytes) -> _BatchAead:
        return cast(_BatchAead, suite(self._suite).aead(key))

    def _bulk_key(self, key: bytes) -> BulkKey | None:
        if self._warm.bulk is None:
            return None
        made = self._warm.bulk.key(self._suite, key)
        self._warm.admit(self)
        return made
