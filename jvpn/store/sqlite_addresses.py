"""Inner addresses of clients in the embedded store: a table in which both an address and a client come once."""

import sqlite3
from collections.abc import Iterator

from jvpn.session.pool import AddressPool, Given, packed, text_of

#: `used` rises with each birth of a session, whatever the clock says.
SCHEMA = """
CREATE TABLE IF NOT EXISTS inner_addresses (
    version INTEGER NOT NULL, address BLOB NOT NULL, client_public BLOB NOT NULL, used INTEGER NOT NULL,
    PRIMARY KEY (version, address), UNIQUE (client_public, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inner_addresses_by_use ON inner_addresses (used);
"""


class SqliteAddresses:
    """Within the caller's transaction. Raises sqlite3.Error."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def held(self, client_public: bytes) -> dict[int, int]:
        """What a client has, by version."""
        wanted = "SELECT version, address FROM inner_addresses WHERE client_public = ?"
        rows = self._database.execute(wanted, (client_public,))
        return {version: int.from_bytes(address, "big") for version, address in rows}

    def taken(self, version: int, first: int, last: int) -> Iterator[int]:
        rows = self._database.execute(
            "SELECT address FROM inner_addresses WHERE version = ? AND address BETWEEN ? AND ? ORDER BY address",
            (version, packed(version, first), packed(version, last)),
        )
        return (int.from_bytes(address, "big") for (address,) in rows)

    def idle(self, pool: AddressPool) -> Given | None:
        rows = self._database.execute(
            "SELECT address, client_public FROM inner_addresses AS given WHERE version = ? AND NOT EXISTS "
            "(SELECT 1 FROM sessions WHERE sessions.client_public = given.client_public) ORDER BY used",
            (pool.version,),
        )
        for address, client in rows:
            number = int.from_bytes(address, "big")
            if number in pool:
                return Given(pool.version, number, client)
        return None

    def keep(self, client_public: bytes, given: Given) -> None:
        """The client has this address of its version and no other; its session has begun last of all."""
        self._database.execute(
            "INSERT OR REPLACE INTO inner_addresses VALUES "
            "(?, ?, ?, (SELECT coalesce(max(used), 0) + 1 FROM inner_addresses))",
            (given.version, packed(given.version, given.address), client_public),
        )

    def release(self, client_public: bytes) -> bool:
        """False, and nothing is changed, while the client has a session."""
        has_session = "SELECT 1 FROM sessions WHERE client_public = ?"
        if self._database.execute(has_session, (client_public,)).fetchone() is not None:
            return False
        self._database.execute("DELETE FROM inner_addresses WHERE client_public = ?", (client_public,))
        return True

    def all(self) -> dict[bytes, tuple[str, ...]]:
        found: dict[bytes, tuple[str, ...]] = {}
        wanted = "SELECT client_public, version, address FROM inner_addresses ORDER BY version, address"
        for client, version, address in self._database.execute(wanted):
            found[client] = (*found.get(client, ()), text_of(version, int.from_bytes(address, "big")))
        return found
