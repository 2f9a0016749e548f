"""The version of the code that makes a run."""

import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, version

from triptych import ROOT


def code_version() -> str | None:
    """Return the commit of a clone, or the version of the package.

    Returns:
        For instance ``3f2a9c1d0b7e``, with the suffix ``-dirty`` if tracked files were changed.
        ``0.2.0`` if Triptych is installed, which may be inside of another git repository, or was
        copied without its history. None if neither is known.
    """
    try:
        if _git("rev-parse", "--show-prefix") == "" and (ROOT / "train.py").is_file():
            return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        pass
    return _package_version()


def _git(*words: str) -> str:
    ended = subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
    )
    return ended.stdout.strip()


def _package_version() -> str | None:
    project = ROOT / "pyproject.toml"
    if project.is_file():
        declared: str = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
        return declared
    try:
        return version("triptych")
    except PackageNotFoundError:
        return None
