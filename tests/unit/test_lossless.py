"""Lossless reattach: what a path lost goes again, once, in order, in bounds, and nothing overtakes what waits."""

import msgspec
import pytest
from lossless_pair import CLIENT, IDS, MS, RECORD, START_MS, End, LossyPair, superpacket

from workers.commands import IndexReport, InstalledIndex, InstallIndexes, PhaseKeys, SetPathMtu
from workers.counters import Counter
from workers.fakes import FakeNetwork
from workers.kept import KeptQueue, Pool, Waited

NOW = START_MS


def both(pair: LossyPair) -> list[tuple[End, End]]:
    return [(pair.client, pair.gateway), (pair.gateway, pair.client)]


def test_what_a_dead_path_swallowed_arrives_once_and_in_order_in_both_directions() -> None:
    pair = LossyPair()
    for sender, _ in both(pair):
        sender.send(NOW, *range(5))
    pair.settle(NOW)
    pair.dead()
    for sender, _ in both(pair):
        sender.send(NOW + 10, *range(5, 15))
        sender.send(NOW + 20, *range(15, 20))
    pair.reattach(NOW + 100, 1)
    for sender, receiver in both(pair):
        sender.send(NOW + 101, 20)
        pair.settle(NOW + 101)
        assert receiver.numbers() == list(range(21))
        assert sender.counters[Counter.RESENT_SENT] == 15
        assert receiver.dropped() == {}


def test_the_first_goes_again_alone_for_the_peer_is_waiting_and_the_others_together() -> None:
    pair = LossyPair()
    pair.dead()
    for number in range(6):
        pair.gateway.send(NOW + number, number)
    sends: list[int] = []
    pair.impair(lambda datagrams: sends.append(len(datagrams)) or [datagrams])
    pair.bind_gateway(NOW + 100, 1, pair.lose(NOW + 100))
    assert sends == [1, 5]


def test_only_what_is_missing_goes_again() -> None:
    pair = LossyPair()
    kept = iter([0, 1, 3, 6, 7])
    lucky = set(kept)
    count = iter(range(100))
    pair.impair(lambda datagrams: [[d] for d in datagrams if next(count) in lucky])
    pair.client.send(NOW, *range(10))
    pair.settle(NOW)
    pair.reattach(NOW + 50, 1)
    assert pair.gateway.numbers() == [0, 1, 3, 6, 7, 2, 4, 5, 8, 9]
    assert pair.client.counters[Counter.RESENT_SENT] == 5
    assert pair.gateway.dropped() == {}


def test_superpackets_go_again_whole() -> None:
    pair = LossyPair()
    pair.dead()
    for number in (1, 2):
        pair.client.tun.pending.append(superpacket(True, number, 30))
        pair.client.turn(NOW * MS)
    pair.reattach(NOW + 50, 1)
    assert pair.gateway.numbers() == [1, 2]
    assert [len(written) for written in pair.gateway.tun.written] == [10 + 28 + 30_000] * 2


def test_nothing_older_than_the_window_goes_again() -> None:
    pair = LossyPair(resend_window_ms=200)
    pair.dead()
    pair.client.send(NOW, 0)
    pair.client.send(NOW + 100, 1)
    pair.client.send(NOW + 300, 2)
    pair.reattach(NOW + 300, 1)
    assert pair.gateway.numbers() == [1, 2]


def sent_in_fragments() -> LossyPair:
    """Packet 0 has arrived, then the path died, and packet 1 went in fragments that are lost."""
    pair = LossyPair()
    pair.client.send(NOW, 0)
    pair.settle(NOW)
    pair.client.table.set_path_mtu(SetPathMtu(1, RECORD, 0, 1280, False))
    pair.dead()
    pair.client.send(NOW + 1, 1, size=1400)
    return pair


def test_a_packet_that_went_in_fragments_goes_again_under_one_counter_only() -> None:
    """None of its fragments has arrived: once it has, under the counter of one, the others still show as missing."""
    pair = sent_in_fragments()
    for at_ms, index in ((NOW + 2, 1), (NOW + 3, 2), (NOW + 4, 3)):
        pair.reattach(at_ms, index)
        assert pair.gateway.numbers() == [0, 1]


def test_a_packet_in_fragments_goes_again_until_it_arrives() -> None:
    pair = sent_in_fragments()
    ours = pair.client.rebind(NOW + 2, report=True)
    theirs = pair.bind_gateway(NOW + 2, 1, ours)
    pair.client.rebind(NOW + 2, pair.client.on(1), resend=theirs)
    pair.settle(NOW + 2)
    assert pair.gateway.numbers() == [0]
    pair.reattach(NOW + 3, 2)
    assert pair.gateway.numbers() == [0, 1]


def raise_generation(end: End, now_ms: int) -> None:
    end.pipelines.add(msgspec.structs.replace(end.added, generation=1), now_ms * MS)


def test_what_went_before_the_generation_rose_goes_again() -> None:
    pair = LossyPair()
    pair.gateway.send(NOW, 0)
    pair.settle(NOW)
    pair.dead()
    pair.gateway.send(NOW + 1, 1)
    raise_generation(pair.gateway, NOW + 2)
    pair.reattach(NOW + 3, 1)
    assert pair.client.numbers() == [0, 1]


def test_what_went_on_an_index_younger_than_the_generation_goes_again() -> None:
    pair = LossyPair()
    client = pair.client
    for indexes in (IDS[:1], IDS):
        again = msgspec.structs.replace(client.added, generation=1, indexes=indexes)
        client.pipelines.add(again, NOW * MS)
    pair.reattach(NOW + 1, 1)
    pair.dead()
    client.send(NOW + 2, 0)
    pair.reattach(NOW + 3, 2)
    assert pair.gateway.numbers() == [0]


def test_nothing_that_could_be_taken_for_what_went_after_the_generation_rose_goes_again() -> None:
    pair = LossyPair()
    pair.gateway.send(NOW, 0)
    pair.settle(NOW)
    ours = pair.client.rebind(NOW, report=True)
    pair.gateway.send(NOW + 1, 1)
    raise_generation(pair.gateway, NOW + 2)
    pair.gateway.send(NOW + 3, 2)
    pair.settle(NOW + 3)
    pair.bind_gateway(NOW + 4, 1, ours)
    pair.settle(NOW + 4)
    assert pair.client.numbers() == [0, 1, 2]


def test_what_does_not_fit_is_forgotten_oldest_first() -> None:
    pair = LossyPair(resend_bytes=1000)  # a packet of 100 bytes is sealed into 144
    pair.dead()
    for number in range(20):
        pair.client.send(NOW, number)
    pair.reattach(NOW, 1)
    assert pair.gateway.numbers() == list(range(14, 20))


@pytest.mark.parametrize("keep", [{"resend_window_ms": 0}, {"resend_bytes": 0}])
def test_it_can_be_switched_off(keep: dict[str, int]) -> None:
    pair = LossyPair(**keep)
    pair.dead()
    pair.client.send(NOW, 0)
    pair.lose(NOW)
    pair.client.send(NOW, 1)
    assert pair.client.dropped() == {"NO_PATH": 1}
    pair.reattach(NOW, 1)
    pair.client.send(NOW, 2)
    pair.settle(NOW)
    assert pair.gateway.numbers() == [2]


def test_a_voluntary_switch_resends_nothing() -> None:
    pair = LossyPair()
    pair.dead()
    pair.client.send(NOW, 0)
    pair.reattach(NOW, 1, lost=False)
    assert pair.gateway.numbers() == []
    assert pair.client.counters[Counter.RESENT_SENT] == 0


@pytest.mark.parametrize("reports", [[], [IndexReport(0, 2**64 - 1, bytes(32))]])
def test_nothing_goes_again_when_nothing_is_known(reports: list[IndexReport]) -> None:
    pair = LossyPair()
    pair.dead()
    pair.client.send(NOW, 0)
    pair.alive()
    pair.bind_gateway(NOW, 1, None)
    pair.client.rebind(NOW, pair.client.on(1), resend=reports)
    pair.settle(NOW)
    assert pair.gateway.numbers() == []


def test_a_second_death_during_the_first_reattach_loses_nothing_either() -> None:
    pair = LossyPair()
    pair.client.send(NOW, 0)
    pair.settle(NOW)
    pair.dead()
    pair.client.send(NOW + 1, 1, 2)
    ours = pair.lose(NOW + 2)
    theirs = pair.bind_gateway(NOW + 3, 1, ours)
    pair.client.rebind(NOW + 3, pair.client.on(1), resend=theirs)  # what goes again is lost again
    pair.client.send(NOW + 4, 3)
    assert pair.client.counters[Counter.RESENT_SENT] == 2
    pair.reattach(NOW + 50, 2)
    assert pair.gateway.numbers() == [0, 1, 2, 3]
    assert pair.gateway.dropped() == {}


@pytest.mark.parametrize(("index", "reach"), [(255, True), (256, False)])
def test_an_index_too_far_away_is_left_out(index: int, reach: bool) -> None:
    pair = LossyPair()
    pair.dead()
    pair.client.send(NOW, 0)
    ids = [*IDS, InstalledIndex(index, b"farthest")]
    for end in (pair.client, pair.gateway):
        end.table.install(InstallIndexes(1, RECORD, ids))
    pair.reattach(NOW, index)
    pair.client.send(NOW, 1)
    pair.settle(NOW)
    assert pair.gateway.numbers() == ([0, 1] if reach else [1])


def test_late_originals_are_not_delivered_beside_what_went_again() -> None:
    pair = LossyPair()
    late: list[bytes] = []
    pair.impair(lambda datagrams: late.extend(datagrams) or [])
    pair.gateway.send(NOW, 0, 1, 2)
    pair.reattach(NOW + 50, 1)
    pair.network.deliver(late, pair.gateway.address, CLIENT)
    pair.settle(NOW + 51)
    assert pair.client.numbers() == [0, 1, 2]
    assert pair.client.dropped() == {"REPLAYED": 3}


# What waits for a path


def test_what_came_without_a_path_goes_after_what_was_lost_and_before_what_is_new() -> None:
    pair = LossyPair()
    pair.dead()
    pair.client.send(NOW, 0, 1)
    pair.lose(NOW + 1)
    pair.client.send(NOW + 2, 2, 3)
    assert pair.client.dropped() == {}
    pair.reattach(NOW + 5, 1)
    pair.client.send(NOW + 6, 4)
    pair.settle(NOW + 6)
    assert pair.gateway.numbers() == [0, 1, 2, 3, 4]


def test_what_waits_too_long_or_is_too_much_is_dropped_and_counted() -> None:
    pair = LossyPair(resend_bytes=1000)
    pair.lose(NOW)
    pair.client.send(NOW, *range(12))  # nine fit
    assert pair.client.dropped() == {"NO_PATH": 3}
    pair.client.turn((NOW + 400) * MS)
    pair.client.send(NOW + 499, 50)
    pair.client.turn((NOW + 501) * MS)
    pair.client.turn((NOW + 701) * MS)
    assert pair.client.dropped() == {"NO_PATH": 3 + 9}
    pair.reattach(NOW + 702, 1)
    assert pair.gateway.numbers() == [50]


def test_what_waits_when_a_session_goes_or_begins_a_new_epoch_is_counted() -> None:
    pair = LossyPair()
    pair.lose(NOW)
    pair.client.send(NOW, *range(3))
    pair.client.pipelines.table.remove(RECORD)
    pair.client.turn((NOW + 200) * MS)
    pair.client.turn((NOW + 400) * MS)
    assert pair.client.dropped() == {"NO_PATH": 3}


def test_a_new_path_takes_what_waits_at_any_command_that_brings_one() -> None:
    pair = LossyPair()
    pair.lose(NOW)
    pair.client.send(NOW, 0)
    pair.client.pipelines.add(pair.client.added, NOW * MS)
    pair.settle(NOW)
    assert pair.gateway.numbers() == [0]


# Pace


def test_megabytes_go_at_most_twice_as_fast_as_first_sent() -> None:
    pair = LossyPair()
    pair.dead()
    for number in range(100):  # 3 MB in 100 ms
        pair.client.tun.pending.append(superpacket(True, number, 30))
        pair.client.turn((NOW + number) * MS)
    pair.alive()
    theirs = pair.bind_gateway(NOW + 100, 1, [])
    pair.client.rebind(NOW + 100, pair.client.on(1), resend=theirs)
    for ms in range(100, 161):
        pair.client.turn((NOW + ms) * MS)
        resent = pair.client.counters[Counter.RESENT_SENT] / 30
        assert resent <= 3 + 2 * (ms - 100) + 1
        if ms == 120:
            # What comes meanwhile keeps its place.
            pair.client.send(NOW + ms, 777)
    pair.settle(NOW + 161)
    assert pair.client.counters[Counter.RESENT_SENT] == 100 * 30
    pair.client.send(NOW + 162, 778)
    pair.settle(NOW + 162)
    assert pair.gateway.numbers() == [*range(100), 777, 778]
    assert not pair.client.session.waiting


def test_what_had_arrived_does_not_delay_what_had_not() -> None:
    pair = LossyPair()
    for number in range(110):  # 3 MB in 100 ms, all of which arrive; then 300 kB in 10 ms, none of which do
        if number == 100:
            pair.dead()
        pair.client.tun.pending.append(superpacket(True, number, 30))
        pair.client.turn((NOW + number) * MS)
        pair.settle(NOW + number)
    pair.alive()
    theirs = pair.bind_gateway(NOW + 110, 1, [])
    pair.client.rebind(NOW + 110, pair.client.on(1), resend=theirs)
    for ms in range(110, 117):
        pair.client.turn((NOW + ms) * MS)
    assert pair.client.counters[Counter.RESENT_SENT] == 10 * 30
    pair.settle(NOW + 117)
    assert pair.gateway.numbers() == [*range(110)]


def test_a_path_that_dies_while_much_goes_again_leaves_nothing_behind() -> None:
    pair = LossyPair()
    pair.dead()
    for number in range(60):
        pair.client.tun.pending.append(superpacket(True, number, 30))
        pair.client.turn((NOW + number) * MS)
    pair.alive()
    theirs = pair.bind_gateway(NOW + 60, 1, [])
    pair.client.rebind(NOW + 60, pair.client.on(1), resend=theirs)
    pair.settle(NOW + 65)
    some = len(pair.gateway.numbers())
    assert 0 < some < 60
    pair.reattach(NOW + 70, 2)
    for ms in range(70, 110):
        pair.settle(NOW + ms)
    assert pair.gateway.numbers() == list(range(60))


# Before the bind


def test_some_datagrams_go_behind_the_request_and_are_delivered_at_the_bind() -> None:
    pair = LossyPair()
    pair.lose(NOW)
    pair.client.send(NOW, 0, 1)
    pair.client.rebind(NOW, early=pair.client.on(1))
    pair.client.send(NOW, *range(2, 100))
    pair.settle(NOW)
    assert len(pair.network.sent) == 64
    assert pair.gateway.numbers() == []
    theirs = pair.bind_gateway(NOW + 1, 1, [])
    assert pair.gateway.numbers() == list(range(64))
    assert theirs[0] == IndexReport(1, 64, bytes(32))
    pair.client.rebind(NOW + 2, pair.client.on(1), resend=theirs)
    pair.settle(NOW + 2)
    assert pair.gateway.numbers() == list(range(100))
    assert pair.client.counters[Counter.RESENT_SENT] == 0
    assert pair.gateway.counters[Counter.HELD_DELIVERED] == 64


def test_what_waited_while_the_machine_slept_does_not_go_before_the_bind() -> None:
    pair = LossyPair()
    pair.lose(NOW)
    pair.client.send(NOW, 0, 1)
    # Nothing of the worker ran meanwhile.
    pair.client.rebind(NOW + 60_000, early=pair.client.on(1))
    assert pair.network.sent == []
    pair.client.send(NOW + 60_000, 2)
    pair.settle(NOW + 60_000)
    pair.bind_gateway(NOW + 60_001, 1, [])
    assert pair.gateway.numbers() == [2]


def test_a_little_more_goes_behind_each_request_that_is_repeated() -> None:
    pair = LossyPair()
    pair.lose(NOW)
    pair.dead()
    pair.client.rebind(NOW, early=pair.client.on(1))
    pair.client.send(NOW, *range(200))
    for again in range(1, 4):
        pair.client.rebind(NOW + 50 * again, early=pair.client.on(1))
        pair.client.turn((NOW + 50 * again) * MS)
        assert len(pair.network.sent) == 64 + 4 * again
    pair.reattach(NOW + 200, 1)
    assert sorted(pair.gateway.numbers()) == list(range(200))


def test_other_candidates_get_no_more_than_is_left() -> None:
    pair = LossyPair()
    pair.lose(NOW)
    pair.client.rebind(NOW, early=pair.client.on(1))
    pair.client.send(NOW, *range(40))
    pair.client.rebind(NOW, early=pair.client.on(2))
    pair.client.send(NOW, *range(40, 80))
    assert len(pair.network.sent) == 64


def test_a_superpacket_that_is_too_long_to_go_early_waits_whole() -> None:
    pair = LossyPair()
    pair.lose(NOW)
    pair.client.rebind(NOW, early=pair.client.on(1))
    for number in (1, 2, 3):
        pair.client.tun.pending.append(superpacket(True, number, 30))
    pair.client.turn(NOW * MS)
    assert len(pair.network.sent) == 60
    pair.reattach(NOW + 1, 1)
    assert pair.gateway.numbers() == [1, 2, 3]


def test_what_went_early_on_a_path_that_is_dead_too_goes_again() -> None:
    pair = LossyPair()
    pair.client.send(NOW, 0)
    pair.settle(NOW)
    pair.dead()
    ours = pair.lose(NOW)
    pair.client.rebind(NOW, early=pair.client.on(1))
    pair.client.send(NOW, 1, 2)
    pair.alive()
    theirs = pair.bind_gateway(NOW + 20, 2, ours)
    pair.client.rebind(NOW + 20, pair.client.on(2), resend=theirs)
    pair.settle(NOW + 20)
    assert pair.gateway.numbers() == [0, 1, 2]


def early(pair: LossyPair, *numbers: int, index: int = 1) -> None:
    """The client sends these on an index that the gateway has not bound."""
    pair.client.rebind(NOW, pair.client.on(index))
    pair.client.send(NOW, *numbers)


def test_held_data_is_bounded_and_forgotten_in_time() -> None:
    pair = LossyPair()
    early(pair, *range(100))
    pair.settle(NOW)
    assert pair.gateway.dropped() == {"NOT_BOUND": 36}
    pair.settle(NOW + 499)
    assert pair.gateway.dropped() == {"NOT_BOUND": 36}
    pair.settle(NOW + 700)
    assert pair.gateway.dropped() == {"NOT_BOUND": 100}
    pair.bind_gateway(NOW + 701, 1, None)
    assert pair.gateway.numbers() == []
    # It never counted as received.
    assert pair.gateway.rebind(NOW + 702, pair.gateway.on(1), report=True)[0].next_counter == 0


def test_held_data_is_delivered_only_on_its_index_and_from_its_source() -> None:
    pair = LossyPair()
    early(pair, 1)
    early(pair, 2, index=2)
    pair.settle(NOW)
    elsewhere = pair.gateway.path(2, ("2001:db8::7", 5001))
    pair.gateway.rebind(NOW, elsewhere)
    assert pair.gateway.numbers() == []
    assert pair.gateway.dropped() == {"NOT_BOUND": 1}
    pair.bind_gateway(NOW, 1, None)
    assert pair.gateway.numbers() == [1]


def test_copies_of_held_data_take_no_room_and_are_delivered_once() -> None:
    pair = LossyPair()
    pair.impair(lambda datagrams: [datagrams * 3])
    early(pair, *range(30))
    pair.settle(NOW)
    pair.bind_gateway(NOW, 1, None)
    assert pair.gateway.numbers() == list(range(30))


def test_late_data_of_a_path_that_was_left_is_not_held() -> None:
    pair = LossyPair()
    pair.bind_gateway(NOW, 1, None)
    pair.client.send(NOW, 0)
    pair.settle(NOW)
    assert pair.gateway.dropped() == {"NOT_BOUND": 1}


# Ends


def test_a_removed_session_leaves_nothing_behind() -> None:
    pair = LossyPair()
    early(pair, 0)
    pair.settle(NOW)
    pair.client.rebind(NOW)
    pair.client.send(NOW, 1)
    for end in (pair.client, pair.gateway):
        end.table.remove(0)
        assert not end.table.pool.in_use
        assert not end.table.held
        assert end.pipelines.timeout_s() is None


def test_a_rekey_between_loss_and_bind_does_no_harm() -> None:
    pair = LossyPair()
    pair.dead()
    pair.client.send(NOW, 0)
    for end, (ours, theirs) in ((pair.client, (b"v", b"e")), (pair.gateway, (b"e", b"v"))):
        fresh = PhaseKeys(1, ours * 32, theirs * 32)
        end.pipelines.add(msgspec.structs.replace(end.added, phases=[fresh]), NOW * MS)
    pair.reattach(NOW, 1)
    assert pair.gateway.numbers() == [0]


def test_queues_share_what_a_worker_may_keep() -> None:
    pool = Pool(capacity=1000)
    first: KeptQueue[Waited] = KeptQueue(pool, counts=True)
    second: KeptQueue[Waited] = KeptQueue(pool, counts=True)
    for queue in (first, second):
        queue.limit(900, 1000)
    for number in range(9):
        first.add(Waited(number, bytes(100)))
    assert len(first) == 9
    second.add(Waited(9, bytes(100)))
    pool.expire(9)
    assert (len(first), len(second), pool.lost) == (5, 1, 4)
    second.clear()
    assert list(pool.in_use) == [first]


def test_a_client_never_holds() -> None:
    client = End(FakeNetwork(), gateway=False)
    gateway = End(client.network, gateway=True)
    gateway.rebind(NOW, gateway.on(1))
    gateway.send(NOW, 0)
    client.turn(NOW * MS)
    assert client.dropped() == {"NOT_BOUND": 1}
