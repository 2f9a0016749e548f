"""Callbacks one by one, on a trainer that does almost nothing."""

import csv
import inspect
import json
import pickle
import re
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.discovery import classes_in
from tests.tiny_lightning import TinyData, TinyModule
from triptych import callbacks
from triptych.callbacks.run.checkpoint import Checkpoint
from triptych.callbacks.run.export_model import ExportModel
from triptych.callbacks.run.learning_rates import LearningRates
from triptych.callbacks.run.progress import Progress
from triptych.callbacks.run.sample_table import SampleTable
from triptych.callbacks.run.step_seeds import StepSeeds
from triptych.callbacks.run.summary_table import SummaryTable
from triptych.callbacks.tracking.local_metrics import LocalMetrics
from triptych.cli import main


def all_callbacks() -> list[type[Callback]]:
    """Every callback of ours that can be made without arguments."""
    return [
        value
        for value in classes_in(callbacks, Callback)
        if all(p.default is not p.empty for p in inspect.signature(value).parameters.values())
    ]


def fit(
    folder: Path, *used: Callback, module: TinyModule | None = None, **options: object
) -> Trainer:
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(used),
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, Progress) for callback in used),
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(module or TinyModule(vocab_size=3), TinyData(rows=8))
    return trainer


@pytest.mark.parametrize("kind", all_callbacks(), ids=lambda kind: kind.__name__)
def test_contract(kind):
    """It can be sent to another process, and its state has a name of its own."""
    callback = kind()
    state = callback.state_dict()
    assert pickle.loads(pickle.dumps(callback)).state_dict() == state
    if state:
        assert callback.state_key == kind.__name__
    assert inspect.getdoc(kind)


def test_export_holds_the_best_model(workdir):
    class Worse(TinyModule):
        """Its score gets worse after the first validation."""

        def on_validation_epoch_end(self) -> None:
            self.log("score", float(self.current_epoch))

    module = Worse(vocab_size=3)
    after_epochs = []

    class Keep(Callback):
        def on_validation_end(self, trainer, pl_module):
            after_epochs.append(pl_module.model.weight.detach().clone())

    fit(
        workdir,
        *(Keep(), ExportModel(), Checkpoint(monitor="score", mode="min")),
        module=module,
        max_epochs=3,
        enable_checkpointing=True,
    )
    exported = torch.load(workdir / "export" / "weights.pt")["weight"]
    assert torch.equal(exported, after_epochs[0])
    assert torch.load(workdir / "checkpoints" / "best.ckpt")["epoch"] == 0
    assert torch.load(workdir / "checkpoints" / "last.ckpt")["epoch"] == 2


def test_export_without_monitor_holds_the_last_model(workdir):
    module = TinyModule(vocab_size=3)
    fit(workdir, ExportModel(), module=module)
    exported = torch.load(workdir / "export" / "weights.pt")["weight"]
    assert torch.equal(exported, module.model.weight)


def test_modules_without_model_or_samples_are_left_alone(workdir):
    module = TinyModule(vocab_size=3)
    module.forward = module.model.forward
    del module.sample_rows

    class Bare(TinyModule):
        def __init__(self) -> None:
            super().__init__(vocab_size=3)
            self.net = self.model
            del self.model

        def training_step(self, batch, batch_idx):
            return self.net(batch["x"]).square().mean()

        def validation_step(self, batch, batch_idx):
            self.sample_rows = []

    fit(workdir, ExportModel(), SampleTable(), SummaryTable(), module=Bare())
    assert not (workdir / "export").exists()
    assert not (workdir / "samples").exists()


def test_samples_are_written_at_each_validation(workdir):
    fit(workdir, SampleTable(max_rows=1), max_epochs=2)
    files = sorted((workdir / "samples").iterdir())
    assert [file.name for file in files] == ["step_4.json", "step_8.json"]
    assert json.loads(files[0].read_text())[0]["question"] == "2 + 2?"


def test_learning_rates_have_the_names_of_their_groups(workdir):
    trainer = fit(workdir, LearningRates())
    assert float(trainer.callback_metrics["lr/dense"]) == pytest.approx(0.1)


def test_step_seeds_do_not_depend_on_what_was_drawn_before(workdir):
    class Draws(Callback):
        """Draws numbers between the steps, as sampling in validation does."""

        def on_train_batch_end(self, *args):
            torch.rand(5)

    weights = []
    for others in ([], [Draws()]):
        torch.manual_seed(1)
        module = TinyModule(vocab_size=3)
        losses = []
        step = module.training_step
        module.training_step = lambda *a, step=step, losses=losses: (
            losses.append(step(*a)) or losses[-1]
        )
        fit(workdir, StepSeeds(), *others, module=module)
        weights.append([loss.item() for loss in losses])
    assert weights[0] == weights[1]
    assert len(set(weights[0])) == len(weights[0])


def test_progress_prints_lines_where_there_is_no_terminal(workdir, capsys):
    fit(workdir, Progress(seconds_between_lines=0.0))
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"\d\d:\d\d:\d\d  step 1/4  ETA 0:00:\d\d  train/loss_nats ", lines[0])
    assert re.match(r"\S+  step 4/4  ETA 0:00:00  validation  val/loss_nats ", lines[-1])
    assert len(lines) == 5  # four steps and a validation
    fit(workdir, Progress(seconds_between_lines=1000.0))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_summary_table_shows_metrics_rows_and_paths(workdir, capsys):
    fit(workdir, SummaryTable())
    shown = capsys.readouterr().out
    for expected in ("after 4 steps", "val/loss_nats", "a row of the module", "42 units"):
        assert expected in shown


def test_local_metrics_go_on_where_they_left_off(tmp_path):
    for step, values in ((1, {"loss": 1.0}), (2, {"loss": 0.5, "new": 3.0})):
        logger = LocalMetrics(tmp_path)
        logger.log_metrics(values, step)
        logger.finalize("success")
    assert rows_without_time(tmp_path) == [
        {"loss": "1.0", "new": "", "step": "1"},
        {"loss": "0.5", "new": "3.0", "step": "2"},
    ]


def test_a_line_that_a_kill_cut_short_is_dropped_by_the_run_that_goes_on(tmp_path):
    logger = LocalMetrics(tmp_path)
    logger.log_metrics({"loss": 1.0}, 1)
    logger.finalize("success")
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("0.5")
    again = LocalMetrics(tmp_path)
    again.log_metrics({"loss": 0.25}, 2)
    again.finalize("success")
    assert [row["loss"] for row in rows_without_time(tmp_path)] == ["1.0", "0.25"]


def rows_without_time(folder: Path) -> list[dict[str, str]]:
    """The rows of a folder's metrics; their times are of the present."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(abs(float(row.pop("time")) - time.time()) < 60 for row in rows)
    return rows


def test_checkpoint_intervals(workdir):
    saved = []

    class Remember(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            saved.append(checkpoint["global_step"])

    fit(workdir, Remember(), Checkpoint(every_n_train_steps=3), enable_checkpointing=True)
    assert saved == [3, 4]  # of four steps, and after the validation
    fit(workdir, Remember(), Checkpoint(minutes_between=1e-9), enable_checkpointing=True)
    assert saved[2:] == [1, 2, 3, 4, 4]


def test_checkpoint_at_the_end_without_validation(workdir):
    fit(workdir, Checkpoint(), enable_checkpointing=True, limit_val_batches=0)
    assert torch.load(workdir / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_checkpoint_says_what_is_wrong_with_its_settings(workdir):
    with pytest.raises(ValueError, match=r"no metric val/typo.*among val/loss_nats, .*last\.ckpt"):
        fit(workdir, Checkpoint(monitor="val/typo"), enable_checkpointing=True)


def test_summary_table_is_not_wrapped_in_a_file(tiny, capsys):
    run = main(tiny("--run_dir", "a_rather_long_name/" * 8 + "run"))
    assert str(run) in capsys.readouterr().out


def test_bar_in_a_terminal_counts_the_steps_of_the_run(tiny, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    main(tiny(trainer={"max_epochs": -1, "max_steps": 12}))  # an epoch has 8
    shown = capsys.readouterr().out
    assert "Training" in shown
    assert "12/12" in shown
    assert "loss_nats: " in shown
    assert "v_num" not in shown
    assert "Epoch" not in shown
