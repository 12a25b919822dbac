"""The data plane behind the best steering there is: native XDP, generic, the reuseport program, one worker.

A step that fails is said aloud and shown by `jvpn status`, and the next one is taken. XDP falls by itself, interface
by interface (interfaces.py). Without the reuseport or the TUN program, packets of a session would reach workers that
do not know it, so then the programs are unloaded and one worker serves all sessions.
"""

from collections.abc import Callable

from pyroute2.netlink.exceptions import NetlinkError

from jvpn.holder import bpf_syscall
from jvpn.protocol.constants import SLOT_FIRST_WORKER, TUN_MTU
from jvpn.supervisor.dataplane import DataPlane, DataPlaneError, HolderLink
from jvpn.supervisor.interfaces import (
    XdpState,
    attach_steering,
    carriers,
    configure_tun,
    detach_everywhere,
    detach_steering,
)
from jvpn.supervisor.plan import GatewayPlan
from jvpn.supervisor.programs import (
    load,
    note_refusal,
    noted_pin_dir,
    noted_refusal,
    open_pinned,
    remove_pins,
)
from jvpn.supervisor.steering import Steering
from jvpn.supervisor.steering_backend import NoSteering, SteeringBackend
from jvpn.supervisor.undo import Undo


class SteeredDataPlane:
    """Sockets, TUN and workers behind the programs that could be attached, for the life of a gateway.

    Adopts `found` where it can. What it makes is put on `undo` at once, so that the caller need not tell how far the
    constructor came when it raises (DataPlaneError, OSError).
    """

    dataplane: DataPlane

    def __init__(
        self, plan: GatewayPlan, found: HolderLink | None, undo: Undo, say: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._undo = undo
        self._say = say
        self._running: DataPlane | None = None
        self.xdp = XdpState()
        undo.add_unless_left(self._remove_pins)
        self.steering = self._open(found is not None and found.used)
        undo.add(lambda: self.steering.close())
        undo.add(self._end_dataplane)
        self._start(found)
        try:
            self._steer()
        except (OSError, ValueError) as error:
            self._fall(error)
        self._attach_xdp()

    def _open(self, running: bool) -> SteeringBackend:
        """The programs of a `running` data plane, or new ones, or none, with the reason said aloud."""
        plan = self._plan
        refusal = noted_refusal(plan.run_dir) if running else None
        if refusal is not None:
            return self._none(refusal)
        try:
            found = open_pinned(plan.run_dir) if running else None
            return load(plan.pin_dir, plan.run_dir) if found is None else found
        except OSError as error:
            return self._none(str(error))

    def _none(self, why: str) -> NoSteering:
        self.xdp.notes.append(f"no BPF programs: {why}")
        self._say(f"steering: none ({why})")
        return NoSteering()

    def _start(self, found: HolderLink | None = None) -> None:
        workers = self._plan.workers
        joins = self._plan.keep_dataplane
        if not self.steering.available and workers > 1:
            if joins:
                raise self._too_many_workers()
            self._say("without the BPF programs one worker serves all sessions")
            workers = 1
        self.dataplane = self._running = DataPlane(self._plan.for_holder(workers), found, joins=joins)
        self._undo.leave_running = joins or self.dataplane.adopted
        if self.dataplane.difference:
            self._say(f"the earlier data plane was ended: {self.dataplane.difference}")
        configure_tun(self._plan.tun_name, self._plan.addresses, TUN_MTU)

    def _steer(self) -> None:
        steering = self.steering
        steering.set_ports({port for _address, port in self._plan.listen})
        for seat in self.dataplane.seats.values():
            steering.set_cpu(seat.cpu)
            steering.set_slot(seat.slot, seat.cpu, SLOT_FIRST_WORKER + seat.slot, seat.slot)
        for supervised, _strangers in self.dataplane.sockets:
            steering.attach_reuseport(supervised)
        steering.attach_tun(self.dataplane.tun_queue)

    def _fall(self, error: OSError | ValueError) -> None:
        """To the last step: other workers than the first would get packets of sessions that they do not have."""
        if not isinstance(self.steering, Steering):
            raise error
        joins = self._plan.keep_dataplane
        if not joins:
            self._undo.leave_running = False
            self._end_dataplane()
        detach_everywhere(bpf_syscall.prog_info(self.steering.steer_fd).id)
        self.steering.close()
        self._remove_pins()
        if isinstance(error, OSError):
            refusal = f"loaded, but refused by the kernel: {error.strerror or error}"
        else:
            refusal = f"loaded, but not for this configuration: {error}"
        note_refusal(self._plan.run_dir, refusal)
        self.steering = self._none(refusal)
        if not joins:
            self._start()
        elif self._plan.workers > 1:
            raise self._too_many_workers()
        self._steer()

    @staticmethod
    def _too_many_workers() -> DataPlaneError:
        return DataPlaneError(
            "without the BPF programs one worker serves all sessions, and the data plane has more: mend what the line "
            "before says, or set 'workers: 1' and systemctl restart jvpn-dataplane"
        )

    def _attach_xdp(self) -> None:
        steering, plan, state = self.steering, self._plan, self.xdp
        if isinstance(steering, Steering):
            interfaces = plan.interfaces if plan.interfaces is not None else carriers()
            self._undo.add_unless_left(lambda: detach_steering(state))
            try:
                attach_steering(state, steering, steering.steer_fd, interfaces, plan.xdp)
            except (OSError, NetlinkError) as error:
                detach_steering(state)
                state.modes = dict.fromkeys(interfaces, "none")
                state.notes.append(f"no XDP: {error}")
            for interface, mode in state.modes.items():
                self._say(f"steering on {interface}: {mode if mode != 'none' else 'reuseport program only'}")
            for note in state.notes:
                self._say(f"steering: {note}")

    def _end_dataplane(self) -> None:
        ending, self._running = self._running, None
        if ending is None:
            return
        if self._undo.leave_running:
            ending.release()
        else:
            ending.close()

    def _remove_pins(self) -> None:
        remove_pins(noted_pin_dir(self._plan.run_dir, self._plan.pin_dir), self._plan.run_dir)
