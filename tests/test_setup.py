"""What a clean clone needs before anything can run."""

import os
import re
import subprocess
import tomllib

import yaml
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
        # The one excludes faiss-cpu; torch's wheel for a GPU decides on the version of triton.
        texts += more if extra not in ("faiss-gpu", "kernels") else []
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


def workflow() -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())


def test_each_command_of_the_workflow_exists():
    """Its make targets, and the folder that its image is built from."""
    runs = [
        step["run"] for job in workflow()["jobs"].values() for step in job["steps"] if "run" in step
    ]
    targets = {words.removeprefix("make ") for words in runs if words.startswith("make ")}
    assert {"test", "test-all", "quickstart", "platforms"} <= targets
    for target in targets:
        commands_of(target)
    others = [words for words in runs if not words.startswith("make ")]
    assert all(words.startswith("docker ") for words in others)
    assert (ROOT / "Dockerfile").is_file()


def test_workflow_and_check_of_platforms_know_the_same_pythons():
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    pythons = workflow()["jobs"]["test"]["strategy"]["matrix"]["python"]
    script = (ROOT / ".ci" / "platforms").read_text()
    assert re.search(r"PYTHONS:-(.*?)\}", script)[1].split() == pythons
    assert pythons[0] == oldest


def test_check_of_platforms_asks_for_wheels_and_fails_where_one_is_missing(tmp_path):
    """A stand-in for uv, which finds nothing for one Python, writes down what it is asked."""
    stand_in = tmp_path / "uv"
    stand_in.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        'case "$*" in *3.13*) echo no wheel >&2; exit 1;; *) echo torch==1;; esac\n'
    )
    stand_in.chmod(0o755)
    ended = subprocess.run(
        [ROOT / ".ci" / "platforms", "peers"],
        env={**os.environ, "UV": str(stand_in)},
        capture_output=True,
        text=True,
        check=False,
    )
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2 * 3 * 4
    assert all("--only-binary :all:" in line for line in asked)
    assert ended.returncode == 1
    assert ended.stdout.count("FAILED\nno wheel") == 8
    assert "base, Python 3.11, aarch64-apple-darwin: 1 wheels" in ended.stdout


def test_image_copies_what_it_installs_and_nothing_that_runs_leave():
    dockerfile = (ROOT / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    leavings = (ROOT / ".gitignore").read_text().partition("# what runs leave behind")[2].split()
    assert {name.strip("/") for name in leavings} - {"*.ckpt"} <= set(ignored)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    needed = {*wheel, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert not needed & set(ignored)
    assert re.search(r"^USER (?!root)\w+$", dockerfile, re.MULTILINE)
    assert set(re.findall(r"^ARG (\w+)=", dockerfile, re.MULTILINE)) == {"PYTHON", "TORCH"}


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
