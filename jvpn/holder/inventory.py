"""What the holder is started with, and what it says to a supervisor: typed messages, msgpack."""

from typing import Final

import msgspec

from workers.offload import Offload

#: Holder, workers and supervisor of two versions go on together if this number is the same. Raise it when a message
#: here, a command or report of workers, or the shared page means something else than before or lacks something. A
#: field that is added with a default, or a message that nobody must understand, is no reason.
PROTOCOL: Final = 1
#: In the run_dir, for supervisors.
SOCKET_NAME: Final = "holder.sock"


class HolderPlan(msgspec.Struct, frozen=True):
    """What to create and keep. `listen` are (address, port); `slots` workers, pinned to `cpus` in turn.

    `offload`: use what the kernel has of it.
    """

    run_dir: str
    listen: list[tuple[str, int]]
    slots: int
    cpus: list[int]
    tun_name: str
    tun_mtu: int
    capacity: int
    uid: int
    gid: int
    offload: bool = True


class WorkerSeat(msgspec.Struct, frozen=True):
    slot: int
    pid: int
    cpu: int


class Inventory(msgspec.Struct, frozen=True, tag=True):
    """First message to every supervisor; `generation` rises with each.

    `offload`: what the kernel was found to have.

    Descriptors beside it: the page, TUN queue 0, then for each listener its sockets of reuseport slots 0 and 1, then
    one channel for each seat, in order.
    """

    generation: int
    plan: HolderPlan
    pid: int
    seats: list[WorkerSeat]
    offload: Offload = Offload()
    protocol: int = 0


class Announced(msgspec.Struct, frozen=True, tag="Inventory"):
    """What can be read of the Inventory of any version. `protocol` 0: older than the number."""

    pid: int
    protocol: int = 0


class Refused(msgspec.Struct, frozen=True, tag=True):
    """First and last message to a newcomer while supervisor `pid` is at work: there is one at a time."""

    pid: int


class WorkerReplaced(msgspec.Struct, frozen=True, tag=True):
    """A worker ended and the spare took its seat (one descriptor beside: the new channel). It waits for Serve.

    `retired`: it was told to, for one of the holder's version.
    """

    seat: WorkerSeat
    exit_status: int
    retired: bool = False


class Succeeded(msgspec.Struct, frozen=True, tag=True):
    """The holder's process runs another version of the program now; nothing has changed for anybody."""

    version: str


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """From the supervisor: end the workers and yourself. The same in every version."""


HolderMessage = Inventory | Refused | WorkerReplaced | Succeeded | Shutdown

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(HolderMessage).decode
decode_first = msgspec.msgpack.Decoder(Announced | Refused).decode
MAX_MESSAGE = 65_536
