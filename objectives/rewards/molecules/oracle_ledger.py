"""The ledger of an oracle: a record of all calls, so that every molecule is scored once.

It is one SQLite file. A call is reserved under its number before it is made, and its score is
written as soon as it is known. A run that was killed in between finds its reserved calls and makes
them under their old numbers, so no call is counted twice.
"""

import difflib
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE IF NOT EXISTS objective (description TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
    call INTEGER PRIMARY KEY,
    smiles TEXT NOT NULL UNIQUE,
    seed INTEGER NOT NULL,
    score REAL,
    components TEXT,
    error TEXT
);
"""


@dataclass(frozen=True)
class Call:
    """One call of the oracle.

    Attributes:
        number: Consecutive, from 1.
        smiles: Canonical SMILES.
        seed: Seed of the run that made the call.
        score: The score.
        components: Score of each component that was computed.
        error: The error message, or None.
    """

    number: int
    smiles: str
    seed: int
    score: float
    components: dict[str, float]
    error: str | None


class OracleLedger:
    """The calls of one objective, in a file that runs may share, also at the same time.

    Args:
        path: The file, created if missing. Null: in memory.
        objective: Plain data that describes how molecules are scored.

    Raises:
        ValueError: If the file belongs to another objective, or is not a ledger.
    """

    def __init__(self, path: str | Path | None, objective: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        # Transactions are explicit; the connection starts none by itself.
        self._connection = sqlite3.connect(
            self.path or ":memory:", timeout=60.0, isolation_level=None
        )
        description = json.dumps(objective, indent=1, sort_keys=True)
        try:
            if self.path is not None:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_TABLES)
            with self._transaction():
                found = self._connection.execute("SELECT description FROM objective").fetchone()
                if found is None:
                    self._connection.execute("INSERT INTO objective VALUES (?)", (description,))
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path} is no ledger of oracle calls ({error}): name another file, or one "
                "that does not exist yet"
            ) from error
        if found is not None and found[0] != description:
            lines = difflib.unified_diff(
                found[0].splitlines(),
                description.splitlines(),
                "ledger",
                "this run",
                lineterm="",
                n=0,
            )
            shown = "\n".join(line for line in lines if not line.startswith("@@"))
            raise ValueError(
                f"{self.path} holds the scores of another objective:\n{shown}\nUse the ledger's "
                "settings, or name another file"
            )

    def __len__(self) -> int:
        """Count the calls, including those reserved and not yet made."""
        (count,) = self._connection.execute("SELECT COUNT(*) FROM calls").fetchone()
        return int(count)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def look_up(self, smiles: Sequence[str]) -> dict[str, Call]:
        """Look up scored molecules."""
        found = {}
        for text in dict.fromkeys(smiles):
            row = self._connection.execute(
                "SELECT * FROM calls WHERE smiles = ? AND score IS NOT NULL", (text,)
            ).fetchone()
            if row is not None:
                found[text] = _call(row)
        return found

    def reserve(self, smiles: Sequence[str], budget: int, seed: int) -> dict[str, int]:
        """Reserve a call for each molecule, in order, up to the budget.

        Args:
            smiles: Different canonical SMILES that have no score yet.
            budget: Maximum number of calls in the ledger.
            seed: Seed of the calling run.

        Returns:
            Call numbers of the molecules that may be scored. An earlier reservation keeps its
            number and costs no further call.
        """
        numbers: dict[str, int] = {}
        with self._transaction():
            (last,) = self._connection.execute(
                "SELECT COALESCE(MAX(call), 0) FROM calls"
            ).fetchone()
            for text in smiles:
                row = self._connection.execute(
                    "SELECT call FROM calls WHERE smiles = ?", (text,)
                ).fetchone()
                if row is not None:
                    numbers[text] = row[0]
                elif last < budget:
                    last += 1
                    numbers[text] = last
                    self._connection.execute(
                        "INSERT INTO calls (call, smiles, seed) VALUES (?, ?, ?)",
                        (last, text, seed),
                    )
        return numbers

    def record(
        self, smiles: str, score: float, components: Mapping[str, float], error: str | None
    ) -> None:
        """Write the result of a reserved call.

        Raises:
            ValueError: If the score is nan, which stands for a missing score in the file.
        """
        if not math.isfinite(score):
            raise ValueError(f"{smiles} scores {score}, which is no number")
        self._connection.execute(
            "UPDATE calls SET score = ?, components = ?, error = ? WHERE smiles = ?",
            (score, json.dumps(dict(components)), error, smiles),
        )

    def calls(self) -> list[Call]:
        """List all calls that were made, by number."""
        rows = self._connection.execute("SELECT * FROM calls WHERE score IS NOT NULL ORDER BY call")
        return [_call(row) for row in rows]

    def copy_from(self, path: str | Path) -> None:
        """Copy the calls of a ledger of the same objective, with their numbers.

        Raises:
            ValueError: If it belongs to another objective, or this ledger has calls already.
        """
        if len(self):
            raise ValueError(f"{self.path} has calls of its own: copy into a ledger without any")
        (description,) = self._connection.execute("SELECT description FROM objective").fetchone()
        other = OracleLedger(path, json.loads(description))
        try:
            rows = other._connection.execute("SELECT * FROM calls ORDER BY call").fetchall()
        finally:
            other.close()
        with self._transaction():
            self._connection.executemany("INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _call(row: tuple[Any, ...]) -> Call:
    number, smiles, seed, score, components, error = row
    return Call(number, smiles, seed, score, json.loads(components), error)
