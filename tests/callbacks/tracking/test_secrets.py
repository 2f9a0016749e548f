"""Planted passwords and tokens reach no file, no store and no terminal."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from triptych.callbacks.run.interruption import Interrupted, farewell
from triptych.callbacks.run.learning_curves import read_curves
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking
from triptych.callbacks.tracking.run_record import RunRecord
from triptych.cli import main
from triptych.models.host.secrets import settings_without_secrets, words_without_secrets

PLANTED = "pl4nted-s3cret-of-mine"
TOKEN = "hf_" + "abcDEF123" * 4


def leaks(folder: Path) -> list[str]:
    """Files that hold a planted secret."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and any(s.encode() in path.read_bytes() for s in (PLANTED, TOKEN))
    ]


def test_planted_secrets_are_in_no_file_of_a_run_and_on_no_terminal(
    tiny, workdir, monkeypatch, capfd
):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", PLANTED)
    uri = f"postgresql://me:{PLANTED}@127.0.0.1:1/db"
    tracking = {"uri": uri, "flush_seconds": 0.1, "tags": {"api_key": "x" + PLANTED, "who": TOKEN}}
    words = tiny(tracking=tracking, trainer={"logger": LOGGER})
    run = main(words)
    assert leaks(run) == []
    assert PLANTED not in "".join(capfd.readouterr())
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["tracking"]["uri"] == "postgresql://me:***@127.0.0.1:1/db"
    assert saved["tracking"]["tags"] == {"api_key": "***", "who": "***"}
    record = json.loads((run / "tracking.json").read_text())
    assert record["tags"]["who"] == "***"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["tracking"]["uri"] == "postgresql://me:***@127.0.0.1:1/db"
    assert (run / "export").is_dir()


LOGGER = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": "logs", "name": "csv", "prefix": f"{TOKEN}"},
}


def test_the_command_to_go_on_shows_no_secret():
    words = ["fit", "--tracking.uri", f"https://me:{PLANTED}@host", "--model.api_key", PLANTED]
    text = farewell(Interrupted(2), words, Path("runs/a"), Path("runs/a/last.ckpt"), 3)
    assert PLANTED not in text
    assert "https://me:***@host" in shlex.split(text.splitlines()[-1])
    assert words_without_secrets(["--model.init_args.password=abc"]) == [
        "--model.init_args.password=***"
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {
            "tokenizer": {"eos_token": "</s>", "path": "a/b"},
            "max_new_tokens": 3,
            "token_mean": True,
        },
        {"memory": {"num_keys": 8, "key_dim": 4}, "uri": "http://host:5000", "api_key_env": "KEY"},
        {"text": "user@host.org writes a://b", "token": None, "password": ""},
    ],
)
def test_ordinary_settings_stay_as_they_are(settings):
    assert settings_without_secrets(settings) == settings


def test_a_full_disk_under_the_record_ends_no_run(tmp_path, caplog, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "tracking.json")

    record = RunRecord(tmp_path)
    monkeypatch.setattr("triptych.callbacks.tracking.run_record.atomic_file", full)
    record.begin("tiny", "a")
    record.add("tags", {"a": "b"})
    record.end("FINISHED")
    assert caplog.text.count("No space left on device") == 1
    store = f"sqlite:///{tmp_path}/a.db"
    tracker = MLflowTracking(store, experiment="e", run_name="r", run_dir=tmp_path)
    tracker.log_tags({"a": "b"})
    tracker.finalize("success")


def test_curves_leave_out_what_a_full_disk_left_of_a_line(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,time,train/loss\n1,0,0.5\n0.0008,\n2,0,0.4\n,1,0.3,7,8\nx,1,y\n3,0,z\n")
    assert read_curves(path) == {"train/loss": ([1, 2], [0.5, 0.4])}
