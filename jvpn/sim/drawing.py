"""A run as a timeline in text: what went wrong with it on the left, what each end told on the right."""

from typing import Final

from jvpn.observability import events as ev
from jvpn.sim.clock import NS, START_MS
from jvpn.sim.run import Result

#: Columns of the time, of each end; the rest is the fault's, or goes over all.
_TIME: Final = 8
_END: Final = 45
_GATEWAY, _CLIENT = "gateway", "client"
MAX_LINES: Final = 60


def draw(result: Result, width: int = 100) -> list[str]:
    """The violation, how to see it again, and the last MAX_LINES things that happened."""
    lines = [
        f"seed {result.seed}: {result.code} after {result.at_ms / 1_000:.3f} s",
        *_wrapped(result.text, width),
        f"again: {result.again}",
        result.setting[:width],
        "",
        f"{'s':>{_TIME - 1}} {'gateway':<{_END}} client",
    ]
    told: list[tuple[float, int, str, str]] = [(at_ms, 1, "", f"· {text}") for at_ms, text in result.notes]
    *gateways, client = result.told or ([],)
    for stream in gateways:
        told += [(at / NS - START_MS, 0, _GATEWAY, _of_node(event, len(gateways))) for at, event in stream]
    told += [(at / NS - START_MS, 0, _CLIENT, text_of(event)) for at, event in client]
    told.sort(key=lambda entry: (entry[0], entry[1]))
    if len(told) > MAX_LINES:
        lines.append(f"{'':>{_TIME}}({len(told) - MAX_LINES} earlier lines are not shown)")
    for at_ms, _rank, whose, text in told[-MAX_LINES:]:
        column = {_GATEWAY: text[:_END], _CLIENT: f"{'':<{_END}} {text}"}.get(whose, text)
        lines.append(f"{at_ms / 1_000:>{_TIME - 1}.3f} {column}"[:width])
    lines.append(f"{result.at_ms / 1_000:>{_TIME - 1}.3f} ✗ {result.code}"[:width])
    if result.trace and result.code:
        lines += ["", *result.trace.rstrip().splitlines()]
    return lines


def _of_node(event: ev.AnyEvent, nodes: int) -> str:
    return text_of(event) if nodes == 1 else f"{event.node_id[-1]} {text_of(event)}"


def text_of(event: ev.AnyEvent) -> str:
    """One event, short."""
    version = ev.split_version(event.state_version)
    at = f"{version.epoch}.{version.count}"
    match event:
        case ev.StateChange():
            return f"{event.from_} → {event.to} {event.reason_code} {at}"
        case ev.TransportSwitch():
            old = "-" if event.old is None else f"#{event.old.index}"
            return f"path {old} → #{event.new.index} {event.new.device or event.new.source}"
        case ev.TransportSwitchDenied():
            return f"denied {event.cause}: {event.reason_code}"
        case ev.ReattachAttempt():
            return f"attempt {event.attempt} {event.cause} #{event.path.index}"
        case ev.ReattachResult():
            return f"attempt {event.attempt} {event.result} {event.reason_code}"
        case ev.OwnershipEvent():
            return f"owner: {event.action} {event.reason_code} {at}"
        case ev.KeyEvent():
            return f"keys: {event.action} phase {event.phase}"
        case ev.SecurityEvent():
            return f"security: {event.violation}"
        case ev.AuditEvent():
            return f"audit: {event.result}"
        case ev.PolicyEvent():
            return f"policy: {event.limit} {event.observed:g} beyond {event.threshold:g}"
        case _:
            return type(event).__name__


def _wrapped(text: str, width: int) -> list[str]:
    return [text[at : at + width] for at in range(0, min(len(text), 4 * width), width)]
