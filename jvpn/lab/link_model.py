"""What a link does to each frame: a pure, seeded model with time as an argument.

One ``LinkModel`` is one direction. The order of the stages is that of a real path: a hole swallows, the MTU
refuses, the bottleneck queues or drops its tail, the medium loses, the way delays, somebody duplicates; what
arrives may have a bit flipped.

Loss is per frame on the wire. A superpacket (GSO) is many frames in one skb, so an impairment that treats frames
one by one is honest only when senders segment first: ``LinkParams.needs_single_frames`` says when.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

NS_PER_MS = 1_000_000
# Below this rate one 64 KiB superpacket would leave as a burst longer than a millisecond.
SUPERPACKET_RATE_MBIT = 500.0


class LinkParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Properties of one direction of a link. Probabilities are 0…1, per frame on the wire.

    ``burst_loss`` is the share lost over time to a Gilbert–Elliott process (E. N. Gilbert, "Capacity of a
    Burst-Noise Channel", 1960) whose bad state lasts ``burst_frames`` frames on average and loses
    ``burst_density`` of them. Jitter keeps the order, as queues do; only ``reorder`` lets later frames overtake,
    by holding a frame back for ``reorder_ms``. ``rate_mbit`` 0 is no limit; ``queue_ms`` bounds the wait for it.
    ``mtu`` (IP bytes, 0: none) drops larger frames without a word. ``corrupt`` is the share of frames in which one bit
    of the IP packet flips; ARP, which has nothing to be found out by, is spared. ``drop`` swallows everything.
    Raises ValueError with the field's name when a value is out of range.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    burst_loss: float = 0.0
    burst_frames: float = 8.0
    burst_density: float = 1.0
    reorder: float = 0.0
    reorder_ms: float = 5.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    rate_mbit: float = 0.0
    queue_ms: float = 50.0
    mtu: int = 0
    drop: bool = False

    def __post_init__(self) -> None:
        for name in ("loss", "burst_loss", "burst_density", "reorder", "duplicate", "corrupt"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in 0…1, not {getattr(self, name)!r}")
        for name in ("delay_ms", "jitter_ms", "reorder_ms", "rate_mbit", "queue_ms", "mtu"):
            if not 0.0 <= getattr(self, name) <= 1e6:
                raise ValueError(f"{name} must lie in 0…1000000, not {getattr(self, name)!r}")
        if self.burst_frames < 1.0:
            raise ValueError(f"burst_frames must be at least 1, not {self.burst_frames!r}")
        if self.burst_loss and self.burst_loss >= self.burst_density:
            raise ValueError("burst_loss must be smaller than burst_density, the loss inside a burst")
        if self.burst_loss and self.enter_burst > 1.0:
            raise ValueError("burst_loss that high needs longer bursts: raise burst_frames")

    @property
    def enter_burst(self) -> float:
        """Probability per frame to go from the good to the bad state."""
        bad_share = self.burst_loss / self.burst_density
        return bad_share / (1.0 - bad_share) / self.burst_frames

    @property
    def needs_single_frames(self) -> bool:
        """Whether superpackets must be segmented before they reach this direction."""
        per_frame = self.loss or self.burst_loss or self.reorder or self.duplicate
        return bool(per_frame or self.corrupt or self.mtu) or 0.0 < self.rate_mbit < SUPERPACKET_RATE_MBIT


class LinkCounters(msgspec.Struct):
    """What became of the frames offered to one direction; all but ``bytes_offered`` count frames on the wire."""

    offered: int = 0
    bytes_offered: int = 0
    delivered: int = 0
    lost: int = 0
    burst_lost: int = 0
    queue_dropped: int = 0
    swallowed: int = 0
    too_big: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    unsplit_superpackets: int = 0


class LinkModel:
    """Decides for each frame when it arrives, if ever.

    *seed* is anything ``random.Random`` takes. Every kind of impairment draws from a stream of its own, so the
    frames that loss picks do not depend on whether jitter is on.
    """

    def __init__(self, seed: int | str, params: LinkParams | None = None) -> None:
        self._loss = _stream(seed, "loss")
        self._burst = _stream(seed, "burst")
        self._jitter = _stream(seed, "jitter")
        self._reorder = _stream(seed, "reorder")
        self._duplicate = _stream(seed, "duplicate")
        self._corrupt = _stream(seed, "corrupt")
        self.counters = LinkCounters()
        self._in_burst = False
        self._line_free_ns = 0
        self._last_arrival_ns = 0
        self.configure(params or LinkParams())

    def configure(self, params: LinkParams) -> None:
        """Put *params* in force for frames offered from now on; frames under way keep their arrival times."""
        self.params = params
        self._delay_ns = round(params.delay_ms * NS_PER_MS)
        self._jitter_ns = round(params.jitter_ms * NS_PER_MS)
        self._hold_ns = round(params.reorder_ms * NS_PER_MS)
        self._queue_ns = round(params.queue_ms * NS_PER_MS)
        self._ns_per_byte = 8_000.0 / params.rate_mbit if params.rate_mbit else 0.0
        self._frame_limit = params.mtu + 14 if params.mtu else 0
        self._lossy = bool(params.loss or params.burst_loss)
        self._disturbed = bool(params.jitter_ms or params.reorder or params.duplicate)
        self._single = params.needs_single_frames
        if not params.burst_loss:
            self._in_burst = False

    def reseed(self, seed: int | str, params: LinkParams) -> None:
        """Begin the streams anew, from *seed*, of those impairments that *params* has; the others go on."""
        if params.loss:
            self._loss = _stream(seed, "loss")
        if params.burst_loss:
            self._burst = _stream(seed, "burst")
            self._in_burst = False
        if params.jitter_ms:
            self._jitter = _stream(seed, "jitter")
        if params.reorder:
            self._reorder = _stream(seed, "reorder")
        if params.duplicate:
            self._duplicate = _stream(seed, "duplicate")
        if params.corrupt:
            self._corrupt = _stream(seed, "corrupt")

    def damaged_bit(self, bits: int, segments: int = 1) -> int | None:
        """Which of the *bits* of a frame that ``offer`` let through flips; None: none. To be asked once a frame."""
        if self._corrupt() >= self.params.corrupt:
            return None
        self.counters.corrupted += segments
        return int(self._corrupt() * bits)

    def offer(self, now_ns: int, wire_bytes: int, segments: int = 1) -> tuple[int, ...]:
        """Arrival times (ns, the clock of *now_ns*) of one skb: none when dropped, two when duplicated.

        *wire_bytes* counts Ethernet headers, for a superpacket those of all its *segments*.
        """
        counters = self.counters
        counters.offered += segments
        counters.bytes_offered += wire_bytes
        if segments > 1 and self._single:
            counters.unsplit_superpackets += 1
        if self.params.drop:
            counters.swallowed += segments
            return ()
        if self._frame_limit and wire_bytes > self._frame_limit * segments:
            counters.too_big += segments
            return ()
        sent_ns = now_ns
        if self._ns_per_byte:
            start_ns = max(now_ns, self._line_free_ns)
            if start_ns - now_ns > self._queue_ns:
                counters.queue_dropped += segments
                return ()
            sent_ns = self._line_free_ns = start_ns + round(wire_bytes * self._ns_per_byte)
        if self._lossy and self._lose(segments):
            return ()
        counters.delivered += segments
        arrival_ns = sent_ns + self._delay_ns
        if self._disturbed:
            return self._disturb(arrival_ns, segments)
        # A shortened delay must not let new frames overtake those under way.
        arrival_ns = self._last_arrival_ns = max(arrival_ns, self._last_arrival_ns)
        return (arrival_ns,)

    def _lose(self, segments: int) -> bool:
        params = self.params
        if params.burst_loss:
            if self._in_burst:
                self._in_burst = self._burst() >= 1.0 / params.burst_frames
            else:
                self._in_burst = self._burst() < params.enter_burst
            if self._in_burst and (params.burst_density == 1.0 or self._burst() < params.burst_density):
                self.counters.burst_lost += segments
                return True
        if params.loss and self._loss() < params.loss:
            self.counters.lost += segments
            return True
        return False

    def _disturb(self, arrival_ns: int, segments: int) -> tuple[int, ...]:
        params = self.params
        if self._jitter_ns:
            arrival_ns += round(self._jitter_ns * self._jitter())
        if params.reorder and self._reorder() < params.reorder:
            self.counters.reordered += segments
            arrival_ns = max(arrival_ns, self._last_arrival_ns) + self._hold_ns
        else:
            arrival_ns = self._last_arrival_ns = max(arrival_ns, self._last_arrival_ns)
        if params.duplicate and self._duplicate() < params.duplicate:
            self.counters.duplicated += segments
            return (arrival_ns, arrival_ns)
        return (arrival_ns,)


def _stream(seed: int | str, kind: str) -> Callable[[], float]:
    return random.Random(f"{seed}/{kind}").random


def merge(params: LinkParams, changes: dict[str, Any]) -> LinkParams:
    """*params* with *changes*; TypeError for an unknown name, ValueError for a value out of range."""
    merged = msgspec.structs.replace(params, **changes)
    merged.__post_init__()
    return merged


def compose(base: LinkParams, *others: LinkParams) -> LinkParams:
    """One link with all of these impairments, as if each were a stretch of the way.

    Delays and jitter add up, chances are independent of each other, the slowest bottleneck and the smallest MTU hold.
    Raises ValueError when two have burst loss: two such processes are not one.
    """
    every = (base, *others)
    bursty = [params for params in every if params.burst_loss]
    if len(bursty) > 1:
        raise ValueError(
            "burst loss is in force already, and two burst processes on one way are not one: end it first"
        )
    limited = [params for params in every if params.rate_mbit]
    slowest = min(limited, key=lambda params: params.rate_mbit) if limited else base
    burst = bursty[0] if bursty else base
    return LinkParams(
        delay_ms=sum(params.delay_ms for params in every),
        jitter_ms=sum(params.jitter_ms for params in every),
        loss=_either([params.loss for params in every]),
        burst_loss=burst.burst_loss,
        burst_frames=burst.burst_frames,
        burst_density=burst.burst_density,
        reorder=_either([params.reorder for params in every]),
        reorder_ms=max((params.reorder_ms for params in every if params.reorder), default=base.reorder_ms),
        duplicate=_either([params.duplicate for params in every]),
        corrupt=_either([params.corrupt for params in every]),
        rate_mbit=slowest.rate_mbit,
        queue_ms=slowest.queue_ms,
        mtu=min((params.mtu for params in every if params.mtu), default=0),
        drop=any(params.drop for params in every),
    )


def _either(chances: Sequence[float]) -> float:
    """The chance that one of several independent things happens; exact when only one can."""
    possible = [chance for chance in chances if chance]
    return possible[0] if len(possible) == 1 else 1.0 - math.prod(1.0 - chance for chance in possible)
