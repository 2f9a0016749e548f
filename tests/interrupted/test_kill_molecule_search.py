"""A search killed in mid-step goes on: the same ledger and metrics, no molecule scored twice."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.interrupted.search_runs import calls, differences, metrics, wait_until
from tests.models.diversify.molecules.tiny_molecules import tiny_rnn, tiny_tokenizer
from tests.train_process import run_train, start_train
from triptych.objectives.rewards.molecules.component import MoleculeComponent

pytestmark = pytest.mark.slow

BUDGET, KILLED_AT = 100, 70


class Remembered(MoleculeComponent):
    """Share of oxygen; writes down what it is asked for, and waits at a molecule where told so."""

    def __init__(self, asked: str, wait_at: int | None = None) -> None:
        super().__init__()
        self._asked, self._wait_at = Path(asked), wait_at

    def value(self, molecule, smiles: str) -> float:
        with self._asked.open("a") as file:
            file.write(f"{smiles}\n")
        if self._wait_at is not None and len(asked(self._asked)) == self._wait_at:
            time.sleep(600)
        symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
        return symbols.count("O") / len(symbols)


def asked(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


def write_config(folder: Path, name: str, wait_at: int | None = None) -> None:
    component = {
        "class_path": "tests.interrupted.test_kill_molecule_search.Remembered",
        "init_args": {"asked": str(folder / "asked" / name), "wait_at": wait_at},
    }
    objective = {
        "class_path": "triptych.objectives.rewards.molecules.objective.MoleculeObjective",
        "init_args": {"components": [component], "mean": "arithmetic"},
    }
    model = {
        "init_from": str(folder / "prior"),
        "reward": {
            "class_path": "triptych.objectives.rewards.molecules.oracle_reward.OracleReward",
            "init_args": {"objective": objective, "budget": BUDGET},
        },
        "sigma": 16.0,
        "mara": {"threshold": 0.5, "scope": "batch_and_replay"},
        "replay": {
            "class_path": "objectives.diversify.molecules.experience_replay.ExperienceReplay",
            "init_args": {"size": 20, "num_draws": 4},
        },
        "diversity_filter": {
            "class_path": "objectives.diversify.molecules.diversity_filters.DiversityFilter",
            "init_args": {
                "bucket": "molecule",
                "bucket_size": 6,
                "min_score": 0.5,
                # A repeat that scores 0 would end this search of few molecules before its budget.
                "repeats": "count",
                "full": "at_size",
            },
        },
        "num_samples": 8,
        "learning_rate": 0.01,
        "max_new_tokens": 10,
    }
    sections = {
        "data": {"class_path": "triptych.datamodules.diversify.unprompted.Unprompted"},
        "model": {
            "class_path": "lit_modules.molecule_optimization.MoleculeOptimization",
            "init_args": model,
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 400,
            "log_every_n_steps": 1,
            "callbacks+": [
                # As patient as there are steps to take again after the checkpoint.
                {
                    "class_path": "triptych.callbacks.diversify.molecules.stop_search.StopSearch",
                    "init_args": {"patience": 9},
                },
                {
                    "class_path": "callbacks.diversify.molecules.molecule_report.MoleculeReport",
                    "init_args": {"threshold": 0.5, "num_shown": 2},
                },
            ],
        },
        "checkpoint": {"every_n_train_steps": 7},
        "tracking": {"uri": None},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(sections))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was left alone, and another one killed at its seventieth molecule."""
    folder = tmp_path_factory.mktemp("search")
    tiny_rnn().save_pretrained(folder / "prior")
    tiny_tokenizer().save_pretrained(folder / "prior")
    (folder / "asked").mkdir()
    write_config(folder, "whole")
    run_train(folder, "fit", "--config", "whole.yaml", "--run_dir", "whole")
    write_config(folder, "killed", KILLED_AT)
    words = ("fit", "--config", "killed.yaml", "--run_dir", "killed")
    running = start_train(folder, *words)
    wait_until(
        lambda: len(asked(folder / "asked" / "killed")) == KILLED_AT,
        running.process.is_alive,
        240,
    )
    os.kill(running.process.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    return folder


@pytest.mark.parametrize("place", ["its own folder", "another folder"])
def test_a_killed_search_ends_as_one_that_was_left_alone(folder, place):
    name = place.split()[0]
    shutil.copytree(folder / "killed", folder / name)
    shutil.copy(folder / "asked" / "killed", folder / "asked" / name)
    at_kill = calls(folder / name)
    assert sum(row[3] is not None for row in at_kill) == KILLED_AT - 1
    write_config(folder, name)
    run = folder / name if name == "its" else folder / "elsewhere"
    checkpoint = folder / name / "checkpoints" / "last.ckpt"
    words = ("fit", "--config", f"{name}.yaml", "--run_dir", run, "--ckpt_path", checkpoint)
    run_train(folder, *words)

    assert differences(folder / "whole", run) == []
    assert len(calls(run)) == BUDGET
    assert len(metrics(run)) > 10 * 5
    # What had a score is as it was, and nobody asked for it again; the molecule on which the
    # process was killed had none.
    scored = [row for row in at_kill if row[3] is not None]
    assert calls(run)[: len(scored)] == scored
    twice = asked(folder / "asked" / name)
    unscored = twice.pop(KILLED_AT - 1)
    assert unscored in twice
    assert len(set(twice)) == len(twice) == BUDGET
