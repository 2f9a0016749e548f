"""Tracking with a real store, with none, and with one that never answers."""

import json
import shutil
import socket
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.tracking import MlflowClient

from triptych.callbacks.run.nan_guard import NonFiniteError
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking, resend
from triptych.cli import main

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens, the connection is refused


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to create."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def client(empty_store: Path, workdir: Path) -> MlflowClient:
    """The store that runs use unless they are told otherwise."""
    shutil.copy(empty_store, workdir / "mlflow.db")
    return MlflowClient(f"sqlite:///{workdir}/mlflow.db")


def tracked(uri: str = "sqlite:///mlflow.db", **settings: object) -> dict:
    return {"tracking": {"uri": uri, **settings}}


def only_run(client: MlflowClient, experiment: str = "tiny") -> mlflow.entities.Run:
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    return run


def artifacts(client: MlflowClient, run_id: str, folder: str = "") -> set[str]:
    return {file.path for file in client.list_artifacts(run_id, folder)}


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.mark.learning_curves
def test_run_is_in_the_store_with_everything(tiny, client):
    run_dir = main(tiny(**tracked(tags={"purpose": "test"}), trainer={"log_every_n_steps": 2}))
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == summary(run_dir)["run_name"]
    assert summary(run_dir)["tracking"]["run_id"] == run.info.run_id
    assert set(run.data.metrics) >= {"train/loss_nats", "val/loss_nats", "lr/dense"}
    assert {"code_version", "data_fingerprint", "purpose"} <= set(run.data.tags)
    assert run.data.tags["data_fingerprint"] == "rows-16"
    assert run.data.params["beta"] == "0.5"
    assert artifacts(client, run.info.run_id) == {"config.yaml", "figures", "samples"}
    assert artifacts(client, run.info.run_id, "samples") == {"samples/step_8.json"}
    assert not (run_dir / "tracking_spool.jsonl").exists()


def test_artifact_is_the_composed_configuration(tiny, client, workdir):
    run_dir = main(tiny(**tracked()))
    text = mlflow.artifacts.load_text(f"{only_run(client).info.artifact_uri}/config.yaml")
    assert text == (run_dir / "config.yaml").read_text()
    assert yaml.safe_load(text)["trainer"]["use_distributed_sampler"] is False


def test_steps_of_metrics_are_kept(tiny, client):
    main(tiny(**tracked(), trainer={"log_every_n_steps": 2}))
    history = client.get_metric_history(only_run(client).info.run_id, "train/loss_nats")
    assert [point.step for point in history] == [2, 4, 6, 8]


def test_failed_and_interrupted_runs_are_marked(tiny, client):
    with pytest.raises(NonFiniteError):
        main(tiny("--experiment", "fails", "--model.init_args.nan_at_step", "1", **tracked()))
    with pytest.raises(SystemExit):
        main(tiny("--experiment", "stops", "--model.init_args.interrupt_at_step", "1", **tracked()))
    assert only_run(client, "fails").info.status == "FAILED"
    assert only_run(client, "stops").info.status == "KILLED"


def test_run_resumed_in_place_goes_on_with_the_same_run(tiny, client):
    words = ["--run_dir", "here", "--experiment", "tiny"]
    main(tiny(*words, **tracked()))
    again = ["--ckpt_path", "here/checkpoints/last.ckpt", "--trainer.max_epochs", "2"]
    main(tiny(*words, *again, **tracked()))
    run = only_run(client)
    assert run.info.status == "FINISHED"
    steps = {point.step for point in client.get_metric_history(run.info.run_id, "val/loss_nats")}
    assert steps == {8, 16}


@pytest.mark.learning_curves
def test_unreachable_server_stops_nothing_and_is_reported(tiny, client, caplog):
    run_dir = main(tiny(**tracked(NOBODY), trainer={"log_every_n_steps": 2}))
    assert summary(run_dir)["status"] == "finished"
    unsent = summary(run_dir)["tracking"]["num_unsent"]
    spool = (run_dir / "tracking_spool.jsonl").read_text().splitlines()
    assert len(spool) == unsent > 3
    assert f"did not take {unsent} records" in caplog.text
    assert (
        f"python -m triptych.callbacks.tracking.mlflow_tracking {run_dir} --tracking_uri"
        in caplog.text
    )
    assert "train/loss_nats" in (run_dir / "metrics.csv").read_text()

    # later, when a store is there
    assert resend(run_dir, "sqlite:///mlflow.db") == 0
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert "val/loss_nats" in run.data.metrics
    assert artifacts(client, run.info.run_id) == {"config.yaml", "figures", "samples"}
    assert not (run_dir / "tracking_spool.jsonl").exists()


def test_server_that_never_answers_holds_nothing_up(tiny, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        run_dir = main(tiny(**tracked(uri, flush_seconds=0.2)))
        content = summary(run_dir)
    assert content["status"] == "finished"
    assert content["wall_seconds"] < 30  # half of one request
    spool = (run_dir / "tracking_spool.jsonl").read_text().splitlines()
    assert len(spool) == content["tracking"]["num_unsent"] > 3


def test_local_metrics_alone_with_null(tiny):
    run_dir = main(tiny(**tracked(None)))
    assert summary(run_dir)["tracking"] is None
    assert (run_dir / "metrics.csv").is_file()
    assert not Path("mlflow.db").exists()


def tracking(**settings: object) -> MLflowTracking:
    return MLflowTracking(**settings, experiment="tiny", run_name="mine", run_dir="here")


@pytest.mark.parametrize("uri", ["file:./mlruns", "./mlruns"])
def test_folders_are_refused_as_mlflow_does(uri):
    with pytest.raises(ValueError, match="sqlite:///"):
        tracking(uri=uri)


def test_missing_mlflow_is_explained(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"--tracking\.uri null"):
        tracking()


def test_refused_record_does_not_hold_up_the_others(client, caplog):
    logger = tracking()
    logger.log_hyperparams({"beta": 0.1})
    logger.log_hyperparams({"beta": 0.2})  # a parameter cannot change
    logger.log_metrics({"loss_nats": 1.0}, step=3)
    logger.finalize("success")
    run = only_run(client)
    assert run.data.params == {"beta": "0.1"}
    assert run.data.metrics == {"loss_nats": 1.0}
    assert logger.status()["num_rejected"] == 1
    assert "refused 1 records" in caplog.text


def test_figures_and_files(client, workdir):
    from matplotlib.figure import Figure

    logger = tracking()
    logger.log_figure(Figure(figsize=(1, 1)), "figures/empty.png")
    logger.finalize("success")
    assert (workdir / "here" / "figures" / "empty.png").is_file()
    run_id = only_run(client).info.run_id
    assert artifacts(client, run_id, "figures") == {"figures/empty.png"}
