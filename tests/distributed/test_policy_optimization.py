"""Two gloo processes optimise a policy as one does that sees the prompts and samples of both."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import pad

from tests.conftest import ROOT
from tests.lit_modules.diversify.test_policy_optimization import language_run
from tests.train_process import run_train, run_train_on_two
from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization
from triptych.models.diversify.rollout import Rollout
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.rewards.base import TextReward

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


class SharesEs(TextReward):
    """Share of a and e among the letters; what begins with a t cannot be scored."""

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        if text.strip().startswith("t"):
            raise ValueError("it begins with a t")
        letters = [c for c in text.lower() if c.isalpha()]
        return sum(c in "ae" for c in letters) / max(1, len(letters))


class SamplesForTwo(PolicyOptimization):
    """One process that draws for each half of its prompts what a process of two would."""

    def sample(self, prompts: Any, step: int) -> Rollout:
        if self.trainer.world_size == 2:
            return super().sample(prompts, step)
        half = len(prompts) // 2
        parts = [
            self.policy.sample(
                prompts[rank * half : (rank + 1) * half], self.num_samples,
                self._generator(step, rank),
            )
            for rank in (0, 1)
        ]  # fmt: skip
        return joined(*parts)


def joined(first: Rollout, second: Rollout) -> Rollout:
    prompt = max(r.prompt_ids_BP.shape[1] for r in (first, second))
    length = max(r.token_ids_BT.shape[1] for r in (first, second))

    def left(name: str) -> torch.Tensor:
        tensors = [getattr(r, name) for r in (first, second)]
        return torch.cat([pad(t, (prompt - t.shape[1], 0)) for t in tensors])

    def right(name: str) -> torch.Tensor:
        tensors = [getattr(r, name) for r in (first, second)]
        return torch.cat([pad(t, (0, length - t.shape[1])) for t in tensors])

    return Rollout(
        prompts=[*first.prompts, *second.prompts],
        texts=[*first.texts, *second.texts],
        group_B=torch.cat([first.group_B, second.group_B + first.group_B.max() + 1]),
        prompt_ids_BP=left("prompt_ids_BP"),
        prompt_mask_BP=left("prompt_mask_BP"),
        token_ids_BT=right("token_ids_BT"),
        token_mask_BT=right("token_mask_BT"),
        finished_B=torch.cat([first.finished_B, second.finished_B]),
        log_prob_B=torch.cat([first.log_prob_B, second.log_prob_B]),
        token_log_prob_BT=right("token_log_prob_BT"),
        records=[*first.records, *second.records],
    )


def run(folder: Path, name: str, sections: dict[str, dict], hardware: str) -> Path:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(sections))
    words = ["--config", f"{name}.yaml", "--config", str(ROOT / "configs/hardware" / hardware)]
    train = run_train_on_two if hardware.startswith("ddp2") else run_train
    train(folder, "fit", *words, "--run_dir", name)
    return folder / name


def logged(run: Path) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                kept = key.startswith(("train/", "reward/")) and "second" not in key
                # A process's own: the standard deviation of its advantages.
                if kept and value and key != "train/advantage_std":
                    columns.setdefault(key, []).append(float(value))
    return columns


TERMS = {
    "entropy_bonus": {"coefficient": 0.05, "adaptive": True, "target_nats": 6.0},
    "rehearsal": {"num_samples": 4, "solved_share": 0.5, "right_reward": 0.2},
    "group_filter": {"action": "drop"},
}


@pytest.mark.parametrize("further", [{}, TERMS], ids=["plain", "terms"])
def test_two_processes_do_what_one_does(workdir, further):
    runs = []
    for name, batch_size, hardware in (("one", 4, "cpu.yaml"), ("two", 2, "ddp2_cpu.yaml")):
        sections = language_run(
            reward={"class_path": "tests.distributed.test_policy_optimization.SharesEs"},
            learning_rate=1e-3,
            **further,
        )
        here = "tests.distributed.test_policy_optimization.SamplesForTwo"
        sections["model"]["class_path"] = here
        if name == "two":
            # Scored part by part, in other numbers of parts on each process.
            sections["model"]["init_args"]["policy"]["micro_batch_tokens"] = 60
        sections["data"]["init_args"] |= {"batch_size": batch_size, "rows_per_epoch": 100}
        sections["trainer"] = {"max_steps": 6, "log_every_n_steps": 1, "val_check_interval": 3}
        sections |= {"tracking": {"uri": None}, "checkpoint": {}}
        runs.append(run(workdir, name, sections, hardware))
    one, two = map(logged, runs)
    assert set(one) == set(two)
    assert {"train/reward", "train/kl_nats", "train/above_threshold_share"} <= set(one)
    assert 0 < one["reward/failed_samples"][-1] < 6 * 16
    if further:
        assert 0 < one["train/rehearsed_prompts_share"][-1] < 1
        assert one["train/entropy_coefficient"][-1] > 0.05
    for key, values in one.items():
        assert two[key] == pytest.approx(values, rel=1e-3, abs=1e-5), key
    # The KL says how far the policy has gone: the same way, up to the rounding of sums.
    assert one["train/kl_nats"][-1] != 0
    ours, theirs = (load_memory_lm(folder / "export").state_dict() for folder in runs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-3)
