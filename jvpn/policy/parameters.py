"""Every policy parameter as data: unit, bounds, default, meaning.

This table is the only declaration. The model checks values against it, the table in `docs/configuration.md` is
generated from it, and `policies/default.yaml` is held against its defaults by a test.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

Value = int | float | str | tuple[str, ...]


class Kind(Enum):
    INTEGER = "whole number"
    RATIO = "number"
    CHOICE = "one word"
    WORDS = "list of words"
    LABELS = "list of labels"


@dataclass(frozen=True, slots=True)
class Parameter:
    """`low`/`high` are inclusive, for numbers; `choices` for words. Of labels there are at most MAX_LABELS."""

    name: str
    kind: Kind
    unit: str
    default: Value
    meaning: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    may_be_empty: bool = False


#: What an uplink's owner calls a device or a network; in a policy `*` stands for any end of it.
LABEL_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}")
LABEL_RULE: Final = "up to 15 of letters, digits, _ . @ and -, beginning with a letter or digit"
PATTERN_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}|[A-Za-z0-9][A-Za-z0-9_.@-]{0,13}\*")
#: More would not fit the snapshot that CONFIG carries.
MAX_LABELS: Final = 3

SECOND: Final = 1_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
MIB: Final = 2**20


def _ms(name: str, default: int, low: int, high: int, meaning: str) -> Parameter:
    return Parameter(name, Kind.INTEGER, "ms", default, meaning, low, high)


def _count(name: str, unit: str, default: int, low: int, high: int, meaning: str) -> Parameter:
    return Parameter(name, Kind.INTEGER, unit, default, meaning, low, high)


def _ratio(name: str, default: float, low: float, high: float, meaning: str) -> Parameter:
    return Parameter(name, Kind.RATIO, "", default, meaning, low, high)


PARAMETERS: Final[tuple[Parameter, ...]] = (
    _ms(
        "session_ttl_ms",
        8 * HOUR,
        MINUTE,
        30 * DAY,
        "a session ends this long after its handshake, whatever happens",
    ),
    _ms(
        "transport_loss_ttl_ms",
        10 * MINUTE,
        SECOND,
        7 * DAY,
        "a session without any binding is kept this long, then TERMINATED",
    ),
    _ms(
        "recovery_window_ms",
        8 * SECOND,
        500,
        10 * MINUTE,
        "a reattach may take this long before it counts as failed",
    ),
    Parameter(
        "on_recovery_window_exceeded",
        Kind.CHOICE,
        "",
        "degrade",
        "what a recovery window that runs out does: keep the session DEGRADED, or end it",
        choices=("degrade", "terminate"),
    ),
    _count(
        "max_switches_per_minute",
        "per minute",
        8,
        0,
        60,
        "no voluntary switch once bound this often within a minute; recovery from death is never held back",
    ),
    _ms("switch_cooldown_ms", 1_500, 0, MINUTE, "no voluntary switch this soon after the last bind"),
    _ratio(
        "switch_improvement_factor",
        1.10,
        1.0,
        10.0,
        "a path with a broken floor is left for a candidate this many times better",
    ),
    _ms(
        "volatility_hold_ms",
        500,
        100,
        MINUTE,
        "a floor must stay broken this long before the session is VOLATILE",
    ),
    _ms(
        "volatile_to_degraded_ms",
        4 * SECOND,
        100,
        10 * MINUTE,
        "VOLATILE without relief this long becomes DEGRADED",
    ),
    _ms(
        "stability_window_ms",
        2 * SECOND,
        100,
        10 * MINUTE,
        "signals must hold this long before quality counts as restored, and a path before it is fallen back to",
    ),
    _ratio("hysteresis", 0.8, 0.1, 1.0, "restored means every signal is below its floor times this"),
    _ratio("loss_floor", 0.20, 0.01, 1.0, "loss, in the worse direction, above which a path is VOLATILE"),
    _ms("loss_window_ms", 2 * SECOND, 500, MINUTE, "loss, latency and jitter are measured over this long"),
    _ms(
        "latency_floor_ms",
        300,
        10,
        10 * SECOND,
        "round trip (95th percentile) above which a path is VOLATILE",
    ),
    _ms(
        "jitter_floor_ms",
        80,
        1,
        5 * SECOND,
        "spread of the round trip (95th percentile less median) above which a path is VOLATILE",
    ),
    _count("max_candidates", "paths", 3, 1, 8, "paths kept warm beside the active one"),
    _count(
        "candidate_probe_bytes_per_day",
        "bytes",
        20_000_000,
        100_000,
        1_000_000_000,
        "what probes and their answers on all candidates together may cost in a day; less means that each is probed "
        "less often, at most every second",
    ),
    Parameter(
        "allowed_transports",
        Kind.WORDS,
        "",
        ("udp", "quic", "tcp"),
        "transports a session may use, most wanted first",
        choices=("udp", "quic", "tcp"),
    ),
    Parameter(
        "allowed_interfaces",
        Kind.LABELS,
        "",
        (),
        "devices of the client that candidates may use, by name, or by how it begins (`wlan*`); none named: all",
        may_be_empty=True,
    ),
    Parameter(
        "allowed_networks",
        Kind.LABELS,
        "",
        (),
        "candidates may use uplinks whose `network` is one of these; none named: all",
        may_be_empty=True,
    ),
    _count("max_cost", "cost", 65_535, 0, 65_535, "candidates may use uplinks that cost no more than this"),
    _ms("probe_interval_ms", 40, 10, 10 * SECOND, "between two probes while a path has something to prove"),
    _ms(
        "idle_probe_interval_ms",
        10 * SECOND,
        500,
        MINUTE,
        "between two probes of an active path that is idle",
    ),
    _ms(
        "drain_window_ms",
        250,
        0,
        10 * SECOND,
        "after a voluntary switch the old path is received on this long, or two round trips if that is longer",
    ),
    _ms(
        "resend_window_ms",
        500,
        0,
        10 * SECOND,
        "after a death nothing older than this is sent again; 0 = off",
    ),
    _count("resend_bytes", "bytes", 4 * MIB, 0, 64 * MIB, "how much each end keeps to send again; 0 = off"),
    _ms("rekey_interval_ms", 2 * MINUTE, 10 * SECOND, HOUR, "between two changes of the data keys"),
    Parameter(
        "kem",
        Kind.CHOICE,
        "",
        "mlkem768",
        "key encapsulation mixed into every rekey, and into the first before any traffic flows",
        choices=("mlkem768", "none"),
    ),
    _count(
        "security_failures_before_terminate",
        "failures",
        3,
        1,
        1_000,
        "the session ends after this many illegal messages that only the holder of its keys can have sent",
    ),
    Parameter(
        "reauthenticate_on",
        Kind.WORDS,
        "",
        (),
        "a session is bound to another outer address, or to another network, only after a new handshake",
        choices=("address", "network"),
        may_be_empty=True,
    ),
    _count("reauthenticate_interval_h", "h", 0, 0, 168, "a new handshake is asked for this often; 0 = never"),
)

BY_NAME: Final = {parameter.name: parameter for parameter in PARAMETERS}

#: (smaller, larger): the first must not exceed the second.
ORDERED: Final[tuple[tuple[str, str], ...]] = (
    ("transport_loss_ttl_ms", "session_ttl_ms"),
    ("recovery_window_ms", "transport_loss_ttl_ms"),
    ("volatility_hold_ms", "volatile_to_degraded_ms"),
    ("probe_interval_ms", "idle_probe_interval_ms"),
)
