"""Tracking with a real store, with none, and with one that never answers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.tracking import MlflowClient

from triptych.callbacks.run.nan_guard import NonFiniteError
from triptych.callbacks.tracking import mlflow_tracking
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking, resend
from triptych.callbacks.tracking.run_mirror import MirrorBusyError, RunMirror
from triptych.callbacks.tracking.run_record import RunRecord
from triptych.cli import main

EVERYTHING = {"config.yaml", "figures", "metrics.csv", "report.html", "samples", "summary.json"}
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens, the connection is refused


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
    tags = run.data.tags
    assert tags["data_fingerprint"] == "rows-16"
    assert tags["purpose"] == "test"
    assert tags["subcommand"] == "fit"
    assert tags["experiment"] == "tiny"
    assert {"code_version", "mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(tags)
    params = run.data.params
    assert params["beta"] == "0.5"
    assert (params["model"], params["data"], params["seed"]) == ("TinyModule", "TinyData", "42")
    assert params["trainer.max_epochs"] == "1"
    assert artifacts(client, run.info.run_id) == EVERYTHING
    assert artifacts(client, run.info.run_id, "samples") == {"samples/step_8.json"}
    table = client.load_table(run.info.experiment_id, "samples/step_8.json", [run.info.run_id])
    rows = json.loads((run_dir / "samples" / "step_8.json").read_text())
    assert [row["question"] for row in table.to_dict("records")] == [r["question"] for r in rows]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("TinyData", "rows-16")
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    history = client.get_metric_history(run.info.run_id, "val/loss_nats")
    assert output.step == history[-1].step
    assert model.source_run_id == run.info.run_id
    assert model.params["path"] == str((run_dir / "export").resolve())
    assert len(model.params["fingerprint"]) == 64
    note = tags["mlflow.note.content"]
    assert "| `val/loss_nats` |" in note
    assert f"--config {run_dir}/config.yaml" in note
    status = summary(run_dir)["tracking"]
    assert (status["num_unsent"], status["num_refused"]) == (0, 0)


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
    assert unsent > 3
    assert f"lacks {unsent} parts" in caplog.text
    assert caplog.text.count("does not answer") == 1
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
    assert artifacts(client, run.info.run_id) == EVERYTHING
    history = client.get_metric_history(run.info.run_id, "train/loss_nats")
    assert len(history) == 4

    # whatever was sent is not sent twice, even if the state of sending is lost
    (run_dir / "tracking_state.json").unlink()
    assert resend(run_dir, "sqlite:///mlflow.db") == 0
    assert only_run(client).info.run_id == run.info.run_id
    assert client.get_metric_history(run.info.run_id, "train/loss_nats") == history


def test_server_that_never_answers_holds_nothing_up(tiny, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        run_dir = main(tiny(**tracked(uri, flush_seconds=0.2)))
        content = summary(run_dir)
    assert content["status"] == "finished"
    assert content["wall_seconds"] < 30  # half of one request
    assert content["tracking"]["num_unsent"] > 3


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


def test_a_password_in_the_uri_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD") as error:
        tracking(uri="http://me:secret@host:5000")
    assert "secret" not in str(error.value)


def test_what_the_store_refuses_does_not_hold_up_the_rest(client, workdir, caplog, monkeypatch):
    logger = tracking()
    logger.log_hyperparams({"beta": 0.1})
    logger.log_metrics({"loss_nats": 1.0, "pass@4": 0.5}, step=3)
    too_long = "x" * 300  # MLflow's limit of a name
    monkeypatch.setattr("triptych.callbacks.tracking.run_mirror.valid_name", lambda name: name)
    logger.log_metrics({too_long: 1.0, "other": 2.0}, step=4)
    logger.finalize("success")
    run = only_run(client)
    assert run.data.metrics["other"] == 2.0
    assert run.info.status == "FINISHED"
    assert logger.status()["num_refused"] == 2  # the long name, and the one with an `@`
    assert caplog.text.count("refused metrics") == 2


def test_a_parameter_that_a_resumed_run_changes_becomes_a_tag(client):
    for beta in (0.1, 0.2):
        logger = tracking()
        logger.log_hyperparams({"beta": beta})
        logger.finalize("success")
    run = only_run(client)
    assert run.data.params == {"beta": "0.1"}
    assert run.data.tags["resumed_with/beta"] == "0.2"


def test_client_and_run_id_are_those_of_lightnings_logger(client):
    logger = tracking()
    logger.experiment.log_metric(logger.run_id, "mine", 3.0)
    logger.finalize("success")
    run = only_run(client)
    assert run.info.run_id == logger.run_id
    assert run.data.metrics == {"mine": 3.0}


def test_run_id_of_a_store_that_is_away(workdir, monkeypatch):
    monkeypatch.setattr(mlflow_tracking, "SECONDS_FOR_RUN_ID", 0.1)
    assert tracking(uri=NOBODY).run_id is None


def test_load_of_the_machine(client, workdir):
    logger = tracking(system_seconds=0.05)
    logger.log_metrics({"loss_nats": 1.0}, step=1)
    deadline = time.monotonic() + 30
    while not (workdir / "here" / "system_metrics.csv").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    logger.finalize("success")
    metrics = only_run(client).data.metrics
    assert metrics["system/system_memory_usage_percentage"] > 0


def test_a_store_that_is_replaced_gets_everything_again(client, empty_store, workdir):
    main_db, other = "sqlite:///mlflow.db", "sqlite:///other.db"
    shutil.copy(empty_store, workdir / "other.db")
    logger = tracking(uri=main_db)
    logger.log_metrics({"loss_nats": 1.0}, step=1)
    logger.finalize("success")
    state = json.loads((workdir / "here" / "tracking_state.json").read_text())
    stranger = {f"sqlite:///{workdir}/other.db": state[f"sqlite:///{workdir}/mlflow.db"]}
    (workdir / "here" / "tracking_state.json").write_text(json.dumps(stranger))
    assert resend(workdir / "here", other) == 0
    assert only_run(MlflowClient(f"sqlite:///{workdir}/other.db")).data.metrics == {
        "loss_nats": 1.0
    }


def test_two_that_mirror_the_same_run(client, workdir, monkeypatch):
    logger = tracking()
    logger.log_metrics({"loss_nats": 1.0}, step=1)
    logger.finalize("success")
    uri = f"sqlite:///{workdir}/mlflow.db"
    first, second = (RunMirror(workdir / "here", uri) for _ in range(2))
    with (
        first._alone(),
        pytest.raises(MirrorBusyError, match="another process is sending this run"),
    ):
        second.update()
    words = ["mlflow_tracking", "here", "--tracking_uri", uri]
    monkeypatch.setattr(sys, "argv", words)
    with first._alone(), pytest.raises(SystemExit, match=r"mlflow\.db: another process is sending"):
        mlflow_tracking.main()
    (workdir / "here" / "tracking_state.json").write_text('{"torn')  # a lost state does no harm
    first.update()
    second.update()
    run = only_run(client)
    assert len(client.get_metric_history(run.info.run_id, "loss_nats")) == 1


def test_the_command_that_mirrors_later(client, workdir, monkeypatch, capsys):
    logger = tracking(uri=NOBODY)
    logger.log_metrics({"loss_nats": 1.0}, step=1)
    logger.finalize("success")
    words = ["mlflow_tracking", "here", "--tracking_uri"]
    monkeypatch.setattr(sys, "argv", [*words, NOBODY])
    with pytest.raises(SystemExit, match="could not be sent"):
        mlflow_tracking.main()
    monkeypatch.setattr(sys, "argv", [*words, "sqlite:///mlflow.db"])
    mlflow_tracking.main()
    assert "has all of here" in capsys.readouterr().out
    assert only_run(client).data.metrics == {"loss_nats": 1.0}


def test_a_study_is_the_parent_of_its_runs(client, workdir):
    (workdir / "study").mkdir()
    RunRecord(workdir / "study").begin("tiny", "the study")
    for name in ("a", "b"):
        logger = MLflowTracking(
            parent="study", experiment="tiny", run_name=name, run_dir=workdir / name
        )
        logger.log_metrics({"loss_nats": 1.0}, step=1)
        logger.finalize("success")
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"a", "b", "the study"}
    parents = {runs[name].data.tags["mlflow.parentRunId"] for name in ("a", "b")}
    assert parents == {runs["the study"].info.run_id}


@pytest.mark.slow
def test_server_that_is_killed_and_comes_back_misses_nothing(tiny, workdir):
    """A real server: away when the run starts, up, killed while the run writes, up again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    logger = tracking(uri=uri, flush_seconds=60.0)
    logger.log_metrics({"loss_nats": 0.0}, step=0)
    with server(workdir, port):
        while logger.run_id is None:
            pass
        logger.log_metrics({"loss_nats": 1.0}, step=1)
    for step in range(2, 40):
        logger.log_metrics({"loss_nats": float(step)}, step=step)
    (workdir / "here" / "figures").mkdir()
    (workdir / "here" / "figures" / "a.png").write_bytes(b"png")
    with (workdir / "here" / "metrics.csv").open("a") as torn:
        torn.write("7.0,")
    with server(workdir, port):
        logger.finalize("success")
        client = MlflowClient(uri)
        run = only_run(client)
        history = client.get_metric_history(run.info.run_id, "loss_nats")
        assert sorted(point.step for point in history) == list(range(40))
        assert artifacts(client, run.info.run_id, "figures") == {"figures/a.png"}
        assert run.info.status == "FINISHED"


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """MLflow's server with a database in a folder, killed at the end."""
    pytest.importorskip("flask", reason="needs MLflow's server: pip install mlflow")
    words = ["-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    words += ["--artifacts-destination", str(folder / "artifacts")]
    with open(folder / "server.log", "a") as log:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
