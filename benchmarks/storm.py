"""A host has been restarted: all its sessions are in the store alone, and their clients come back at once.

    .venv/bin/python benchmarks/storm.py --sessions 100000 --json benchmarks/results/control_plane.json

Each client asks twice, by its ticket: the first ACK gives it the challenge of its path; the second REQUEST comes WAVE
turns of 64 datagrams later, is proven, its session claimed durably and bound, its worker told, ACK sent, and
what the store does not have of it by then is brought there. CONFIG follows in its turn, a thousand a second, and is in
none of these times. The real core with its store in a file, each batch synced; no network, and nobody who carries out
commands: they are taken for carried out. The store is asked by the same thread, so that one core does it all; with
`--threaded` in a thread of its own, as the supervisor has it.

Sessions are written into the store as a gateway would have, without handshakes; REQUESTs are made before each wave, and
neither is in the times. With `--json` the figures replace those in FILE, the others there stay.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from lone_gateway import NODE, POLICY, STORE, TURN, Clock, LoneGateway, private_key, source, ticketed_request
from session_memory import Figures

from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.reattach import NO_CHALLENGE
from jvpn.protocol.suites import suite, x25519_public
from jvpn.session.machine import State
from jvpn.session.record import SessionRecord
from jvpn.session.version import pack_version
from jvpn.store.sqlite import SqliteStore
from jvpn.supervisor.process import COLLECTING, SWITCH_INTERVAL_S
from jvpn.supervisor.remembered import Remembered

#: Turns between a client's two REQUESTs.
WAVE = 8
#: How long a turn takes on the core's clock: of REQUESTs with tickets it takes 16 000 a second.
TURN_MS = 4
#: Sessions that are written into the store in one transaction.
BATCH = 1_000
#: What the store has of each session, and where their clients come from now.
VERSION, PORT = pack_version(1, 1), 7000
LIFETIME_MS = 8 * 3_600_000


class StoredClient:
    """A client whose session nobody has but the store."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.session_id = os.urandom(16)
        self.secrets = SessionSecrets(suite(1), os.urandom(32), os.urandom(32))
        self._attempts = 0

    def record(self, wall_ms: int) -> SessionRecord:
        phases = [(self.secrets.phase_number, self.secrets.phase)]
        memory = Remembered(1, self.secrets.session, phases, None, POLICY.to_wire())
        return SessionRecord(
            session_id=self.session_id,
            client_public=x25519_public(private_key(self.number)),
            policy_name=POLICY.name,
            policy_version=POLICY.version,
            owner_node=NODE,
            state=State.ATTACHED,
            state_version=VERSION,
            secrets=msgspec.msgpack.encode(memory),
            inner_v4=None,
            inner_v6=None,
            created_wall_ms=wall_ms,
            expires_wall_ms=wall_ms + LIFETIME_MS,
            expires_boot_ms=LIFETIME_MS,
            boot_id="boot 1",
            stored_wall_ms=wall_ms,
        )

    def request(self, gateway: LoneGateway, challenge: bytes) -> bytes:
        self._attempts += 1
        key = gateway.store.fleet_key
        return ticketed_request(self.secrets, self.session_id, self._attempts, 2, VERSION, challenge, key)

    def challenge(self, gateway: LoneGateway, now_ms: int) -> bytes:
        return gateway.challenge_of(self.session_id, source(self.number, PORT), now_ms)


class Spent:
    """Seconds, and seconds of this thread's CPU, of each time."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    @contextmanager
    def again(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.thread_time() - cpu)


def fill(work: Path, clients: Sequence[StoredClient]) -> None:
    """As the gateway before the restart has left its store."""
    store = SqliteStore(work / STORE)
    for at in range(0, len(clients), BATCH):
        with store.batch():
            for client in clients[at : at + BATCH]:
                store.save(client.record(time.time_ns() // 1_000_000), 1)
    store.close()


def storm(gateway: LoneGateway, clients: Sequence[StoredClient], waves: Spent, turns: Spent) -> None:
    """`waves`: both REQUESTs of so many clients each, until all that they bring is done. `turns`: of the loop."""
    clock = Clock()

    def come(turn: Sequence[StoredClient], asks: Sequence[bytes]) -> None:
        datagrams = [(source(c.number, PORT), data) for c, data in zip(turn, asks, strict=True)]
        with turns.again():
            gateway.serve(datagrams, clock.turn(TURN_MS))

    for at in range(0, len(clients), WAVE * TURN):
        wave = clients[at : at + WAVE * TURN]
        parts = [wave[first : first + TURN] for first in range(0, len(wave), TURN)]
        first = [[client.request(gateway, NO_CHALLENGE) for client in part] for part in parts]
        # Of the time at which they come, whose slot is minutes long.
        now_ms = clock.now_ms + len(parts) * TURN_MS
        second = [[c.request(gateway, c.challenge(gateway, now_ms)) for c in part] for part in parts]
        with waves.again():
            for asks in (first, second):
                for part, some in zip(parts, asks, strict=True):
                    come(part, some)
            gateway.finish(clock.now_ms)
            back = (gateway.context.sessions.get(client.session_id) for client in wave)
            gateway.keep(
                [s.session_id for s in back if s is not None and s.dirty_ms is not None], clock.now_ms
            )
            gateway.finish(clock.now_ms)
        # They are on the wire.
        gateway.taken_answers()
    taken = gateway.context.counters["takeovers"]
    if taken != len(clients):
        raise RuntimeError(f"{taken} of {len(clients)} are back: {gateway.context.counters}")


def measure(count: int, work: Path, threaded: bool) -> Figures:
    # As the supervisor has it (jvpn/supervisor/process.py).
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*COLLECTING)
    clients = [StoredClient(number) for number in range(count)]
    fill(work, clients)
    gateway = LoneGateway(work, count, generation=2, threaded=threaded)
    # The clients are not what a supervisor would walk.
    gc.collect()
    gc.freeze()
    waves, turns = Spent(), Spent()
    storm(gateway, clients, waves, turns)
    gateway.close()
    turns_s = sorted(turns.wall_s)
    return {
        "storm_sessions": count,
        "storm_seconds": sum(waves.wall_s),
        "storm_cpu_seconds": sum(waves.cpu_s),
        "storm_cpu_us_per_session": statistics.median(waves.cpu_s) / (WAVE * TURN) * 1e6,
        "storm_turn_p99_ms": turns_s[len(turns_s) * 99 // 100] * 1e3,
        "storm_longest_turn_ms": turns_s[-1] * 1e3,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--sessions", type=int, default=10_000, help="how many (default 10 000)")
    parser.add_argument("--threaded", action="store_true", help="ask the store in a thread of its own")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jvpn-storm-") as work:
        found = measure(given.sessions, Path(work), given.threaded)
    for key, value in found.items():
        print(f"{key:40}{value:14,.1f}")
    if given.json:
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        given.json.write_text(json.dumps(known | found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
