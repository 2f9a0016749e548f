"""Two gloo processes learn, and pass over, what one does."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import ROOT
from tests.lit_modules.remember.tiny_export import export_tiny_model, finetuning
from tests.train_process import run_train, run_train_on_two
from triptych.models.remember.memory_lm import load_memory_lm

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def run(folder: Path, name: str, sections: dict[str, dict], num_processes: int) -> Path:
    config = {**sections, "trainer": dict(sections["trainer"])}
    del config["trainer"]["devices"]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    train, hardware = {1: (run_train, "cpu.yaml"), 2: (run_train_on_two, "ddp2_cpu.yaml")}[
        num_processes
    ]
    overlay = ROOT / "configs" / "hardware" / hardware
    train(folder, "fit", "--config", f"{name}.yaml", "--config", overlay, "--run_dir", name)
    return folder / name


def column(run: Path, key: str) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def test_two_processes_pass_over_the_same_steps_as_one(workdir):
    """With SGD: AdamW divides by moments, and a rounding would grow to a step of full size."""
    export = export_tiny_model(workdir / "export")
    sections = finetuning(export, stop_below_nats=4.5, optimizer="sgd", learning_rate=0.3)
    one = run(workdir, "one", sections, 1)
    two = run(workdir, "two", sections, 2)
    taken = column(one, "train/steps_taken")
    assert taken == column(two, "train/steps_taken")
    assert 0 < taken[-1] < len(taken)
    assert_same(one, two, "train/nll_nats_per_token")


def test_two_processes_hold_on_to_the_past_as_one(workdir):
    """Replay of two rows on each against four on one; the same penalties."""
    export = export_tiny_model(workdir / "export")
    folders = []
    for name, batch_size, num_processes in (("one", 4, 1), ("two", 2, 2)):
        sections = finetuning(export, optimizer="sgd", learning_rate=0.2)
        facts = {"facts": {"num_facts": 30}, "context_length": 64, "batch_size": batch_size}
        data = {"class_path": "triptych.datamodules.remember.facts.facts.Facts", "init_args": facts}
        sections["trainer"] |= {
            "limit_train_batches": 5,
            "callbacks+": [
                {
                    "class_path": "triptych.callbacks.remember.replay.Replay",
                    "init_args": {"data": data},
                },
                {"class_path": "triptych.callbacks.remember.kl_to_base.KLToBase"},
                {
                    "class_path": "triptych.callbacks.remember.elastic_weight_consolidation"
                    ".ElasticWeightConsolidation",
                    "init_args": {"data": data, "num_rows": 5, "weight": 10.0},
                },
            ],
        }
        folders.append(run(workdir, name, sections, num_processes))
    assert_same(
        *folders,
        "train/nll_nats_per_token",
        "train/replay_nll_nats_per_token",
        "train/kl_to_base_nats_per_token",
        "train/ewc_penalty_nats",
    )


def assert_same(one: Path, two: Path, *keys: str) -> None:
    """Up to the rounding of sums over two processes."""
    for key in keys:
        assert len(column(one, key)) >= 5
        assert column(two, key) == pytest.approx(column(one, key), rel=1e-3, abs=1e-6), key
    models = [load_memory_lm(folder / "export").state_dict() for folder in (one, two)]
    torch.testing.assert_close(*models, rtol=1e-3, atol=1e-4)
