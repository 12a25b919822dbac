"""The mark of the fleet's key in etcd: whoever has another key is not to write beside those who have this one.

Records that one node has sealed must open at all others. So a node starts only where its own mark is, or none; every
transaction that changes sessions compares it; and where somebody has taken it away, as with all that is under the
prefix, those who run put it back: first comes, and the others, if theirs is another one, keep nothing and say so.
"""

from pathlib import Path

from jvpn.store import etcd_keys as ops
from jvpn.store import sealing
from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdClient
from jvpn.store.etcd_keys import Json

_CHECK_INFO = b"jvp1 fleet check"


class AnotherKey(StoreError):
    """Nothing was kept: the mark in etcd is of another key."""


class FleetKey:
    """`name`: where the mark is. `key`: of the file `key_file`."""

    def __init__(self, name: str, key: bytes, key_file: Path) -> None:
        self.name = name
        self.mark = sealing.derived(key, _CHECK_INFO)
        self._key_file = key_file

    def guarded(self, operations: list[Json]) -> Json:
        """One transaction that does nothing unless the mark is there; `operations` as of `ops.together`."""
        return {**ops.together(operations), "compare": [ops.value_is(self.name, self.mark)]}

    @property
    def was_gone(self) -> str:
        hands = f"somebody has removed {self.name} from etcd, and maybe all records of the fleet"
        return f"{hands}: this node has put it back"

    def see_to(self, client: EtcdClient) -> bool:
        """The mark is there, or put there where there is none: then True. Raises AnotherKey, StoreError."""
        reply = client.read("/v3/kv/txn", self.put_if_absent()["request_txn"])
        if reply.get("succeeded", False):
            return True
        if not self.is_mark(reply["responses"][0]):
            raise AnotherKey(
                f"{self._key_file} is not the key of this fleet: copy it from a node that works; or, where no node has "
                f"the key that etcd was written with, stop those with another file and remove {self.name}"
            )
        return False

    def put_if_absent(self) -> Json:
        """An operation that has succeeded where it was absent, and else gets it."""
        return ops.when([ops.absent(self.name)], [ops.put(self.name, self.mark)], [ops.get(self.name)])

    def is_mark(self, found: Json) -> bool:
        """Of the answer to a get of it."""
        return [ops.value_of(kv) for kv in found["response_range"].get("kvs", [])] == [self.mark]
