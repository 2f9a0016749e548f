"""Experiments that another experiment starts from.

``init_from`` names an exported folder, or the configuration of an experiment that exports one. That
experiment then runs first, once. Its run directory is kept under ``runs/stages``, by a fingerprint
of its composed configuration and of the local files named there.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from triptych import ROOT

# Options that do not change the exported model.
RUN_SPECIFIC = (
    "experiment",
    "run_name",
    "run_dir",
    "tracking",
    "ckpt_path",
    "trainer.logger",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
)
LARGEST_HASHED_BYTES = 64 * 2**20  # larger files count by size and modification time
DISTRIBUTED_PREFIXES = ("TORCHELASTIC_", "SLURM_", "PL_", "TRIPTYCH_RUN_DIR")
DISTRIBUTED_VARIABLES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "ROLE_NAME"),
}


class StageError(RuntimeError):
    """The experiment that another one starts from has failed."""


@dataclass(frozen=True)
class Stage:
    """An experiment that runs for its exported model.

    Attributes:
        config: Its configuration file.
        composed: Its composed configuration, which decides whether a cached run is used.
        options: Words of the command line after the configuration file; `composed` includes them.
    """

    config: Path
    composed: dict[str, Any]
    options: tuple[str, ...] = ()

    def export(self) -> Path:
        """Return the exported folder; run the experiment first if it has not run before.

        Raises:
            StageError: if the experiment fails, or exports nothing.
        """
        run_dir = Path("runs") / "stages" / f"{self.config.stem}-{self.fingerprint()[:12]}"
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(run_dir.with_name(f".{run_dir.name}.lock")):
            if not _is_finished(run_dir):
                self._run(run_dir)
        if not (run_dir / "export").is_dir():
            raise StageError(
                f"init_from: {self.config} ran, but exported no model into {run_dir}. "
                "Its module needs a `model` with `save_pretrained`, and the callback "
                "triptych.callbacks.run.export_model.ExportModel."
            )
        return run_dir / "export"

    def fingerprint(self) -> str:
        """Hash all that the outcome depends on, except for the version of the code."""
        kept = json.loads(json.dumps(self.composed, default=str))
        for key in RUN_SPECIFIC:
            *parents, last = key.split(".")
            node = kept
            for parent in parents:
                node = node.get(parent) or {}
            node.pop(last, None)
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
        for text in sorted(set(_strings(kept))):
            digest.update(_file_fingerprint(Path(text)))
        return digest.hexdigest()

    def _run(self, run_dir: Path) -> None:
        partial = run_dir.with_name(f".{run_dir.name}.partial")
        failed = run_dir.with_name(f"{run_dir.name}.failed")
        for earlier in (partial, failed, run_dir):
            shutil.rmtree(earlier, ignore_errors=True)
        rank_zero_info(f"init_from: running {self.config} first; the run is kept as {run_dir}")
        words = ["fit", "--config", str(self.config), "--run_dir", str(partial), *self.options]
        code = subprocess.run(
            [sys.executable, "-m", "triptych", *words], env=_environment(), check=False
        ).returncode
        if code != 0 or not _is_finished(partial):
            if partial.is_dir():
                partial.rename(failed)
            kept = f" The files of that run are in {failed}." if failed.is_dir() else ""
            raise StageError(
                f"init_from: {self.config} failed with exit code {code}, see above. It has to run "
                f"first: correct it, then give this command again.{kept}"
            )
        partial.rename(run_dir)


def _is_finished(run_dir: Path) -> bool:
    summary = run_dir / "summary.json"
    return summary.is_file() and json.loads(summary.read_text())["status"] == "finished"


def _environment() -> dict[str, str]:
    """Return the environment without variables that would make the stage a rank of this run."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in DISTRIBUTED_VARIABLES and not name.startswith(DISTRIBUTED_PREFIXES)
    }
    if (ROOT / "train.py").is_file():  # a clone is not installed, and may not be the working folder
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [kept.get("PYTHONPATH"), str(ROOT)]))
    return kept


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _strings(child)


def _file_fingerprint(path: Path) -> bytes:
    """Hash a file, or list a folder; return nothing for text that names neither."""
    try:
        if path.is_dir() and len(path.parts) > 1:  # a single word is read as a name
            entries = [(e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in path.iterdir()]
            return repr(sorted(entries)).encode()
        if not path.is_file():
            return b""
        stat = path.stat()
    except (OSError, ValueError):  # too long for a path, or with a null byte: plain text
        return b""
    if stat.st_size > LARGEST_HASHED_BYTES:
        return f"{stat.st_size} {stat.st_mtime_ns}".encode()
    return hashlib.sha256(path.read_bytes()).digest()
