"""Policies as a seed draws them."""

import random
from dataclasses import replace
from typing import Any

from jvpn.policy.model import Policy


def draw_policy(draw: random.Random, kem: str | None = None) -> Policy:
    """The default with some parameters changed, within their bounds; `kem` as it is, where that is given."""
    changes: dict[str, Any] = {
        "recovery_window_ms": draw.choice((1_000, 3_000, 8_000, 8_000)),
        "transport_loss_ttl_ms": draw.choice((4_000, 15_000, 600_000, 600_000)),
        "on_recovery_window_exceeded": draw.choice(("degrade", "degrade", "terminate")),
        "max_candidates": draw.choice((1, 2, 3)),
        "resend_window_ms": draw.choice((0, 500, 500, 1_000)),
        "rekey_interval_ms": draw.choice((10_000, 15_000, 120_000)),
        "idle_probe_interval_ms": draw.choice((500, 2_000, 10_000)),
        "probe_interval_ms": draw.choice((40, 40, 100)),
        "stability_window_ms": draw.choice((500, 2_000)),
        "switch_cooldown_ms": draw.choice((0, 1_500)),
        "kem": kem or draw.choice(("mlkem768", "mlkem768", "none")),
    }
    changes["transport_loss_ttl_ms"] = max(changes["transport_loss_ttl_ms"], changes["recovery_window_ms"])
    # As a client takes it over: checked, so that no run is about parameters that no operator could set.
    return Policy.from_wire(replace(Policy.default(), **changes).to_wire())
