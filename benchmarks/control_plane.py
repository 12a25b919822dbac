"""What one core of a gateway's supervisor does in a second, and what a session costs: durability on, no network.

    .venv/bin/python benchmarks/control_plane.py --json benchmarks/results/control_plane.json

 handshakes  INIT → answer, key confirmation → record durable, page, worker told, CONFIG
 reattaches  REQUEST of a live session from a new source → bound, page, worker told, ACK, record durable; on one index
             after the other, as many as one CONFIG has tickets for

Clients' own work is done before or between, and not in the times. Turns are of 64 datagrams. The clock that the core
sees runs as fast as its limits on sources and keys ask, so that none of these is what is measured. How sessions come
back after a restart is measured by storm.py, memory by session_memory.py, what a killed node costs by takeover.py:
`--all` runs them too. With `--json` the figures replace those in FILE, the others there stay.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lone_gateway import STORE, TURN, Client, Clock, LoneGateway, source

from jvpn.supervisor.controlling import TICKETS_AHEAD
from jvpn.supervisor.keeping import MOST_AT_ONCE
from jvpn.supervisor.process import COLLECTING, SWITCH_INTERVAL_S

#: What `--all` runs besides.
OTHERS = (("storm.py", "--sessions", "100000"), ("session_memory.py",), ("takeover.py",))
#: How long a turn takes on the core's clock: of INITs without cookie it takes 100 a second.
INIT_TURN_MS, TURN_MS = 700, 1
#: Reattaches of each session: as many moves of its window of indexes as the tickets of one CONFIG last.
MOVES = 1 + TICKETS_AHEAD


def timed(
    gateway: LoneGateway, turns: list[Any], clock: Clock, spent_s: list[float], turn_ms: int = TURN_MS
) -> None:
    for datagrams in turns:
        now_ms = clock.turn(turn_ms)
        begin = time.perf_counter()
        gateway.serve(datagrams, now_ms)
        spent_s.append(time.perf_counter() - begin)


def handshakes(gateway: LoneGateway, clients: list[Client], clock: Clock) -> float:
    """Seconds for all."""
    spent_s: list[float] = []
    for at in range(0, len(clients), TURN):
        some = clients[at : at + TURN]
        timed(gateway, [[(source(c.number, 5000), c.init()) for c in some]], clock, spent_s, INIT_TURN_MS)
        answers = dict(gateway.taken_answers())
        confirms = [(source(c.number, 5000), c.confirm(answers[source(c.number, 5000)])) for c in some]
        timed(gateway, [confirms], clock, spent_s)
        gateway.acknowledged(some, 5000, 0, clock.turn())
    if len(gateway.context.sessions) != len(clients):
        raise RuntimeError(
            f"{len(gateway.context.sessions)} of {len(clients)} attached: {gateway.context.counters}"
        )
    return sum(spent_s)


def reattaches(gateway: LoneGateway, clients: list[Client], clock: Clock) -> float:
    """Seconds for all, `MOVES` of each client."""
    spent_s = []
    for index in range(1, MOVES + 1):
        # Of one session it takes two a second.
        clock.turn(1_000)
        spent_s.append(moved(gateway, clients, clock, index))
    bound = gateway.context.counters["reattach_bind"]
    if bound != MOVES * len(clients):
        raise RuntimeError(f"{bound} of {MOVES * len(clients)} bound: {gateway.context.counters}")
    return sum(spent_s)


def moved(gateway: LoneGateway, clients: list[Client], clock: Clock, index: int) -> float:
    """Seconds for one reattach of each client, on `index`; what the gateway says of it is acknowledged."""
    spent_s: list[float] = []
    sessions, port = gateway.context.sessions, 6000 + index
    for first in range(0, len(clients), MOST_AT_ONCE):
        together = clients[first : first + MOST_AT_ONCE]
        for at in range(0, len(together), TURN):
            turn = []
            for client in together[at : at + TURN]:
                remote = source(client.number, port)
                version = sessions[client.result.session_id].machine.state_version
                challenge = gateway.challenge(client, remote, clock.now_ms)
                turn.append((remote, client.request(index, version, challenge)))
            timed(gateway, [turn], clock, spent_s)
        # At this rate more than one batch of the store's falls due in the time that a bind may wait for its record.
        begin = time.perf_counter()
        gateway.keep([client.result.session_id for client in together], clock.now_ms)
        spent_s.append(time.perf_counter() - begin)
        gateway.acknowledged(together, port, index, clock.turn())
    return sum(spent_s)


def measure(count: int, work: Path) -> dict[str, Any]:
    # As the supervisor has it (jvpn/supervisor/process.py).
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*COLLECTING)
    clock, clients = Clock(), [Client(number) for number in range(count)]
    gateway = LoneGateway(work, count)
    shaken_s = handshakes(gateway, clients, clock)
    moved_s = reattaches(gateway, clients, clock)
    gateway.catch_up(clock.turn(1_000))
    gateway.close()
    return {
        "sessions": count,
        "handshakes_per_s": count / shaken_s,
        "reattaches_per_s": MOVES * count / moved_s,
        "bytes_per_session": (work / STORE).stat().st_size / count,
    }


def others(result: Path | None) -> int:
    """Each in a process of its own. The exit status of the first that fails, else 0."""
    told = [] if result is None else ["--json", str(result)]
    for name, *arguments in OTHERS:
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name(name), *arguments, *told], check=False
        )
        if done.returncode:
            return done.returncode
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--sessions", type=int, default=10_000, help="how many (default 10 000)")
    parser.add_argument("--all", action="store_true", help="then the other measurements of the control plane")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jvpn-control-") as work:
        found = measure(given.sessions, Path(work))
    for key, value in found.items():
        print(f"{key:40}{value:14,.1f}")
    if given.json:
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        given.json.write_text(json.dumps(known | found, indent=1) + "\n")
    return others(given.json) if given.all else 0


if __name__ == "__main__":
    sys.exit(main())
