"""Fixtures that several files share."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import etcd_cluster
import pytest
from etcd_cluster import Cluster

_clusters: list[Cluster] = []
_folders = ExitStack()


@pytest.fixture
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Three members for tests that leave them alone; each takes a prefix of its own."""
    etcd_cluster.need_etcd()
    if not _clusters:
        folder = _folders.enter_context(etcd_cluster.in_memory(tmp_path_factory.mktemp("etcd")))
        _clusters.append(etcd_cluster.on_loopback(folder))
    return _clusters[0]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Three members at rest take CPU too: they end with this folder's tests, and not with the run."""
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        while _clusters:
            _clusters.pop().close()
        _folders.close()


@pytest.fixture
def frail_etcd(tmp_path: Path) -> Iterator[Cluster]:
    """Three members of a test's own, to be killed."""
    etcd_cluster.need_etcd()
    with etcd_cluster.in_memory(tmp_path) as folder, closing(etcd_cluster.on_loopback(folder)) as cluster:
        yield cluster
