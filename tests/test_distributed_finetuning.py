"""Two gloo processes learn, and pass over, what one does."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from models.memory_lm import load_memory_lm
from tests.conftest import ROOT
from tests.lit_modules.tiny_export import export_tiny_model, finetuning


def run(folder: Path, name: str, sections: dict[str, dict], hardware: str) -> Path:
    config = {**sections, "trainer": dict(sections["trainer"])}
    del config["trainer"]["devices"]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", f"{name}.yaml", "--config", str(ROOT / "configs/hardware" / hardware)]
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "fit", *words, "--run_dir", name],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return folder / name


def column(run: Path, key: str) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_pass_over_the_same_steps_as_one(workdir):
    """With SGD: AdamW divides by moments, and a rounding would grow to a step of full size."""
    export = export_tiny_model(workdir / "export")
    sections = finetuning(export, stop_below_nats=4.5, optimizer="sgd", learning_rate=0.3)
    one, two = (
        run(workdir, hardware, sections, f"{hardware}.yaml") for hardware in ("cpu", "ddp2_cpu")
    )
    taken = column(one, "train/steps_taken")
    assert taken == column(two, "train/steps_taken")
    assert 0 < taken[-1] < len(taken)
    losses = [column(folder, "train/nll_nats_per_token") for folder in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    models = [load_memory_lm(folder / "export").state_dict() for folder in (one, two)]
    torch.testing.assert_close(*models, rtol=1e-3, atol=1e-4)
