"""Holds the lock of a SQLite store, so that whoever writes to it waits: `python -m jvpn.lab.store_lock FILE`.

Says a JSON line once it has it, and lets go when its stdin closes.
"""

import json
import sqlite3
import sys
from contextlib import closing


def main(file: str) -> None:
    with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as held:
        held.execute("BEGIN IMMEDIATE")
        print(json.dumps({"held": file}), flush=True)
        sys.stdin.buffer.read()
        held.execute("ROLLBACK")


if __name__ == "__main__":
    main(sys.argv[1])
