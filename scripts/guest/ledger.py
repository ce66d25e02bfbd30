#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A database in use, whose content can be proved: accounts, and a ledger of what was transferred.

    ledger.py run FILE ACKNOWLEDGED     a transaction after the other until SIGTERM; the number of
                                        the last one that was committed is in ACKNOWLEDGED
    ledger.py check FILE LEAST          whether it is whole, and has so many transactions at least

Each transaction moves an amount between two accounts, and adds an entry that says so, with a digest
of itself and of the one before. So what is lost, torn, stale or of another order is found.
"""

import hashlib
import os
import random
import signal
import sqlite3
import sys
import time

ACCOUNTS = 100
BALANCE = 1000
# An entry is some more bytes than it needs, so that the database grows as others do.
NOTE = 200
# Between two transactions: it is to be a load, and not all that an emulated guest can do.
THINKING_S = 0.05
TABLES = """
CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS entry (number INTEGER PRIMARY KEY, source INTEGER, target INTEGER,
    amount INTEGER, note BLOB, digest BLOB);
"""


def digest(before: bytes, *fields) -> bytes:
    """Of an entry that comes after another."""
    return hashlib.sha256(before + repr(fields).encode()).digest()


def connect(name: str) -> sqlite3.Connection:
    """With every commit on the disk when it returns."""
    database = sqlite3.connect(name, isolation_level=None, timeout=60)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    # The log goes into the database often.
    database.execute("PRAGMA wal_autocheckpoint = 100")
    return database


def last_entry(database: sqlite3.Connection) -> tuple[int, bytes]:
    """Its number and digest."""
    query = "SELECT number, digest FROM entry ORDER BY number DESC LIMIT 1"
    return database.execute(query).fetchone() or (0, b"")


def run(name: str, acknowledged: str) -> None:
    """Commit until told to end."""
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    database = connect(name)
    database.executescript(TABLES)
    database.execute("BEGIN")
    for account in range(ACCOUNTS):
        database.execute("INSERT OR IGNORE INTO account VALUES (?, ?)", (account, BALANCE))
    database.execute("COMMIT")
    number, before = last_entry(database)
    with open(acknowledged, "wb", buffering=0) as file:
        while not ending:
            number += 1
            source, target = random.sample(range(ACCOUNTS), 2)
            fields = (number, source, target, random.randrange(BALANCE), os.urandom(NOTE))
            before = digest(before, *fields)
            database.execute("BEGIN")
            database.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)", (*fields, before))
            for account, amount in ((source, -fields[3]), (target, fields[3])):
                database.execute(
                    "UPDATE account SET balance = balance + ? WHERE id = ?", (amount, account)
                )
            database.execute("COMMIT")
            os.pwrite(file.fileno(), f"{number:12}\n".encode(), 0)
            time.sleep(THINKING_S)
    database.close()
    print(f"ended: {number}", flush=True)


def check(name: str, least: int) -> None:
    """Read all of it."""
    database = connect(name)
    problems = [row[0] for row in database.execute("PRAGMA integrity_check")]
    if problems != ["ok"]:
        sys.exit(f"not whole: {problems}")
    balances = [BALANCE] * ACCOUNTS
    count, before = 0, b""
    for *fields, found in database.execute("SELECT * FROM entry ORDER BY number"):
        count += 1
        before = digest(before, *fields)
        if (fields[0], before) != (count, found):
            sys.exit(f"entry {fields[0]} is not what was committed as {count}")
        balances[fields[1]] -= fields[3]
        balances[fields[2]] += fields[3]
    if balances != [row[0] for row in database.execute("SELECT balance FROM account ORDER BY id")]:
        sys.exit("the balances are not those of the entries")
    if count < least:
        sys.exit(f"{count} transactions, and {least} were acknowledged")
    print(f"transactions: {count}")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(sys.argv[2], sys.argv[3])
    else:
        check(sys.argv[2], int(sys.argv[3]))
