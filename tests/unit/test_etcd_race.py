"""Several processes claim the same sessions at once, while the cluster is whole or its leader dies: one owner each."""

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import etcd_cluster
import pytest
from etcd_cluster import Cluster
from racers import racers, tell
from test_store import RECORD

from jvpn.lab.running import wait_for
from jvpn.sim.owner_history import Claim, Read, State, check
from jvpn.store.etcd import EtcdStore

NODES, ROUNDS, SESSIONS = 4, 200, 3
FIRST: State = (RECORD.state_version, RECORD.owner_node)


@pytest.mark.parametrize("dies", [False, True], ids=["whole", "leader-dies"])
def test_raced_claims_have_one_owner_each(frail_etcd: Cluster, tmp_path: Path, dies: bool) -> None:
    key_file = etcd_cluster.fleet_key(tmp_path)
    store = EtcdStore(frail_etcd.access(), key_file, "/race")
    for number in range(SESSIONS):
        store.save(replace(RECORD, session_id=bytes([number]) * 16), 1)
    claims: dict[int, list[Claim]] = defaultdict(list)
    reads: dict[int, list[Read]] = defaultdict(list)
    leader = frail_etcd.leader()
    own = [[str(key_file), "/race", f"gw{node}", str(ROUNDS), str(SESSIONS)] for node in range(NODES)]
    with racers("claimer.py", frail_etcd, own) as running:
        tell(running, "go")
        lines: list[list[str]] = [[] for _ in running]
        with ThreadPoolExecutor(NODES) as readers:
            # All are read at once: none is to wait for a pipe that is full.
            reading = [
                readers.submit(out.extend, p.stdout)
                for out, p in zip(lines, running, strict=True)
                if p.stdout
            ]
            if dies:
                wait_for("the race to be on", lambda: len(lines[0]) > ROUNDS // 4)
                frail_etcd.kill(leader)
            for done in reading:
                done.result()
        assert [process.wait() for process in running] == [0] * NODES
        for line in (line for out in lines for line in out):
            _note(line, claims, reads)
    made = [claim for of_session in claims.values() for claim in of_session]
    assert dies or len(made) == NODES * ROUNDS * 3 // 2
    assert sum(claim.granted is False for claim in made) > NODES
    for number in range(SESSIONS):
        last = store.load(bytes([number]) * 16)
        assert last is not None
        now = Read((last.state_version, last.owner_node), *[max(c.ended for c in claims[number])] * 2)
        owners = check(FIRST, claims[number], [*reads[number], replace(now, ended=float("inf"))])
        assert owners[-1] == now.found
        # Each grant one epoch, each epoch one owner.
        assert [version >> 40 for version, _ in owners] == list(range(1, len(owners) + 1))
        assert len({owner.partition(".")[0] for _, owner in owners}) > 2
    store.close()


def _note(line: str, claims: dict[int, list[Claim]], reads: dict[int, list[Read]]) -> None:
    read, claimed = json.loads(line)
    for session, one in read:
        reads[session].append(Read(**{**one, "found": tuple(one["found"])}))
    for session, one in claimed:
        states = {name: tuple(one[name]) for name in ("seen", "wrote")}
        claims[session].append(Claim(**{**one, **states}))
