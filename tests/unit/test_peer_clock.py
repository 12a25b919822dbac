"""A client whose handshake timestamps went back: how an operator sees it, and lets it in again."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from core_pair import CLIENT_KEY, GATEWAY_KEY, WALL_MS, CorePair, every_pair_is_sound, silent
from test_store import RECORD

from jvpn.cli import build_parser, peer
from jvpn.config.keys import format_key
from jvpn.observability.admin import AdminError
from jvpn.observability.events import AuditEvent
from jvpn.observability.snapshot import PeerSnapshot
from jvpn.protocol.constants import PacketType
from jvpn.protocol.suites import x25519_public
from jvpn.store.memory import MemoryStore
from jvpn.store.sqlite import SqliteStore
from jvpn.supervisor.admin import GatewayAdmin
from jvpn.supervisor.peers import Peer, PeerTable
from jvpn.supervisor.store_desk import DirectDesk

__all__ = ["every_pair_is_sound"]

PUBLIC = x25519_public(CLIENT_KEY)
HOUR_US = 3_600_000_000


def admin_of(pair: CorePair) -> GatewayAdmin:
    gateway: Any = SimpleNamespace(core=pair.gateway, desk=DirectDesk(pair.store))
    return GatewayAdmin(gateway)


def shown(pair: CorePair, name: str = "laptop") -> PeerSnapshot:
    answer: Any = admin_of(pair).handle({"command": "peers", "peer": name})
    (snapshot,) = answer
    assert isinstance(snapshot, PeerSnapshot)
    return snapshot


def reset(pair: CorePair, name: str = "laptop") -> Any:
    return admin_of(pair).handle({"command": "reset-clock", "peer": name, "by": "root"})


def forgetful(pair: CorePair) -> CorePair:
    """The client was an hour ahead at its last handshake, and has lost that timestamp since; its clock is right now."""
    pair.persisted_us = pair.wall_ms() * 1000 + HOUR_US
    pair.client = pair.new_client()
    pair.attach()
    pair.persisted_us = 0
    pair.client_worker.table.remove(0)
    pair.client = pair.new_client()
    return pair


def test_a_peer_is_shown_with_its_key_addresses_last_handshake_and_session() -> None:
    pair = CorePair()
    before = shown(pair)
    assert (before.last_handshake_us, before.stale_inits, before.sessions) == (None, 0, [])
    pair.attach()
    assert shown(pair) == PeerSnapshot(
        name="laptop",
        public_key=format_key(PUBLIC),
        addresses=["10.8.0.2/32"],
        policy=f"{pair.policy.name}@{pair.policy.version}",
        last_handshake_us=pair.persisted_us,
        stale_inits=0,
        sessions=[pair.live.hex_id],
    )


def test_a_client_that_lost_its_timestamp_is_refused_until_an_operator_forgets_it_too() -> None:
    pair = forgetful(CorePair())
    first, ahead_us = pair.live, shown(pair).last_handshake_us
    pair.wait_for(lambda: shown(pair).stale_inits > 2)
    assert pair.context.counters["stale_timestamp"] == shown(pair).stale_inits
    assert shown(pair).last_handshake_us == ahead_us
    assert pair.live is first
    assert reset(pair) == {"peer": "laptop", "forgot_us": ahead_us}
    assert shown(pair).last_handshake_us is None
    assert pair.store.timestamps_us() == {}
    pair.wait_for(lambda: pair.live is not first and pair.attached)
    assert shown(pair).last_handshake_us == pair.persisted_us
    assert pair.store.timestamps_us() == {PUBLIC: pair.persisted_us}


def test_a_session_goes_on_and_brings_no_timestamp_back() -> None:
    pair = CorePair().attach()
    reset(pair)
    version = pair.live.machine.state_version
    pair.link(0, up=False)
    pair.wait_for(lambda: pair.attached and pair.live.machine.state_version > version)
    pair.advance(1_000)
    assert pair.saved[-1].record.state_version == pair.live.machine.state_version
    assert shown(pair).last_handshake_us is None
    restarted = PeerTable({}, pair.store.timestamps_us())
    assert restarted.newest_us(PUBLIC) is None
    assert restarted.is_fresh(PUBLIC, 1)


def test_a_handshake_that_waits_for_its_confirmation_does_not_bring_the_timestamp_back() -> None:
    pair = CorePair()
    pair.rules.append(silent(0, up=False))
    pair.rules.append(silent(1, up=False))
    pair.wait_for(lambda: pair.steered.ids)
    reset(pair)
    pair.settle()
    assert (pair.steered.ids, pair.context.by_steering_id) == ({}, {})
    init = pair.of_kind(PacketType.HANDSHAKE_INIT, up=True)[-1]
    pair.inject(init.data, init.source)
    assert len(pair.steered.ids) == 1  # the very same timestamp is fresh
    assert shown(pair).stale_inits == 0


def test_it_is_told_who_had_what_forgotten() -> None:
    pair = CorePair().attach()
    last_us = shown(pair).last_handshake_us
    reset(pair)
    admin_of(pair).handle({"command": "reset-clock", "peer": "laptop", "by": "a\nb"})
    told = [event for event in pair.events(AuditEvent) if event.check == "reset-clock"]
    assert {event.reason_code for event in told} == {"OPERATOR_RESET_CLOCK"}
    assert [event.result for event in told] == [
        f"peer laptop: forgot {last_us} us, asked by root",
        "peer laptop: nothing to forget, asked by somebody without a name",
    ]


def test_while_the_store_cannot_forget_nothing_is_forgotten() -> None:
    pair = CorePair().attach()
    before = shown(pair)
    pair.store.broken = True
    with pytest.raises(AdminError, match="still in force"):
        reset(pair)
    pair.store.broken = False
    assert shown(pair) == before
    assert [event for event in pair.events(AuditEvent) if event.check == "reset-clock"] == []


@pytest.mark.parametrize("name", ["phone", "lap"])
def test_a_name_that_no_peer_has_is_an_error(name: str) -> None:
    pair = CorePair().attach()
    before = shown(pair)
    with pytest.raises(AdminError, match="no peer is named"):
        shown(pair, name)
    with pytest.raises(AdminError, match="no peer is named"):
        reset(pair, name)
    with pytest.raises(AdminError, match="no peer is named"):
        reset(pair, "")
    assert shown(pair) == before


def test_only_configured_peers_are_counted() -> None:
    pair = CorePair().attach()
    init = pair.of_kind(PacketType.HANDSHAKE_INIT, up=True)[0]
    pair.inject(init.data, init.source)
    assert pair.context.peers.stale_inits == {PUBLIC: 1}
    other = Peer("phone", x25519_public(GATEWAY_KEY), ("10.8.0.3/32",), pair.policy)
    pair.context.peers.peers[other.public_key] = other
    everybody: Any = admin_of(pair).handle({"command": "peers"})
    assert [(one.name, one.stale_inits, len(one.sessions)) for one in everybody] == [
        ("laptop", 1, 1),
        ("phone", 0, 0),
    ]
    del pair.context.peers.peers[PUBLIC]
    pair.inject(init.data, init.source)
    assert pair.context.peers.stale_inits == {PUBLIC: 1}


@pytest.mark.parametrize("embedded", [True, False], ids=["sqlite", "memory"])
def test_a_store_forgets_one_clients_timestamp_and_keeps_its_sessions(tmp_path: Path, embedded: bool) -> None:
    path = tmp_path / "sessions.db"
    store = SqliteStore(path) if embedded else MemoryStore(b"k" * 32)
    other = replace(RECORD, session_id=b"j" * 16, client_public=b"d" * 32)
    store.save(RECORD, 100)
    store.save(other, 200)
    store.forget_timestamp(RECORD.client_public)
    store.forget_timestamp(b"n" * 32)
    if embedded:
        store.close()
        store = SqliteStore(path)
    assert store.timestamps_us() == {other.client_public: 200}
    assert sorted(store.sessions(), key=lambda record: record.session_id) == [RECORD, other]
    store.save(RECORD, 50)
    assert store.timestamps_us() == {RECORD.client_public: 50, other.client_public: 200}
    store.close()


# What the command prints


def answers(monkeypatch: pytest.MonkeyPatch, answer: object, *words: str) -> dict[str, object]:
    """Run `jvpn peer WORDS` against a gateway that answers so; returns what it was asked."""
    asked: dict[str, object] = {}

    def ask(_run_dir: Path, request: dict[str, object]) -> object:
        asked.update(request)
        return json.loads(msgspec.json.encode(answer))

    monkeypatch.setattr(peer, "ask", ask)
    args = build_parser().parse_args(["peer", *words])
    assert args.run(args) == 0
    return asked


@pytest.fixture
def ahead() -> PeerSnapshot:
    pair = forgetful(CorePair())
    pair.wait_for(lambda: shown(pair).stale_inits > 2)
    return shown(pair)


def test_show_lists_all_or_explains_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ahead: PeerSnapshot
) -> None:
    monkeypatch.setattr(peer.time, "time_ns", lambda: WALL_MS * 1_000_000)
    assert answers(monkeypatch, [ahead], "show") == {"command": "peers", "peer": ""}
    _head, line = capsys.readouterr().out.splitlines()
    assert line.startswith(f"laptop  {ahead.public_key}  10.8.0.2")
    assert "2023-11-14 23:13:20 UTC" in line
    assert answers(monkeypatch, [ahead], "show", "laptop") == {"command": "peers", "peer": "laptop"}
    text = capsys.readouterr().out
    assert "2023-11-14 23:13:20 UTC by the client's clock, 60.0 min ahead of the clock here" in text
    assert f"stale INITs     {ahead.stale_inits} since" in text
    assert ahead.sessions[0] in text
    answers(monkeypatch, [ahead], "show", "laptop", "--json")
    assert json.loads(capsys.readouterr().out) == msgspec.to_builtins(ahead)
    answers(monkeypatch, [ahead], "show", "--json")
    assert json.loads(capsys.readouterr().out) == [msgspec.to_builtins(ahead)]


def test_reset_clock_says_what_was_forgotten_and_who_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUDO_USER", "carol")
    forgot = {"peer": "laptop", "forgot_us": WALL_MS * 1000}
    asked = answers(monkeypatch, forgot, "reset-clock", "laptop")
    assert asked == {"command": "reset-clock", "peer": "laptop", "by": "carol"}
    assert "2023-11-14 22:13:20 UTC" in capsys.readouterr().out
    answers(monkeypatch, forgot | {"forgot_us": None}, "reset-clock", "laptop")
    assert capsys.readouterr().out == "laptop had no handshake timestamp\n"


@pytest.mark.parametrize(
    ("timestamp_us", "text"),
    [(None, "never"), (0, "1970-01-01 00:00:00 UTC"), ((1 << 64) - 1, "18446744073709551615 us after 1970")],
)
def test_any_timestamp_of_a_client_can_be_shown(timestamp_us: int | None, text: str) -> None:
    assert peer.clock_text(timestamp_us) == text
