"""A study as the parent run of its arms."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from triptych.studies.options import study_parser
from triptych.studies.results import at_least, mean_interval, write_results
from triptych.studies.study_tracking import begin_study, tracking_words


def begun(out: Path, *words: str) -> None:
    parser = study_parser("A study.", "memory_vs_dense", ("smoke", "cpu"))
    begin_study(parser, ["--out", str(out), *words])


def test_a_smoke_run_is_not_tracked_unless_a_store_is_named(tmp_path):
    begun(tmp_path / "study")
    assert not (tmp_path / "study").exists()
    assert tracking_words(tmp_path / "study" / "smoke", "an arm", 1) == ["--tracking.uri", "null"]


def test_runs_in_a_folder_of_the_study_are_its_children(tmp_path):
    out = tmp_path / "study"
    begun(out, "--tracking_uri", "http://localhost:5000")
    words = tracking_words(out / "smoke" / "runs", "an arm", 2)
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--tracking.uri"] == "http://localhost:5000"
    assert json.loads(options["--tracking.tags"]) == {"study": "memory_vs_dense", "arm": "an arm"}
    assert options["--tracking.parent"] == str(out)
    assert options["--experiment"] == "studies/memory_vs_dense"
    assert options["--run_name"] == "an arm, seed 2"


def test_null_turns_the_tracking_of_an_earlier_start_off(tmp_path):
    begun(tmp_path, "--tracking_uri", "http://localhost:5000")
    begun(tmp_path, "--tracking_uri", "null", "--preset", "cpu")
    assert tracking_words(tmp_path, "an arm", 2) == ["--tracking.uri", "null"]


def test_results_are_in_the_store(workdir):
    begun(workdir / "study", "--tracking_uri", "sqlite:///mlflow.db")
    arms = {"one": {"f1": mean_interval([0.5, 0.7])}, "two": {"f1": mean_interval([0.2, 0.4])}}
    checks = {"one - two": at_least(0.3, 0.1)}
    write_results(workdir / "study", "one beats two", "smoke", arms, [], checks, device="cpu")
    client = MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("studies/memory_vs_dense")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"one/f1": pytest.approx(0.6), "two/f1": pytest.approx(0.3)}
    assert run.data.tags["panel"] == "remember"
    assert run.data.tags["held"] == "true"
    assert run.data.params["preset"] == "smoke"
    assert "| one - two | 0.3 | 0.1 | yes |" in run.data.tags["mlflow.note.content"]
    assert "results.json" in {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_store_that_is_away_does_not_cost_the_results(tmp_path, capsys):
    begun(tmp_path, "--tracking_uri", "http://127.0.0.1:9")
    results = write_results(tmp_path, "a claim", "smoke", {}, [], {}, device="cpu")
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert f"mlflow_tracking {tmp_path} --tracking_uri" in capsys.readouterr().err
