"""Names of keys in etcd, and the parts of its transactions in the JSON of its gateway (etcd's `rpc.proto`).

Under the store's prefix:

    /sessions/<hex id>                       the record, msgpack of its row (store/sealing.py)
    /owners/<hex id>                         "<version, 20 digits> <node> ", then inner prefixes, a space behind each:
                                             what claims compare
    /given/<hex id>                          the node that its owner has given it to, until that one claims it: no save
                                             changes it then
    /clients/<hex key>/timestamp             "<µs, 20 digits>", so that etcd's order of bytes is that of numbers
    /sessions-of/<hex key>/<hex id>          empty: a client's sessions
    /addresses/<4 or 6>/<hex address>        key of the client that was given it; rewritten as sessions of its begin
    /addresses-of/<hex key>/<4 or 6>         the same address: a client has one of each version
    /nudges/<node>/<hex id>                  "<attempt> <node>": the second node asks the first for a session of its
    /nodes/<node>                            lives as long as the node's lease
    /key                                     a hash of the fleet's key: a node that has another one is refused

All nodes watch owners, nudges and nodes.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jvpn.session.version import last_of_epoch

Json = dict[str, Any]

_DIGITS = 20
#: Operations in one level of a transaction. etcd allows 128 (`--max-txn-ops`), of all levels that lie in one another:
#: three of these, and what one session needs.
OPERATIONS_OF_LEVEL = 32


class Keys:
    def __init__(self, prefix: str) -> None:
        """Raises ValueError for a prefix that would share keys with another one."""
        if not prefix.startswith("/") or prefix.endswith("/") or not prefix.isprintable():
            raise ValueError(
                f"a prefix in etcd begins with a slash and does not end with one, not {prefix!r}"
            )
        self.sessions = f"{prefix}/sessions/"
        self.owners = f"{prefix}/owners/"
        self.clients = f"{prefix}/clients/"
        self.fleet_check = f"{prefix}/key"
        self._sessions_of = f"{prefix}/sessions-of/"
        self._nodes = f"{prefix}/nodes/"
        self._addresses = f"{prefix}/addresses/"
        self._addresses_of = f"{prefix}/addresses-of/"
        self._nudges = f"{prefix}/nudges/"
        self._given = f"{prefix}/given/"

    def session(self, session_id: bytes) -> str:
        return self.sessions + session_id.hex()

    def owner(self, session_id: bytes) -> str:
        return self.owners + session_id.hex()

    def given(self, session_id: bytes) -> str:
        return self._given + session_id.hex()

    def timestamp(self, client_public: bytes) -> str:
        return f"{self.clients}{client_public.hex()}/timestamp"

    def sessions_of(self, client_public: bytes) -> str:
        return f"{self._sessions_of}{client_public.hex()}/"

    def session_of(self, client_public: bytes, session_id: bytes) -> str:
        return self.sessions_of(client_public) + session_id.hex()

    def addresses(self, version: int) -> str:
        return f"{self._addresses}{version}/"

    def address(self, version: int, address: bytes) -> str:
        return self.addresses(version) + address.hex()

    def address_of(self, client_public: bytes, version: int) -> str:
        return f"{self._addresses_of}{client_public.hex()}/{version}"

    def nudges_of(self, node_id: str) -> str:
        return f"{self._nudges}{node_id}/"

    def nudge(self, node_id: str, session_id: bytes) -> str:
        return self.nudges_of(node_id) + session_id.hex()

    def node(self, node_id: str) -> str:
        return self._nodes + node_id

    def node_of(self, key: str) -> str | None:
        """The node whose key it is; None for another one."""
        return key.removeprefix(self._nodes) if key.startswith(self._nodes) else None

    def nudged_by(self, key: str) -> str | None:
        """The node that is asked for a session by this key; None for another one."""
        return key.removeprefix(self._nudges).partition("/")[0] if key.startswith(self._nudges) else None

    @property
    def watched(self) -> Json:
        """Nodes, nudges and owners, which are next to each other: one range, so one watch and one page for all."""
        return {"key": text(self._nodes), "range_end": text(_after(self.owners))}


def hex_tail(key: str) -> bytes | None:
    """The id at the end of a key; None when there is none."""
    try:
        return bytes.fromhex(key.rpartition("/")[2])
    except ValueError:
        return None


def number(value: int) -> bytes:
    return b"%0*d" % (_DIGITS, value)


def owner_value(version: int, owner: str, prefixes: Iterable[str] = ()) -> bytes:
    """A space behind every word, so that what one owner may write is a range, see `owned_by`."""
    return number(version) + "".join(f" {word}" for word in (owner, *prefixes)).encode() + b" "


def split_owner(value: bytes) -> tuple[int, str, tuple[str, ...]]:
    """Version, node, inner prefixes. Raises ValueError."""
    version, owner, *prefixes = value.decode().split()
    return int(version), owner, tuple(prefixes)


def split_nudge(value: bytes) -> tuple[int, str]:
    """Attempt, and the node that asks. Raises ValueError."""
    attempt, asker = value.decode().split()
    return int(attempt), asker


def owned_by(key: str, version: int, owner: str) -> list[Json]:
    """Of that node in that version, whatever its prefixes; False where there is no such key. No name of a node has a
    character that comes before the "!"."""
    beginning = number(version) + b" " + owner.encode()
    return [value_above(key, beginning), value_below(key, beginning + b"!")]


def end_of_epoch(version: int) -> bytes:
    """Every owner's value of this epoch, and of earlier ones, is less; of later ones greater."""
    return number(last_of_epoch(version)) + b"\xff"


def text(data: bytes | str) -> str:
    return b64encode(data.encode() if isinstance(data, str) else data).decode()


def data(value: str) -> bytes:
    return b64decode(value)


def value_of(kv: Json) -> bytes:
    """The gateway leaves out what is empty."""
    return data(kv.get("value", ""))


def _after(prefix: str) -> bytes:
    """The end of the range of all keys that begin with `prefix`, which ends with an ASCII character."""
    return prefix[:-1].encode() + bytes([ord(prefix[-1]) + 1])


def whole(prefix: str) -> Json:
    return {"key": text(prefix), "range_end": text(_after(prefix))}


def rest(prefix: str, after: str) -> Json:
    """Keys of `prefix` that come after the key `after`."""
    return {"key": text(after + "\0"), "range_end": text(_after(prefix))}


def between(first: str, last: str) -> Json:
    """Both keys and all between them."""
    return {"key": text(first), "range_end": text(last + "\0")}


def get(key: str) -> Json:
    return {"request_range": {"key": text(key)}}


def put(key: str, value: bytes, lease_id: int = 0) -> Json:
    return {"request_put": {"key": text(key), "value": text(value), "lease": str(lease_id)}}


def delete(key: str) -> Json:
    return {"request_delete_range": {"key": text(key)}}


def value_is(key: str, value: bytes) -> Json:
    """False where there is no such key."""
    return {"key": text(key), "target": "VALUE", "result": "EQUAL", "value": text(value)}


def value_below(key: str, value: bytes) -> Json:
    """False where there is no such key."""
    return {"key": text(key), "target": "VALUE", "result": "LESS", "value": text(value)}


def value_above(key: str, value: bytes) -> Json:
    """False where there is no such key."""
    return {"key": text(key), "target": "VALUE", "result": "GREATER", "value": text(value)}


def absent(key: str) -> Json:
    return {"key": text(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}


def unchanged(key: str, kv: Json | None) -> Json:
    """As it was when it was read; None for absent."""
    revision = "0" if kv is None else kv["mod_revision"]
    return {"key": text(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision}


def none_of(prefix: str) -> Json:
    """No key begins with `prefix`."""
    return {**whole(prefix), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}


def when(compare: Sequence[Json], then: Sequence[Json], otherwise: Sequence[Json] = ()) -> Json:
    """An operation that is a transaction in itself. All of a transaction's comparisons see what was before it."""
    return {"request_txn": {"compare": list(compare), "success": list(then), "failure": list(otherwise)}}


def together(operations: Sequence[Json]) -> Json:
    """One transaction of any number of operations; `answers_of` gives their answers in the same order."""
    level = list(operations)
    while len(level) > OPERATIONS_OF_LEVEL:
        level = [
            when((), level[n : n + OPERATIONS_OF_LEVEL]) for n in range(0, len(level), OPERATIONS_OF_LEVEL)
        ]
    return {"compare": [], "success": level, "failure": []}


def answers_of(reply: Json, count: int) -> Iterator[Json]:
    """Answers to `count` operations that went `together`."""
    level: list[Json] = reply.get("responses", [])
    depth = count
    while depth > OPERATIONS_OF_LEVEL:
        level = [answer for group in level for answer in group["response_txn"].get("responses", [])]
        depth = -(-depth // OPERATIONS_OF_LEVEL)
    yield from level
