"""Which code made a run: a commit of Triptych, never one of the user's repository."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from triptych.callbacks.tracking import code_version as module
from triptych.callbacks.tracking.code_version import code_version


def git(folder: Path, *words: str) -> None:
    name = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository of the user's, with one commit."""
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "mine")
    return tmp_path


def test_installed_package_in_a_users_repository_gives_its_version(repository):
    """The package's files as a wheel lays them out, in an environment inside the repository."""
    site = repository / "venv" / "site-packages"
    for part in ("__init__.py", "auto_classes.py", "short_names.py"):
        shutil.copyfile(ROOT / "triptych" / part, site_file(site, part))
    tracking = site_file(site, "callbacks/tracking/code_version.py")
    shutil.copyfile(module.__file__, tracking)
    (site / "triptych-7.8.9.dist-info").mkdir()
    (site / "triptych-7.8.9.dist-info" / "METADATA").write_text("Name: triptych\nVersion: 7.8.9\n")
    code = "from triptych.callbacks.tracking.code_version import code_version as v; print(v())"
    ended = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("7.8.9\n", "")


def site_file(site: Path, name: str) -> Path:
    path = site / "triptych" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in path.relative_to(site).parents:
        if folder.name:
            (site / folder / "__init__.py").touch()
    return path


def test_clone_gives_its_commit_and_says_if_it_was_changed(repository, monkeypatch):
    (repository / "train.py").write_text("one")
    git(repository, "add", "train.py")
    git(repository, "commit", "--quiet", "--message", "a clone")
    monkeypatch.setattr(module, "ROOT", repository)
    assert re.fullmatch(r"[0-9a-f]{12}", code_version())
    (repository / "train.py").write_text("two")
    assert re.fullmatch(r"[0-9a-f]{12}-dirty", code_version())


def test_copy_without_history_inside_a_repository_gives_its_version(repository, monkeypatch):
    copy = repository / "triptych"
    copy.mkdir()
    (copy / "train.py").touch()
    (copy / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    monkeypatch.setattr(module, "ROOT", copy)
    assert code_version() == "1.2.3"
