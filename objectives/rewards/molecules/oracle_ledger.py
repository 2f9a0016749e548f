"""The ledger of an oracle: a record of all calls, so that every molecule is scored once.

It is one SQLite file. A call is reserved under its number before it is made, and its score is
written as soon as it is known. A run that was killed in between finds its reserved calls and makes
them under their old numbers, so no call is counted twice. A call that failed has an error and no
score, and is made again by the next run that needs it.

New calls are first in a file beside it (`-wal`). Closing the ledger, and every checkpoint of a run,
moves them into the file, which can then be copied alone.
"""

import difflib
import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from triptych.objectives.rewards.base import FatalRewardError

#: Begins the errors of calls that were given up when the search paused.
PAUSED = "paused: "
P = ParamSpec("P")
T = TypeVar("T")

# Seconds to wait for another process that writes.
_PATIENCE_S = 60.0
# A file that another process creates is empty for a moment.
_CREATION_S = 1.0
_TABLES = """
CREATE TABLE IF NOT EXISTS objective (description TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
    call INTEGER PRIMARY KEY,
    smiles TEXT NOT NULL UNIQUE,
    seed INTEGER NOT NULL,
    score REAL,
    components TEXT,
    error TEXT,
    raw_values TEXT
);
CREATE TABLE IF NOT EXISTS poses (
    smiles TEXT NOT NULL,
    component TEXT NOT NULL,
    sdf TEXT NOT NULL,
    PRIMARY KEY (smiles, component)
);
"""


_COLUMNS = "call, smiles, seed, score, components, error, raw_values"


class LedgerError(FatalRewardError):
    """The ledger's file cannot be read or written, which ends the run."""


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
        raw: Property of each component that was computed, before its transform; empty in ledgers of
            version 0.2.0 and earlier.
    """

    number: int
    smiles: str
    seed: int
    score: float
    components: dict[str, float]
    error: str | None
    raw: dict[str, float] = field(default_factory=dict)


def _told(method: Callable[P, T]) -> Callable[P, T]:
    """Let errors of SQLite end the run, with the file's name and what to do."""

    @wraps(method)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (sqlite3.Error, OSError) as error:
            ledger = args[0]
            raise _trouble(getattr(ledger, "path", None), error) from error

    return told


class OracleLedger:
    """The calls of one objective, in a file that runs may share, also at the same time.

    Args:
        path: The file, created if missing. Null: in memory.
        objective: Plain data that describes how molecules are scored.

    Raises:
        ValueError: If the file belongs to another objective, has been emptied, or is not a ledger.
    """

    def __init__(self, path: str | Path | None, objective: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _refuse_emptied(self.path)
        # Transactions are explicit; the connection starts none by itself.
        description = json.dumps(objective, indent=1, sort_keys=True)
        try:
            self._connection = sqlite3.connect(
                self.path or ":memory:", timeout=_PATIENCE_S, isolation_level=None
            )
            if self.path is not None:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_TABLES)
            with self._transaction():
                self._add_raw_values()
                found = self._connection.execute("SELECT description FROM objective").fetchone()
                if found is None:
                    self._connection.execute("INSERT INTO objective VALUES (?)", (description,))
        except sqlite3.OperationalError as error:
            raise _trouble(self.path, error) from error
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
            self._connection.close()
            raise ValueError(
                f"{self.path} holds the scores of another objective:\n{shown}\nUse its "
                "settings, functions and files, or name another file. (Those of version 0.2.0 and "
                "earlier do not hold the source of functions and the content of files)"
            )

    @_told
    def __len__(self) -> int:
        """Count the calls, including those reserved and not yet made."""
        (count,) = self._connection.execute("SELECT COUNT(*) FROM calls").fetchone()
        return int(count)

    def close(self) -> None:
        """Move all calls into the file, and close it."""
        with suppress(sqlite3.Error):  # another run may be writing, and does it then
            self.checkpoint()
        self._connection.close()

    def checkpoint(self) -> None:
        """Move all calls from the write-ahead log into the file, so that it can be copied alone."""
        if self.path is not None:
            with suppress(sqlite3.OperationalError):  # another process reads: the next one does it
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @_told
    def look_up(self, smiles: Sequence[str]) -> dict[str, Call]:
        """Look up scored molecules."""
        found = {}
        for text in dict.fromkeys(smiles):
            row = self._connection.execute(
                f"SELECT {_COLUMNS} FROM calls WHERE smiles = ? AND score IS NOT NULL", (text,)
            ).fetchone()
            if row is not None:
                found[text] = _call(row)
        return found

    @_told
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

    @_told
    def record(
        self,
        smiles: str,
        score: float,
        components: Mapping[str, float],
        raw: Mapping[str, float] | None = None,
        poses: Mapping[str, str] | None = None,
    ) -> None:
        """Write the result of a reserved call.

        Args:
            smiles: The molecule.
            score: Its score.
            components: Score of each component.
            raw: Property of each component, before its transform.
            poses: Pose of each component that has one, as an entry of an SD file.

        Raises:
            ValueError: If the score is nan, which stands for a missing score in the file.
        """
        if not math.isfinite(score):
            raise ValueError(f"{smiles} scores {score}, which is no number")
        for name, sdf in (poses or {}).items():
            self._connection.execute(
                "INSERT OR REPLACE INTO poses VALUES (?, ?, ?)", (smiles, name, sdf)
            )
        self._connection.execute(
            "UPDATE calls SET score = ?, components = ?, error = NULL, raw_values = ? "
            "WHERE smiles = ?",
            (score, json.dumps(dict(components)), json.dumps(dict(raw or {})), smiles),
        )

    @_told
    def fail(self, errors: Mapping[str, str]) -> None:
        """Write why reserved calls have no score, by molecule; one that has a score keeps it."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE calls SET error = ? WHERE smiles = ? AND score IS NULL",
                [(error, smiles) for smiles, error in errors.items()],
            )

    @_told
    def release(self) -> None:
        """Give back the last numbers if a search paused at them: nothing was bought for them."""
        self._connection.execute(
            "DELETE FROM calls WHERE call > (SELECT COALESCE(MAX(call), 0) FROM calls "
            f"WHERE score IS NOT NULL OR error IS NULL OR error NOT LIKE '{PAUSED}%')"
        )

    @_told
    def failures(self) -> dict[str, str]:
        """Return the molecules whose call failed, with the reason, by number."""
        rows = self._connection.execute(
            "SELECT smiles, error FROM calls WHERE score IS NULL AND error IS NOT NULL "
            "ORDER BY call"
        )
        return dict(rows.fetchall())

    @_told
    def last_number(self) -> int:
        """Return the largest number of a call, 0 without calls."""
        (last,) = self._connection.execute("SELECT COALESCE(MAX(call), 0) FROM calls").fetchone()
        return int(last)

    @_told
    def num_made(self) -> int:
        """Count the calls that have a score or are being made; failed ones are not bought."""
        (count,) = self._connection.execute(
            "SELECT COUNT(*) FROM calls WHERE score IS NOT NULL OR error IS NULL"
        ).fetchone()
        return int(count)

    @_told
    def latest_with(self, names: Sequence[str]) -> str | None:
        """Return the last molecule for which all these components were computed."""
        rows = self._connection.execute(
            "SELECT smiles, components FROM calls WHERE score IS NOT NULL ORDER BY call DESC "
            "LIMIT 200"
        )
        for smiles, components in rows:
            if set(names) <= json.loads(components).keys():
                return str(smiles)
        return None

    @_told
    def poses(self, smiles: str) -> dict[str, str]:
        """Return the poses of a molecule: component -> entry of an SD file."""
        rows = self._connection.execute(
            "SELECT component, sdf FROM poses WHERE smiles = ? ORDER BY component", (smiles,)
        )
        return dict(rows.fetchall())

    @_told
    def calls(self) -> list[Call]:
        """List all calls that were made, by number."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM calls WHERE score IS NOT NULL ORDER BY call"
        )
        return [_call(row) for row in rows]

    @_told
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
            rows = other._connection.execute(
                f"SELECT {_COLUMNS} FROM calls ORDER BY call"
            ).fetchall()
            poses = other._connection.execute("SELECT * FROM poses").fetchall()
        finally:
            other.close()
        with self._transaction():
            self._connection.executemany(
                f"INSERT INTO calls ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
            )
            self._connection.executemany("INSERT OR REPLACE INTO poses VALUES (?, ?, ?)", poses)

    def _add_raw_values(self) -> None:
        """Update a ledger of version 0.2.0 or earlier: raw values, no score after errors."""
        columns = self._connection.execute("PRAGMA table_info(calls)").fetchall()
        if any(column[1] == "raw_values" for column in columns):
            return
        self._connection.execute("ALTER TABLE calls ADD COLUMN raw_values TEXT")
        self._connection.execute("UPDATE calls SET score = NULL WHERE error IS NOT NULL")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # SQLite has rolled back by itself after some errors, such as a full disk.
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _refuse_emptied(path: Path) -> None:
    """Refuse a file without content, which SQLite would take for a new ledger.

    Raises:
        ValueError: If it is empty.
    """
    until = time.monotonic() + _CREATION_S
    while path.is_file() and not path.stat().st_size:
        if time.monotonic() > until:
            raise ValueError(
                f"the ledger {path} is empty (0 bytes), as after a copy that failed: put the file "
                "of the earlier calls back, or delete it to begin with no calls"
            )
        time.sleep(0.05)


def _call(row: tuple[Any, ...]) -> Call:
    number, smiles, seed, score, components, error, raw = row
    return Call(
        number, smiles, seed, score, json.loads(components), error, json.loads(raw) if raw else {}
    )


def _trouble(path: Path | None, error: Exception) -> LedgerError:
    """Word an error of the file, with what to do."""
    text = str(error)
    advice = "see that it can be read and written"
    if "locked" in text:
        advice = f"another process has held it for {_PATIENCE_S:g} s: end it (a backup, a viewer)"
    elif "full" in text or "space" in text:
        advice = "free some space"
    return LedgerError(
        f"the ledger of oracle calls {path} cannot be used: {text} ({type(error).__name__}). "
        f"{advice[0].upper()}{advice[1:]}, then resume the run: calls that were made are kept"
    )
