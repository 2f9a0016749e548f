"""A shell script as the oracle of a search: kills and failures against a run left alone."""

import os
import random
import signal
from pathlib import Path

import pytest
import torch
import yaml

from tests.interrupted.search_runs import calls, differences, wait_until
from tests.models.diversify.molecules.tiny_molecules import tiny_rnn, tiny_tokenizer
from tests.train_process import run_train, start_train

pytestmark = pytest.mark.slow

BUDGET, BATCH, DOWN_AFTER = 500, 16, 300
# The share of oxygen, counted in the SMILES. It writes down what it is asked for. While there is a
# file `down` it fails, and it makes one itself once, after so many calls.
ORACLE = """#!/bin/sh
if [ -e down ]; then echo "dock: no licence on host calc7" >&2; exit 3; fi
while read -r smiles; do
    echo "$smiles" >> asked
    if [ -e goes_down ] && [ "$(wc -l < asked)" -ge %d ]; then rm goes_down; touch down; fi
    if [ -e down ]; then echo "dock: no licence on host calc7" >&2; exit 3; fi
    heavy=$(printf %%s "$smiles" | tr -cd 'A-Za-z' | wc -c)
    oxygen=$(printf %%s "$smiles" | tr -cd 'Oo' | wc -c)
    echo "$oxygen $heavy"
done | awk '{ print $1 / $2 }'
[ ! -e down ]
"""


def write_run(folder: Path, prior: Path) -> None:
    """Write the script and the configuration of a search that asks it."""
    folder.mkdir()
    (folder / "oracle.sh").write_text(ORACLE % DOWN_AFTER)
    parts = "triptych.objectives.rewards.molecules"
    component = {
        "class_path": f"{parts}.external_process.ExternalProcess",
        "init_args": {"command": "sh ./oracle.sh", "batch_size": BATCH, "name": "oxygen"},
    }
    objective = {
        "class_path": f"{parts}.objective.MoleculeObjective",
        "init_args": {"components": [component], "mean": "arithmetic"},
    }
    model = {
        "init_from": str(prior),
        "reward": {
            "class_path": f"{parts}.oracle_reward.OracleReward",
            "init_args": {"objective": objective, "budget": BUDGET},
        },
        "sigma": 8.0,
        "num_samples": 64,
        "learning_rate": 0.0003,
        "max_new_tokens": 14,
    }
    molecules = "triptych.callbacks.diversify.molecules"
    sections = {
        "data": {"class_path": "triptych.datamodules.diversify.unprompted.Unprompted"},
        "model": {
            "class_path": (
                "triptych.lit_modules.diversify.molecules.molecule_optimization.MoleculeOptimization"
            ),
            "init_args": model,
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 400,
            "log_every_n_steps": 1,
            "callbacks+": [
                {"class_path": f"{molecules}.stop_search.StopSearch"},
                {
                    "class_path": f"{molecules}.molecule_report.MoleculeReport",
                    "init_args": {"threshold": 0.5, "num_shown": 2},
                },
            ],
        },
        "checkpoint": {"every_n_train_steps": 2},
        "tracking": {"uri": None},
    }
    (folder / "search.yaml").write_text(yaml.safe_dump(sections))


def asked(folder: Path) -> list[str]:
    path = folder / "asked"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def words(folder: Path) -> tuple[str, ...]:
    start = ("fit", "--config", "search.yaml", "--run_dir", "run")
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    return (*start, "--ckpt_path", str(checkpoint)) if checkpoint.exists() else start


def test_a_search_with_a_program_survives_kills_and_a_program_that_is_down(tmp_path):
    prior = tmp_path / "prior"
    tokenizer, model = tiny_tokenizer(), tiny_rnn()
    with torch.no_grad():  # near uniform, and long, so that there are more than 500 molecules
        model.output.weight.div_(6)
        model.output.bias[tokenizer.eos_token_id] = -0.5
        for token in ("#", "(", ")", "=", "Cl"):  # most strings with them are no molecules
            model.output.bias[tokenizer.convert_tokens_to_ids(token)] = -4.0
    model.save_pretrained(prior)
    tokenizer.save_pretrained(prior)
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    for folder in (whole, hurt):
        write_run(folder, prior)
    run_train(whole, *words(whole))
    assert len(calls(whole / "run")) == BUDGET

    # Killed at a random call, in a step of which a checkpoint is at most two behind.
    killed_at = random.Random(os.getpid()).randint(BATCH * 6, DOWN_AFTER - BATCH * 4)
    running = start_train(hurt, *words(hurt))
    wait_until(lambda: len(asked(hurt)) >= killed_at, running.process.is_alive, 240)
    os.kill(running.process.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    # Resumed; the program goes down in the middle of a batch, and the search pauses.
    (hurt / "goes_down").touch()
    paused = start_train(hurt, *words(hurt))
    assert paused.wait() == 1
    assert "dock: no licence on host calc7" in paused.stderr()
    assert "The search is paused" in paused.stderr()
    made = [row for row in calls(hurt / "run") if row[3] is not None]
    assert DOWN_AFTER - BATCH * 8 < len(made) < BUDGET
    (hurt / "down").unlink()
    run_train(hurt, *words(hurt))
    assert differences(whole / "run", hurt / "run") == []
    assert len(calls(hurt / "run")) == BUDGET
    # Only what a kill or a failed batch took along was asked for twice.
    assert len(asked(whole)) == len(set(asked(whole))) == BUDGET
    assert set(asked(hurt)) == set(asked(whole))
    assert len(asked(hurt)) <= BUDGET + 4 * BATCH
