"""Watches every datagram that an end seals: no nonce may be used twice under one key.

The key of DATA and PATH is what the worker has that sends them; that of CONTROL follows from session, phase, epoch and
direction; a REQUEST has one key for the session's life; ACK and FAIL have a fresh one each, by their salt.
"""

import struct
from typing import Final

from jvpn.protocol.constants import DATA_KINDS, HEADER_SIZE, SALT_SIZE, PacketType
from jvpn.sim.network import Flight
from jvpn.sim.violation import Violation
from jvpn.sim.world import World
from workers.commands import Endpoint

_HEADER: Final = struct.Struct(">BBxx8sQ")
_WORKERS: Final = DATA_KINDS | {PacketType.PATH}
_ANSWERS: Final = frozenset({PacketType.REATTACH_ACK, PacketType.REATTACH_FAIL})


class Nonces:
    """A tap of the network."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._used: dict[tuple[object, ...], bytes] = {}
        #: The epoch that CONTROL on an id was last sealed under, by sender: a gateway's endpoint, None for the client.
        self._epochs: dict[tuple[Endpoint | None, bytes], int] = {}
        self.watched = 0

    def __call__(self, flight: Flight) -> None:
        if not flight.genuine:
            return
        kind, nibble, steering_id, counter = _HEADER.unpack_from(flight.data)
        key: tuple[object, ...]
        if kind in _WORKERS:
            key = (self._data_key(flight, steering_id, nibble & 15), steering_id, counter)
        elif kind == PacketType.CONTROL:
            epoch = self._epoch(flight, steering_id)
            key = ("control", flight.up, epoch, nibble & 15, steering_id, counter)
        elif kind == PacketType.REATTACH_REQUEST:
            key = ("request", steering_id, counter)
        elif kind in _ANSWERS:
            key = ("answer", steering_id, flight.data[HEADER_SIZE : HEADER_SIZE + SALT_SIZE])
        else:
            return
        self.watched += 1
        before = self._used.setdefault(key, flight.data)
        if before is not flight.data and before != flight.data:
            name = PacketType(kind).name
            way = "client" if flight.up else "gateway"
            raise Violation("NONCE_TWICE", f"the {way} sealed a {name} under counter {counter:#x} again")

    def _data_key(self, flight: Flight, steering_id: bytes, nibble: int) -> bytes:
        world = self._world
        sender = [world.client.worker] if flight.up else world.nodes[flight.source].workers.values()
        for worker in sender:
            entry = worker.table.by_id.get(steering_id)
            if entry is not None and worker.alive:
                for phase in (entry.session.phase, *entry.session.receive.values()):
                    if phase.nibble == nibble:
                        return phase.keys.send_key
        raise Violation("UNKNOWN_KEY", f"a worker sent on {steering_id.hex()}, which it does not have")

    def _epoch(self, flight: Flight, steering_id: bytes) -> int:
        """Farewells of a session that is over go under its last epoch."""
        epoch, sender = None, None if flight.up else flight.source
        if sender is None:
            core = self._world.client.core
            if core is not None and core.session is not None:
                epoch = core.session.epoch
        else:
            found = self._world.nodes[sender].context.by_steering_id.get(steering_id)
            epoch = None if found is None else found[0].epoch
        if epoch is None:
            return self._epochs.get((sender, steering_id), 0)
        self._epochs[sender, steering_id] = epoch
        return epoch
