"""The policy that a client asks for in INIT: it gets it where its peer may have it, else its own, and that is told."""

from dataclasses import replace

import pytest
from core_pair import CLIENT_KEY, GATEWAY_KEY, CorePair, every_pair_is_sound, fast_policy

from jvpn.agent.handshaking import Identity
from jvpn.observability.events import PolicyEvent
from jvpn.protocol.constants import PacketType
from jvpn.protocol.handshake import Initiator, Kem
from jvpn.protocol.suites import suite, x25519_public
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]

OWN = fast_policy(drain_window_ms=300)
MOBILE = fast_policy(name="mobile", transport_loss_ttl_ms=3_600_000)
CLASSIC = fast_policy(name="classic", kem="none")


def attached(asked: str, **identity: Kem) -> CorePair:
    pair = CorePair(OWN)
    (key,) = pair.context.peers.peers
    pair.context.peers.peers[key] = replace(pair.context.peers.peers[key], others=(MOBILE, CLASSIC))
    known = Identity(suite(1), CLIENT_KEY, x25519_public(GATEWAY_KEY), bytes(32), asked, **identity)
    pair.client = pair.new_client(known)
    return pair.attach()


@pytest.mark.parametrize(("asked", "given"), [("mobile", MOBILE), ("default", OWN), ("", OWN)])
def test_a_policy_that_the_peer_may_have_is_given(asked: str, given: object) -> None:
    pair = attached(asked)
    assert pair.live.policy == given
    assert pair.client.session is not None
    assert pair.client.session.policy == given
    assert pair.events(PolicyEvent) == []
    assert pair.store.sessions()[0].policy_name == pair.live.policy.name


def test_the_key_exchange_is_that_of_the_policy_given() -> None:
    pair = attached("classic", kem=Kem.NONE)
    assert (pair.live.policy, pair.live.demanded_kem) == (CLASSIC, Kem.NONE)
    assert pair.live.secrets.phase_number == 0


@pytest.mark.parametrize("asked", ["strict", "Mobile", "../mobile", "x" * 32])
def test_any_other_name_gets_the_peers_own_policy_and_is_told(asked: str) -> None:
    pair = attached(asked)
    assert pair.live.policy == OWN
    (told,) = pair.events(PolicyEvent)
    assert (told.reason_code, told.limit) == ("POLICY_NOT_ALLOWED", f"policy {asked}")
    assert told.session_id == pair.live.hex_id
    assert told.policy_version.startswith("default@")


def test_capabilities_that_nobody_knows_are_no_reason_to_refuse() -> None:
    pair = CorePair(OWN).attach()
    pair.client.stop(pair.now_ns)
    pair.advance(1_000)
    gateway, elsewhere = x25519_public(GATEWAY_KEY), Endpoint(pair.addresses[0].address, 9)
    asked = Initiator(
        suite(1), CLIENT_KEY, gateway, bytes(32), b"\x33" * 32, bytes(8), 1 << 62, 0xFFFFFFFF, ""
    )
    pair.inject(asked.init_datagram, elsewhere)
    pair.advance(100)
    assert [flight.kind for flight in pair.strangers] == [PacketType.HANDSHAKE_RESPONSE]
    assert asked.read_response(pair.strangers[0].data).kem is Kem.MLKEM768
