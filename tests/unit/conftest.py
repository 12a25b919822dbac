"""Fixtures that several files share."""

from collections.abc import Iterator
from pathlib import Path

import etcd_cluster
import pytest
from etcd_cluster import Cluster

_clusters: list[Cluster] = []


@pytest.fixture
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Three members for tests that leave them alone; each takes a prefix of its own."""
    etcd_cluster.need_etcd()
    if not _clusters:
        _clusters.append(etcd_cluster.on_loopback(tmp_path_factory.mktemp("etcd")))
    return _clusters[0]


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Three members at rest take CPU too: they end with this folder's tests, and not with the run."""
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        while _clusters:
            _clusters.pop().close()


@pytest.fixture
def frail_etcd(tmp_path: Path) -> Iterator[Cluster]:
    """Three members of a test's own, to be killed."""
    etcd_cluster.need_etcd()
    cluster = etcd_cluster.on_loopback(tmp_path)
    yield cluster
    cluster.close()
