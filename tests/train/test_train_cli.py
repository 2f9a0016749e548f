"""How a command line becomes a run: one test for each trap between the two."""

import os
import subprocess
import sys
from argparse import ArgumentError
from pathlib import Path

import pytest
import torch
import yaml

import train
from tests.conftest import ROOT
from triptych.cli import TriptychCLI, main


def model_of(words: list[str]) -> torch.nn.Module:
    return TriptychCLI(words).model


def test_base_configuration_is_always_there(tiny):
    cli = TriptychCLI(tiny())
    names = {type(callback).__name__ for callback in cli.trainer.callbacks}
    assert {"NanGuard", "ExportModel", "SampleTable", "SummaryTable", "Checkpoint"} <= names
    assert cli.trainer.gradient_clip_val == 1.0


def test_unknown_key_is_rejected_by_name(tiny):
    with pytest.raises(ArgumentError, match="betta"):
        main(tiny("--model.init_args.betta", "1"))
    with pytest.raises(ArgumentError, match="max_epoch_typo"):
        main(tiny(trainer={"max_epoch_typo": 1}))


def test_seed_is_an_integer_and_42_by_default(tiny):
    # Lightning reads `seed_everything: true` as the seed 0
    with pytest.raises(ArgumentError, match="seed_everything"):
        main(tiny("--seed_everything", "true"))
    assert TriptychCLI(tiny()).config.fit.seed_everything == 42


def test_callbacks_can_be_appended(tiny, workdir):
    more = {"callbacks+": [{"class_path": "lightning.pytorch.callbacks.ModelSummary"}]}
    (workdir / "more.yaml").write_text(yaml.safe_dump({"trainer": more}))
    cli = TriptychCLI(tiny("--config", workdir / "more.yaml"))
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert {"ModelSummary", "NanGuard"} <= set(names)


def test_later_files_and_the_command_line_win(tiny, workdir):
    overlay = {"model": {"init_args": {"beta": 0.7, "learning_rate": 0.2}}}
    (workdir / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    words = tiny("--config", workdir / "overlay.yaml", "--model.init_args.beta", "0.9")
    model = model_of(words)
    assert (model.beta, model.hparams.learning_rate) == (0.9, 0.2)


def test_checkpoint_never_overrides_the_command_line(tiny):
    run = main(tiny("--model.init_args.beta", "0.1"))
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last)["hyper_parameters"]["beta"] == 0.1  # Lightning would take this one
    words = tiny("--model.init_args.beta", "0.9", "--ckpt_path", last, "--trainer.max_epochs", "2")
    assert model_of(words).beta == 0.9


def test_numbers_of_restricted_types_are_plain_in_models_and_checkpoints(tiny):
    cli = TriptychCLI(tiny("--model.init_args.learning_rate", "0.2"))
    assert type(cli.model.hparams.learning_rate) is float
    state = torch.load(cli.run.path / "checkpoints" / "last.ckpt")  # refuses other types
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 0.2


def test_vocabulary_size_comes_from_the_data(tiny):
    assert model_of(tiny()).vocab_size == 17


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.logger", "tests.tiny_lightning.BrokenLogger", "--trainer.logger.port", "7"],
         "port 7 is taken"),
        (["--model.init_args.width.features", "0"], "features must be at least 1, got 0"),
        (["--data.init_args.file", "nowhere.txt"], "data file nowhere.txt does not exist"),
    ],
    ids=["logger", "dataclass in a union", "datamodule"],
)  # fmt: skip
def test_constructor_errors_are_shown_as_they_are(tiny, workdir, options, message):
    # within a union type the parser would say: Expected a <class 'NoneType'>
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{message}$"):
        main(tiny(*options))
    assert not list((workdir / "runs").rglob("*seed42"))  # nothing ran, nothing is left


def test_saved_configuration_runs_again_as_it_is(tiny):
    first = main(tiny("--model.init_args.beta", "0.9", "--run_name", "first"))
    saved = first / "config.yaml"
    again = main(["fit", "--config", str(saved)])
    assert again != first
    assert again.parent == first.parent  # the same experiment
    assert yaml.safe_load(saved.read_text()) == yaml.safe_load((again / "config.yaml").read_text())
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["beta"] == 0.9


def test_options_as_a_mapping(tiny):
    config = yaml.safe_load(Path(tiny()[2]).read_text())
    run = main({"subcommand": "fit", "fit": {**config, "run_dir": "here"}})
    assert str(run) == "here"
    assert (run / "summary.json").is_file()


def test_arguments_of_the_surrounding_process_do_not_matter(tiny, monkeypatch):
    monkeypatch.setattr("sys.argv", ["a_study.py", "--seeds", "3"])
    assert (main(tiny()) / "summary.json").is_file()


def test_process_is_left_as_it_was(tiny):
    environment = dict(os.environ)
    main(tiny("--trainer.deterministic", "true"))
    assert dict(os.environ) == environment
    assert not torch.are_deterministic_algorithms_enabled()


def test_print_config_composes_everything(tiny, capsys):
    with pytest.raises(SystemExit) as end:
        main(tiny("--print_config"))
    assert end.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["trainer"]["use_distributed_sampler"] is False
    assert shown["tracking"]["uri"] is None


@pytest.mark.slow
def test_files_in_the_working_directory_are_found(workdir, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    (workdir / "my_reward.py").write_text(
        "from triptych.objectives.rewards.base import TextReward\n"
        "class Short(TextReward):\n"
        "    def score_one(self, text, prompt, record):\n"
        "        return -float(len(text))\n"
    )
    config = ROOT / "configs" / "diversify" / "one_or_two.yaml"
    words = ["fit", "--config", config, "--model.init_args.reward", "my_reward.Short"]
    ended = subprocess.run(
        [sys.executable, ROOT / "train.py", *words, "--print_config"],
        **{"capture_output": True, "text": True, "check": False},
    )
    assert ended.returncode == 0, ended.stderr
    reward = yaml.safe_load(ended.stdout)["model"]["init_args"]["reward"]
    assert reward["class_path"] == "my_reward.Short"


def test_train_py_is_a_thin_front():
    assert len(Path(train.__file__).read_text().splitlines()) <= 20


def test_only_the_parser_of_the_given_command_is_built(tiny):
    assert set(TriptychCLI(tiny())._subcommand_parsers) == {"fit"}
    with pytest.raises(ArgumentError, match="'fit', 'validate', 'ask', 'chat', 'predict'"):
        main(["fitt"])
