"""Rekey on the wire: who begins, what is durable before what is said, how long two phases live side by side."""

import pytest
from core_pair import CorePair, Flight, Rule, every_pair_is_sound, fast_policy
from forge import Forge, forge

from jvpn.agent.rekeying import PACKETS_PER_PHASE
from jvpn.agent.session import ClientSession
from jvpn.observability.events import KeyEvent
from jvpn.protocol import rekey
from jvpn.protocol.constants import OLD_PHASE_MS, PacketType
from jvpn.protocol.control import ControlType
from jvpn.protocol.handshake import Kem
from jvpn.protocol.keys import SessionSecrets, control_key, nonce, steering_id
from jvpn.protocol.wire import Header
from jvpn.supervisor import effects
from workers.commands import AddSession

__all__ = ["every_pair_is_sound", "forge"]


@pytest.fixture
def pair() -> CorePair:
    """Attached, with the first rekey over."""
    pair = CorePair().attach()
    pair.advance(OLD_PHASE_MS + 1_000)
    return pair


def ours(pair: CorePair) -> ClientSession:
    assert pair.client.session is not None
    return pair.client.session


def begin(pair: CorePair) -> int:
    """Let the client begin a rekey; returns the phase that it has now."""
    session = ours(pair)
    phase = session.rekeying.secrets.phase_number
    session.rekeying.begin(pair.now_ms)
    session.send_health(pair.now_ms)
    pair.settle()
    return phase


def no_control(*, up: bool) -> Rule:
    def rule(flight: Flight) -> list[int] | None:
        return [] if flight.kind is PacketType.CONTROL and flight.up is up else None

    return rule


def test_the_gateway_begins_none() -> None:
    pair = CorePair(fast_policy(rekey_interval_ms=10_000)).attach()
    pair.advance(OLD_PHASE_MS + 1_000)
    phase = pair.live.secrets.phase_number
    pair.rules.append(no_control(up=True))
    pair.advance(8_000)
    assert (pair.live.secrets.phase_number, pair.live.next_secrets) == (phase, None)


def test_a_rekey_comes_with_its_interval() -> None:
    pair = CorePair(fast_policy(rekey_interval_ms=20_000)).attach()
    phase = pair.live.secrets.phase_number
    pair.advance(19_000)
    assert pair.live.secrets.phase_number == phase
    pair.wait_for(lambda: pair.live.secrets.phase_number == phase + 1, 3_000)


def test_a_rekey_comes_long_before_the_limit_of_the_aead(pair: CorePair) -> None:
    assert PACKETS_PER_PHASE * 2 <= 1 << 28
    phase = ours(pair).rekeying.secrets.phase_number
    seen = pair.client_page.read_activity(0)
    half = PACKETS_PER_PHASE // 2
    counts = (seen.received_packets + half, seen.sent_packets + half)
    pair.client_page.write_activity(0, seen.received_ns, seen.sent_ns, 0, 0, counts[0], counts[1] - 1)
    pair.advance(500)
    assert ours(pair).rekeying.secrets.phase_number == phase
    pair.client_page.write_activity(0, seen.received_ns, seen.sent_ns, 0, 0, *counts)
    pair.wait_for(lambda: ours(pair).rekeying.secrets.phase_number == phase + 1, 3_000)


def test_both_phases_are_durable_and_at_the_worker_before_the_response(pair: CorePair) -> None:
    pair.worker_delay_ms = 500
    done = len(pair.done)
    begin(pair)
    pair.wait_for(lambda: pair.live.next_secrets is not None)
    pair.advance(400)
    kinds = [type(e) for e in pair.done[done:] if isinstance(e, effects.SaveSession | effects.TellWorker)]
    assert kinds[:2] == [effects.SaveSession, effects.TellWorker]
    stored = pair.saved[-1].record.secrets
    assert pair.live.answered is not None
    assert pair.live.answered.response_value in stored
    assert pair.live.secrets.phase in stored
    assert pair.live.next_secrets is not None
    assert pair.live.next_secrets.phase in stored
    added = [c for c in pair.workers[pair.live.slot].commands if isinstance(c, AddSession)][-1]
    # The one to send under stands last: still the old one.
    old = pair.live.secrets.phase_number
    assert [p.phase for p in added.phases] == [old + 1, old]
    assert ours(pair).rekeying.under_way
    pair.wait_for(lambda: not ours(pair).rekeying.under_way)


def test_the_same_init_gets_the_same_response(pair: CorePair) -> None:
    said: list[bytes] = []
    channel = pair.live.channel
    send = channel.send

    def note(kind: ControlType, value: bytes, now_ms: int) -> None:
        if kind is ControlType.REKEY_RESPONSE:
            said.append(value)
        send(kind, value, now_ms)

    channel.send = note  # type: ignore[method-assign]
    pair.rules.append(no_control(up=False))
    begin(pair)
    pair.wait_for(lambda: len(said) >= 3)
    assert len(set(said)) == 1
    pair.rules.clear()
    pair.wait_for(lambda: not ours(pair).rekeying.under_way)


def test_the_gateway_goes_on_under_the_old_phase_until_something_comes_under_the_new(pair: CorePair) -> None:
    phase = ours(pair).rekeying.secrets.phase_number
    taken: set[PacketType] = set()

    def under_the_new(flight: Flight) -> list[int] | None:
        new = flight.up and flight.data[1] & 15 == phase + 1 & 15 and flight.kind not in taken
        return [] if new else None

    pair.rules.append(under_the_new)
    begin(pair)
    pair.wait_for(lambda: not ours(pair).rekeying.under_way)
    pair.data_up(bytes(8) + b"lost" * 12)
    pair.advance(100)
    worker = pair.workers[pair.live.slot]
    assert worker.table.by_record[pair.live.record].phase.nibble == phase & 15
    taken.add(PacketType.DATA)
    pair.data_up(bytes(8) + b"under the new phase" * 2)
    pair.advance(100)
    assert Header.decode(pair.of_kind(PacketType.DATA, up=True)[-1].data).phase == phase + 1 & 15
    assert len(worker.delivered) == 1
    assert worker.table.by_record[pair.live.record].phase.nibble == phase + 1 & 15


def _control(secrets: SessionSecrets, counter: int) -> bytes:
    """CONTROL of the client under a phase of the test's choice: an ACK of nothing."""
    header = Header(PacketType.CONTROL, steering_id(secrets, 0), counter, secrets.phase_number & 15).encode()
    frame = bytes((ControlType.ACK, 0, 0, 5, 0, 0, 0, 0, 0, 1)) + b"\xff\xff\xff\xff\x01"
    aead = secrets.suite.aead(control_key(secrets, 0, 1))  # type: ignore[arg-type]
    return header + aead.encrypt(nonce(0, counter), frame, header)


@pytest.mark.parametrize(("later_ms", "refused"), [(OLD_PHASE_MS - 500, 0), (OLD_PHASE_MS + 500, 1)])
def test_the_old_phase_is_taken_for_five_seconds_more(pair: CorePair, later_ms: int, refused: int) -> None:
    old = pair.live.secrets
    begin(pair)
    pair.wait_for(lambda: pair.live.secrets.phase_number > old.phase_number)
    pair.advance(later_ms)
    active = pair.live.bindings.active
    assert active is not None
    before = pair.context.counters["unknown_phase"]
    pair.inject(_control(old, 1 << 30), pair.addresses[0])
    assert pair.context.counters["unknown_phase"] - before == refused
    phases = pair.workers[pair.live.slot].table.by_record[pair.live.record].receive
    assert len(phases) == 2 - refused
    assert len(pair.client_worker.table.by_record[0].receive) == 2 - refused


def test_no_other_rekey_begins_before_the_last_is_over(forge: Forge) -> None:
    pair = forge.pair
    pair.advance(OLD_PHASE_MS + 1_000)
    live = pair.live
    first = rekey.RekeyInitiator(live.secrets, Kem.MLKEM768, b"\x01" * rekey.INITIATOR_RANDOM_SIZE)
    second = rekey.RekeyInitiator(live.secrets, Kem.MLKEM768, b"\x02" * rekey.INITIATOR_RANDOM_SIZE)
    session = ours(pair)
    for number, initiator in enumerate((first, second)):
        session.channel.send(ControlType.REKEY_INIT, initiator.init_value, pair.now_ms)
        for plaintext in session.channel.plaintexts_to_send(pair.now_ms):
            datagram = session.control.seal(0, steering_id(forge.secrets, 0), plaintext)
            pair.inject(datagram, pair.addresses[0])
        assert pair.context.counters["rekey_too_soon"] == number
    assert live.answered is not None
    assert live.answered.init_value == first.init_value


def test_an_overdue_rekey_hinders_no_reattach() -> None:
    pair = CorePair(fast_policy(rekey_interval_ms=10_000)).attach()
    pair.advance(OLD_PHASE_MS + 1_000)
    phase = pair.live.secrets.phase_number
    pair.rules.append(no_control(up=True))
    pair.advance(60_000)
    assert pair.live.secrets.phase_number == phase
    pair.link(0, False)
    pair.wait_for(lambda: pair.live.bindings.active is not None and pair.live.bindings.active.index > 0)
    pair.rules.clear()
    pair.wait_for(lambda: pair.live.secrets.phase_number == phase + 1 and pair.attached)


def test_while_the_store_cannot_write_rekeys_go_on_and_say_so(pair: CorePair) -> None:
    pair.store.broken = True
    phase = begin(pair)
    pair.wait_for(lambda: pair.live.secrets.phase_number == phase + 1)
    assert ours(pair).rekeying.secrets.phase == pair.live.secrets.phase
    rekeyed = pair.events(KeyEvent)[-1]
    assert (rekeyed.action, rekeyed.phase, rekeyed.non_durable) == ("rekeyed", phase + 1, True)
