"""One direction's impairments as queueing disciplines: tc-netem(8), tc-tbf(8), with ifb in front for what comes in.

Stages, in the order that packets pass them: netem delays, loses, duplicates and corrupts; a second netem holds some
back so that others overtake them (where the first does not delay, it does this itself); tbf is the bottleneck. Only
those that are needed are there. netem's rate, far above any lab's, keeps packets in order while the delay varies.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from jvpn.lab.link_model import LinkParams
from vagrant.traffic.faults.means import kernel
from vagrant.traffic.script import Failed

_LIMIT_PACKETS: Final = 100_000
_IN_ORDER: Final = "10gbit"
_BURST_BYTES: Final = 3_200
_BURST_S: Final = 0.001
#: netem takes a seed from here on.
_SEEDED_SINCE: Final = (6, 6)


@dataclass(frozen=True, slots=True)
class Stage:
    """A queueing discipline: its handle ("1:") and what it does."""

    handle: str
    does: tuple[str, ...]


def stages(params: LinkParams, seed: int | None = None) -> list[Stage]:
    """What *params* needs, from the root inwards; *seed* None: netem here takes none."""
    delays = bool(params.delay_ms or params.jitter_ms)
    seeded = () if seed is None else ("seed", str(seed))
    found = []
    if delays or params.loss or params.burst_loss or params.duplicate or params.corrupt or params.drop:
        own = () if delays else _holding(params)
        waits = _delay(params) if delays or not own else own
        found.append(
            Stage("1:", ("netem", *_limit(), *waits, *_loss(params), *_damage(params), *_order(), *seeded))
        )
    if params.reorder and (delays or not found):
        found.append(Stage("10:", ("netem", *_limit(), *_holding(params), *_order(), *seeded)))
    if params.rate_mbit:
        found.append(Stage("20:", _bottleneck(params)))
    return found


def commands(device: str, before: list[Stage], after: list[Stage]) -> list[str]:
    """Lines for `tc -batch` that turn one chain of stages into another; stages that stay keep what is queued."""
    same = 0
    while same < min(len(before), len(after)) and before[same].handle == after[same].handle:
        same += 1
    lines = [f"qdisc del dev {device} {_parent(before, same)}"] if same < len(before) else []
    for n, stage in enumerate(after):
        if n >= same or stage != before[n]:
            does = " ".join(stage.does)
            lines.append(f"qdisc replace dev {device} {_parent(after, n)} handle {stage.handle} {does}")
    return lines


def change(device: str, direction: str, before: LinkParams, after: LinkParams, seed: int) -> None:
    """Put *after* in force instead of *before* on what leaves *device* (down) or comes in by it (up). Raises Failed."""
    where = inlet(device) if direction == "up" else device
    if after == LinkParams():
        _clear(device, where)
        return
    given = seed if takes_seed() else None
    old, new = stages(before, given), stages(after, given)
    if any(stage.does[0] == "netem" for stage in new):
        need_netem()
    if not old:
        _refuse_foreign(device, direction)
    try:
        if not old and direction == "up":
            _redirect(device, where)
        _batch(commands(where, old, new))
    except Failed:
        _clear(device, where)
        if old and direction == "up":
            _redirect(device, where)
        _batch(commands(where, [], old))
        raise


def _batch(lines: list[str]) -> None:
    if lines:
        kernel.run(["tc", "-batch", "-"], "\n".join(lines) + "\n")


def _clear(device: str, where: str) -> None:
    kernel.undo(["tc", "qdisc", "del", "dev", where, "root"])
    if where != device:
        kernel.undo(["tc", "qdisc", "del", "dev", device, "ingress"])
        kernel.undo(["ip", "link", "del", where])


def counters(device: str, direction: str) -> dict[str, int]:
    """Packets offered and dropped since the queueing discipline came, and of these lost by netem and turned away by the
    bottleneck's queue; empty when there is none of ours."""
    where = inlet(device) if direction == "up" else device
    ours = {
        row["handle"]: row
        for row in kernel.shown(["tc", "-s", "-j", "qdisc", "show", "dev", where])
        if row["handle"] in ("1:", "10:", "20:")
    }
    root = next((row for row in ours.values() if row.get("root")), None)
    if root is None:
        return {}
    # What an inner discipline turns away is counted by those around it too.
    queue_dropped = ours["20:"]["drops"] if "20:" in ours else 0
    return {
        "offered": root["packets"] + root["drops"],
        "dropped": root["drops"],
        "lost": root["drops"] - queue_dropped,
        "queue_dropped": queue_dropped,
    }


def inlet(device: str) -> str:
    """The ifb device that what comes in by *device* passes. Raises Failed: no such device."""
    try:
        return f"jvup{socket.if_nametoindex(device)}"
    except OSError as error:
        raise Failed(f"there is no device {device} any more") from error


def need_netem() -> None:
    """Raises Failed when this kernel has no netem, found out with a device that is made for it."""
    with _trial_device() as device:
        try:
            kernel.run(["tc", "qdisc", "add", "dev", device, "root", "netem", "delay", "1ms"])
        except Failed as error:
            raise Failed(
                f"this kernel has no netem ({error}): load it (`modprobe sch_netem`; Debian's and Ubuntu's kernels "
                "have it), or let the lab's emulator do it: --wire SOCKET --link NAME"
            ) from error


def takes_seed() -> bool:
    """Whether both tc and the kernel know netem's seed; before Linux 6.6 a run cannot be repeated."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _SEEDED_SINCE:
        return False
    with _trial_device() as device, contextlib.suppress(Failed):
        kernel.run(["tc", "qdisc", "add", "dev", device, "root", "netem", "delay", "1ms", "seed", "1"])
        return True
    return False


@contextlib.contextmanager
def _trial_device() -> Iterator[str]:
    device = f"jvtry{os.getpid()}"
    try:
        kernel.run(["ip", "link", "add", device, "type", "dummy"])
    except Failed:
        kernel.run(["ip", "link", "add", device, "type", "ifb"])
    try:
        yield device
    finally:
        kernel.undo(["ip", "link", "del", device])


def _refuse_foreign(device: str, direction: str) -> None:
    """A queueing discipline that somebody else set up is not replaced: nobody could put it back as it was."""
    for row in kernel.shown(["tc", "-j", "qdisc", "show", "dev", device]):
        root, ingress = row.get("root"), row["kind"] in ("ingress", "clsact")
        if row["handle"] != "0:" and ((root and direction == "down") or (ingress and direction == "up")):
            raise Failed(
                f"{device} has a queueing discipline of somebody else's ({row['kind']} {row['handle']}), which would "
                f"be lost: take it away first, `tc qdisc del dev {device} {'ingress' if ingress else 'root'}`"
            )


def _redirect(device: str, where: str) -> None:
    kernel.undo(["ip", "link", "del", where])
    kernel.run(["ip", "-batch", "-"], f"link add {where} type ifb\nlink set {where} up\n")
    kernel.run(["tc", "qdisc", "add", "dev", device, "handle", "ffff:", "ingress"])
    add = f"filter add dev {device} parent ffff: protocol all prio 1"
    redirect = f"action mirred egress redirect dev {where}"
    try:
        _batch([f"{add} u32 match u32 0 0 {redirect}"])
    except Failed:  # kernels are built with this classifier or with that
        _batch([f"{add} matchall {redirect}"])


def _parent(chain: list[Stage], n: int) -> str:
    return "root" if n == 0 else f"parent {chain[n - 1].handle}1"


def _limit() -> tuple[str, ...]:
    return ("limit", str(_LIMIT_PACKETS))


def _order() -> tuple[str, ...]:
    return ("rate", _IN_ORDER)


def _delay(params: LinkParams) -> tuple[str, ...]:
    """The model's jitter is 0…J on top of the delay, netem's is ±J around it."""
    jitter_us = round(params.jitter_ms * 500)
    return ("delay", f"{round(params.delay_ms * 1_000) + jitter_us}us", f"{jitter_us}us")


def _holding(params: LinkParams) -> tuple[str, ...]:
    """netem's "reorder" is the share that does not wait: all others are held back."""
    if not params.reorder:
        return ()
    return ("delay", f"{round(params.reorder_ms * 1_000)}us", "reorder", _percent(1 - params.reorder))


def _loss(params: LinkParams) -> tuple[str, ...]:
    if params.drop:
        return ("loss", "random", "100%")
    if not params.burst_loss:
        return ("loss", "random", _percent(params.loss))
    in_burst = 1 - (1 - params.burst_density) * (1 - params.loss)
    chances = (params.enter_burst, 1 / params.burst_frames, in_burst, params.loss)
    return ("loss", "gemodel", *map(_percent, chances))


def _damage(params: LinkParams) -> tuple[str, ...]:
    return ("duplicate", _percent(params.duplicate), "corrupt", _percent(params.corrupt))


def _bottleneck(params: LinkParams) -> tuple[str, ...]:
    bytes_per_s = params.rate_mbit * 125_000
    burst = max(_BURST_BYTES, round(bytes_per_s * _BURST_S))
    queue = burst + round(bytes_per_s * params.queue_ms / 1_000)
    return ("tbf", "rate", f"{round(bytes_per_s * 8)}bit", "burst", str(burst), "limit", str(queue))


def _percent(chance: float) -> str:
    return f"{100 * chance:.7g}%"
