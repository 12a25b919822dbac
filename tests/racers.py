"""Processes that race for the sessions of a fleet: started, spoken to and ended alike."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from etcd_cluster import Cluster

TESTS = Path(__file__).parent
Racer = subprocess.Popen[str]


@contextmanager
def racers(program: str, cluster: Cluster, arguments: Iterable[Sequence[str]]) -> Iterator[list[Racer]]:
    """A process of `program`, of this folder, for each of `arguments`, behind which come the members' URLs: each asks
    another one first. All have said that they are ready; at the end they are killed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    urls = [member.url for member in cluster.members]
    running: list[Racer] = []
    try:
        for number, own in enumerate(arguments):
            first = number % len(urls)
            command = [sys.executable, str(TESTS / program), *own, *urls[first:], *urls[:first]]
            pipe = subprocess.PIPE
            running.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))
        assert [line_of(process) for process in running] == ["ready\n"] * len(running)
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()
            for end in (process.stdin, process.stdout):
                if end is not None:
                    end.close()


def line_of(process: Racer) -> str:
    """The next one that it prints; waits for it."""
    assert process.stdout is not None
    return process.stdout.readline()


def tell(processes: Sequence[Racer], line: str) -> None:
    """One line to all of them, as nearly at once as can be."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
    for process in processes:
        assert process.stdin is not None
        process.stdin.flush()
