"""A policy in words, for whoever has to live under it: what its numbers mean together. Pure."""

from collections.abc import Callable, Sequence
from typing import Final

from jvpn.policy.model import Policy
from jvpn.policy.parameters import BY_NAME, DAY, HOUR, MINUTE, SECOND
from jvpn.protocol.constants import CARRIED

#: (heading, sentences)
Section = tuple[str, tuple[str, ...]]
_UNITS: Final = ((DAY, "day"), (HOUR, "h"), (MINUTE, "min"), (SECOND, "s"), (1, "ms"))
_BYTES: Final = ((2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def span(ms: int) -> str:
    """A length of time without loss: 250 ms, 1.5 s, 2 min, 8 h, 7 days."""
    for unit_ms, unit in _UNITS:
        if ms >= unit_ms and ms * 10 % unit_ms == 0:
            number = f"{ms / unit_ms:g}"
            return f"{number} {unit}{'s' if unit == 'day' and number != '1' else ''}"
    return f"{ms} ms"


def size(count: int) -> str:
    """A number of bytes without loss: 4 MiB, 1500 bytes."""
    for unit_bytes, unit in _BYTES:
        if count >= unit_bytes and count * 10 % unit_bytes == 0:
            return f"{count / unit_bytes:g} {unit}"
    return f"{count} bytes"


def percent(share: float) -> str:
    return f"{share * 100:g} %"


def in_words(policy: Policy) -> list[Section]:
    """Every parameter, in the order in which a session meets them."""
    return [(heading, tuple(say(policy))) for heading, say in _SECTIONS]


def _life(p: Policy) -> Sequence[str]:
    ends = {"degrade": "the session is DEGRADED, and goes on trying", "terminate": "the session ends"}
    return (
        f"A session ends {span(p.session_ttl_ms)} after its handshake, at the latest.",
        f"Without any path it is kept for {span(p.transport_loss_ttl_ms)}.",
        f"A change of path may take {span(p.recovery_window_ms)}; after that {ends[p.on_recovery_window_exceeded]}.",
    )


def _moves(p: Policy) -> Sequence[str]:
    most = p.max_switches_per_minute
    if not most:
        return (
            "It never moves by choice (max_switches_per_minute is 0), so it does not return to a preferred uplink "
            f"either; switch_cooldown_ms ({span(p.switch_cooldown_ms)}) means nothing then.",
            f"A candidate {p.switch_improvement_factor:g} times better would be needed to leave a bad path.",
            "Recovery from a dead path is never held back.",
        )
    cooldown = (
        "at once again" if not p.switch_cooldown_ms else f"{span(p.switch_cooldown_ms)} after the last bind"
    )
    return (
        f"By choice it moves at most {most} times a minute, and earliest {cooldown}.",
        "Recovery from a dead path is never held back.",
        f"A path that is too bad is left for a candidate that is {p.switch_improvement_factor:g} times better.",
        f"A path is returned to, and quality counts as restored, once it has held for {span(p.stability_window_ms)}.",
    )


def _quality(p: Policy) -> Sequence[str]:
    return (
        f"A path is too bad when loss exceeds {percent(p.loss_floor)}, the round trip (95th percentile) "
        f"{span(p.latency_floor_ms)}, or its spread {span(p.jitter_floor_ms)}, "
        f"measured over {span(p.loss_window_ms)} and for at least {span(p.volatility_hold_ms)} "
        f"(VOLATILE; after {span(p.volatile_to_degraded_ms)} without relief DEGRADED).",
        f"It is good again when every signal is below {percent(p.hysteresis)} of its floor.",
    )


def _paths(p: Policy) -> Sequence[str]:
    known = [name for name in p.allowed_transports if name in CARRIED]
    absent = [name for name in p.allowed_transports if name not in CARRIED]
    without = f" (allowed, and not in this build: {', '.join(absent)})" if absent else ""
    return (
        f"Transports, most wanted first: {', '.join(known) or 'none that this build has'}{without}.",
        _filter(p),
        f"Beside the active path at most {p.max_candidates} are kept warm.",
        f"A path with something to prove is probed every {span(p.probe_interval_ms)}, an idle one every "
        f"{span(p.idle_probe_interval_ms)}.",
        f"Keeping candidates warm may cost {p.candidate_probe_bytes_per_day / 1e6:g} MB a day, all of them together.",
    )


def _filter(p: Policy) -> str:
    """Which uplinks candidates may use."""
    said = []
    if p.allowed_interfaces:
        said.append(f"devices {', '.join(p.allowed_interfaces)}")
    if p.allowed_networks:
        said.append(f"networks {', '.join(p.allowed_networks)}")
    if p.max_cost < BY_NAME["max_cost"].high:
        said.append(f"cost at most {p.max_cost}")
    return f"Uplinks that candidates may use: {'; '.join(said) or 'all'}."


def _changes(p: Policy) -> Sequence[str]:
    again = "After a death nothing is sent again."
    if p.resend_window_ms and p.resend_bytes:
        again = (
            f"After a death what was sent in the last {span(p.resend_window_ms)} is sent again, "
            f"at most {size(p.resend_bytes)} of it."
        )
    elif p.resend_window_ms or p.resend_bytes:
        kept = f"{span(p.resend_window_ms)} and {size(p.resend_bytes)}"
        again = f"After a death nothing is sent again: of window and bytes ({kept}) one is 0."
    drain = "not listened to any more"
    if p.drain_window_ms:
        drain = f"listened to for another {span(p.drain_window_ms)}, or two round trips if that is longer"
    return (f"After a move by choice the old path is {drain}.", again)


def _trust(p: Policy) -> Sequence[str]:
    kem = {"mlkem768": "with ML-KEM-768, before any traffic", "none": "without post-quantum keys"}
    where = {
        (): "It may be bound to any address that it proves.",
        ("network",): "Bound to an address of another network (/24, /64) only after a new handshake.",
    }
    anew = "Bound to another address only after a new handshake."
    if set(p.reauthenticate_on) == {"address", "network"}:
        anew = "Bound to another address, so to another network too, only after a new handshake."
    failures, hours = p.security_failures_before_terminate, p.reauthenticate_interval_h
    often = "No new handshake is asked for by time." if not hours else f"A new handshake every {hours} h."
    return (
        f"Data keys change every {span(p.rekey_interval_ms)}, {kem[p.kem]}.",
        f"{failures} illegal message{'s' * (failures != 1)} under its keys end{'s' * (failures == 1)} a session.",
        where.get(p.reauthenticate_on, anew),
        often,
    )


_SECTIONS: Final[tuple[tuple[str, Callable[[Policy], Sequence[str]]], ...]] = (
    ("life", _life),
    ("moves", _moves),
    ("quality", _quality),
    ("paths", _paths),
    ("changes", _changes),
    ("trust", _trust),
)
