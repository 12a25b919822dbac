"""Commands to a worker's session table: what is refused, and that a refused command has changed nothing."""

import ctypes
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from jvpn.protocol.constants import PacketType
from workers import bulk
from workers.commands import AddSession, Endpoint, InstalledIndex, PhaseKeys, Rebind
from workers.fakes import FakeNetwork, FakeWorker
from workers.table import TableError

HERE, THERE = ("::ffff:192.0.2.1", 5000), ("::ffff:192.0.2.2", 5001)


def indexes(*numbers: int, of: int = 0) -> list[InstalledIndex]:
    return [InstalledIndex(n, bytes((of, n)) * 4) for n in numbers]


def session(worker: FakeWorker, record: int = 0, **changes: Any) -> AddSession:
    key = bytes((record,))
    command = AddSession(
        seq=1,
        record=record,
        session_id=key * 16,
        suite=1,
        generation=1,
        phases=[PhaseKeys(0, key + b"s" * 31, key + b"r" * 31)],
        allowed_sources=[f"10.8.{record}.2/32"],
        routes=[f"10.8.{record}.2/32", f"10.9.{record}.0/24"],
        indexes=indexes(0, 1, 2, of=record),
        binding=worker.path(0, THERE),
    )
    return msgspec.structs.replace(command, **changes)


@pytest.fixture
def gateway() -> FakeWorker:
    worker = FakeWorker(FakeNetwork(), HERE, gateway=True)
    worker.table.add(session(worker))
    return worker


@pytest.mark.parametrize(
    "changes",
    [
        {"session_id": b"x" * 16},
        {"generation": 0},
        {"suite": 9},
        {"phases": []},
        {"phases": [PhaseKeys(0, b"short", b"r" * 32)]},
        {"phases": [PhaseKeys(0, b"s" * 32, b"r" * 32), PhaseKeys(16, b"t" * 32, b"u" * 32)]},
        {"allowed_sources": ["10.8.0.2/33"]},
        {"routes": ["10.8.0.2/24"]},
        {"indexes": indexes(1, 2)},
        {"indexes": [*indexes(0, 1), InstalledIndex(2, bytes(8))]},
        {"indexes": [*indexes(0, 1), InstalledIndex(1, b"anything")]},
        {"indexes": [*indexes(0, 1), InstalledIndex(2, b"short")]},
        {"indexes": [InstalledIndex(0, b"another!")]},
        {"record": 99},
    ],
)
def test_a_refused_session_changes_nothing(gateway: FakeWorker, changes: dict[str, Any]) -> None:
    before = _picture(gateway)
    with pytest.raises(TableError):
        gateway.table.add(session(gateway, **changes))
    assert _picture(gateway) == before


def _picture(worker: FakeWorker) -> object:
    table = worker.table
    return [
        (
            record,
            known.generation,
            known.phase.keys,
            sorted(
                (index, entry.role, entry.remote, entry.accepted) for index, entry in known.entries.items()
            ),
            known.path and known.path.index,
            known.routes,
        )
        for record, known in table.by_record.items()
    ], sorted(table.by_id)


def test_a_steering_id_belongs_to_one_session(gateway: FakeWorker) -> None:
    before = _picture(gateway)
    clash = [*indexes(0, of=1), InstalledIndex(1, indexes(1)[0].steering_id)]
    with pytest.raises(TableError):
        gateway.table.add(session(gateway, 1, indexes=clash))
    assert _picture(gateway) == before


@pytest.mark.parametrize(
    "command",
    [
        lambda w: Rebind(1, 7, w.path(0, THERE), None, 0, []),
        lambda w: Rebind(1, 0, w.path(7, THERE), None, 0, []),
        lambda w: Rebind(1, 0, w.path(1, THERE), 1, 0, []),
        lambda w: Rebind(1, 0, msgspec.structs.replace(w.path(1, THERE), socket=5), None, 0, []),
        lambda w: Rebind(
            1, 0, msgspec.structs.replace(w.path(1, THERE), remote=Endpoint(b"\1\2\3\4", 5)), None, 0, []
        ),
    ],
)
def test_a_refused_rebind_changes_nothing(
    gateway: FakeWorker, command: Callable[[FakeWorker], Rebind]
) -> None:
    before = _picture(gateway)
    with pytest.raises(TableError):
        gateway.table.rebind(command(gateway))
    assert _picture(gateway) == before


def test_the_same_session_twice_leaves_counters_alone(gateway: FakeWorker) -> None:
    known = gateway.table.by_record[0]
    assert known.take_counters(0, 5) == 1 << 48
    gateway.table.add(session(gateway))
    assert gateway.table.by_record[0].take_counters(0, 1) == (1 << 48) + 5
    gateway.table.add(session(gateway, generation=2))
    assert gateway.table.by_record[0].take_counters(0, 1) == 2 << 48


def test_keys_of_a_removed_session_return_only_under_a_higher_generation(gateway: FakeWorker) -> None:
    gateway.table.by_record[0].take_counters(0, 5)
    gateway.table.remove(0)
    gateway.table.remove(0)
    with pytest.raises(TableError):
        gateway.table.add(session(gateway))
    gateway.table.add(session(gateway, generation=2))
    gateway.table.remove(0)
    gateway.table.add(session(gateway, phases=[PhaseKeys(0, b"n" * 32, b"m" * 32)]))


def test_keys_that_were_forged_too_often_are_given_up_like_others(gateway: FakeWorker) -> None:
    gateway.table.add(session(gateway, forged_until=1))
    known = gateway.table.by_record[0]
    known.seal(PacketType.DATA, known.entries[0], b"sent under them")
    known.forged(0)
    assert known.receive == {}
    gateway.table.remove(0)
    with pytest.raises(TableError):
        gateway.table.add(session(gateway))


@pytest.mark.parametrize("forged", [False, True])
@pytest.mark.parametrize("end", ["removed", "rekeyed", "rekeyed before"])
def test_keys_that_are_over_leave_the_library_nothing(forged: bool, end: str) -> None:
    library = bulk.find()
    if library is None:
        pytest.skip("libipsec-mb is not used here")
    worker = FakeWorker(FakeNetwork(), HERE, gateway=True, bulk=library)
    worker.table.add(session(worker, forged_until=1))
    known = worker.table.by_record[0]
    keys = [known.phase.bulk_sealer(), known.phase.bulk_opener()]
    if end == "rekeyed before":
        both = [*session(worker).phases, PhaseKeys(1, b"n" * 32, b"m" * 32)]
        worker.table.add(session(worker, phases=both, forged_until=1))
    if forged:
        known.forged(0)
    if end == "removed":
        worker.table.remove(0)
    else:
        worker.table.add(session(worker, phases=[PhaseKeys(1, b"n" * 32, b"m" * 32)]))
    for key in keys:
        assert key is not None
        assert ctypes.string_at(key.address, 32) == bytes(32)


def test_an_index_whose_counters_are_forgotten_is_never_sent_on_again(gateway: FakeWorker) -> None:
    known = gateway.table.by_record[0]
    for index in range(1, 300):
        assert known.may_send_on(index)
        known.take_counters(index, 1)
    assert not known.may_send_on(43)
    assert known.may_send_on(44)
    assert known.take_counters(44, 1) == (1 << 48) + 1
    before = _picture(gateway)
    with pytest.raises(TableError):
        gateway.table.rebind(Rebind(1, 0, gateway.path(1, THERE), None, 0, []))
    assert _picture(gateway) == before


def test_routes_go_to_the_longest_prefix_and_the_newest_session(gateway: FakeWorker) -> None:
    table = gateway.table
    table.add(session(gateway, 1, routes=["10.9.0.0/16", "10.9.0.7/32", "fd00::/8", "::/0"]))
    first, second = table.by_record[0], table.by_record[1]
    assert table.route(bytes((10, 9, 0, 1))) is first
    assert table.route(bytes((10, 9, 0, 7))) is second
    assert table.route(bytes((10, 9, 9, 1))) is second
    assert table.route(bytes((10, 10, 0, 1))) is None
    assert table.route(bytes((253,)) + bytes(15)) is second
    table.add(session(gateway, 2, routes=["10.9.0.0/16"]))
    table.remove(1)
    assert table.route(bytes((10, 9, 9, 1))) is table.by_record[2]
    assert table.route(bytes((10, 9, 0, 7))) is first
    assert table.route(bytes((253,)) + bytes(15)) is None


def test_a_client_has_one_session_and_sends_everything_to_it() -> None:
    client = FakeWorker(FakeNetwork(), HERE, gateway=False)
    client.table.add(session(client, routes=[]))
    with pytest.raises(TableError):
        client.table.add(session(client, 1))
    assert client.table.route(bytes((8, 8, 8, 8))) is client.table.by_record[0]
    client.table.remove(0)
    assert client.table.route(bytes((8, 8, 8, 8))) is None
    client.table.add(session(client, 1))
