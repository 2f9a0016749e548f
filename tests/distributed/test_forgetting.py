"""Two gloo processes measure, and stop, as one does."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.callbacks.remember.forgetting.test_forgetting_evaluation import PROBES, callback
from tests.conftest import ROOT
from tests.lit_modules.remember.tiny_export import export_tiny_model, finetuning
from tests.train_process import run_train, run_train_on_two

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def run(folder: Path, name: str, num_processes: int, **options: Any) -> dict[str, Any]:
    config = finetuning(folder / "export", optimizer="sgd", learning_rate=0.5)
    config["trainer"] |= {"limit_val_batches": 0, "callbacks+": [callback(**options)]}
    del config["trainer"]["devices"]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    train, hardware = {1: (run_train, "cpu.yaml"), 2: (run_train_on_two, "ddp2_cpu.yaml")}[
        num_processes
    ]
    overlay = ROOT / "configs" / "hardware" / hardware
    train(folder, "fit", "--config", f"{name}.yaml", "--config", overlay, "--run_dir", name)
    return json.loads((folder / name / "forgetting.json").read_text())


def test_two_processes_measure_and_stop_as_one(workdir):
    """Small batches, so that one process has more to do, and one probe with a single row."""
    export_tiny_model(workdir / "export")
    alone = {"class_path": PROBES["choices"]["class_path"]}
    alone["init_args"] = {"source": {"path": "embedded"}, "num_rows": 1}
    probes = {name: {**spec, "init_args": dict(spec["init_args"])} for name, spec in PROBES.items()}
    for spec in probes.values():
        spec["init_args"]["tokens_per_batch"] = 150
    options = {"probes": probes | {"alone": alone}, "every_n_visits": 2}
    one = run(workdir, "one", 1, **options)
    two = run(workdir, "two", 2, **options)
    assert two["probes"] == one["probes"]
    assert len(one["rows"]) == len(two["rows"]) > 50
    for alone_row, shared_row in zip(one["rows"], two["rows"], strict=True):
        names = ("step", "visit", "probe", "metric")
        assert [alone_row[name] for name in names] == [shared_row[name] for name in names]
        # Before training to the rounding of a sum; then also to what a gradient's sum grows to.
        rel = 1e-6 if alone_row["step"] == 0 else 1e-3
        assert shared_row["value"] == pytest.approx(alone_row["value"], rel=rel), alone_row
    nll = [r["value"] for r in one["rows"] if (r["probe"], r["metric"]) == (
        "new", "answer_nll_nats_per_token")]  # fmt: skip
    assert nll[-1] < nll[0] - 0.5

    falling = {
        "class_path": "tests.callbacks.remember.forgetting.test_forgetting_evaluation.Falling",
        "init_args": {"role": "retained"},
    }
    stopped = run(
        workdir,
        "stopped",
        2,
        probes={"kept": falling},
        every_n_visits=1,
        budget={"max_drop": 25},
    )
    summary = json.loads((workdir / "stopped" / "summary.json").read_text())
    assert (summary["processes"], summary["status"], summary["steps"]) == (2, "finished", 12)
    assert stopped["stopped"].startswith("at step 12, after 3 visits: kept accuracy fell by 30.00")
