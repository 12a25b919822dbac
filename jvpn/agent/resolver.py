"""The gateway's endpoints as addresses: a thread asks, so that a name server that is silent holds up nothing.

Before the tunnel stands the system's resolver is asked (hosts file, search domains, mDNS …). While it stands, that one
may lead into the tunnel, so the known name servers are asked directly first, by sockets bound to the uplinks.
"""

import ipaddress
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jvpn.agent import dns_query
from jvpn.protocol import addresses
from workers.commands import Endpoint

QUERY_TIMEOUT_S = 2.0
#: For one name: all servers over all uplinks.
DIRECT_TIMEOUT_S = 10.0
#: The system's resolver does not say how long its answers hold.
SYSTEM_TTL_S = 900

#: A name's addresses, and for how many seconds they hold.
Found = tuple[list[str], int]


@dataclass(frozen=True, slots=True)
class Question:
    """`devices` to ask over directly; empty: only the system's resolver."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Addresses in the order of the endpoints; `problems` are sentences about those without any. `ttl_s`: for how long
    that holds, by the name servers."""

    remotes: tuple[Endpoint, ...]
    problems: tuple[str, ...]
    ttl_s: int = SYSTEM_TTL_S


def system_lookup(host: str) -> list[str]:
    """By the system's resolver. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def direct_lookup(host: str, servers: Sequence[str], devices: Sequence[str]) -> Found:
    """By the name servers themselves, over one device after the other. Raises OSError when none answers."""
    until = time.monotonic() + DIRECT_TIMEOUT_S
    problem = "there is no name server"
    for server in servers:
        # A name server of this machine is not reached over an uplink.
        loopback = ipaddress.ip_address(server).is_loopback
        for device in (None,) if loopback else devices:
            if time.monotonic() > until:
                break
            try:
                found = [
                    record
                    for kind in (dns_query.TYPE_AAAA, dns_query.TYPE_A)
                    for record in dns_query.query(host, kind, server, device, QUERY_TIMEOUT_S)
                ]
            except (OSError, dns_query.DnsError) as error:
                problem = f"{server}: {error}"
                continue
            if found:
                return [address for address, _ttl_s in found], min(ttl_s for _address, ttl_s in found)
            problem = f"{server}: no address"
    raise OSError(problem)


class Resolver:
    """`fileno` becomes readable when `take` has an answer. `servers()` names the name servers outside the tunnel."""

    def __init__(
        self,
        endpoints: Sequence[tuple[str, int]],
        servers: Callable[[], list[str]],
        system: Callable[[str], list[str]] = system_lookup,
        direct: Callable[[str, Sequence[str], Sequence[str]], Found] = direct_lookup,
    ) -> None:
        self._endpoints = endpoints
        self._servers = servers
        self._system = system
        self._direct = direct
        self._known: dict[str, list[str]] = {host: [host] for host, _port in endpoints if _is_address(host)}
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Resolved] = queue.SimpleQueue()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self.asking = False

    @property
    def has_names(self) -> bool:
        return any(not _is_address(host) for host, _port in self._endpoints)

    def fileno(self) -> int:
        return self._event

    def known(self) -> tuple[Endpoint, ...]:
        """What is known without asking, or from the last time."""
        return tuple(
            dict.fromkeys(
                Endpoint(addresses.to_bytes(address), port)
                for host, port in self._endpoints
                for address in self._known.get(host, [])
            )
        )

    def ask(self, devices: Sequence[str]) -> None:
        """Begin to resolve, unless that is under way. `devices`: ask directly over these first."""
        if self.asking or not self.has_names:
            return
        if self._thread is None:
            # A daemon: a name server that does not answer must not hold up the end of the process.
            self._thread = threading.Thread(target=self._run, name="jvpn-resolver", daemon=True)
            self._thread.start()
        self.asking = True
        self._questions.put(Question(tuple(devices)))

    def take(self) -> Resolved | None:
        try:
            os.eventfd_read(self._event)
            answer = self._answers.get_nowait()
        except (BlockingIOError, queue.Empty):
            return None
        self.asking = False
        return answer

    def _run(self) -> None:
        while (question := self._questions.get()) is not None:
            problems, ttl_s = [], SYSTEM_TTL_S
            for host in dict.fromkeys(host for host, _port in self._endpoints if not _is_address(host)):
                try:
                    self._known[host], holds_s = self._look_up(host, question)
                    ttl_s = min(ttl_s, holds_s)
                except OSError as error:
                    problems.append(f"{host}: {error.strerror or error}")
            self._answers.put(Resolved(self.known(), tuple(problems), ttl_s))
            os.eventfd_write(self._event, 1)

    def _look_up(self, host: str, question: Question) -> Found:
        if question.devices:
            try:
                return self._direct(host, self._servers(), question.devices)
            except OSError:
                # The hosts file, or a name that only this network knows.
                pass
        return self._system(host), SYSTEM_TTL_S

    def close(self) -> None:
        self._questions.put(None)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
