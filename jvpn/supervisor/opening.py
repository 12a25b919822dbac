"""Which ownership store a gateway has: its own, in a file, or its fleet's, in etcd."""

from jvpn.store.base import OwnershipStore
from jvpn.store.etcd import EtcdStore
from jvpn.store.sqlite import SqliteStore
from jvpn.supervisor.plan import GatewayPlan


def open_store(plan: GatewayPlan) -> OwnershipStore:
    """Raises StoreError."""
    if plan.fleet is None:
        return SqliteStore(plan.store_path)
    return EtcdStore(plan.fleet.access, plan.fleet.key_file, plan.fleet.prefix)
