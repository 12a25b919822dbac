"""Paths that had to share the last installed index: once newer ones are installed, no two networks see one id."""

from core_pair import CorePair, every_pair_is_sound, silent

__all__ = ["every_pair_is_sound"]


def test_paths_share_an_index_only_until_newer_ones_are_installed() -> None:
    pair = CorePair(uplinks=3).attach()
    pair.advance(2_000)
    session = pair.client.session
    assert session is not None
    table = session.paths
    pair.rules += [silent(1), silent(2)]
    while table.last_index < table.highest_installed or table.paths[1].index != table.paths[2].index:
        for uplink in (1, 2):
            pair.link(uplink, False)
            pair.link(uplink, True)
    shared = table.paths[1].steering_id
    pair.rules.pop(0)
    pair.wait_for(lambda: table.highest_installed > table.last_index)
    pair.settle()
    since = len(pair.sent)
    pair.rules.clear()
    pair.wait_for(lambda: all(path.validated(pair.now_ms) for path in table.paths.values()))
    assert len({path.index for path in table.paths.values()}) == 3
    assert shared not in {flight.data[4:12] for flight in pair.sent[since:] if flight.up}
