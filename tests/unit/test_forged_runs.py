"""A run that the kernel joined of genuine datagrams and others: taken together it comes to what each would alone."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpn.protocol.constants import PacketType
from jvpn.protocol.keys import nonce
from jvpn.protocol.suites import suite
from jvpn.protocol.wire import Header
from workers.bulk import LEAST, find
from workers.commands import AddSession, InstalledIndex, PhaseKeys
from workers.counters import Counter
from workers.fakes import FakeNetwork, FakeWorker
from workers.keys import IntoCall

CLIENT, GATEWAY = ("::ffff:192.0.2.2", 5001), ("::ffff:192.0.2.1", 5000)
KEY, INDEX = b"u" * 32, 0
IDS = [InstalledIndex(INDEX, b"index 0.")]
SIZE = 200


def sealed(counter: int, kind: PacketType = PacketType.DATA, size: int = SIZE) -> bytes:
    """A packet of `size` bytes, with its counter to be known by."""
    head = bytes((0x45, 0, *size.to_bytes(2, "big"), 0, 7, 0, 0, 64, 99, 0, 0, 10, 8, 0, 2, 10, 8, 0, 1))
    body = counter.to_bytes(8, "big")
    plaintext = bytes(8) + head + body + bytes(size - len(head) - len(body))
    header = Header(kind, IDS[0].steering_id, counter, 0).encode()
    return header + suite(1).aead(KEY).encrypt(nonce(INDEX, counter), plaintext, header)


def spoilt(datagram: bytes, at: int) -> bytes:
    made = bytearray(datagram)
    made[at] ^= 1
    return bytes(made)


#: What stands at one place of a run, made of its counter.
MADE: dict[str, Callable[[int], bytes]] = {
    "genuine": sealed,
    "again": lambda counter: sealed(max(counter - 1, 1)),
    "tag": lambda counter: spoilt(sealed(counter), -1),
    "counter": lambda counter: spoilt(sealed(counter), 18),
    "phase": lambda counter: spoilt(sealed(counter), 1),
    "id": lambda counter: spoilt(sealed(counter), 4),
    "path": lambda counter: spoilt(sealed(counter, PacketType.PATH), -1),
    "path, by who has the keys": lambda counter: sealed(counter, PacketType.PATH),
    "control": lambda counter: sealed(counter, PacketType.CONTROL),
    "short": lambda counter: sealed(counter, size=SIZE - 50),
    "short, tag": lambda counter: spoilt(sealed(counter, size=SIZE - 50), -1),
    "short, id": lambda counter: spoilt(sealed(counter, size=SIZE - 50), 5),
    "tiny": lambda counter: sealed(counter)[:30],
}


def fresh() -> FakeWorker:
    """A gateway's, that has seen a run of this size."""
    worker = FakeWorker(FakeNetwork(), GATEWAY, gateway=True, bulk=find())
    keys, inner = [PhaseKeys(0, b"d" * 32, KEY)], ["10.8.0.2/32"]
    worker.table.add(AddSession(1, 3, b"s" * 16, 1, 0, keys, inner, inner, IDS, worker.path(INDEX, CLIENT)))
    receive(worker, [sealed(counter) for counter in range(1, 9)])
    assert worker.decryptor.layouts.get(len(sealed(1))) is not None
    worker.tun.written.clear()
    return worker


def receive(worker: FakeWorker, run: list[bytes]) -> None:
    worker.network.deliver(run, CLIENT, GATEWAY)
    worker.turn()


def counting(opener: IntoCall, calls: list[int]) -> IntoCall:
    def counted(*told: Any) -> int:
        calls.append(1)
        return opener(*told)

    return counted


#: How the same bytes were read is all that may differ.
HOW = {Counter.UDP_READS, Counter.TUN_WRITES}


def outcome(worker: FakeWorker) -> tuple[object, ...]:
    counted = {counter.name: worker.counters[counter] for counter in Counter if counter not in HOW}
    (session,) = worker.table.by_record.values()
    heard = worker.page.read_highest(session.record, INDEX)
    forwarded = sum(type(report).__name__ == "Datagram" for report in worker.reports)
    activity = worker.page.read_activity(session.record)
    return [written[10:] for written in worker.tun.written], counted, forwarded, heard, activity


@given(st.lists(st.sampled_from(sorted(MADE)), min_size=2, max_size=45))
def test_together_as_alone(kinds: list[str]) -> None:
    run = [MADE[kind](100 + at) for at, kind in enumerate(kinds)]
    together, alone = fresh(), fresh()
    receive(together, run)
    for datagram in run:
        receive(alone, [datagram])
    assert outcome(together) == outcome(alone)


@pytest.mark.parametrize("kind", ["tag", "path", "short, tag", "short, id", "tiny"])
def test_a_forgery_does_not_cost_the_others_their_batch(kind: str) -> None:
    if find() is None:
        pytest.skip("needs libIPSec_MB: without it a run with a wrong tag is opened one by one")
    worker = fresh()
    opened: list[int] = []
    for phase in worker.table.by_record[3].receive.values():
        phase._open = counting(phase.opener(), opened)
    run = [sealed(100 + at) for at in range(4 * LEAST)]
    at = len(run) if "short" in kind or kind == "tiny" else LEAST
    run.insert(at, MADE[kind](100 + len(run)))
    receive(worker, run)
    assert len(worker.tun.written) == 4 * LEAST
    assert len(opened) <= 1
