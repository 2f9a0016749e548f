"""Where relative paths of data start.

A path or a pattern is looked for in the working directory and then in the data folder: `data_dir`,
else the environment's `TRIPTYCH_DATA`, else `data`.
"""

import glob
import os
from pathlib import Path


class NoSuchDataError(FileNotFoundError):
    """There is no file at a path of data."""


def data_path(path: str, data_dir: str | None) -> str:
    """Locate a file, a folder or a pattern of data.

    Args:
        path: Absolute, or relative to one of the two folders.
        data_dir: The data folder.

    Returns:
        The path in the working directory if something is there, else that in the data folder,
        whether or not something is there.
    """
    if _matches_anything(path):
        return path
    return str(Path(data_dir or os.environ.get("TRIPTYCH_DATA") or "data") / path)


def _matches_anything(path: str) -> bool:
    """Whether a path exists, or a pattern matches something."""
    return Path(path).exists() or any(glob.iglob(path, recursive=True))
