"""A run killed in mid-epoch goes on bit for bit."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.lit_modules.remember.test_memory_pretraining import TINY
from tests.train_process import run_train, start_train

pytestmark = pytest.mark.slow

KEY = "train/nll_nats_per_token"


def losses(run: Path) -> dict[int, str]:
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(KEY)]
    return {int(row["step"]): row[KEY] for row in rows}


def fit(num_workers: int, *words: str) -> tuple[str, ...]:
    workers = ("--data.init_args.num_workers", str(num_workers))
    return ("fit", "--config", "tiny.yaml", *workers, *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an uninterrupted run has been, without worker processes."""
    folder = tmp_path_factory.mktemp("runs")
    config = {key: dict(section) for key, section in TINY.items()}
    config["trainer"] |= {"max_steps": 40, "val_check_interval": 1000, "accumulate_grad_batches": 2}
    config["checkpoint"] = {"every_n_train_steps": 7}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    run_train(folder, *fit(0, "--run_dir", "whole"))
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_remaining_losses_equal_those_of_an_uninterrupted_run(folder, num_workers):
    name = f"killed-{num_workers}"
    running = start_train(
        folder, *fit(num_workers, "--run_dir", name, "--trainer.max_time", "00:00:10:00")
    )
    deadline = time.monotonic() + 240
    while not (folder / name / "checkpoints" / "last.ckpt").exists():
        assert running.process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(running.process.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL

    checkpoint, resumed_name = f"{name}/checkpoints/last.ckpt", f"resumed-{num_workers}"
    run_train(folder, *fit(num_workers, "--run_dir", resumed_name, "--ckpt_path", checkpoint))
    whole, resumed = losses(folder / "whole"), losses(folder / resumed_name)
    assert len(resumed) >= 10
    assert max(resumed) == max(whole) == 40
    assert resumed == {step: whole[step] for step in resumed}
