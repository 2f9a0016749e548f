"""What a run leaves behind, how it is named, resumed and stopped."""

import csv
import json
import time
from pathlib import Path

import pytest
import torch

from triptych.callbacks.run.nan_guard import NonFiniteError
from triptych.cli import TriptychCLI, main


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def losses(run: Path) -> dict[int, str]:
    """Training loss by step, as written."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): row["train/loss_nats"] for row in rows if row["train/loss_nats"]}


@pytest.mark.learning_curves
def test_run_directory_holds_everything(tiny):
    run = main(tiny("--checkpoint.monitor", "val/loss_nats", trainer={"log_every_n_steps": 1}))
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert files == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "export/README.md",
        "export/SHA256SUMS",
        "export/config.yaml",
        "export/tokenizer.json",
        "export/weights.pt",
        "figures/learning_curves.png",
        "metrics.csv",
        "report.html",
        "samples/step_8.json",
        "summary.json",
    }
    assert len(losses(run)) == 8


def test_summary_says_what_studies_need(tiny):
    content = summary(main(tiny("--run_name", "mine")))
    assert content["status"] == "finished"
    assert content["run_name"] == "mine"
    assert (content["seed"], content["steps"], content["device"]) == (42, 8, "cpu")
    assert set(content["metrics"]) >= {"train/loss_nats", "val/loss_nats", "lr/dense"}
    assert content["data_fingerprint"] == "rows-16"
    assert content["last_checkpoint"] == "checkpoints/last.ckpt"
    assert content["best_checkpoint"] is None
    assert content["export"] == "export"
    assert content["tracking"] is None


def test_names_are_distinct_and_meaningful(tiny, workdir):
    runs = [main(tiny("--seed_everything", "7")) for _ in range(2)]
    assert len(set(runs)) == 2
    for run in runs:
        assert run.parent == Path("runs/tiny")
        assert "seed7" in run.name
        assert summary(run)["run_name"].startswith("tiny-seed7-")


def test_run_name_and_run_dir_can_be_chosen(tiny):
    assert main(tiny("--run_name", "mine")) == Path("runs/tiny/mine")
    assert main(tiny("--experiment", "group/a", "--run_name", "mine")) == Path("runs/group/a/mine")
    assert main(tiny("--run_dir", "elsewhere/here")) == Path("elsewhere/here")


def test_another_run_is_never_overwritten(tiny):
    run = main(tiny("--run_dir", "here"))
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match=r"already holds a run.*--ckpt_path here/checkpoints"):
        main(tiny("--run_dir", "here"))
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_validate_writes_its_own_run(tiny):
    run = main(tiny())
    words = tiny("--ckpt_path", run / "checkpoints" / "last.ckpt")
    again = main(["validate", *words[1:]])
    assert again != run
    assert summary(again)["metrics"] == {"val/loss_nats": summary(run)["metrics"]["val/loss_nats"]}


def test_fast_dev_run_still_leaves_a_run(tiny):
    run = main(tiny("--trainer.fast_dev_run", "2"))
    assert summary(run)["status"] == "finished"
    assert summary(run)["steps"] == 2
    assert (run / "export" / "weights.pt").is_file()


@pytest.mark.parametrize("in_place", [False, True], ids=["new directory", "same directory"])
def test_resumed_run_equals_an_uninterrupted_one(tiny, in_place):
    logging = {"log_every_n_steps": 1, "max_epochs": 2}
    whole = losses(main(tiny("--run_dir", "whole", trainer=logging)))
    stopped = tiny(
        *("--run_dir", "part", "--checkpoint.every_n_train_steps", "8"),
        *("--model.init_args.interrupt_at_step", "11"),
        trainer=logging,
    )
    with pytest.raises(SystemExit):
        main(stopped)
    assert summary(Path("part"))["status"] == "interrupted"

    there = ["--run_dir", "part"] if in_place else ["--run_dir", "resumed"]
    run = main(tiny("--ckpt_path", "part/checkpoints/last.ckpt", *there, trainer=logging))
    assert list(losses(run)) == list(range(1, 17)) if in_place else list(range(9, 17))
    assert {step: loss for step, loss in whole.items() if step in losses(run)} == losses(run)
    weights = [
        torch.load(Path(folder) / "checkpoints" / "last.ckpt")["state_dict"]["model.weight"]
        for folder in ("whole", run)
    ]
    assert torch.equal(*weights)


def test_progress_bar_checkpoints_and_loggers_can_be_switched_off(tiny):
    cli = TriptychCLI(
        tiny(
            *("--trainer.enable_progress_bar", "false", "--trainer.enable_checkpointing", "false"),
            *("--trainer.logger", "false"),
        )
    )
    assert cli.trainer.progress_bar_callback is None
    assert cli.trainer.checkpoint_callback is None
    assert not (cli.run.path / "metrics.csv").exists()
    assert summary(cli.run.path)["status"] == "finished"


def test_interrupted_run_says_so(tiny):
    with pytest.raises(SystemExit):
        main(tiny("--run_dir", "here", "--model.init_args.interrupt_at_step", "3"))
    assert summary(Path("here"))["status"] == "interrupted"


def test_nan_loss_stops_before_anything_good_is_lost(tiny):
    words = ["--run_dir", "here", "--checkpoint.every_n_train_steps", "2"]
    with pytest.raises(NonFiniteError) as error:
        main(tiny(*words, "--model.init_args.nan_at_step", "5"))
    message = str(error.value)
    assert "loss is nan at step 5, on a batch from text, facts" in message
    checkpoint = Path("here/checkpoints/last.ckpt")
    assert str(checkpoint.resolve()) in message
    state = torch.load(checkpoint)
    assert state["global_step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())
    assert summary(Path("here"))["status"] == "failed"
    # and it is usable
    with pytest.warns(UserWarning, match="your dataloader is not resumable"):
        run = main(tiny("--ckpt_path", checkpoint, "--run_dir", "rest"))
    assert summary(run)["steps"] == 8


def test_nan_gradient_never_reaches_a_checkpoint(tiny):
    words = ["--run_dir", "here", "--checkpoint.every_n_train_steps", "1"]
    with pytest.raises(NonFiniteError, match=r"parameter model.weight is not finite at step 6"):
        main(tiny(*words, "--model.init_args.grad_nan_at_step", "5"))
    assert torch.load("here/checkpoints/last.ckpt")["global_step"] == 5


def test_summary_is_written_even_if_the_data_are_gone_at_the_end(tiny, monkeypatch):
    def gone(self):
        raise FileNotFoundError("gone")

    started = time.monotonic()
    monkeypatch.setattr("tests.tiny_lightning.TinyData.fingerprint", gone)
    run = main(tiny("--trainer.fast_dev_run", "1"))
    assert summary(run)["data_fingerprint"] is None
    assert 0 < summary(run)["wall_seconds"] <= time.monotonic() - started
