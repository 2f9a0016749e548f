"""Pretraining with shards on two gloo processes, by the command line."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.lit_modules.remember.test_memory_pretraining import TINY
from tests.train_process import run_train, run_train_on_two
from triptych import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def run(folder: Path, name: str, overlay: str, *words: object, **model: Any) -> Path:
    config = {key: dict(section) for key, section in TINY.items()}
    del config["trainer"]["devices"]
    batch_size = 4 if overlay == "cpu.yaml" else 2
    arguments = {**config["data"]["init_args"], "batch_size": batch_size, "eval_batch_size": 4}
    config["data"] = {**config["data"], "init_args": arguments}
    arguments = {**config["model"]["init_args"], "schedule_steps": 4} | model
    config["model"] = {**config["model"], "init_args": arguments}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    train = run_train if overlay == "cpu.yaml" else run_train_on_two
    hardware = ROOT / "configs" / "hardware" / overlay
    train(
        folder, "fit", "--config", f"{name}.yaml", "--config", hardware, "--run_dir", name, *words
    )
    return folder / name


def numbers(run: Path) -> dict[tuple[str, str], float]:
    """Every number of a run's metrics, by step and name, without times."""
    found = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if value and key.startswith(("train/", "val/")) and "second" not in key:
                    found[row["step"], key] = float(value)
    return found


@pytest.mark.parametrize("memory", [True, False])
def test_two_sharded_processes_equal_one(workdir, memory):
    """Losses, validation and exports; the memory of both layers is one shared table."""
    model = {} if memory else {"memory": None}
    one = run(workdir, "one", "cpu.yaml", **model)
    two = run(workdir, "two", "fsdp2_cpu.yaml", **model)
    assert len(numbers(one)) >= 14
    assert numbers(two) == pytest.approx(numbers(one), rel=1e-5, abs=1e-6)
    exports = [load_file(folder / "export" / "model.safetensors") for folder in (one, two)]
    torch.testing.assert_close(*exports, rtol=1e-4, atol=1e-5)
    first, second = ((folder / "export" / "config.json").read_text() for folder in (one, two))
    assert first == second


def test_a_resumed_sharded_run_repeats_to_the_bit(workdir):
    """bfloat16 values are rounded at random, and moments are in float32."""
    words = ("--trainer.precision", "bf16-mixed")
    model = {"memory": TINY["model"]["init_args"]["memory"] | {"value_dtype": "bfloat16"}}
    whole = run(workdir, "whole", "fsdp2_cpu.yaml", *words, **model)
    half = run(workdir, "half", "fsdp2_cpu.yaml", *words, "--trainer.max_steps", 2, **model)
    last = half / "checkpoints" / "last.ckpt"
    assert sorted(path.name for path in half.joinpath("checkpoints").iterdir()) == ["last.ckpt"]
    assert last.is_dir()
    resumed = run(workdir, "resumed", "fsdp2_cpu.yaml", *words, "--ckpt_path", last, **model)
    first, second = (folder / "export" / "model.safetensors" for folder in (whole, resumed))
    assert first.read_bytes() == second.read_bytes()
    assert load_file(first)["memory_values.0.weight"].dtype == torch.bfloat16
    later = {place: value for place, value in numbers(whole).items() if int(place[0]) > 2}
    assert later
    assert {place: numbers(resumed)[place] for place in later} == later
