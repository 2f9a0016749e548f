"""What a clean clone needs before anything can run."""

import re
import subprocess
import tomllib

from packaging.requirements import Requirement

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(
    line.lower().replace("_", "-").split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    texts = list(project["dependencies"])
    for extra, more in project["optional-dependencies"].items():
        texts += more if extra != "faiss-gpu" else []  # it excludes faiss-cpu
    return [Requirement(text) for text in texts]


def test_every_requirement_is_pinned_within_its_range():
    for requirement in requirements():
        assert requirement.specifier.contains(PINS[requirement.name.lower()]), requirement


def test_pins_hold_on_any_machine():
    for name, version in PINS.items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"


def commands_of(target: str) -> str:
    """What `make` would run for a target."""
    ended = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_continuous_integration_leaves_no_test_out():
    """`make test` leaves the slow ones to it, by a marker."""
    (target,) = re.findall(r"^exec make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    chosen = r"-m pytest.* -m \"not slow and not distributed\""
    assert re.search(chosen, commands_of("test"))
    (everything,) = re.findall(r"-m pytest(.*?);", commands_of(target))
    assert not re.search(r" -[mk] | --(deselect|ignore)|tests/", everything)


def test_old_python_is_refused_with_what_to_do(tmp_path):
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\ncase $1 in --version) echo Python 3.9.1;; *) exit 1;; esac\n")
    old.chmod(0o755)
    ended = subprocess.run(
        ["make", f"VENV={tmp_path}/venv", f"PYTHON={old}", "install"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "Python 3.11 or newer is needed" in ended.stderr
    assert "Python 3.9.1" in ended.stderr
