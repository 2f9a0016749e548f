"""Two gloo processes search with one ledger: the first one scores, both are told the same."""

import json
import os
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.interrupted.search_runs import calls
from tests.models.diversify.molecules.tiny_molecules import tiny_rnn, tiny_tokenizer
from tests.train_process import run_train_on_two
from triptych.lit_modules.diversify.molecules.molecule_optimization import MoleculeOptimization
from triptych.models.diversify.molecules.molecule import canonical_smiles
from triptych.models.diversify.molecules.smiles_rnn import load_smiles_rnn
from triptych.models.diversify.rollout import Rollout
from triptych.objectives.diversify.experience import Experience
from triptych.objectives.rewards.molecules.component import MoleculeComponent

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

BUDGET = 8


class ShareOfOxygen(MoleculeComponent):
    """Oxygens among the heavy atoms; raises on a nitrogen at the end, and notes who asks."""

    def __init__(self, asked: str) -> None:
        super().__init__()
        self._asked = Path(asked)

    def value(self, molecule, smiles: str) -> float:
        with self._asked.open("a") as file:
            file.write(f"{os.getpid()} {smiles}\n")
        if smiles.endswith("N"):
            raise ValueError("it ends with nitrogen")
        symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
        return symbols.count("O") / len(symbols)


class Noting(MoleculeOptimization):
    """Writes down what each process is told."""

    def score(self, rollout: Rollout) -> Experience:
        scored = super().score(rollout)
        told = {
            "pid": os.getpid(),
            "texts": rollout.texts,
            "rewards": scored.reward.tolist(),
            "numbers": scored.scores.components["oracle_call"].tolist(),
            "errors": scored.scores.errors,
            "oracle_calls": self.oracle_calls,
        }
        with Path(f"told-{self.trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")
        return scored


def test_the_first_process_owns_the_ledger(workdir):
    tiny_rnn().save_pretrained("prior")
    tiny_tokenizer().save_pretrained("prior")
    component = {
        "class_path": "tests.distributed.test_molecule_search.ShareOfOxygen",
        "init_args": {"asked": str(workdir / "asked")},
    }
    objective = {
        "class_path": "triptych.objectives.rewards.molecules.objective.MoleculeObjective",
        "init_args": {"components": [component], "mean": "arithmetic"},
    }
    sections = {
        "data": {"class_path": "triptych.datamodules.diversify.unprompted.Unprompted"},
        "model": {
            "class_path": "tests.distributed.test_molecule_search.Noting",
            "init_args": {
                "init_from": "prior",
                "reward": {
                    "class_path": "objectives.rewards.molecules.oracle_reward.OracleReward",
                    "init_args": {"objective": objective, "budget": BUDGET},
                },
                "mara": {"threshold": 0.5, "scope": "batch"},
                "sigma": 4.0,
                "num_samples": 12,
                "learning_rate": 1e-3,
                "max_new_tokens": 12,
            },
        },
        "trainer": {
            "max_steps": 60,
            "log_every_n_steps": 1,
            "callbacks+": [
                {"class_path": "triptych.callbacks.diversify.molecules.stop_search.StopSearch"},
                {
                    "class_path": "callbacks.diversify.molecules.molecule_report.MoleculeReport",
                    "init_args": {"threshold": 0.5, "num_shown": 2},
                },
            ],
        },
        "tracking": {"uri": None},
    }
    (workdir / "two.yaml").write_text(yaml.safe_dump(sections))
    overlay = ROOT / "configs" / "hardware" / "ddp2_cpu.yaml"
    words = ("fit", "--config", "two.yaml", "--config", overlay, "--run_dir", "two")
    run_train_on_two(workdir, *words)

    ledger = calls(workdir / "two")
    assert [row[0] for row in ledger] == list(range(1, BUDGET + 1))
    steps = [
        [json.loads(line) for line in (workdir / f"told-{rank}.jsonl").read_text().splitlines()]
        for rank in (0, 1)
    ]
    assert len(steps[0]) == len(steps[1]) > 2  # both end at the same step
    first, second = ({step["pid"] for step in own} for own in steps)
    asked = [line.split() for line in (workdir / "asked").read_text().splitlines()]
    assert {int(pid) for pid, _ in asked} == first != second
    # In the order of the calls; what failed is asked again, and so is a molecule that was scored.
    assert list(dict.fromkeys(smiles for _, smiles in asked)) == [row[1] for row in ledger]

    scores = {row[1]: (row[3], row[0]) for row in ledger if row[3] is not None}
    failed = {row[1] for row in ledger if row[3] is None}
    for own, other in zip(*steps, strict=True):
        assert own["texts"] != other["texts"]  # they sample on their own
        assert own["oracle_calls"] == other["oracle_calls"]
        for told in (own, other):
            rows = zip(told["texts"], told["rewards"], told["numbers"], strict=True)
            for row, (text, reward, number) in enumerate(rows):
                canonical = canonical_smiles(text)
                if canonical is None:
                    assert (reward, number) == (0, 0)
                elif canonical in scores:
                    score, call = scores[canonical]
                    assert (reward, number) == (pytest.approx(score), call)
                else:
                    assert reward != reward  # nan: it failed, or came too late
                if canonical in failed:
                    assert "it ends with nitrogen" in told["errors"].pop(str(row))
            assert told["errors"] == {}
    assert steps[0][-1]["oracle_calls"] == BUDGET > steps[0][-2]["oracle_calls"]
    errors = [row[5] for row in ledger if row[1] in failed]
    assert errors
    assert all("it ends with nitrogen" in error for error in errors)

    summary = json.loads((workdir / "two" / "summary.json").read_text())
    assert (summary["processes"], summary["status"]) == (2, "finished")
    assert summary["metrics"]["train/oracle_calls"] == BUDGET
    assert summary["metrics"]["train/generated_samples"] == len(steps[0]) * 2 * 12
    assert (workdir / "two" / "hits.csv").is_file()
    learned = load_smiles_rnn(workdir / "two" / "export").state_dict()
    assert any(not learned[name].equal(value) for name, value in tiny_rnn().state_dict().items())
