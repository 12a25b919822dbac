"""Fixtures that several files share."""

from collections.abc import Iterator
from pathlib import Path

import etcd_cluster
import pytest
from etcd_cluster import Cluster


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three members for tests that leave them alone; each takes a prefix of its own."""
    etcd_cluster.need_etcd()
    cluster = etcd_cluster.on_loopback(tmp_path_factory.mktemp("etcd"))
    yield cluster
    cluster.close()


@pytest.fixture
def frail_etcd(tmp_path: Path) -> Iterator[Cluster]:
    """Three members of a test's own, to be killed."""
    etcd_cluster.need_etcd()
    cluster = etcd_cluster.on_loopback(tmp_path)
    yield cluster
    cluster.close()
