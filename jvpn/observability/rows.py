"""The rows of a timeline."""

import msgspec

from jvpn.observability.events import PathRef
from jvpn.session.machine import State


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened without a transition. `kind` is the event's kind."""

    offset_ms: int
    kind: str
    text: str


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """The change of path a bind made; what neither end measured is None.

    `gap_ms`: how long nothing was delivered of what was to be; its client alone knows whether anything was.
    `silent_ms`: for how long the gateway had received no DATA, idle time included; given where there is no word of the
    client.
    """

    old: PathRef | None
    new: PathRef
    explicit: bool
    detect_ms: float | None
    reattach_ms: float | None
    gap_ms: float | None
    silent_ms: float | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One transition. `offset_ms` counts from the first event; `path` is set where a path was bound."""

    offset_ms: int
    state_version: int
    version: str
    source: State
    to: State
    reason: str
    transport: str
    path: PathRef | None
    followed: bool
    notes: list[Note]
    switch: Switch | None = None
