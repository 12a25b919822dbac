"""Fault scripts without a network: the commands they make for tc, nft and ip, and what they say to bad arguments."""

import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from jvpn.lab.link_model import LinkParams
from vagrant.traffic.faults import nat_rebind
from vagrant.traffic.faults.means import nft
from vagrant.traffic.faults.means.netem import commands, stages
from vagrant.traffic.faults.mtu import narrowed

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted(file.stem for file in (ROOT / "vagrant/traffic/faults").glob("[a-z]*.py"))


def lines(params: LinkParams, seed: int | None = None) -> list[str]:
    return commands("rA", [], stages(params, seed))


# tc-netem(8) and tc-tbf(8) of iproute2 6.1.
NETEM = "qdisc replace dev rA root handle 1: netem limit 100000"
QUIET = "duplicate 0% corrupt 0% rate 10gbit"


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (LinkParams(), []),
        (LinkParams(delay_ms=10), [f"{NETEM} delay 10000us 0us loss random 0% {QUIET}"]),
        (LinkParams(delay_ms=10, jitter_ms=4), [f"{NETEM} delay 12000us 2000us loss random 0% {QUIET}"]),
        (LinkParams(loss=0.05), [f"{NETEM} delay 0us 0us loss random 5% {QUIET}"]),
        # p, r, 1-h, 1-k: the bad state is entered so often that a fifth of all is lost, and lasts ten packets.
        (
            LinkParams(burst_loss=0.2, burst_frames=10),
            [f"{NETEM} delay 0us 0us loss gemodel 2.5% 10% 100% 0% {QUIET}"],
        ),
        (
            LinkParams(burst_loss=0.2, burst_frames=10, burst_density=0.5, loss=0.1),
            [f"{NETEM} delay 0us 0us loss gemodel 6.666667% 10% 55% 10% {QUIET}"],
        ),
        (
            LinkParams(duplicate=0.01, corrupt=0.001),
            [f"{NETEM} delay 0us 0us loss random 0% duplicate 1% corrupt 0.1% rate 10gbit"],
        ),
        # netem's share is of those that do not wait.
        (
            LinkParams(reorder=0.2, reorder_ms=5),
            ["qdisc replace dev rA root handle 10: netem limit 100000 delay 5000us reorder 80% rate 10gbit"],
        ),
        (
            LinkParams(reorder=0.2, reorder_ms=5, loss=0.1),
            [f"{NETEM} delay 5000us reorder 80% loss random 10% {QUIET}"],
        ),
        (
            LinkParams(reorder=0.2, delay_ms=10),
            [
                f"{NETEM} delay 10000us 0us loss random 0% {QUIET}",
                "qdisc replace dev rA parent 1:1 handle 10: netem limit 100000 delay 5000us reorder 80% rate 10gbit",
            ],
        ),
        (
            LinkParams(rate_mbit=10, queue_ms=30),
            ["qdisc replace dev rA root handle 20: tbf rate 10000000bit burst 3200 limit 40700"],
        ),
        (
            LinkParams(rate_mbit=10, queue_ms=30, delay_ms=15),
            [
                f"{NETEM} delay 15000us 0us loss random 0% {QUIET}",
                "qdisc replace dev rA parent 1:1 handle 20: tbf rate 10000000bit burst 3200 limit 40700",
            ],
        ),
    ],
)
def test_queueing_disciplines(params: LinkParams, wanted: list[str]) -> None:
    assert lines(params) == wanted


def test_a_netem_that_takes_a_seed_is_given_it() -> None:
    assert lines(LinkParams(loss=0.05), 7)[0].endswith(" rate 10gbit seed 7")


def test_a_change_replaces_what_changes_and_keeps_what_is_queued() -> None:
    delay, both = stages(LinkParams(delay_ms=15)), stages(LinkParams(delay_ms=15, rate_mbit=10))
    slower = stages(LinkParams(delay_ms=15, rate_mbit=2))
    assert commands("rA", both, both) == []
    assert commands("rA", delay, both) == [
        "qdisc replace dev rA parent 1:1 handle 20: tbf rate 10000000bit burst 3200 limit 65700"
    ]
    assert commands("rA", both, slower) == [
        "qdisc replace dev rA parent 1:1 handle 20: tbf rate 2000000bit burst 3200 limit 15700"
    ]
    assert commands("rA", both, delay) == ["qdisc del dev rA parent 1:1"]
    assert commands("rA", both, []) == ["qdisc del dev rA root"]
    rate = stages(LinkParams(rate_mbit=10))
    assert commands("rA", rate, both) == [
        "qdisc del dev rA root",
        f"{NETEM} delay 15000us 0us loss random 0% {QUIET}",
        "qdisc replace dev rA parent 1:1 handle 20: tbf rate 10000000bit burst 3200 limit 65700",
    ]


def test_tables_are_replaced_in_one_transaction() -> None:
    hole = nft.chain("forward", ['iifname "rA" drop'])
    assert nft.reloaded("inet t", [hole], ["output", "forward"]) == (
        "flush chain inet t forward\nflush chain inet t output\n"
        "table inet t {\nchain forward {\ntype filter hook forward priority -5; policy accept;\n"
        'iifname "rA" drop\n}\n}\n'
    )


@pytest.mark.parametrize(
    ("source", "port", "translations"),
    [
        (None, 41_000, ["snat to :41000"]),
        ("10.201.1.102", None, ["snat ip to 10.201.1.102"]),
        ("10.201.1.102", 41_000, ["snat ip to 10.201.1.102:41000", "snat to :41000"]),
        ("fd00:201:1::7", None, ["snat ip6 to fd00:201:1::7"]),
        ("fd00:201:1::7", 9, ["snat ip6 to [fd00:201:1::7]:9", "snat to :9"]),
    ],
)
def test_a_mapping_as_nft_has_it(source: str | None, port: int | None, translations: list[str]) -> None:
    out, back = nat_rebind.rules("rA", 51_820, (ip_address(source) if source else None, port))
    flow = 'iifname "rA" udp dport 51820 counter name up_mapped'
    assert out.splitlines()[2:-1] == [f"{flow} {one}" for one in translations]
    assert 'oifname "rA" udp sport 51820 ct state new counter name down_dropped drop' in back


def test_mappings_follow_one_another_and_what_is_not_said_stays() -> None:
    one, two = ip_address("10.201.1.2"), ip_address("10.201.1.102")
    assert nat_rebind.mappings([], [1, 2]) == [(None, 1), (None, 2)]
    assert nat_rebind.mappings([one, two], [1]) == [(one, 1), (two, 1)]
    assert nat_rebind.mappings([one], [1, 2, 3]) == [(one, 1), (one, 2), (one, 3)]


def test_a_route_with_its_mtu() -> None:
    assert narrowed({"dst": "10.202.1.0/24", "dev": "w1", "protocol": "kernel", "scope": "link"}, 1280) == (
        ["10.202.1.0/24", "dev", "w1", "metric", "0", "mtu", "lock", "1280"]
    )
    assert narrowed({"dst": "default", "gateway": "10.0.0.1", "dev": "e0", "metric": 5}, 1300) == (
        ["default", "via", "10.0.0.1", "dev", "e0", "metric", "5", "mtu", "lock", "1300"]
    )


def script(name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"vagrant.traffic.faults.{name}", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_there_is_one_for_each_fault() -> None:
    assert SCRIPTS == [
        "blackhole", "burst_loss", "corrupt", "delay", "droplist", "duplicate", "icmp", "jitter", "loss", "mtu",
        "nat_rebind", "one_way", "rate", "reorder",
    ]  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_explains_itself(name: str) -> None:
    done = script(name, "--help")
    assert done.returncode == 0
    assert "--until-eof" in done.stdout
    assert "--device" in done.stdout


@pytest.mark.parametrize(
    ("name", "argv", "words"),
    [
        ("loss", ("--share", "1.5", "--device", "rA"), "a share lies in 0…1"),
        ("loss", ("--share", "0.5"), "say where"),
        ("loss", ("--share", "0.5", "--wire", "/x"), "--wire SOCKET and --link NAME go together"),
        ("delay", ("--ms", "-1", "--device", "rA"), "milliseconds lie in"),
        ("rate", ("--steps", "5,0", "--device", "rA"), "must be above 0"),
        ("droplist", ("--numbers", "1,x", "--device", "rA"), "a whole number above 0"),
        ("droplist", ("--numbers", "9" * 23, "--device", "rA"), "a whole number above 0, up to 2147483648"),
        (
            "droplist",
            ("--numbers", "2147483649", "--device", "rA"),
            "a whole number above 0, up to 2147483648",
        ),
        ("droplist", ("--numbers", "1", "--port", "65536", "--device", "rA"), "a port lies in 1…65535"),
        (
            "nat_rebind",
            ("--port", "1", "--gateway-port", "65536", "--device", "rA"),
            "a port lies in 1…65535",
        ),
        ("delay", ("--ms", "abc", "--device", "rA"), "'abc' is not a number"),
        ("loss", ("--share", "nan", "--device", "rA"), "'nan' is not a number"),
        (
            "loss",
            ("--share", "0.5", "--for", "1e300", "--device", "rA"),
            "must be above 0, from 1e-09 to 1e+09",
        ),
        (
            "loss",
            ("--share", "0.5", "--device", "rA", "--wire", "/x", "--link", "A"),
            "leave one of them out",
        ),
        ("blackhole", ("--device", "rA", "--wire", "/x", "--link", "A"), "leave one of them out"),
        (
            "blackhole",
            ("--device", "rA", "--link", "B"),
            "--device rA says where already, and --link another",
        ),
        ("one_way", ("--device", "rA"), "--direction"),
        ("mtu", ("--bytes", "20", "--device", "rA"), "an MTU lies in"),
        ("nat_rebind", ("--port", "0", "--device", "rA"), "a whole number above 0"),
        ("nat_rebind", ("--address", "here", "--device", "rA"), "not an IP address"),
        ("blackhole", ("--link", "Z"), "--link with one of A, B"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_done(name: str, argv: tuple[str, ...], words: str) -> None:
    done = script(name, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
