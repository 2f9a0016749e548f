"""Loggers of other libraries get metrics, parameters, tags, tables, figures and files."""

import json
import shutil
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from tests.tiny_lightning import TinyModule
from triptych.callbacks.tracking.other_loggers import receiver_of
from triptych.cli import main


class TableLogger(Logger):
    """Has the methods of `WandbLogger`, and fails where it is told to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.taken: dict[str, object] = {}

    name = version = "tables"

    def log_metrics(self, metrics, step=None):
        self.taken["metrics"] = metrics

    def log_hyperparams(self, params):
        self.taken.update(params)

    def log_table(self, key, columns, data, step):
        if self.fails:
            raise OSError("no space")
        self.taken[key] = (columns, data, step)

    def log_image(self, key, images, step):
        self.taken[key] = images


class Drawing(TinyModule):
    def draw_figures(self):
        figure = Figure()
        figure.subplots().plot(self.losses)
        return {"drawn": figure}


@pytest.mark.learning_curves
def test_lightnings_mlflow_logger_gets_everything_beside_the_local_metrics(
    tiny, workdir, empty_store
):
    shutil.copy(empty_store, workdir / "theirs.db")
    words = ["--trainer.logger", "lightning.pytorch.loggers.MLFlowLogger"]
    words += ["--trainer.logger.tracking_uri", f"sqlite:///{workdir}/theirs.db"]
    words += ["--trainer.log_every_n_steps", "2"]
    model = {"class_path": f"{Drawing.__module__}.{Drawing.__name__}"}
    run_dir = main(tiny(*words, model=model))
    assert "train/loss_nats" in (run_dir / "metrics.csv").read_text()
    client = MlflowClient(f"sqlite:///{workdir}/theirs.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {"train/loss_nats", "val/loss_nats"} <= set(run.data.metrics)
    assert run.data.params["model"] == "Drawing"
    assert run.data.tags["subcommand"] == "fit"
    (table,) = client.list_artifacts(run.info.run_id, "samples")
    assert table.path == "samples/step_8.json"
    found = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    assert found == {"figures/learning_curves.png", "figures/drawn.png"}
    assert (run_dir / "figures" / "drawn.png").stat().st_size > 1000
    assert "config.yaml" in {file.path for file in client.list_artifacts(run.info.run_id)}


@pytest.mark.learning_curves
def test_tensorboard_files_hold_everything(tiny, workdir):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--trainer.logger", "lightning.pytorch.loggers.TensorBoardLogger"]
    run_dir = main(tiny(*words, "--trainer.logger.save_dir", "tb"))
    assert (run_dir / "metrics.csv").is_file()
    (folder,) = {file.parent for file in Path("tb").rglob("events.out*")}
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert "val/loss_nats" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["figures/learning_curves"]
    (image,) = events.Images("figures/learning_curves")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    (table,) = events.Tensors("samples/text_summary")
    assert b"| question | " in table.tensor_proto.string_val[0]
    (config,) = events.Tensors("config.yaml/text_summary")
    assert b"TinyModule" in config.tensor_proto.string_val[0]
    assert "model: TinyModule" in (folder / "hparams.yaml").read_text()


def test_a_logger_is_asked_for_what_it_can_do():
    logger = TableLogger()
    receiver = receiver_of(logger)
    receiver.table("samples", ["a", "b"], [[1, ["x"]], [None, {"y": 2}]], 3)
    receiver.image("figures/a", Path("a.png"), 3)
    receiver.tags({"panel": "remember"})
    assert logger.taken["samples"] == (["a", "b"], [[1, '["x"]'], [None, '{"y": 2}']], 3)
    assert logger.taken["figures/a"] == ["a.png"]
    assert logger.taken["tags/panel"] == "remember"


def test_a_logger_that_fails_does_not_stop_the_run_and_is_said_once(caplog):
    receiver = receiver_of(TableLogger(fails=True))
    for step in range(3):
        receiver.table("samples", ["a"], [[1]], step)
    assert caplog.text.count("TableLogger did not take a part of the run: OSError: no space") == 1


def test_a_csv_logger_takes_numbers_alone(tmp_path):
    assert receiver_of(CSVLogger(tmp_path)) is None


def test_logger_false_turns_all_of_them_off(tiny):
    run_dir = main(tiny("--trainer.logger", "false", "--tracking.uri", "sqlite:///mlflow.db"))
    assert not (run_dir / "metrics.csv").exists()
    assert not Path("mlflow.db").exists()
    assert json.loads((run_dir / "summary.json").read_text())["tracking"] is None
