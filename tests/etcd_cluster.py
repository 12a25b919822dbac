"""A real etcd for tests, and what they do where there is none."""

import pytest

from jvpn.lab.etcd_cluster import Cluster, Member, fleet_key, installed, on_loopback, prepared

__all__ = ["Cluster", "Member", "fleet_key", "need_etcd", "on_loopback", "prepared"]


def need_etcd() -> None:
    if not installed():
        pytest.skip("etcd is not installed: script/setup installs Debian's etcd-server")
