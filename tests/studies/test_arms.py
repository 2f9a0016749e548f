"""Arms are run once each, with every seed, and go on where they were stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from triptych.studies import arms as arms_module
from triptych.studies.arms import (
    Arm,
    device_of,
    exported_start,
    read_summary,
    run_arms,
    run_dir,
)

CONFIG = """\
model: {class_path: tests.tiny_lightning.TinyModule}
data: {class_path: tests.tiny_lightning.TinyData}
trainer: {accelerator: cpu, devices: 1, max_epochs: 1}
tracking: {uri: null}
"""


@pytest.mark.slow
def test_every_arm_and_seed_once(workdir):
    Path("tiny.yaml").write_text(CONFIG)
    arms = [
        Arm("slow", ("--config", "tiny.yaml", "--model.init_args.beta", "0.25")),
        Arm("broken", ("--config", "tiny.yaml", "--model.init_args.no_such_key", "1")),
    ]
    runs = run_arms(arms[:1], [3, 4], workdir / "study", num_workers=1)
    first, second = runs["slow"]
    assert [read_summary(run)["seed"] for run in (first, second)] == [3, 4]
    assert read_summary(first)["status"] == "finished"
    # The log of a run is its own, also in a process that has run another before.
    for run in (first, second):
        assert f"Seed set to {run.name.removeprefix('seed')}" in run.with_suffix(".log").read_text()

    before = (first / "summary.json").stat().st_mtime_ns
    with pytest.raises(RuntimeError, match=r"broken, seed 3 failed, see .*seed3\.log"):
        run_arms(arms, [3], workdir / "study", num_workers=1)
    assert (first / "summary.json").stat().st_mtime_ns == before


def test_no_run_goes_on_when_its_study_is_killed():
    study = """
import multiprocessing, os, signal, time
from concurrent.futures import ProcessPoolExecutor
from triptych.studies.arms import end_with_parent
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)
pool.submit(os.getpid).result()
pool.submit(time.sleep, 300)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-c", study], cwd=ROOT, stdout=subprocess.PIPE
    ) as killed:
        killed.communicate(timeout=120)  # its end is that of all who could write to the pipe


def test_a_finished_arm_needs_no_process(tmp_path, monkeypatch):
    arm = Arm("done", ("--config", "no_such_file.yaml"))
    place = run_dir(arm, 0, tmp_path)
    place.mkdir(parents=True)
    (place / "summary.json").write_text(json.dumps({"status": "finished"}))
    monkeypatch.setattr(arms_module, "_train", None)  # cannot be called
    assert run_arms([arm], [0], tmp_path, num_workers=1) == {"done": [place]}


def test_the_device_is_that_of_the_runs(tmp_path):
    for name, device in (("a", "NVIDIA H200"), ("b", "cpu"), ("c", "cpu")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"device": device}))
    assert device_of([tmp_path / "b", tmp_path / "c"]) == "cpu"
    assert device_of([tmp_path / "b", tmp_path / "a", tmp_path / "c"]) == "NVIDIA H200, cpu"


def test_a_start_is_a_folder_or_what_a_config_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(arms_module, "_train", None)  # cannot be called
    assert exported_start("some/export", tmp_path) == Path("some/export")
    words = ("--data.init_args.data_dir", "here")
    place = run_dir(Arm("prior", ("--config", "prior.yaml", *words)), 42, tmp_path)
    place.mkdir(parents=True)
    (place / "summary.json").write_text(json.dumps({"status": "finished"}))
    assert exported_start("prior.yaml", tmp_path, more=words) == place / "export"


def test_changed_settings_are_another_arm_and_another_seed_is_not(tmp_path):
    starts = {seed: Path(f"base/seed{seed}/export") for seed in (0, 1)}
    one = run_dir(Arm("a", ("--config", "none.yaml"), starts), 0, tmp_path)
    assert one.parent.parent == tmp_path / "runs"
    assert run_dir(Arm("a", ("--config", "none.yaml"), starts), 1, tmp_path) == one.parent / "seed1"
    changed = run_dir(Arm("a", ("--config", "other.yaml"), starts), 0, tmp_path)
    assert changed.parent != one.parent
    moved = {0: Path("other_base/seed0/export")}
    assert run_dir(Arm("a", ("--config", "none.yaml"), moved), 0, tmp_path).parent != one.parent


def test_what_stands_in_a_config_counts_as_settings(tmp_path):
    config = tmp_path / "steps.yaml"
    arm = Arm("a", ("--config", str(config)))
    places = []
    for text in ("max_steps: 1", "max_steps: 2", "max_steps: 1"):
        config.write_text(text)
        places.append(run_dir(arm, 0, tmp_path))
    assert places[0] == places[2] != places[1]


def test_an_arm_starts_from_its_own_seeds_folder():
    arm = Arm("a", ("--config", "none.yaml"), {2: Path("bases/seed2/export")})
    assert arm.words(2)[-2:] == ("--model.init_args.init_from", "bases/seed2/export")
