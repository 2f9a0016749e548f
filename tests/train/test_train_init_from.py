"""Experiments that start where another one ended."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from triptych.callbacks.command_line.init_from import Stage, StageError, inherited
from triptych.cli import TriptychCLI, main


@pytest.fixture
def stage(tiny, stages_in_this_process) -> str:
    """The configuration of an experiment that others start from."""
    return tiny(name="base_model")[2]


def started_from(run: Path, export: Path) -> bool:
    """Whether a run of no steps kept the weights that it started from."""
    weights = [torch.load(folder / "weights.pt")["weight"] for folder in (run / "export", export)]
    return torch.equal(*weights)


def test_stage_runs_once_and_hands_over_model_and_tokenizer(tiny, stage, workdir):
    words = tiny("--model.init_args.init_from", stage, "--model.init_args.learning_rate", "0")
    first = TriptychCLI(words)
    stages = [path for path in (workdir / "runs" / "stages").iterdir() if path.is_dir()]
    assert len(stages) == 1
    assert stages[0].name.startswith("base_model-")
    assert started_from(first.run.path, stages[0] / "export")
    assert Path(first.datamodule.tokenizer_settings.path).resolve() == stages[0] / "export"
    saved = yaml.safe_load((first.run.path / "config.yaml").read_text())
    assert saved["model"]["init_args"]["init_from"] == stage  # runs again as it is

    when = (stages[0] / "summary.json").stat().st_mtime_ns
    main(words)
    assert (stages[0] / "summary.json").stat().st_mtime_ns == when
    assert not list((workdir / "runs" / "stages").glob("*.partial"))


@pytest.mark.slow
def test_a_stage_runs_in_a_process_of_its_own(tiny, workdir, monkeypatch):
    """A class that is broken in this process alone works in the stage's."""

    def broken(self, batch, batch_idx):
        raise AssertionError("the stage trained in this process")

    stage = tiny(name="base_model")[2]
    monkeypatch.setattr("tests.tiny_lightning.TinyModule.training_step", broken)
    run = main(tiny("--model.init_args.init_from", stage, trainer={"limit_train_batches": 0}))
    (export,) = (workdir / "runs" / "stages").glob("base_model-*/export")
    assert started_from(run, export)


def test_tokenizer_of_the_user_is_kept(tiny, workdir):
    export = main(tiny()) / "export"
    words = tiny("--model.init_args.init_from", export, "--data.init_args.tokenizer.path", "mine")
    assert TriptychCLI(words).datamodule.tokenizer_settings.path == "mine"


def test_failing_stage_is_named(tiny, workdir, stages_in_this_process):
    stage = tiny("--irrelevant", name="broken", model={"init_args": {"nan_at_step": 1}})[2]
    with pytest.raises(StageError, match=r"broken\.yaml failed with exit code 1"):
        main(tiny("--model.init_args.init_from", stage))
    assert not (workdir / "runs" / "tiny").exists() or not list((workdir / "runs/tiny").iterdir())


def test_missing_stage_is_named(tiny):
    with pytest.raises(FileNotFoundError, match=r"init_from: there is no file nowhere\.yaml"):
        main(tiny("--model.init_args.init_from", "nowhere.yaml"))


def test_stage_of_a_fast_dev_run_is_a_fast_dev_run(tiny, stage, workdir):
    main(tiny("--model.init_args.init_from", stage, "--trainer.fast_dev_run", "1"))
    summary = next((workdir / "runs" / "stages").glob("base_model-*/summary.json"))
    assert json.loads(summary.read_text())["steps"] == 1


def stage_folders(workdir) -> set[str]:
    return {path.parent.name for path in (workdir / "runs" / "stages").glob("*/summary.json")}


def test_a_stage_inherits_precision_and_the_first_device(tiny, stage, workdir):
    words = ("--model.init_args.init_from", stage)
    main(tiny(*words))
    (plain,) = stage_folders(workdir)
    main(tiny(*words, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"))
    assert stage_folders(workdir) == {plain}  # the same model
    main(tiny(*words, "--trainer.precision", "bf16-mixed"))
    (rounded,) = stage_folders(workdir) - {plain}
    saved = yaml.safe_load((workdir / "runs" / "stages" / rounded / "config.yaml").read_text())
    assert saved["trainer"]["precision"] == "bf16-mixed"
    assert saved["trainer"]["devices"] == 1


def test_options_of_a_stage():
    assert inherited(Namespace(accelerator="auto", devices=8, precision=None)) == []
    assert inherited(Namespace(accelerator="gpu", devices=[2, 3], precision="bf16-mixed")) == [
        *("--trainer.accelerator", "gpu"),
        *("--trainer.precision", "bf16-mixed"),
        *("--trainer.devices", "[2]"),
    ]


def made_stage(devices, **more) -> Stage:
    return Stage(Path("base.yaml"), {"trainer": {"devices": devices, "precision": None, **more}})


def test_the_machine_is_not_part_of_a_stage_but_the_number_of_devices_is():
    one = made_stage(1).fingerprint()
    for same in (
        made_stage([3], accelerator="gpu"),
        made_stage("0,"),
        made_stage("1", precision=32),
        made_stage(1, accelerator="cpu", precision="32-true"),
    ):
        assert same.fingerprint() == one
    assert made_stage(1, precision="bf16").fingerprint() != one
    assert made_stage([0, 1]).fingerprint() != one
    assert made_stage([0, 1]).fingerprint() == made_stage(2).fingerprint()


def test_other_ranks_wait_and_do_not_run(workdir, monkeypatch, capfd):
    stage, seen = made_stage(1), []
    folder = workdir / "runs" / "stages" / f"base-{stage.fingerprint()[:12]}"

    def sleep(seconds: float) -> None:
        seen.append(seconds)
        if len(seen) == 3:  # rank 0 has ended
            (folder / "export").mkdir(parents=True)
            (folder / "summary.json").write_text('{"status": "finished"}')

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr("triptych.callbacks.command_line.init_from.time.sleep", sleep)
    assert stage.export().resolve() == (folder / "export").resolve()
    assert len(seen) == 3
    said = capfd.readouterr().err
    assert "process 1 waits for process 0" in said
    assert "storage that all machines share" in said


def test_other_ranks_hear_that_it_failed(workdir, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7f3a")
    stage = Stage(workdir / "nowhere.yaml", {"trainer": {}})
    with pytest.raises(StageError, match="failed with exit code"):
        stage.export()
    monkeypatch.setattr(rank_zero_only, "rank", 5)
    with pytest.raises(StageError, match="failed in process 0"):
        stage.export()
