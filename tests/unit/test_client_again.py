"""Which ends of a session a client answers with a new handshake, and how soon."""

import pytest
from core_pair import CLIENT_KEY, GATEWAY_KEY, CorePair, every_pair_is_sound, fast_policy

from jvpn.agent.handshaking import Identity
from jvpn.protocol.constants import PacketType
from jvpn.protocol.control import ControlType
from jvpn.protocol.handshake import Kem
from jvpn.protocol.suites import suite, x25519_public
from jvpn.session.machine import Reason
from jvpn.session.record import SessionRecord
from jvpn.store.base import StoreError

__all__ = ["every_pair_is_sound"]

WITHOUT_KEM = Identity(suite(1), CLIENT_KEY, x25519_public(GATEWAY_KEY), bytes(32), "default", Kem.NONE)


def store_down(pair: CorePair) -> None:
    """Until `store_up`, the gateway's store keeps nothing."""

    def refuse(record: SessionRecord, timestamp_us: int) -> None:
        raise StoreError("cannot write the session store: no space left")

    pair.store.save = refuse  # type: ignore[method-assign]


def store_up(pair: CorePair) -> None:
    del pair.store.save  # type: ignore[attr-defined]


def inits(pair: CorePair) -> int:
    return len(pair.of_kind(PacketType.HANDSHAKE_INIT, up=True))


@pytest.mark.parametrize("kem", ["mlkem768", "none"])
def test_a_client_that_meets_a_gateway_without_its_store_tries_until_it_is_back(kem: str) -> None:
    pair = CorePair(fast_policy(kem=kem))
    if kem == "none":
        pair.client = pair.new_client(WITHOUT_KEM)
    store_down(pair)
    pair.wait_for(lambda: len(pair.over) >= 3)
    assert {(over.reason, over.again) for over in pair.over} == {("HANDSHAKE_FAIL", True)}
    assert not pair.client.stopped
    store_up(pair)
    pair.wait_for(lambda: pair.attached, 10_000)


def test_a_gateway_that_takes_handshakes_back_is_left_alone_longer_and_longer() -> None:
    pair = CorePair()
    store_down(pair)
    pair.advance(60_000)
    # At full speed there would be one in four round trips; it is one in five seconds at last.
    assert 10 <= inits(pair) <= 20
    store_up(pair)
    pair.wait_for(lambda: pair.attached, 10_000)
    before = inits(pair)
    store_down(pair)
    pair.gateway.terminate(pair.live, Reason.SESSION_TTL_EXPIRED, pair.now_ms)
    pair.advance(1_000)
    assert inits(pair) - before >= 3, "the waiting does not begin anew after a session that stood"


def test_a_worker_that_does_not_take_a_session_in_time_is_no_reason_to_give_up() -> None:
    pair = CorePair(fast_policy(kem="mlkem768"))
    pair.worker_delay_ms = 1_000_000
    pair.wait_for(lambda: pair.over)
    pair.worker_delay_ms = 0
    pair.wait_for(lambda: pair.attached, 20_000)
    assert pair.over[0].again


@pytest.mark.parametrize(
    "reason",
    [
        Reason.OPERATOR_TERMINATED,
        Reason.KEY_REVOKED,
        Reason.POLICY_TERMINATED,
        Reason.SECURITY_TERMINATED,
        Reason.SUPERSEDED,
        Reason.PEER_CLOSED,
    ],
)
def test_an_end_that_somebody_wanted_is_final(reason: Reason) -> None:
    pair = CorePair().attach()
    before = inits(pair)
    pair.gateway.terminate(pair.live, reason, pair.now_ms)
    pair.advance(30_000)
    assert [(over.reason, over.again) for over in pair.over] == [(reason.value, False)]
    assert pair.client.stopped
    assert inits(pair) == before


@pytest.mark.parametrize("code", ["REATTACH_OK", "HANDSHAKE_FAIL", "TRANSPORT_DEAD", "WHATEVER"])
def test_a_close_for_a_reason_that_ends_nothing_ends_the_session(code: str) -> None:
    pair = CorePair().attach()
    live = pair.live
    live.channel.send(ControlType.CLOSE, code.encode(), pair.now_ms)
    pair.context.flush(live, pair.now_ms)
    pair.wait_for(lambda: pair.over)
    assert [(over.reason, over.again) for over in pair.over] == [("PEER_CLOSED", False)]
