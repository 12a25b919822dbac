"""What a holder keeps: the shared page, every socket, every TUN queue, and what the kernel offers for them."""

import errno
import os
import socket
from dataclasses import dataclass

from jvpn.holder.inventory import HolderPlan
from jvpn.protocol.constants import SLOT_FIRST_WORKER
from workers import offload, tun, udp
from workers.offload import Offload
from workers.page import Page


@dataclass(frozen=True, slots=True)
class Belongings:
    """`groups`: of each listener, its sockets in the order that the reuseport program counts them."""

    plan: HolderPlan
    page: int
    groups: list[list[socket.socket]]
    queues: list[int]
    offload: Offload

    @classmethod
    def create(cls, plan: HolderPlan) -> "Belongings":
        """Raises OSError (EADDRINUSE, EEXIST) when anybody has a port or the TUN."""
        page = Page.create(plan.capacity, os.urandom(32))
        groups = [_open_group(plan, address, port) for address, port in plan.listen]
        _refuse_existing(plan.tun_name)
        queues = [
            tun.open_queue(plan.tun_name, multi_queue=True, offload=plan.offload) for _ in range(plan.slots)
        ]
        found = offload.find(queues[0]) if plan.offload else Offload()
        return cls(plan, page, groups, queues, found)

    def for_supervisor(self) -> list[int]:
        """Descriptors in the order of `Inventory`, without the workers' channels."""
        members = [member.fileno() for group in self.groups for member in group[:SLOT_FIRST_WORKER]]
        return [self.page, self.queues[0], *members]


def _open_group(plan: HolderPlan, address: str, port: int) -> list[socket.socket]:
    """Sockets of one listener.

    Raises OSError (EADDRINUSE) when anybody has the port, a group that would let us join among them.
    """
    udp.open_socket(address, port).close()
    count = SLOT_FIRST_WORKER + plan.slots
    return [udp.open_socket(address, port, reuseport=True, offload=plan.offload) for _ in range(count)]


def _refuse_existing(tun_name: str) -> None:
    """A multi-queue TUN of another gateway would take ours as further queues and give us its packets."""
    if tun_name in (name for _index, name in socket.if_nameindex()):
        raise OSError(errno.EEXIST, "there is such an interface already; is another gateway running?")
