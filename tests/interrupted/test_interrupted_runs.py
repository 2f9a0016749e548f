"""Ctrl-C and SIGTERM in every panel: the printed command goes on, to the same end."""

import csv
import json
import os
import random
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.interrupted.signal_at import VARIABLE
from tests.lit_modules.diversify.test_policy_optimization import language_run
from tests.lit_modules.remember.test_memory_pretraining import TINY
from tests.train_process import TrainProcess, run_train, start_train

pytestmark = pytest.mark.slow

STEPS, EVERY = 10, 4
TASK = {
    "class_path": "triptych.datamodules.commune.pooled_evidence.PooledEvidence",
    "init_args": {"num_agents": 2, "num_train": 36, "num_val": 12},
}


def write(folder: Path, name: str, sections: dict, **trainer) -> None:
    common = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": STEPS,
        "max_epochs": -1,
        "val_check_interval": EVERY,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 3,
        "callbacks+": [{"class_path": "tests.interrupted.signal_at.SignalAt"}],
    }
    sections = {**sections, "trainer": {**sections.get("trainer", {}), **common, **trainer}}
    sections["tracking"] = {"uri": None}
    sections["checkpoint"] = {}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(sections))


def agents() -> dict:
    base = {"family": "llama", "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    return {
        "data": {
            "class_path": "triptych.datamodules.commune.debate_questions.DebateQuestions",
            "init_args": {"task": TASK, "batch_size": 8},
        },
        "model": {
            "class_path": "triptych.lit_modules.commune.agent_pretraining.AgentPretraining",
            "init_args": {
                "agents": {"bases": [base | {"max_position_embeddings": 64}], "num_agents": 2}
            },
        },
    }


def autoencoder(start: Path) -> dict:
    return {
        "data": {
            "class_path": "triptych.datamodules.commune.agent_states.AgentStates",
            "init_args": {"task": TASK, "batch_size": 8, "cache_dir": str(start.parent / "cache")},
        },
        "model": {
            "class_path": "triptych.lit_modules.commune.thought_autoencoder.ThoughtAutoencoder",
            "init_args": {"init_from": str(start), "codec": {"num_latents": 6}},
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run of each experiment."""
    folder = tmp_path_factory.mktemp("runs")
    remember = {key: TINY[key] for key in ("data", "model")}
    write(folder, "remember", remember, max_steps=5, accumulate_grad_batches=2)
    write(folder, "diversify", language_run(updates_per_rollout=2), limit_val_batches=2)
    write(folder, "agents", agents(), max_steps=3)
    run_train(folder, "fit", "--config", "agents.yaml", "--run_dir", "agents")
    write(folder, "commune", autoencoder(folder / "agents" / "export"))
    for name in ("remember", "diversify", "commune", "agents_again"):
        if name == "agents_again":
            write(folder, name, agents())
        run_train(folder, "fit", "--config", f"{name}.yaml", "--run_dir", f"whole-{name}")
    return folder


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Weights, moments of the optimizer, and the export."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    found = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    for key, state in checkpoint["optimizer_states"][0]["state"].items():
        found |= {f"{key}.{name}": torch.as_tensor(value) for name, value in state.items()}
    for path in (run / "export").rglob("*.safetensors"):
        found |= {f"{path.stem}.{name}": value for name, value in load_file(path).items()}
    return found


def logged(run: Path) -> dict[tuple[str, str], str]:
    """All metrics but speeds; of a validation that was made twice, the second time."""
    with (run / "metrics.csv").open() as file:
        return {
            (row["step"], key): value
            for row in csv.DictReader(file)
            for key, value in row.items()
            if value and key not in ("step", "time") and "second" not in key
        }


def summary(run: Path) -> dict:
    found = json.loads((run / "summary.json").read_text())
    metrics = {n: v for n, v in found["metrics"].items() if "second" not in n}
    return {key: found[key] for key in ("status", "steps")} | {"metrics": metrics}


def assert_same_end(whole: Path, run: Path) -> None:
    ours, theirs = tensors(run), tensors(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert logged(run) == logged(whole)
    assert summary(run) == summary(whole)
    assert summary(run)["status"] == "finished"


def printed_command(running: TrainProcess) -> list[str]:
    """The words that the last line of an interrupted run gives."""
    python, script, *words = shlex.split(running.stderr().splitlines()[-1])
    assert python == "python"
    assert script.endswith("train.py")
    assert words.count("--ckpt_path") == words.count("--run_dir") == 1
    return words


def interrupted(folder: Path, config: str, run: str, at: str, *words: str) -> TrainProcess:
    command = ("fit", "--config", f"{config}.yaml", "--run_dir", run, *words)
    running = start_train(folder, *command, **{VARIABLE: at})
    code = 130 if "INT" in at else 143
    assert running.wait() == code, running.stderr()
    assert summary(folder / run)["status"] == "interrupted"
    assert f"run: {run}\n" in running.stderr()
    return running


RANDOM = random.Random(16)
POINTS = {
    "a step": lambda steps: f"on_before_backward {RANDOM.randrange(1, steps)} SIGINT",
    "the end of a step": lambda steps: f"on_train_batch_end {RANDOM.randrange(1, steps)} SIGTERM",
    "a validation": lambda _: "on_validation_batch_end 4 SIGINT",
    "the end of a validation": lambda _: "on_validation_end 4 SIGINT",
    "the last validation": lambda steps: f"on_validation_epoch_end {steps} SIGTERM",
    "the export": lambda steps: f"on_fit_end {steps} SIGINT",
}


@pytest.mark.parametrize(
    ("config", "point"),
    [
        ("remember", "a step"),
        ("remember", "a validation"),
        ("diversify", "a step"),
        ("diversify", "the last validation"),
        ("commune", "a step"),
        ("commune", "the end of a validation"),
        ("agents_again", "the end of a step"),
        ("agents_again", "the export"),
    ],
)
def test_the_printed_command_goes_on_to_the_same_end(folder, config, point):
    at = POINTS[point](5 if config == "remember" else STEPS)
    if config == "remember":  # validates after batches, of which two make a step
        at = at.replace("_end 4 ", "_end 2 ")
    run = f"{config}-{point.replace(' ', '_')}"
    running = interrupted(folder, config, run, at)
    run_train(folder, *printed_command(running))
    assert_same_end(folder / f"whole-{config}", folder / run)


def test_a_run_may_be_interrupted_twice_and_while_it_makes_up_for_a_validation(folder):
    running = interrupted(folder, "commune", "twice", "on_validation_batch_end 4 SIGINT")
    words = printed_command(running)
    again = start_train(folder, *words, **{VARIABLE: "on_validation_batch_end 4 SIGTERM"})
    assert again.wait() == 143
    assert printed_command(again) == words
    run_train(folder, *words)
    assert_same_end(folder / "whole-commune", folder / "twice")


def test_a_second_signal_stops_at_once(folder):
    running = interrupted(folder, "commune", "at-once", "on_before_backward 5 SIGINT,SIGINT")
    assert "the checkpoint is of step 4" in running.stderr()


def test_before_the_first_step_there_is_nothing_to_go_on_from(folder):
    running = interrupted(folder, "commune", "early", "on_train_start 0 SIGINT")
    assert "no step was completed; start again with" in running.stderr()
    assert not (folder / "early" / "checkpoints").exists()


def test_loader_workers_end_with_the_run_and_do_not_hear_ctrl_c(folder):
    workers = ("--data.init_args.num_workers", "2")
    running = interrupted(folder, "remember", "workers", "on_before_backward 3 SIGINT", *workers)
    children = Path(f"/proc/{running.process.pid}")
    assert not children.exists()
    run_train(folder, *printed_command(running))
    assert_same_end(folder / "whole-remember", folder / "workers")


def test_ctrl_c_reaches_all_processes_of_a_terminal(folder):
    words = ("--data.init_args.num_workers", "2", "--trainer.max_steps", "100000")
    command = ("fit", "--config", "remember.yaml", "--run_dir", "group", *words)
    running = start_train(folder, *command)
    deadline = time.monotonic() + 240
    while not (folder / "group" / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = running.process.pid
    workers = children(pid)
    assert len(workers) >= 2
    for process in (pid, *workers):
        os.kill(process, signal.SIGINT)
    assert running.wait() == 130
    assert "exited unexpectedly" not in running.stderr()
    printed_command(running)
    assert [w for w in workers if Path(f"/proc/{w}").exists()] == []


def test_sigterm_while_an_earlier_experiment_runs_ends_both(folder):
    words = ("--model.init_args.init_from", "stage.yaml", "--run_dir", "waits")
    write(folder, "stage", agents(), max_steps=1_000_000)
    running = start_train(folder, "fit", "--config", "commune.yaml", *words)
    deadline = time.monotonic() + 240
    while not list(folder.glob("runs/stages/.stage-*.partial/metrics.csv")):
        assert running.process.is_alive(), running.stderr()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (stage,) = children(running.process.pid)
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.wait() == 143
    assert "interrupted before training" in running.stderr()
    assert not Path(f"/proc/{stage}").exists()
    assert not (folder / "waits").exists()


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text().rpartition(")")[2].split()[1] == str(pid)
    ]
