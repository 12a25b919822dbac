"""What the two cores say at a reattach of what has arrived, and what they have their workers send again."""

import pytest
from core_pair import CorePair, Flight, every_pair_is_sound, lose, silent

from jvpn.agent.effects import TellWorker
from jvpn.agent.switching import REPORT_WAIT_MS
from jvpn.observability.events import TransportSwitch
from jvpn.protocol import reattach
from jvpn.protocol.constants import PacketType
from jvpn.protocol.reattach import Ack, Cause, Report, Request, Result
from workers import commands

__all__ = ["every_pair_is_sound"]


def requests(pair: CorePair) -> list[Request]:
    """All REQUESTs that were sent, opened."""
    by_id = {steering_id: index for index, steering_id in pair.live.indexes.ids.items()}
    sent = [flight.data for flight in pair.of_kind(PacketType.REATTACH_REQUEST, up=True)]
    known = [data for data in sent if data[4:12] in by_id]
    return [reattach.open_request(pair.live.secrets, by_id[data[4:12]], data) for data in known]


def acks(pair: CorePair) -> list[Ack]:
    flights = pair.of_kind(PacketType.REATTACH_ACK, up=False)
    return [reattach.open_ack(pair.live.secrets, flight.data) for flight in flights]


def rebinds(pair: CorePair) -> list[commands.Rebind]:
    return [c for c in pair.workers[pair.live.slot].commands if isinstance(c, commands.Rebind)]


def client_rebinds(pair: CorePair) -> list[commands.Rebind]:
    return [c for c in pair.client_worker.commands if isinstance(c, commands.Rebind)]


def reports(command: commands.Rebind) -> tuple[Report, ...]:
    return tuple(Report(r.index, r.next_counter, r.missing) for r in command.resend or ())


def talked() -> CorePair:
    pair = CorePair().attach()
    for number in range(3):
        assert pair.data_up(bytes(8) + bytes((number,)) * 40)
        assert pair.data_down(bytes(8) + bytes((number,)) * 40)
    pair.advance(100)
    return pair


def test_the_worker_is_asked_what_has_arrived_before_anything_else_is_thought_of() -> None:
    pair = talked()
    asked: list[list[commands.Command]] = []

    def act() -> None:
        due = pair.client.effects()
        asked.append([effect.command for effect in due if isinstance(effect, TellWorker)])
        events.append(len(pair.client_sink.events))

    events: list[int] = []
    assert pair.client.session is not None
    pair.client.session.act = act
    before = len(pair.client_sink.events)
    pair.client.link_event("upA", False, pair.now_ns)
    (first,) = asked[0]
    assert isinstance(first, commands.Rebind)
    assert (first.binding, first.report) == (None, True)
    assert events[0] == before < len(pair.client_sink.events)


def test_after_a_loss_both_ends_report_and_have_the_rest_sent_again() -> None:
    pair = talked()
    old = pair.live.bindings.active
    assert old is not None
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    first = requests(pair)[0]
    assert first.reports[0].path_index == old.index
    assert first.reports[0].next_counter > 2
    bind = rebinds(pair)[0]
    assert bind.report
    assert reports(bind) == first.reports
    (ack,) = (ack for ack in acks(pair) if ack.result is Result.BOUND)
    assert {report.path_index for report in ack.reports} == {0, ack.bound_index}
    assert reports(client_rebinds(pair)[-1]) == ack.reports


def test_every_copy_of_an_ack_has_the_same_reports() -> None:
    pair = talked()
    pair.rules.append(lose(PacketType.REATTACH_ACK, 3, up=False))
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    bound = [ack for ack in acks(pair) if ack.result is Result.BOUND]
    assert len(bound) >= 2
    assert len({ack.reports for ack in bound}) == 1
    assert bound[0].reports


def test_no_ack_goes_before_the_worker_has_bound() -> None:
    pair = talked()
    pair.worker_delay_ms = 300
    pair.link(0, False)
    pair.advance(250)
    assert len(requests(pair)) > 1
    assert [ack for ack in acks(pair) if ack.result is Result.BOUND] == []
    pair.wait_for(lambda: pair.attached)
    assert all(ack.reports for ack in acks(pair) if ack.result is Result.BOUND)


@pytest.mark.parametrize("claimed", [(), (Report(0, 0, bytes(32)),)])
def test_a_voluntary_switch_has_nothing_sent_again(claimed: tuple[Report, ...]) -> None:
    pair = talked()
    pair.advance(5_000)
    session = pair.client.session
    assert session is not None
    if claimed:
        # A client that reports all the same gets no more than any other.
        honest = session.requester.request
        session.requester.request = lambda path, now_ms, _: honest(path, now_ms, claimed)  # type: ignore[method-assign]
    assert pair.client.switch("upB", pair.now_ns)
    pair.settle()
    pair.wait_for(lambda: pair.attached)
    assert {request.reports for request in requests(pair)} == {claimed}
    assert all(command.resend is None for command in rebinds(pair) + client_rebinds(pair))
    assert all(command.early is None for command in client_rebinds(pair))


def test_a_request_does_not_wait_long_for_a_worker_that_does_not_answer() -> None:
    pair = talked()
    pair.client_worker.alive = False
    pair.link(0, False)
    pair.advance(REPORT_WAIT_MS - 1)
    assert requests(pair) == []
    pair.advance(1)
    (request,) = requests(pair)
    assert request.reports == ()


def test_data_goes_early_on_the_first_candidate_only() -> None:
    pair = CorePair(uplinks=3).attach()
    pair.rules.append(silent(1))
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    told = [command.early for command in client_rebinds(pair)]
    early = [binding for binding in told if binding is not None]
    assert len({binding.index for binding in early}) == 1
    assert len({request.path_index for request in requests(pair)}) > 1
    assert early[0].index == requests(pair)[0].path_index
    # Told off with the next candidate, not only at the bind.
    assert None in told[told.index(early[0]) :][: 1 + len(early)]


def test_whichever_path_is_bound_its_index_is_newer_than_that_of_early_data() -> None:
    pair = CorePair(uplinks=3).attach()
    pair.advance(2_000)
    assert pair.client.session is not None
    for uplink in pair.client.uplinks:
        # They have come and gone too often: none is asked alone.
        uplink.damped_until_ms = pair.now_ms + 60_000
    before = pair.client.session.paths.active_path
    assert before is not None
    for remapped in range(4):
        session, told = pair.client.session, len(pair.client_worker.commands)
        session.switching.lose(Cause.ADDRESS_CHANGED, pair.now_ms, stay=remapped % 2 == 0)
        pair.settle()
        pair.wait_for(lambda: pair.attached)
        commands_since = pair.client_worker.commands[told:]
        early = [c.early.index for c in commands_since if isinstance(c, commands.Rebind) and c.early]
        active = session.paths.active_path
        assert active is not None
        assert early
        assert max(early) <= active.index
    # One that has just shown that it lives is asked alone all the same, one that is left is not.
    assert len({attempt.path_index for attempt in requests(pair)}) > 1


def test_the_policy_says_how_much_is_kept() -> None:
    pair = talked()
    policy = pair.live.policy
    for worker in (pair.workers[pair.live.slot], pair.client_worker):
        added = [c for c in worker.commands if isinstance(c, commands.AddSession)]
        assert added
        assert {(c.resend_window_ms, c.resend_bytes) for c in added} == {
            (policy.resend_window_ms, policy.resend_bytes)
        }


def test_the_mtu_of_the_active_path_is_found_and_told_to_both_workers() -> None:
    pair = CorePair().attach()
    pair.advance(1_000)
    for worker, record in ((pair.workers[pair.live.slot], pair.live.record), (pair.client_worker, 0)):
        path = worker.table.by_record[record].path
        assert path is not None
        assert (path.mtu, path.settled) == (1500 - 72, True)


def test_a_narrow_path_is_found_out_after_a_switch_to_it() -> None:
    pair = CorePair().attach()
    pair.rules.append(lambda flight: [] if flight.uplink == 1 and len(flight.data) + 28 > 1340 else None)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    slot, record = pair.live.slot, pair.live.record
    path = pair.workers[slot].table.by_record[record].path
    assert path is not None
    assert path.mtu <= 1340 - 72
    pair.advance(10_000)
    for table, number in ((pair.workers[slot].table, record), (pair.client_worker.table, 0)):
        path = table.by_record[number].path
        assert path is not None
        assert path.settled
        assert 1332 - 72 < path.mtu <= 1340 - 72


def stream(pair: CorePair, ms: int) -> None:
    """A datagram each way every 5 ms."""
    for _ in range(ms // 5):
        pair.data_up(bytes(60))
        pair.data_down(bytes(60))
        pair.advance(5)


def switches(pair: CorePair) -> int:
    return sum(isinstance(event, TransportSwitch) for event in pair.client_sink.events)


def moved_in_a_stream() -> CorePair:
    """A pair whose first path has died in a stream, and which has just left it."""
    pair = talked()
    stream(pair, 200)
    pair.rules.append(silent(0))
    while not switches(pair):
        stream(pair, 5)
    return pair


def test_a_path_that_is_full_of_what_goes_again_is_not_left_for_that() -> None:
    pair = moved_in_a_stream()
    full_until_ms = pair.now_ms + 200

    def queue(flight: Flight) -> list[int] | None:
        probes = flight.kind is PacketType.PATH and flight.uplink == 1
        return [110] if probes and pair.now_ms < full_until_ms else None

    pair.rules.insert(0, queue)
    stream(pair, 1_000)
    assert switches(pair) == 1


def test_a_path_that_dies_while_what_was_kept_goes_again_is_left() -> None:
    pair = moved_in_a_stream()
    pair.rules[:] = [silent(1)]
    stream(pair, 1_000)
    assert switches(pair) == 2


def test_how_long_packets_may_be_is_asked_ahead_of_what_goes_again() -> None:
    pair = talked()
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached)
    told = pair.client_worker.commands
    bind = next(n for n, c in enumerate(told) if isinstance(c, commands.Rebind) and c.resend is not None)
    index = told[bind].binding.index
    before = [c for c in told[:bind] if isinstance(c, commands.SendMtuProbe)]
    assert [c.path.index for c in before][-1] == index
