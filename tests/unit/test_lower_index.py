"""A candidate that was probed on an older index than the active path's: what is lost must be able to go again on it."""

from core_pair import CorePair, every_pair_is_sound, silent

from jvpn.observability.events import TransportSwitch
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]


def test_a_death_after_rebindings_leads_to_a_newer_index() -> None:
    pair = CorePair().attach()
    pair.advance(3_000)
    for _ in range(3):
        before = len(pair.events(TransportSwitch))
        known = pair.addresses[0]
        pair.addresses[0] = Endpoint(known.address, known.port + 1)
        while len(pair.events(TransportSwitch)) == before or not pair.attached:
            pair.data_up(bytes(48))
            pair.advance(5)
    session = pair.client.session
    assert session is not None
    old = session.paths.active_path
    assert old is not None
    assert old.uplink.number == 0
    pair.rules.append(silent(0))
    for _ in range(80):
        pair.data_up(bytes(48))
        pair.data_down(bytes(48))
        pair.advance(5)
    assert pair.attached
    assert session.paths.active == 1
    assert session.paths.paths[1].index > old.index
