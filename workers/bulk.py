"""A whole run of datagrams through the AEAD in one call, by libipsec-mb where the machine has it.

`cryptography` takes one message a call, and two thirds of a call's time whatever its length. This library, the one
behind DPDK and VPP (Debian: libipsec-mb1), takes a burst of jobs, each a description of what to seal or open and where.
They are written once for each layout (layouts.py), so that a run costs one copy of its jobs and one call.

Nothing depends on it: what `cryptography` makes of the same run is the same byte for byte, and `find` sees to that
before the library touches traffic. The structures are those of intel-ipsec-mb.h 1.3, as in Debian 12; another version
is not used.
"""

import ctypes
import functools
import platform
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from jvpn.protocol.constants import HEADER_SIZE, KEY_SIZE, NONCE_SIZE, TAG_SIZE
from jvpn.protocol.suites import SUITES

LIBRARY: Final = "libIPSec_MB.so.1"
_VERSION: Final = 0x0103
#: IMB_ARCH of AVX: below it a burst gains nothing, or AES is even emulated.
_MIN_ARCHITECTURE: Final = 3
_INSTALL: Final = "apt-get install libipsec-mb1, version 1.3 as in Debian 12; without it all works, slower"

# struct IMB_MGR: functions, and the ring that a burst's jobs lie in.
_GCM256_PRE, _SUBMIT_BURST, _NEXT_JOB, _RING = 464, 960, 1020, 1024
#: IMB_MAX_BURST_SIZE.
_MAX_BURST: Final = 128
#: Fewer are faster one by one.
LEAST: Final = 4

# struct IMB_JOB, as far as AEADs use it.
_JOB_BYTES: Final = 200
_POINTERS: Final = [
    "encrypt_key", "decrypt_key", "key_size", "source", "target", "cipher_offset", "cipher_size", "hash_offset",
    "hash_size", "nonce", "nonce_size", "tag", "tag_size", "aad", "aad_size",
]  # fmt: skip
_MODES: Final = {"cipher": 132, "direction": 136, "hash": 140, "order": 144}
_JOB: Final = np.dtype(
    {
        "names": [*_POINTERS, *_MODES],
        "formats": ["<u8"] * len(_POINTERS) + ["<u4"] * len(_MODES),
        "offsets": [*range(0, 8 * len(_POINTERS), 8), *_MODES.values()],
        "itemsize": _JOB_BYTES,
    }
)
#: Suite → IMB_CIPHER_MODE, IMB_HASH_ALG.
_SUITE_MODES: Final = {1: (5, 9), 2: (19, 29)}
#: IMB_CIPHER_DIRECTION, IMB_CHAIN_ORDER: encrypt, then hash; hash, then decrypt.
SEAL: Final = (1, 1)
OPEN: Final = (2, 2)

# struct gcm_key_data, which wants a cache line of its own.
_GCM_KEY_BYTES, _CACHE_LINE = 1008, 64


class Unusable(Exception):
    """`why` the library is not used; `remedy`: what to do about it, empty where nothing is to be gained."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.remedy = remedy


class Place(NamedTuple):
    """Where the first of a run's pieces begins, and how far it is from one to the next."""

    buffer: bytearray
    offset: int
    stride: int

    def addresses(self, count: int) -> npt.NDArray[np.uint64]:
        # They hold while nobody resizes the buffer, which every view of it forbids.
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer)) + self.offset
        return base + self.stride * np.arange(count, dtype=np.uint64)


class Batch:
    """The jobs of a run whose messages have `size` bytes each, without their tags.

    `direction` is SEAL or OPEN; tags are written in both, for who opens to compare. The buffers of the places have to
    outlive the batch.
    """

    def __init__(
        self, direction: tuple[int, int], size: int, count: int,
        *, source: Place, target: Place, nonce: Place, aad: Place, tag: Place,
    ) -> None:  # fmt: skip
        self.capacity = count = min(count, _MAX_BURST)
        memory = bytearray(count * _JOB_BYTES)
        self.view = memoryview(memory)
        self._jobs: npt.NDArray[Any] = np.ndarray((count,), dtype=_JOB, buffer=memory)
        self._key: BulkKey | None = None
        jobs = self._jobs
        places = {"source": source, "target": target, "nonce": nonce, "aad": aad, "tag": tag}
        for name, place in places.items():
            jobs[name] = place.addresses(count)
        jobs["cipher_size"] = jobs["hash_size"] = size
        jobs["key_size"], jobs["nonce_size"], jobs["aad_size"], jobs["tag_size"] = (
            KEY_SIZE, NONCE_SIZE, HEADER_SIZE, TAG_SIZE,
        )  # fmt: skip
        jobs["direction"], jobs["order"] = direction

    def use(self, key: "BulkKey") -> None:
        if self._key is not key:
            self._jobs["encrypt_key"] = self._jobs["decrypt_key"] = key.address
            self._jobs["cipher"], self._jobs["hash"] = _SUITE_MODES[key.suite]
            self._key = key


class BulkKey:
    """A key of one suite as the library wants it."""

    __slots__ = ("_bulk", "_memory", "address", "suite")

    def __init__(self, bulk: "Bulk", suite: int, size: int) -> None:
        self._bulk = bulk
        self.suite = suite
        self._memory = ctypes.create_string_buffer(size + _CACHE_LINE)
        base = ctypes.addressof(self._memory)
        self.address = base + -base % _CACHE_LINE

    def run(self, batch: Batch, count: int) -> bool:
        """Do the first `count` jobs; False when they are not for the library, and are to be done otherwise."""
        return LEAST <= count <= batch.capacity and self._bulk.run(batch, self, count)

    def wipe(self) -> None:
        """Nobody may use it from now on."""
        ctypes.memset(self._memory, 0, len(self._memory))


class Bulk:
    """The library, with one manager and its ring of jobs.

    Raises Unusable when it is not there, is of another version, or finds no CPU that it is worth it on.
    """

    def __init__(self) -> None:
        library = _library()
        manager = library.alloc_mb_mgr(0)
        if not manager:
            raise Unusable(f"{LIBRARY} has no memory for its manager", "give the machine more memory")
        architecture = ctypes.c_int()
        library.init_mb_mgr_auto(manager, architecture)
        if library.imb_get_errno(manager) or architecture.value < _MIN_ARCHITECTURE:
            raise Unusable(f"{LIBRARY} knows no fast way on this CPU: it takes AVX")
        self._manager: int = manager
        self._expand = self._function(_GCM256_PRE, None, ctypes.c_char_p, ctypes.c_void_p)
        self._submit = self._function(
            _SUBMIT_BURST, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p
        )
        ring = (ctypes.c_ubyte * (_MAX_BURST * _JOB_BYTES)).from_address(manager + _RING)
        self._ring = memoryview(ring).cast("B")
        addresses = (manager + _RING + at * _JOB_BYTES for at in range(_MAX_BURST))
        self._taken = (ctypes.c_uint64 * _MAX_BURST)(*addresses)
        self._taken_at = ctypes.addressof(self._taken)
        ctypes.c_int.from_address(manager + _NEXT_JOB).value = 0

    def _function(self, offset: int, result: Any, *arguments: Any) -> Callable[..., Any]:
        address = ctypes.c_void_p.from_address(self._manager + offset).value
        return ctypes.PYFUNCTYPE(result, *arguments)(address or 0)

    def key(self, suite: int, key: bytes) -> BulkKey:
        """`key` (32 bytes) made ready for `run`."""
        if suite == 1:
            made = BulkKey(self, suite, _GCM_KEY_BYTES)
            self._expand(key, made.address)
        else:
            made = BulkKey(self, suite, KEY_SIZE)
            ctypes.memmove(made.address, key, KEY_SIZE)
        return made

    def run(self, batch: Batch, key: BulkKey, count: int) -> bool:
        """Do the first `count` jobs; False when the library refused them."""
        batch.use(key)
        size = count * _JOB_BYTES
        # AEADs are done as they are submitted; then the ring is empty and begins at its beginning again.
        self._ring[:size] = batch.view[:size]
        done: int = self._submit(self._manager, count, self._taken_at)
        return done == count


def find() -> Bulk | None:
    """The library, loaded and found to agree with `cryptography`; None where there is none to use."""
    found = look()
    return found if isinstance(found, Bulk) else None


@functools.cache
def look() -> Bulk | Unusable:
    """As `find`, and why there is none to use. Looks once, so that it is known before a process may open no files."""
    try:
        return _load()
    except Unusable as unusable:
        return unusable.with_traceback(None)


def _library() -> ctypes.PyDLL:
    """The functions that a manager is made with; the others stand in the manager."""
    try:
        # PyDLL: the calls are shorter than giving the interpreter's lock away and taking it again.
        library = ctypes.PyDLL(LIBRARY)
        version = library.imb_get_version()
        if version >> 8 != _VERSION:
            raise Unusable(f"{LIBRARY} is version {version >> 16}.{version >> 8 & 255}, not 1.3", _INSTALL)
        library.alloc_mb_mgr.restype = ctypes.c_void_p
        library.alloc_mb_mgr.argtypes = [ctypes.c_uint64]
        library.init_mb_mgr_auto.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
        library.init_mb_mgr_auto.restype = None
        library.imb_get_errno.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError) as error:
        raise Unusable(str(error), _INSTALL) from error
    return library


def _load() -> Bulk:
    machine = platform.machine()
    if machine != "x86_64":
        raise Unusable(f"it is for x86-64, and this machine is {machine}")
    bulk = Bulk()
    if not all(_agrees(bulk, number, size) for number in SUITES for size in (40, 1371)):
        raise Unusable(
            f"{LIBRARY} does not encrypt as cryptography does",
            "reinstall libipsec-mb1 from Debian 12, and report it if that does not help",
        )
    return bulk


def _agrees(bulk: Bulk, number: int, size: int) -> bool:
    """Seal a run, open it, and open it with a bit changed, beside `cryptography`."""
    count = 2 * LEAST + 1
    key = bytes(range(1, KEY_SIZE + 1))
    plain = bytearray(at * 7 + at // 256 & 255 for at in range(count * size))
    nonces = bytearray(at * 5 & 255 for at in range(count * NONCE_SIZE))
    headers = bytearray(at * 3 & 255 for at in range(count * HEADER_SIZE))
    sealed = bytearray(count * (size + TAG_SIZE))
    opened, tags = bytearray(count * size), bytearray(count * TAG_SIZE)
    aead = SUITES[number].aead(key)
    expected = b"".join(
        aead.encrypt(
            bytes(nonces[at * NONCE_SIZE : (at + 1) * NONCE_SIZE]),
            bytes(plain[at * size : (at + 1) * size]),
            bytes(headers[at * HEADER_SIZE : (at + 1) * HEADER_SIZE]),
        )
        for at in range(count)
    )
    nonce, aad = Place(nonces, 0, NONCE_SIZE), Place(headers, 0, HEADER_SIZE)
    wire, wire_tags = Place(sealed, 0, size + TAG_SIZE), Place(sealed, size, size + TAG_SIZE)
    own_tags = Place(tags, 0, TAG_SIZE)
    sealing = Batch(
        SEAL, size, count, source=Place(plain, 0, size), target=wire, nonce=nonce, aad=aad, tag=wire_tags
    )
    opening = Batch(
        OPEN, size, count, source=wire, target=Place(opened, 0, size), nonce=nonce, aad=aad, tag=own_tags
    )
    made = bulk.key(number, key)
    if not made.run(sealing, count) or sealed != expected or not made.run(opening, count):
        return False
    found = b"".join(sealed[at * (size + TAG_SIZE) + size :][:TAG_SIZE] for at in range(count))
    if opened != plain or tags != found:
        return False
    sealed[size // 2] ^= 1
    return made.run(opening, count) and tags[:TAG_SIZE] != found[:TAG_SIZE]
