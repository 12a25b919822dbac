"""What each process may do, read from the kernel while all of them carry traffic (docs/privileges.md)."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Running, Setup, running, wait_for
from streams import TcpEcho

from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network
from jvpn.lab.namespaces import module_environment
from workers.bulk import find

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have something to give up"),
]

Net = Network[EmulatedLink]
NOBODY = "65534"
CAPABILITIES = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_ADMIN": 12,
    "CAP_BPF": 39,
}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "privileges.md"
HAS_FILTER = os.uname().machine in ("x86_64", "aarch64")


@pytest.fixture
def system(two_uplinks: Net) -> Iterator[Running]:
    with running(two_uplinks, Setup(), clients=1) as made:
        yield made


def status(pid: int, thread: int | None = None) -> dict[str, str]:
    path = Path(f"/proc/{pid}/status") if thread is None else Path(f"/proc/{pid}/task/{thread}/status")
    return dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)


def capabilities(field: str) -> set[str]:
    mask = int(field, 16)
    names = {number: name for name, number in CAPABILITIES.items()}
    return {names.get(number, f"capability {number}") for number in range(64) if mask >> number & 1}


def documented(process: str) -> set[str]:
    """The capabilities that the page's table gives a process."""
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {process} |"))
    return set(re.findall(r"CAP_[A-Z_]+", row.split("|")[3]))


def seated(system: Running) -> list[int]:
    return [worker["pid"] for worker in system.status()["workers"]]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def holder(system: Running) -> int:
    return int(status(seated(system)[0])["PPid"])


def client_worker(system: Running) -> int:
    """The agent's child that became nobody."""
    agent = system.clients[0].popen.pid
    return next(pid for pid in children(agent) if status(pid)["Uid"].split()[0] == NOBODY)


def assert_powerless(pid: int) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        fields = status(pid, int(thread))
        assert set(fields["Uid"].split()) == set(fields["Gid"].split()) == {NOBODY}
        assert fields["Groups"].strip() == ""
        assert all(int(fields[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == ("2" if HAS_FILTER else "0")


def test_workers_can_do_nothing_but_forward(system: Running, two_uplinks: Net) -> None:
    with TcpEcho(two_uplinks.client, two_uplinks.gateway, "10.8.0.1") as tcp:
        tcp.goes_on()
        for pid in (*seated(system), client_worker(system)):
            assert_powerless(pid)
        # They are not to be looked into either, by others of the same user.
        assert all(os.stat(f"/proc/{pid}/fd").st_uid == 0 for pid in seated(system))
        tcp.goes_on()


def test_a_worker_that_takes_a_dead_ones_seat_can_do_no_more(system: Running, two_uplinks: Net) -> None:
    owner, other = seated(system)
    with TcpEcho(two_uplinks.client, two_uplinks.gateway, "10.8.0.1") as tcp:
        tcp.goes_on()
        os.kill(owner, signal.SIGKILL)
        wait_for(lambda: seated(system)[0] != owner, "a successor")
        tcp.goes_on()
    assert seated(system)[1] == other
    assert_powerless(seated(system)[0])


def waited_for(pid: int) -> set[str]:
    """What a process's epoll descriptors watch, as /proc names it: "socket:[123]", "/dev/net/tun", …"""
    folder = Path(f"/proc/{pid}")
    links = {link.name: os.readlink(link) for link in (folder / "fd").iterdir()}
    infos = [
        (folder / "fdinfo" / number).read_text() for number, target in links.items() if "eventpoll" in target
    ]
    watched = [line.split()[1] for info in infos for line in info.splitlines() if line.startswith("tfd:")]
    return {links[number] for number in watched}


def udp_sockets(pid: int) -> set[str]:
    lines = [
        line.split()
        for name in ("udp", "udp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return {f"socket:[{fields[9]}]" for fields in lines}


def test_the_holder_keeps_what_its_page_says(system: Running) -> None:
    pid = holder(system)
    fields = status(pid)
    expected = documented("holder")
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert capabilities(fields[name]) == expected
    assert fields["NoNewPrivs"] == "1"
    # It reads nothing from the network, though it has every socket and queue.
    kept = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    group = udp_sockets(pid)
    assert len(group & kept) == 4  # two of the supervisor, one of each worker: it has them all
    assert "/dev/net/tun" in kept
    assert not waited_for(pid) & (group | {"/dev/net/tun"})
    assert len(waited_for(system.gateway.popen.pid) & group) == 2
    # It is the parent of all workers, the warm spare among them.
    assert len(children(pid)) >= len(seated(system)) + 1
    assert set(seated(system)) <= set(children(pid))


def test_the_spare_waits_with_no_more_than_the_holder_has(system: Running) -> None:
    waiting = set(children(holder(system))) - set(seated(system))
    assert waiting
    for pid in waiting:
        assert capabilities(status(pid)["CapPrm"]) <= documented("holder")


def test_the_supervisor_keeps_what_its_page_says(system: Running) -> None:
    pid = system.gateway.popen.pid
    expected = documented("supervisor")
    for thread in os.listdir(f"/proc/{pid}/task"):
        fields = status(pid, int(thread))
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert capabilities(fields[name]) == expected
        assert fields["NoNewPrivs"] == "1"


def test_control_goes_before_bulk_traffic(system: Running) -> None:
    def priority(pid: int) -> int:
        return os.getpriority(os.PRIO_PROCESS, pid)

    workers = [*seated(system), client_worker(system)]
    assert priority(system.gateway.popen.pid) == -10
    assert [priority(pid) for pid in workers] == [0] * len(workers)


# The filter


def confined(code: str, first: str = "") -> subprocess.CompletedProcess[str]:
    """Run `code` in a process that has given up what a worker gives up."""
    before = (
        f"{first}import os, socket, mmap, signal, time\n"
        "from workers import privileges\n"
        "ends = socket.socketpair()\n"
        "privileges.drop(65534, 65534)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", before + code],
        capture_output=True,
        text=True,
        check=False,
        env=module_environment(),
        timeout=30,
    )


@pytest.mark.skipif(not HAS_FILTER, reason="no system call table for this architecture")
@pytest.mark.parametrize(
    "code",
    [
        "socket.socket()",
        "ends[0].connect('/run/nobody')",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "os.kill(1, 0)",
        "os.pidfd_open(1)",
        "os.setuid(0)",
        "os.memfd_create('x')",
        "os.unlink('/tmp/nothing')",
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
        "import ctypes; ctypes.CDLL(None).ptrace(16, 1, 0, 0)",
        "import fcntl; fcntl.ioctl(ends[0], 0x8912, bytes(40))",
    ],
)
def test_any_other_system_call_ends_a_worker(code: str) -> None:
    done = confined(f"{code}\nprint('still here')")
    assert done.returncode == -signal.SIGSYS, done
    assert "still here" not in done.stdout


@pytest.mark.skipif(not HAS_FILTER, reason="no system call table for this architecture")
def test_files_are_refused_and_a_traceback_still_comes() -> None:
    done = confined(
        "try:\n    open('/etc/passwd')\nexcept PermissionError:\n    print('refused')\nraise KeyError(7)"
    )
    assert done.returncode == 1
    assert "refused" in done.stdout
    assert "KeyError: 7" in done.stderr


def test_what_a_worker_needs_it_may_do() -> None:
    done = confined(
        "from workers.keys import Phase, Warm\n"
        "from workers.commands import PhaseKeys\n"
        "ends[0].send(b'x'); assert ends[1].recv(9) == b'x'\n"
        "bytearray(1 << 24); os.urandom(32); time.sleep(0.001); os.getpid()\n"
        "for suite in (1, 2):\n"
        "    phase = Phase(suite, PhaseKeys(0, bytes(32), bytes(32)), Warm())\n"
        "    out = bytearray(20)\n"
        "    phase.sealer()(bytes(12), b'text', b'', out)\n"
        "print('done')",
        "from workers.main import worker_main\n",
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done


@pytest.mark.skipif(find() is None, reason="libipsec-mb is not used here")
def test_it_seals_and_opens_whole_runs_by_a_library_that_it_loaded_before() -> None:
    done = confined(
        "assert library is bulk.find()\n"
        "for suite in (1, 2):\n"
        "    phase = Phase(suite, PhaseKeys(0, bytes(32), bytes(32)), Warm(bulk=library))\n"
        "    sent, received = SendLayout(40, 1000), bytearray(65_536)\n"
        "    assert phase.bulk_sealer().run(sent.sealing, 45)\n"
        "    received[: 45 * sent.datagram] = sent.out[: 45 * sent.datagram]\n"
        "    layout = ReceiveLayout(received, sent.datagram)\n"
        "    assert phase.bulk_opener().run(layout.opening, 45) and not layout.wrong_tags(45)\n"
        "    phase.discard()\n"
        "print('done')",
        "from workers.main import worker_main\n"
        "from workers import bulk\n"
        "from workers.commands import PhaseKeys\n"
        "from workers.keys import Phase, Warm\n"
        "from workers.layouts import ReceiveLayout, SendLayout\n"
        "library = bulk.find()\n",
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done


def test_a_worker_follows_its_parent() -> None:
    """Its parent is killed without a word; it must not live on with descriptors of a data plane that is gone."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, socket, sys, time\n"
            "from multiprocess import get_context\n"
            "from workers.main import worker_main\n"
            "if __name__ == '__main__':\n"
            "    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "    worker = get_context('spawn').Process(target=worker_main, args=(theirs, os.getpid()), daemon=True)\n"
            "    worker.start()\n"
            "    ours.recv(100)\n"
            "    os.dup2(ours.fileno(), 99, inheritable=True)\n"
            "    print(worker.pid, flush=True)\n"
            "    time.sleep(60)\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=module_environment(),
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    watched = os.pidfd_open(worker)
    parent.kill()
    parent.wait()
    assert select.select([watched], [], [], 20)[0]
    os.close(watched)
