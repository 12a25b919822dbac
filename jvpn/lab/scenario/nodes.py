"""Gateways, a fleet's store and the client of a scenario: processes on its machines, started, asked and ended."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from jvpn.lab.attended import Attended
from jvpn.lab.backends.machine import Backend, Machine
from jvpn.lab.backends.topology import CLIENT, roles
from jvpn.lab.etcd_cluster import Member, member_command
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario import configs
from jvpn.lab.scenario.model import Scenario
from jvpn.lab.scenario.record import Answer, Snapshot
from jvpn.observability.admin import AdminError

T = TypeVar("T")
START_TIMEOUT_S: Final = 60.0
SERVER, STORE = "server", "etcd"
_LAST_WORDS = 1500


class Nodes:
    """Everybody that a scenario has running. *time_factor*: how many times longer than usual things may take.

    LabError when somebody does not start or has ended, with its last words; AdminError for what it refuses.
    """

    def __init__(self, backend: Backend, scenario: Scenario, time_factor: float = 1.0) -> None:
        self.backend = backend
        self.scenario = scenario
        self.topology = scenario.topology
        self.time_factor = time_factor
        self.devices = {role: self.machine(CLIENT).device(role) for role in roles(CLIENT, scenario.topology)}
        #: Command lines that ran, for the report.
        self.commands: list[str] = []
        token = secrets.token_hex(4)
        self._node_ids = {name: f"{name}-lab{os.getpid()}-{token}" for name in self.topology.gateway_names}
        self._secrets = configs.Secrets()
        self._members = [
            Member(name, address, configs.ETCD_CLIENT_PORT, configs.ETCD_PEER_PORT)
            for name, address in configs.ETCD_HOSTS.items()
        ]
        self._token = token
        self.attended: dict[str, Attended] = {}
        #: Files in which events were told, where they are other than one, the last one last: who → names.
        self.event_files: dict[str, list[str]] = {}
        #: Of nodes whose wall clock jumps: the file with its shift, and each shift in seconds with when it began.
        self.clocks: dict[str, Path] = {}
        self.shifts: dict[str, list[tuple[int, int]]] = {}

    @property
    def public_key(self) -> str:
        """Of every gateway, as in configuration files."""
        return self._secrets.gateway_public

    # Starting

    def start(self, prepare: Callable[[], None] = lambda: None) -> None:
        """All of them; returns when the client has its session, its tunnel, and every uplink has proven itself.
        *prepare* is called when files are written and nobody runs."""
        for name in self.backend.machines:
            self.attended[name] = Attended(self.machine(name))
        self._write()
        for attended in self.attended.values():
            attended.greet()
        prepare()
        if self.topology.gateways > 1:
            self.start_store()
        for name in self.topology.gateway_names:
            self.start_gateway(name)
        for name in self.topology.gateway_names:
            self.wait_for(name, lambda name=name: self.answers(name), START_TIMEOUT_S)  # type: ignore[misc]
        self.start_client()
        self.wait_for("the client", lambda: self.answers(CLIENT), START_TIMEOUT_S)
        self.wait_for("a session", self.attached)
        self.wait_for("every uplink to answer", self.validated)

    def _write(self) -> None:
        for name in self.topology.gateway_names:
            machine = self.machine(name)
            folder = machine.folder
            machine.run(["mkdir", "-p", str(folder / "policies"), str(folder / "gateway")])
            machine.write(folder / "policies" / "default.yaml", self.policy())
            machine.write(folder / "gateway.key", configs.key_file(self._secrets.gateway), 0o600)
            machine.write(folder / "fleet.key", self._secrets.fleet, 0o600)
            config = configs.gateway_config(self.scenario, name, self._node_ids[name], folder, self._secrets)
            machine.write(folder / "gateway.yaml", config)
        machine = self.machine(CLIENT)
        machine.run(["mkdir", "-p", str(machine.folder / "client")])
        machine.write(machine.folder / "client.key", configs.key_file(self._secrets.client), 0o600)
        config = configs.client_config(self.scenario, machine.folder, self.devices, self._secrets)
        machine.write(machine.folder / "client.yaml", config)

    def policy(self) -> bytes:
        """What the gateways' default policy was written as."""
        return configs.policy(self.scenario, self.time_factor)

    def start_store(self) -> None:
        """The fleet's etcd; returns when a majority answers."""
        for member in self._members:
            self.start_member(member.name, "new")
        urls = [member.url for member in self._members]
        asked = [*self.machine("router").python, "-m", "jvpn.lab.etcd_cluster", *urls]
        self.wait_for(
            "the fleet's store",
            lambda: self.machine("router").run(asked, check=False).returncode == 0,
            START_TIMEOUT_S,
        )

    def start_member(self, machine: str, state: str = "existing") -> None:
        """The member of the store that lives on that machine."""
        member = next(member for member in self._members if member.name == machine)
        command = member_command(member, self._members, self.machine(machine).folder, self._token, state)
        self._start(machine, STORE, command, "etcd.log")

    def start_gateway(self, name: str, *prefix: str) -> None:
        """Returns at once. *prefix*: what goes before the command."""
        self._start_jvpn(name, SERVER, prefix)

    def start_client(self) -> None:
        """Returns at once."""
        self._start_jvpn(CLIENT, CLIENT)

    def _start_jvpn(self, machine: str, command: str, prefix: Sequence[str] = ()) -> None:
        there = self.machine(machine)
        name = "gateway" if command == SERVER else CLIENT
        python = [*there.python]
        if machine in self.clocks:
            python += ["-m", "jvpn.lab.wall_clock", str(self.clocks[machine]), there.python[-1]]
        argv = [*prefix, *python, "-m", "jvpn.cli", command, "-c", str(there.folder / f"{name}.yaml")]
        if machine in self.scenario.keylogs:
            argv += ["--keylog", str(there.folder / configs.KEYLOG_FILE)]
        self._start(machine, command, argv, f"{name}.log")

    def _start(self, machine: str, name: str, argv: list[str], log: str) -> None:
        self.commands.append(f"{machine}# {' '.join(argv)}")
        self.attended[machine].start(name, argv, self.machine(machine).folder / log)

    # Asking

    def machine(self, name: str) -> Machine:
        """LabError for one that this scenario does not have."""
        if name not in self.backend.machines:
            raise LabError(
                f"there is no machine {name} in this scenario, only {', '.join(self.backend.machines)}"
            )
        return self.backend.machines[name]

    def run_dir(self, who: str) -> Path:
        return self.machine(who).folder / ("client" if who == CLIENT else "gateway")

    def ask(self, who: str, command: str, **more: object) -> Any:
        """ "client" or a gateway's name, over its admin socket. AdminError when it does not answer or refuses."""
        return self.attended[who].ask(self.run_dir(who), command, **more)

    def process(self, who: str) -> str:
        """What its attendant calls a node's process."""
        return CLIENT if who == CLIENT else SERVER

    def running(self, who: str) -> bool:
        return self.attended[who].running(self.process(who))

    def answers(self, who: str) -> bool:
        """LabError, with its last words, when it has ended."""
        try:
            self.ask(who, "status")
        except AdminError:
            if not self.running(who):
                raise LabError(f"{who} has ended; it said: {self.log(who)[-_LAST_WORDS:]}") from None
            return False
        return True

    def log(self, who: str) -> str:
        name = "client.log" if who == CLIENT else "gateway.log"
        try:
            return self.machine(who).read(self.machine(who).folder / name).decode(errors="replace")
        except LabError:
            return ""

    def attached(self) -> bool:
        """Whether the client has a session, in state ATTACHED, and its tunnel's addresses."""
        try:
            return self.ask(CLIENT, "status")["state"] == "ATTACHED" and bool(
                self.ask(CLIENT, "switching")["configured"]
            )
        except AdminError:
            return False

    def validated(self) -> bool:
        """Whether every uplink has a path that answers."""
        paths = self.ask(CLIENT, "status")["paths"]
        good = {p["device"] for p in paths if p["validated"] and p["state"] in ("active", "candidate")}
        return set(self.devices.values()) <= good

    def active(self) -> str:
        """The uplink in use, by its name. LabError when there is none for long."""
        return self.wait_for("an active uplink", self._active)

    def _active(self) -> str:
        try:
            device = self.ask(CLIENT, "status")["active"]
        except AdminError:
            return ""
        return next((role[2:] for role, name in self.devices.items() if name == device), "")

    def snapshot(self) -> Snapshot:
        """What everybody answers now."""
        return Snapshot({name: self._answer(name) for name in (CLIENT, *self.topology.gateway_names)})

    def _answer(self, who: str) -> Answer:
        memory_kb = self.attended[who].memory_kb()
        try:
            status: Mapping[str, Any] = self.ask(who, "status")
            sessions = self.ask(who, "sessions") if who != CLIENT else ()
        except AdminError:
            return Answer(self.running(who), {}, memory_kb=memory_kb)
        return Answer(True, status, sessions, memory_kb)

    def wait_for(self, what: str, condition: Callable[[], T], timeout_s: float = 20.0) -> T:
        """The first true value. LabError naming what was waited for; *timeout_s* is of a machine as fast as this."""
        until = time.monotonic() + timeout_s * self.time_factor
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > until:
                raise LabError(f"waited {timeout_s * self.time_factor:g} s in vain for {what}")
            time.sleep(0.02)

    # Ending

    def stop(self) -> None:
        """Everybody, in the order in which a user would. LabError when somebody does not end."""
        trouble: list[LabError] = []
        for name in [CLIENT, *self.topology.gateway_names, *self.attended]:
            attended = self.attended.pop(name, None)
            if attended is not None:
                try:
                    attended.close()
                except LabError as error:
                    trouble.append(error)
        for name, node_id in self._node_ids.items():
            if name in self.backend.machines:
                pins = f"/sys/fs/bpf/jvpn/{node_id}"
                self.machine(name).run(["rm", "-rf", pins], check=False)
        if trouble:
            raise trouble[0]
