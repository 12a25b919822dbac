"""What a session takes in memory: by how much the supervisor's process grows for each, and its worker's.

    .venv/bin/python benchmarks/session_memory.py [--json FILE]

The real core, and a worker's real table; no sockets. Each figure is taken in a process of its own, in which nothing was
freed before that the sessions could lie in. With `--json` the figures replace those in FILE, the others there stay.

 supervisor  shaken hands, bound, configured, CONFIG acknowledged, a HEALTH told
 worker      bound, sends and receives in order
 warm        besides: the keys of a session that sends and receives, made ready for use
 gap         besides: the bits of an index on which something was lost
 peer        in the supervisor: a configured client, with or without a session
 dormant     sessions that are in the store alone, as after the host's restart until their clients come: what the
             supervisor has of each when it has started, and the store's file
"""

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from lone_gateway import LOCAL, TURN, Client, LoneGateway, source

from jvpn.policy.model import Policy
from jvpn.sim.worker import make_page
from jvpn.store.sqlite import SqliteStore
from jvpn.supervisor.peers import Peer, PeerTable
from workers.bulk import find
from workers.commands import AddSession, Binding, InstalledIndex, PhaseKeys
from workers.fakes import FakeNetwork
from workers.sessions import Session
from workers.table import SessionTable
from workers.udp import UdpSocket

Figures = dict[str, float]

SESSIONS: Final = 10_000
DORMANT: Final = 1_000_000
BATCH: Final = 1_000
STORE: Final = "sessions.db"
#: A worker keeps the keys of 8 192 phases ready, no more.
WARM_SESSIONS: Final = 5_000
#: Of INITs without cookie the core takes 100 a second.
INIT_TURN_MS: Final = 700
NS: Final = 1_000_000_000


def rss_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def supervisor_bytes(count: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="jvpn-memory-") as work:
        gateway = LoneGateway(Path(work), count + TURN)
        now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        _attach(gateway, range(count, count + TURN), now_ms)
        before = rss_bytes()
        for at in range(0, count, TURN):
            now_ms += INIT_TURN_MS
            _attach(gateway, range(at, min(at + TURN, count)), now_ms)
        grown = rss_bytes() - before
        waiting = sum(session.channel.unacknowledged for session in gateway.context.sessions.values())
        if len(gateway.context.sessions) != count + TURN or waiting:
            raise RuntimeError(f"not all are attached and configured: {gateway.context.counters}")
        gateway.close()
    return {"supervisor_bytes_per_session": grown / count}


def _attach(gateway: LoneGateway, numbers: range, now_ms: int) -> None:
    """Clients that are forgotten when they have their sessions: theirs is not the gateway's memory."""
    clients = [Client(number) for number in numbers]
    gateway.serve([(source(c.number, 5000), c.init()) for c in clients], now_ms)
    answers = dict(gateway.taken_answers())
    gateway.serve(
        [(source(c.number, 5000), c.confirm(answers[source(c.number, 5000)])) for c in clients], now_ms
    )
    by_source = {source(c.number, 5000): c for c in clients}
    acknowledged = [
        (remote, datagram)
        for remote, data in gateway.taken_answers()
        for datagram in by_source[remote].acknowledge(data)
    ]
    gateway.serve(acknowledged, now_ms)
    gateway.taken_answers()


def worker_bytes(count: int) -> Figures:
    """Of a session; and of the bits of one index, when something was lost on it."""
    table = _table(count + 1)
    _add(table, count)
    before = rss_bytes()
    sessions = [_add(table, number) for number in range(count)]
    grown = rss_bytes() - before
    before = rss_bytes()
    for session in sessions:
        window = session.window(0)
        assert window is not None
        window.check_and_set(window.highest + 3)
    gaps = rss_bytes() - before
    return {"worker_bytes_per_session": grown / count, "gap_bytes_per_index": gaps / count}


def warm_bytes(count: int) -> Figures:
    count = min(count, WARM_SESSIONS)
    table = _table(count + 1)
    _warm(_add(table, count))
    sessions = [_add(table, number) for number in range(count)]
    before = rss_bytes()
    for session in sessions:
        _warm(session)
    return {"warm_bytes_per_session": (rss_bytes() - before) / count}


def _table(capacity: int) -> SessionTable:
    table = SessionTable(make_page(capacity, bytes(32)), gateway=True, bulk=find())
    address = ("::ffff:203.0.113.1", LOCAL.port)
    table.sockets[0] = UdpSocket(0, FakeNetwork().socket(address, LOCAL.address), segment=True)
    return table


def _add(table: SessionTable, number: int) -> Session:
    unique = number.to_bytes(4, "big")
    ids = [InstalledIndex(index, unique + bytes((index + 1,)) * 4) for index in range(6)]
    inner = [f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/32"]
    keys = [PhaseKeys(0, unique * 8, bytes(reversed(unique)) * 8)]
    binding = Binding(0, 0, LOCAL, source(number, 5000), 1500)
    session = table.add(AddSession(number + 1, number, unique * 4, 1, 0, keys, inner, inner, ids, binding))
    window = session.window(0)
    assert window is not None
    for counter in range(TURN):
        window.check_and_set(counter)
        session.received(NS, 1200, 1)
        session.take_counters(0, 1)
        session.sent(NS, 1200, 1)
    return session


def _warm(session: Session) -> None:
    phase, plain, sealed = session.phase, bytes(64), bytearray(80)
    phase.sealer()(bytes(12), plain, bytes(20), sealed)
    phase.bulk_sealer()
    phase.bulk_opener()
    with suppress(InvalidTag):
        phase.opener()(bytes(12), bytes(sealed), bytes(20), bytearray(64))


def peer_bytes(count: int) -> Figures:
    policy, peers = Policy.default(), {}
    before = rss_bytes()
    for number in range(count):
        inner = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/32"
        peer = Peer(f"client{number}", number.to_bytes(32, "big"), (inner,), policy)
        peers[peer.public_key] = peer
    return {"bytes_per_peer": (rss_bytes() - before) / count}


def fill_store(count: int, work: Path) -> Figures:
    """Sessions like one that was really kept."""
    gateway = LoneGateway(work, TURN)
    _attach(gateway, range(1), time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)
    (kept,) = gateway.store.sessions()
    for at in range(0, count, BATCH):
        with gateway.store.batch():
            for number in range(at, min(at + BATCH, count)):
                session_id, client = number.to_bytes(16, "big"), os.urandom(32)
                gateway.store.save(replace(kept, session_id=session_id, client_public=client), 1 + number)
    gateway.close()
    return {"dormant_bytes_in_store": (work / STORE).stat().st_size / count}


def dormant_bytes(count: int, work: Path) -> Figures:
    """What a supervisor reads of them at its start."""
    before = rss_bytes()
    store = SqliteStore(work / STORE)
    table = PeerTable({}, store.timestamps_us())
    grown = rss_bytes() - before
    if len(table.timestamps_us) < count:
        raise RuntimeError(f"{len(table.timestamps_us)} of {count} clients are known")
    store.close()
    return {"dormant_bytes_in_supervisor": grown / count}


def measure(count: int, dormant: int) -> Figures:
    found: Figures = {}
    for figure in (supervisor_bytes, worker_bytes, warm_bytes, peer_bytes):
        found |= _apart(figure, count)
    with tempfile.TemporaryDirectory(prefix="jvpn-dormant-") as work:
        for dormant_figure in (fill_store, dormant_bytes):
            found |= _apart(dormant_figure, dormant, Path(work))
    return found


def _apart(figure: Callable[..., Figures], *given: object) -> Figures:
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        return processes.submit(figure, *given).result()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="how many (default 10 000)")
    parser.add_argument("--dormant", type=int, default=DORMANT, help="in the store (default 1 000 000)")
    given = parser.parse_args()
    found = measure(given.sessions, given.dormant)
    for key, value in found.items():
        print(f"{key:40}{value:14,.1f}")
    if given.json:
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        given.json.write_text(json.dumps(known | found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
