"""One of several processes that race for the sessions of a fleet: reads one, claims it, and prints what came of it.

    claimer.py KEY_FILE PREFIX NODE ROUNDS SESSIONS URL...

Prints `ready`, waits for a line, then one JSON line for each round: [[session, read], [session, claim], ...].
"""

import json
import random
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from jvpn.session.record import SessionRecord
from jvpn.session.version import pack_version
from jvpn.sim.owner_history import Claim, Read
from jvpn.store.base import StoreError
from jvpn.store.etcd import EtcdStore
from jvpn.store.etcd_client import EtcdAccess


def load(store: EtcdStore, number: int) -> tuple[SessionRecord, Read] | None:
    began = time.monotonic()
    try:
        record = store.load(bytes([number]) * 16)
    except StoreError:
        return None
    assert record is not None
    return record, Read((record.state_version, record.owner_node), began, time.monotonic())


def claim(store: EtcdStore, node: str, seen: list[SessionRecord]) -> list[Claim]:
    """All in one transaction, each on its own."""
    wanted = [
        replace(record, owner_node=node, state_version=pack_version(record.epoch + 1, 0)) for record in seen
    ]
    granted: list[bool | None]
    began = time.monotonic()
    try:
        with store.batch():
            answers = [
                store.claim(new, old.state_version, old.owner_node)
                for new, old in zip(wanted, seen, strict=True)
            ]
        granted = [bool(answer) for answer in answers]
    except StoreError:
        granted = [None] * len(seen)
    ended = time.monotonic()
    return [
        Claim((old.state_version, old.owner_node), (new.state_version, node), ours, began, ended)
        for new, old, ours in zip(wanted, seen, granted, strict=True)
    ]


def main() -> None:
    key_file, prefix, node, rounds, sessions, *urls = sys.argv[1:]
    store = EtcdStore(EtcdAccess(urls, 2), Path(key_file), prefix)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(rounds)):
        # Names of a node are its process's own: a claim that got no answer is told from a later one by its round.
        found = [(one, load(store, one)) for one in random.sample(range(int(sessions)), 1 + number % 2)]
        known = [(one, answer) for one, answer in found if answer is not None]
        done = claim(store, f"{node}.{number}", [record for _, (record, _) in known]) if known else []
        reads = [[one, asdict(read)] for one, (_, read) in known]
        claims = [[one, asdict(made)] for (one, _), made in zip(known, done, strict=True)]
        print(json.dumps([reads, claims]), flush=True)
    store.close()


if __name__ == "__main__":
    main()
