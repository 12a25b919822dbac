"""Whole runs by libipsec-mb: byte for byte what `cryptography` makes of them. Or it is not used, and it is said why."""

import ctypes
import platform
import random
import struct
from collections.abc import Iterator

import pytest

from jvpn.protocol.constants import HEADER_SIZE, KEY_SIZE, NONCE_SIZE, TAG_SIZE
from jvpn.protocol.offload import PARTIAL, VIRTIO, Segmentation
from jvpn.protocol.suites import suite
from workers import bulk
from workers.bulk import LEAST, OPEN, SEAL, Batch, Bulk, BulkKey, Place
from workers.commands import AddSession, InstalledIndex, PhaseKeys
from workers.counters import Counter
from workers.fakes import FakeNetwork, FakeWorker
from workers.keys import Phase, Warm
from workers.layouts import ReceiveLayout

CAPACITY = 128
BYTES = random.Random(7).randbytes(CAPACITY * 2000)
ONE_KEY, OTHER_KEY = BYTES[:KEY_SIZE], BYTES[KEY_SIZE : 2 * KEY_SIZE]
SUITES = pytest.mark.parametrize("number", [1, 2])


@pytest.fixture(scope="module")
def library() -> Bulk:
    found = bulk.look()
    if isinstance(found, bulk.Unusable):
        pytest.skip(f"libipsec-mb is not used here: {found.why}")
    return found


class Run:
    """`count` plaintexts, their datagrams (header ‖ ciphertext ‖ tag), and a batch each way between them."""

    def __init__(self, size: int, count: int) -> None:
        self.size, self.count = size, count
        self.segment = segment = HEADER_SIZE + size + TAG_SIZE
        self.plain = bytearray(BYTES[: count * size])
        self.nonces = bytearray(BYTES[-count * NONCE_SIZE :])
        self.wire = bytearray(BYTES[3 : count * segment + 3])
        self.opened, self.tags = bytearray(count * size), bytearray(count * TAG_SIZE)
        aad, text = Place(self.wire, 0, segment), Place(self.wire, HEADER_SIZE, segment)
        nonce = Place(self.nonces, 0, NONCE_SIZE)
        self.sealing = Batch(
            SEAL, size, count, source=Place(self.plain, 0, size), target=text, nonce=nonce, aad=aad,
            tag=Place(self.wire, HEADER_SIZE + size, segment),
        )  # fmt: skip
        self.opening = Batch(
            OPEN, size, count, source=text, target=Place(self.opened, 0, size), nonce=nonce, aad=aad,
            tag=Place(self.tags, 0, TAG_SIZE),
        )  # fmt: skip

    def expected(self, number: int, key: bytes, count: int | None = None) -> bytes:
        """The wire as `cryptography` makes it; what lies behind `count` datagrams stays as it is."""
        aead, out = suite(number).aead(key), bytearray(self.wire)
        for at in range(self.count if count is None else count):
            begin = at * self.segment
            header = bytes(self.wire[begin : begin + HEADER_SIZE])
            nonce = bytes(self.nonces[at * NONCE_SIZE : (at + 1) * NONCE_SIZE])
            text = bytes(self.plain[at * self.size : (at + 1) * self.size])
            out[begin + HEADER_SIZE : begin + self.segment] = aead.encrypt(nonce, text, header)
        return bytes(out)

    def received_tags(self) -> bytes:
        return b"".join(
            self.wire[end - TAG_SIZE : end] for end in range(self.segment, len(self.wire) + 1, self.segment)
        )


def memory_of(key: BulkKey, size: int = KEY_SIZE) -> bytes:
    return ctypes.string_at(key.address, size)


# The same bytes


@SUITES
@pytest.mark.parametrize("size", [1, 15, 16, 17, 28, 64, 255, 1348, 1900])
@pytest.mark.parametrize("count", [LEAST, LEAST + 1, 45, CAPACITY])
def test_both_directions_are_what_cryptography_makes_of_them(
    library: Bulk, number: int, size: int, count: int
) -> None:
    run, key = Run(size, count), library.key(number, ONE_KEY)
    expected = run.expected(number, ONE_KEY)
    assert key.run(run.sealing, count)
    assert run.wire == expected
    assert key.run(run.opening, count)
    assert run.opened == run.plain
    assert run.tags == run.received_tags()


@SUITES
def test_a_part_of_a_run_leaves_the_rest_alone(library: Bulk, number: int) -> None:
    run, key = Run(300, 45), library.key(number, ONE_KEY)
    expected = run.expected(number, ONE_KEY, 7)
    assert key.run(run.sealing, 7)
    assert run.wire == expected


@SUITES
def test_what_is_not_for_the_library_is_left_to_others_untouched(library: Bulk, number: int) -> None:
    run, key = Run(100, CAPACITY + 10), library.key(number, ONE_KEY)
    before = bytes(run.wire)
    assert run.sealing.capacity == CAPACITY
    for count in (0, 1, LEAST - 1, CAPACITY + 1, CAPACITY + 10):
        assert not key.run(run.sealing, count)
        assert not key.run(run.opening, count)
    assert run.wire == before
    assert run.opened == bytes(len(run.opened))
    short = Run(100, 10)
    assert not key.run(short.sealing, 11)


# Tags


@SUITES
def test_a_bit_changed_anywhere_in_a_run_is_found(library: Bulk, number: int) -> None:
    size, count = 120, 45
    run, key = Run(size, count), library.key(number, ONE_KEY)
    assert key.run(run.sealing, count)
    layout = ReceiveLayout(run.wire, run.segment)
    layout.stamp(9)
    layout.nonce_counters[:count] = layout.counters[:count]

    def wrong() -> list[int]:
        assert key.run(layout.opening, count)
        return layout.wrong_tags(count)

    # Sealed under nonces of its own, so none of it holds; sealed anew under the layout's, all of it does.
    assert wrong() == list(range(count))
    for at in range(count):
        run.nonces[at * NONCE_SIZE : (at + 1) * NONCE_SIZE] = layout.nonces[at]
    assert key.run(run.sealing, count)
    assert not wrong()
    assert layout.opened[: count * size] == run.plain
    for at in range(count):
        for place in (0, HEADER_SIZE, HEADER_SIZE + size - 1, HEADER_SIZE + size, run.segment - 1):
            run.wire[at * run.segment + place] ^= 1 << at % 8
            assert wrong() == [at], f"datagram {at}, byte {place}"
            run.wire[at * run.segment + place] ^= 1 << at % 8
    assert not wrong()


# Keys


@SUITES
def test_a_batch_takes_the_key_of_each_run(library: Bulk, number: int) -> None:
    run = Run(1348, 45)
    one, other = library.key(number, ONE_KEY), library.key(number, OTHER_KEY)
    for key, secret in ((one, ONE_KEY), (other, OTHER_KEY), (one, ONE_KEY)):
        assert key.run(run.sealing, 45)
        assert run.wire == run.expected(number, secret)
    # And another suite's.
    third = library.key(3 - number, OTHER_KEY)
    assert third.run(run.sealing, 45)
    assert run.wire == run.expected(3 - number, OTHER_KEY)
    assert third.run(run.opening, 45)
    assert run.opened == run.plain


@SUITES
def test_a_wiped_key_is_gone(library: Bulk, number: int) -> None:
    size = 1008 if number == 1 else KEY_SIZE
    key = library.key(number, ONE_KEY)
    assert memory_of(key, size) != bytes(size)
    key.wipe()
    assert memory_of(key, size) == bytes(size)


@SUITES
def test_a_phase_that_cooled_down_seals_the_same_when_warm_again(library: Bulk, number: int) -> None:
    warm = Warm(limit=1, bulk=library)
    one = Phase(number, PhaseKeys(0, ONE_KEY, OTHER_KEY), warm)
    other = Phase(number, PhaseKeys(1, OTHER_KEY, ONE_KEY), warm)
    run = Run(500, 10)
    first_keys = one.bulk_sealer(), one.bulk_opener()
    for phase, secret in ((one, ONE_KEY), (other, OTHER_KEY), (one, ONE_KEY), (other, OTHER_KEY)):
        sealer = phase.bulk_sealer()
        assert sealer is not None
        assert sealer is phase.bulk_sealer()
        assert sealer.run(run.sealing, 10)
        assert run.wire == run.expected(number, secret)
        # What it opens is what the other's sealer sealed.
        opener = (one if phase is other else other).bulk_opener()
        assert opener is not None
        assert opener.run(run.opening, 10)
        assert (run.opened, run.tags) == (run.plain, run.received_tags())
    for key in first_keys:
        assert key is not None
        assert memory_of(key) == bytes(KEY_SIZE)
    last = other.bulk_sealer()
    assert last is not None
    other.discard()
    assert memory_of(last) == bytes(KEY_SIZE)


def test_without_the_library_a_phase_has_no_bulk_keys() -> None:
    phase = Phase(1, PhaseKeys(0, ONE_KEY, OTHER_KEY), Warm())
    assert phase.bulk_sealer() is None
    assert phase.bulk_opener() is None


# Where there is none to use


@pytest.fixture
def afresh() -> Iterator[None]:
    """What is found is looked for in the test, and again after it."""
    bulk.look.cache_clear()
    yield
    bulk.look.cache_clear()


def why_not() -> bulk.Unusable:
    found = bulk.look()
    assert isinstance(found, bulk.Unusable)
    assert bulk.find() is None
    return found


@pytest.mark.usefixtures("afresh")
class TestNotUsed:
    def test_what_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(bulk, "LIBRARY", "libIPSec_MB.so.absent")
        found = why_not()
        assert "libIPSec_MB.so.absent" in found.why
        assert "install libipsec-mb1" in found.remedy

    def test_what_has_the_name_and_is_something_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(bulk, "LIBRARY", None)
        found = why_not()
        assert "imb_get_version" in found.why
        assert found.remedy

    def test_what_is_for_another_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
        found = why_not()
        assert "aarch64" in found.why
        assert not found.remedy

    @pytest.mark.usefixtures("library")
    def test_another_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bulk, "_VERSION", 0x0104)
        found = why_not()
        assert "version 1.3" in found.why
        assert "libipsec-mb1" in found.remedy

    @pytest.mark.usefixtures("library")
    def test_a_cpu_that_gains_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bulk, "_MIN_ARCHITECTURE", 99)
        found = why_not()
        assert "AVX" in found.why
        assert not found.remedy

    @pytest.mark.usefixtures("library")
    @pytest.mark.parametrize("number", [1, 2])
    def test_one_that_encrypts_otherwise(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        right = bulk._SUITE_MODES
        monkeypatch.setattr(bulk, "_SUITE_MODES", right | {number: right[3 - number]})
        found = why_not()
        assert "cryptography" in found.why
        assert "reinstall" in found.remedy


# Where it fails while it works


@SUITES
@pytest.mark.parametrize("done", [0, LEAST, 44])
@pytest.mark.usefixtures("library")
def test_a_tunnel_goes_on_when_the_library_leaves_work_undone(number: int, done: int) -> None:
    failing, calls = Bulk(), []

    def submit(manager: int, count: int, jobs: int) -> int:
        calls.append(count)
        return done

    failing._submit = submit
    network = FakeNetwork()
    here, there = ("::ffff:192.0.2.1", 5000), ("::ffff:192.0.2.2", 5001)
    ends = [
        FakeWorker(network, here, gateway=True, bulk=failing),
        FakeWorker(network, there, gateway=False, bulk=failing),
    ]
    for worker, keys, peer in (
        (ends[0], PhaseKeys(0, ONE_KEY, OTHER_KEY), there),
        (ends[1], PhaseKeys(0, OTHER_KEY, ONE_KEY), here),
    ):
        ids, inner, path = [InstalledIndex(0, b"index 0.")], ["0.0.0.0/0"], worker.path(0, peer)
        worker.table.add(AddSession(1, 0, b"s" * 16, number, 0, [keys], inner, inner, ids, path))
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 5 << 4, 16, 0, 0, 0)
    ip = struct.pack(">BBHHHBBH8x", 0x45, 0, 40 + 45 * 1348, 7, 0x4000, 64, 6, 0)
    superpacket = VIRTIO.pack(PARTIAL, Segmentation.TCPV4, 40, 1348, 20, 16) + ip + tcp + BYTES[: 45 * 1348]
    for worker, other in (ends, ends[::-1]):
        for _ in range(3):
            worker.tun.pending.append(superpacket)
            worker.turn()
            other.turn()
        assert [written[50:] for written in other.tun.written] == [BYTES[: 45 * 1348]] * 3
        # And a forgery is found, whatever the library has left in the places of the tags.
        forge, network.impair = network.impair, lambda run: [[*run[:7], run[7][:-1] + b"!", *run[8:]]]
        worker.tun.pending.append(superpacket)
        worker.turn()
        other.turn()
        network.impair = forge
        assert other.dropped() == {"BAD_TAG": 1}
        assert other.counters[Counter.DELIVERED_PACKETS] == 4 * 45 - 1
    assert calls
