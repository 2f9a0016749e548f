"""The version of the code that makes a run."""

import subprocess

from triptych import ROOT


def code_version() -> str | None:
    """Return the checked-out commit, with the suffix ``-dirty`` if tracked files were changed.

    Returns:
        For instance ``3f2a9c1d0b7e-dirty``; None outside a git checkout or without git.
    """
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
