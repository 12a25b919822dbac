"""Who the members of a cluster are, and whether one of them leads it: each is asked by itself.

Who they are etcd itself says while all is well; an operator may have listed some of them only. A member is found at
the first address that it advertises to clients, and only after it has answered there: what is not seen to be its own
address says nothing about it when nobody is there any more.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdAccess, EtcdClient
from jvpn.store.etcd_keys import Json
from jvpn.store.etcd_socket import Endpoint, endpoint
from jvpn.store.lease import Standing

#: After so many attempts without a list the one there is does not count any more.
_MOST_UNLISTED = 2


@dataclass(slots=True)
class _Member:
    """`peers`: where the others reach it. `proven`: it has answered at `client.member`."""

    client: EtcdClient
    peers: tuple[Endpoint, ...]
    proven: bool = False


class Members:
    """One thread. `access`: how to reach the cluster; its endpoints need not be all."""

    def __init__(self, access: EtcdAccess) -> None:
        self._access = access
        self._listed: Json = {}
        self._members: dict[str, _Member | None] = {}
        self._unlisted = 0

    def learn(self, client: EtcdClient, timeout_s: float) -> None:
        """Ask who they are. Whoever has just kept something at that member knows that its list is of now."""
        try:
            found = client.read("/v3/cluster/member/list", {}, timeout_s)["members"]
            listed = {one["ID"]: one for one in found}
            self._unlisted = 0
        except (StoreError, KeyError):
            # The member that kept something a moment ago may have died since. Twice is no accident.
            self._unlisted += 1
            listed = self._listed if self._unlisted < _MOST_UNLISTED else {}
        if listed != self._listed:
            self.close()
            self._members = {member_id: self._found(one) for member_id, one in listed.items()}
            self._listed = listed
        for member_id, member in self._members.items():
            if member is not None and not member.proven:
                member.proven = _status(member, member_id, timeout_s) is not None

    def _found(self, listed: Json) -> _Member | None:
        """None for one that has not told yet where it is, or by names only."""
        try:
            access = replace(self._access, endpoints=listed["clientURLs"][:1], user=None)
            peers = tuple(endpoint(url) for url in listed["peerURLs"])
            return _Member(EtcdClient(access), peers)
        except (StoreError, KeyError, ValueError):
            return None

    def roll_call(self, lease_id: int, timeout_s: float) -> Mapping[str, Standing]:
        """By name, every member's standing, each at some moment during this call; none when they are not known.

        `timeout_s` is for each question. Who comes after one that is silent is not asked: it would change nothing.
        """
        standings: dict[str, Standing] = {}
        for member_id, member in self._members.items():
            standing = Standing.SILENT
            if member is not None and standing not in standings.values():
                standing = _standing(member, member_id, lease_id, timeout_s)
            standings[self._listed[member_id].get("name") or member_id] = standing
        return standings

    def close(self) -> None:
        for member in self._members.values():
            if member is not None:
                member.client.close()
        self._members = {}
        self._listed = {}


def _standing(member: _Member, member_id: str, lease_id: int, timeout_s: float) -> Standing:
    status = _status(member, member_id, timeout_s)
    if status is not None:
        if status.get("leader") != member_id:
            return Standing.FOLLOWS
        return Standing.RENEWS if _renews(member, lease_id, timeout_s) else Standing.LEADS
    here = member.client.member
    # One that is being stopped closes its clients' port seconds before it ceases to lead, its peers' port after that.
    # Elsewhere than at the address where it has answered, nobody's absence would be its own.
    if not member.proven or any(peer.address != here.address for peer in member.peers):
        return Standing.SILENT
    gone = all(_refuses(place, timeout_s) for place in (here, *member.peers))
    return Standing.GONE if gone else Standing.SILENT


def _status(member: _Member, member_id: str, timeout_s: float) -> Json | None:
    """What this very member says of itself; None when it does not. Answered without any other member."""
    with suppress(StoreError):
        status = member.client.read("/v3/maintenance/status", {}, timeout_s)
        if status.get("header", {}).get("member_id") == member_id:
            return status
    return None


def _renews(member: _Member, lease_id: int, timeout_s: float) -> bool:
    """Whether this leader, of whomever, holds the lease and counts its time anew."""
    with suppress(StoreError):
        reply = member.client.read("/v3/lease/keepalive", {"ID": str(lease_id)}, timeout_s)
        return int(reply.get("TTL", 0)) > 0
    return False


def _refuses(place: Endpoint, timeout_s: float) -> bool:
    """Whether the host is there and says that no process listens."""
    try:
        socket.create_connection((place.address, place.port), timeout_s).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
