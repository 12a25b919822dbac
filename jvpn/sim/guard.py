"""Something without a proof reaches an end, and nothing may have moved: what both ends have is compared."""

from collections.abc import Callable

from jvpn.protocol.constants import PacketType, Role
from jvpn.sim.network import Flight
from jvpn.sim.violation import Violation
from jvpn.sim.world import World
from workers.table import SessionTable


class Guard:
    """Stands before both ends: `receive_up` and `receive_down` take all that arrives."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.tried = 0
        self._asking: Flight | None = None
        self._answered = 0
        world.network.taps.append(self._tap)

    def receive_up(self, flight: Flight) -> None:
        if flight.genuine:
            self._world.receive_up(flight)
        else:
            self._watched(flight, lambda: self._world.receive_up(flight))

    def receive_down(self, flight: Flight) -> None:
        if flight.genuine:
            self._world.client.receive(flight)
        else:
            self._watched(flight, lambda: self._world.client.receive(flight))

    def stale(self, flight: Flight) -> None:
        """A copy of what has been taken already: it may decide nothing, and brings no more than it has."""
        receive = self._world.receive_up if flight.up else self._world.client.receive
        self._watched(flight, lambda: receive(flight), decided_of)

    def _tap(self, flight: Flight) -> None:
        asking = self._asking
        # CONTROL goes to the bound source whoever has reminded the gateway of it.
        answers = not flight.up and flight.data[0] != PacketType.CONTROL
        if asking is not None and answers and flight.destination == asking.source:
            self._answered += len(flight.data)

    def _at_once(self, at_once: bool) -> None:
        for end in self._world.ends:
            end.reports.at_once = at_once

    def _watched(
        self,
        flight: Flight,
        arrive: Callable[[], None],
        look: Callable[[World], list[object]] | None = None,
    ) -> None:
        look = look or state_of
        world = self._world
        # What is due already is not this datagram's doing. Behind reports that are on their way its own would be late,
        # and what it did not be seen: every other time they come first.
        if self.tried % 2:
            for end in world.ends:
                end.reports.hasten()
        while world.after():
            pass
        before = look(world)
        self._at_once(True)
        self._asking, self._answered = flight if flight.up else None, 0
        try:
            arrive()
            while world.after():
                pass
        finally:
            self._asking = None
            self._at_once(False)
        after = look(world)
        self.tried += 1
        if before != after:
            moved = [f"{a} → {b}" for a, b in zip(before, after, strict=False) if a != b]
            where = "gateway" if flight.up else "client"
            raise Violation(
                "MOVED",
                f"a datagram that proves nothing, type {flight.data[0]:#04x}, moved the {where}: {moved[:1]}",
            )
        if self._answered > len(flight.data):
            raise Violation(
                "AMPLIFIED",
                f"{len(flight.data)} bytes of type {flight.data[0]:#04x} brought {self._answered} bytes",
            )


def decided_of(world: World) -> list[object]:
    """What both ends have decided, of each session: all that only something new may change."""
    state: list[object] = []
    client = world.client
    for gateway in world.gateways:
        if gateway.core is None:
            continue
        context = gateway.context
        state += [len(context.sessions), len(context.confirming)]
        for session in context.sessions.values():
            state += [
                session.machine.state_version,
                session.machine.state,
                session.bindings,
                session.last_attempt,
                session.secrets.phase_number,
                session.next_secrets is None,
                session.security_failures,
            ]
    core = client.core
    session_of = None if core is None else core.session
    if session_of is not None:
        state += [
            session_of.session_id,
            session_of.view.state_version,
            session_of.view.state,
            session_of.epoch,
            session_of.rekeying.secrets.phase_number,
            session_of.paths.active,
            session_of.configured,
        ]
    return state


def state_of(world: World) -> list[object]:
    """All that only proven input may change, of both ends."""
    state = decided_of(world)
    client = world.client
    for gateway in world.gateways:
        if gateway.core is not None:
            context = gateway.context
            state.append(len(context.by_steering_id))
            for session in context.sessions.values():
                state += [session.indexes.highest_seen, session.client_version]
        for worker in gateway.workers.values():
            _of_table(worker.table, state)
    state.append(len(world.gateway.store._records))
    _of_table(client.worker.table, state)
    session_of = None if client.core is None else client.core.session
    if session_of is not None:
        paths, attempt = session_of.paths, session_of.requester.attempt
        state += [paths.last_index, paths.highest_installed, None if attempt is None else attempt.number]
        state += [] if attempt is None else [len(attempt.resets), len(attempt.not_owners), attempt.wide]
    return state


def _of_table(table: SessionTable, state: list[object]) -> None:
    for session in table.by_record.values():
        state += [session.session_id, session.generation, session.highest_seen, session.phase.nibble]
        state += [(n, window.highest) for n, window in session.known_windows().items()]
        state += [entry.index for entry in session.entries.values() if entry.role is Role.ACTIVE]
