"""Hidden states of agents on disk: described, checked, and written so that reading can go on.

folder
  states.npy     float32 (N, H), all agents' states side by side; memory-mapped
  states.json    description: models' weights, prompts, layer; checksum of states.npy
  reading.json   while states are read: the description, and the number of rows that are done
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from triptych.models.long_loop import with_progress

# Shapes: N questions, B batch, H dimensions of all agents' states together

STATES_FILE, DESCRIPTION_FILE, READING_FILE = "states.npy", "states.json", "reading.json"
# Names of the description's entries in error messages.
_MEANING = {
    "weights": "the agents' weights",
    "agents": "the agents' names",
    "state_sizes": "the widths of their states",
    "layers": "the layers that states are read from",
    "pool": "how states are pooled (state.pool)",
    "read": "what states are read of (state.read)",
    "prompts": "the prompts",
    "num_questions": "the number of questions",
}


class StateCache:
    """States on disk.

    Args:
        folder: A folder written by `write_rows`.
        expected: The description that the states must have; None: any.

    Raises:
        FileNotFoundError: if there are no states.
        ValueError: if the description differs (the message names the differences), or a file is
            damaged.
    """

    def __init__(self, folder: str | Path, expected: dict[str, Any] | None = None) -> None:
        folder = Path(folder)
        for name in (STATES_FILE, DESCRIPTION_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"there is no file {name} in {folder}: no cached states")
        try:
            self.description: dict[str, Any] = json.loads((folder / DESCRIPTION_FILE).read_text())
            self.values = np.load(folder / STATES_FILE, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(
                f"the states in {folder} are damaged ({error}): delete the folder to compute them "
                "anew"
            ) from error
        if expected is not None:
            self._require(folder, expected)
        checksum = self.description.get("sha256")  # older caches have none
        if checksum is not None and checksum != _checksum(folder / STATES_FILE):
            raise ValueError(
                f"{folder / STATES_FILE} is damaged: it has another checksum than "
                f"{DESCRIPTION_FILE} says; delete the folder to compute it anew"
            )

    def _require(self, folder: Path, expected: dict[str, Any]) -> None:
        found = self.description
        if different := [key for key in expected if found.get(key) != expected[key]]:
            listed = "; ".join(
                f"{_MEANING[key]}: {_short(found.get(key))} in the cache, {_short(expected[key])} "
                "now"
                for key in different
            )
            if "read" not in found:
                listed += "; it is of an older version, which did not hash the prompts themselves"
            raise ValueError(
                f"the states in {folder} are of something else ({listed}): set "
                "data.init_args.states_dir to another folder, or to null to compute them anew"
            )
        shape = (expected["num_questions"], sum(expected["state_sizes"]))
        if self.values.shape != shape:
            raise ValueError(
                f"{folder / STATES_FILE} has shape {self.values.shape} and should have {shape}: it "
                "is damaged; delete the folder to compute it anew"
            )

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, rows: Sequence[int]) -> Tensor:
        """Return the states of some questions, (B, H)."""
        return torch.from_numpy(np.ascontiguousarray(self.values[list(rows)]))

    def batches(self, size: int = 4096) -> Iterator[Tensor]:
        """Yield all states in batches."""
        for start in range(0, len(self), size):
            yield torch.from_numpy(np.array(self.values[start : start + size]))

    def equal_agents(self, num_rows: int = 64) -> list[tuple[int, int]]:
        """Return the pairs of agents whose first states are all equal, to the bit."""
        sizes: list[int] = self.description["state_sizes"]
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        values = np.array(self.values[:num_rows])
        of = [values[:, a : a + size] for a, size in zip(starts, sizes, strict=True)]
        return [
            (one, other)
            for other in range(len(of))
            for one in range(other)
            if of[one].shape == of[other].shape and np.array_equal(of[one], of[other])
        ]


def write_rows(
    folder: Path,
    description: dict[str, Any],
    read: Callable[[range], Tensor],
    batch_size: int,
    title: str,
) -> None:
    """Write states in batches of questions; rows that an interrupted call wrote are kept.

    Args:
        folder: Where to write.
        description: Everything that the states depend on.
        read: Computes the states of some rows, (B, H).
        batch_size: Rows at once.
        title: What is shown beside the progress.
    """
    path, progress = folder / STATES_FILE, folder / READING_FILE
    shape = (description["num_questions"], sum(description["state_sizes"]))
    done = _rows_done(folder, description)
    values = (
        np.lib.format.open_memmap(path, mode="r+")
        if done
        else np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    )
    starts = range(done, shape[0], batch_size)
    for start in with_progress(starts, title, len(starts)):
        rows = range(start, min(start + batch_size, shape[0]))
        values[start : rows.stop] = read(rows).cpu().numpy()
        values.flush()
        partial = progress.with_suffix(".partial")
        partial.write_text(json.dumps({"description": description, "rows": rows.stop}))
        partial.replace(progress)
    values.flush()
    content = description | {"sha256": _checksum(path)}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(content, indent=2) + "\n")
    progress.unlink(missing_ok=True)


def build_states(folder: Path, build: Callable[[Path], object]) -> Path:
    """Return `folder`; build it first, or finish it, if it does not exist.

    Of several processes one builds and the others wait. An interrupted build leaves a folder
    `.unfinished`, which the next call hands to `build` again.

    Args:
        folder: The folder; its name holds a fingerprint of everything `build` depends on.
        build: Writes the contents, and goes on with what is there.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            unfinished = folder.with_name(folder.name + ".unfinished")
            unfinished.mkdir(exist_ok=True)
            build(unfinished)
            unfinished.rename(folder)
    return folder


def _rows_done(folder: Path, description: dict[str, Any]) -> int:
    """Return the number of rows that are written already; empty the folder if it is of others."""
    try:
        reading = json.loads((folder / READING_FILE).read_text())
        values = np.load(folder / STATES_FILE, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return 0
    shape = (description["num_questions"], sum(description["state_sizes"]))
    if reading.get("description") != description or values.shape != shape:
        shutil.rmtree(folder)
        folder.mkdir()
        return 0
    return int(reading["rows"])


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    text = str(value)
    return text if len(text) <= 24 else f"{text[:16]}..."
