"""A run killed in mid-epoch goes on bit for bit."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.lit_modules.test_memory_pretraining import TINY

ROOT = Path(__file__).resolve().parents[1]
KEY = "train/nll_nats_per_token"


def losses(run: Path) -> dict[int, str]:
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(KEY)]
    return {int(row["step"]): row[KEY] for row in rows}


def start(folder: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "tiny.yaml", *words]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_remaining_losses_equal_those_of_an_uninterrupted_run(workdir, num_workers):
    config = {key: dict(section) for key, section in TINY.items()}
    config["trainer"] |= {"max_steps": 40, "val_check_interval": 1000, "accumulate_grad_batches": 2}
    config["data"] = {
        **config["data"],
        "init_args": {**config["data"]["init_args"], "num_workers": num_workers},
    }
    config["checkpoint"] = {"every_n_train_steps": 7}
    (workdir / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert start(workdir, "--run_dir", "whole").wait(timeout=300) == 0

    killed = workdir / "killed"
    process = start(workdir, "--run_dir", "killed", "--trainer.max_time", "00:00:10:00")
    deadline = time.monotonic() + 240
    while not (killed / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    checkpoint = "killed/checkpoints/last.ckpt"
    assert start(workdir, "--run_dir", "resumed", "--ckpt_path", checkpoint).wait(300) == 0
    whole, resumed = losses(workdir / "whole"), losses(workdir / "resumed")
    assert len(resumed) >= 10
    assert max(resumed) == max(whole) == 39
    assert resumed == {step: whole[step] for step in resumed}
