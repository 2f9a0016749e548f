"""Tables of training completions."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything

from tests.lit_modules.diversify.tiny_prompts import Fails, TinyPrompts, module, trainer
from triptych.callbacks.diversify.completion_table import CompletionTable
from triptych.objectives.diversify.group_filter import GroupFilter
from triptych.objectives.diversify.mara import Mara


def test_rows_are_those_of_the_step(tmp_path):
    seed_everything(3, verbose=False)
    made = module(
        reward=Fails(), mara=Mara(threshold=0.5), num_samples=6, group_filter=GroupFilter()
    )
    table = CompletionTable(every_n_steps=2, max_rows=9)
    with pytest.warns(UserWarning, match="could not score 'x'"):
        trainer(tmp_path, table, max_steps=4).fit(made, TinyPrompts())
    files = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert files == ["step_1.json", "step_2.json", "step_4.json"]
    rows = json.loads((tmp_path / "completions" / "step_4.json").read_text())
    experience = made.experience
    assert len(rows) == 9 < len(experience.rollout)
    assert [row["completion"] for row in rows] == experience.rollout.texts[:9]
    for place, row in enumerate(rows):
        failed = row["completion"] == "x"
        assert row["reward"] == (None if failed else 1.0)
        assert row["error"] == ("RuntimeError: x is no number" if failed else "")
        reference = float(experience.reference_log_prob[place])
        assert row["reference_log_prob_nats"] == pytest.approx(reference, abs=1e-6)
        assert (row["tokens"], row["finished"]) == (1, True)
        assert row["has_weight"] == (not experience.left_out_B[place])
    assert sum(row["anchor"] for row in rows) == int(experience.is_anchor[:9].sum())
    assert torch.isfinite(experience.old_log_prob_BT).all()


def test_another_module_is_refused(tmp_path):
    with pytest.raises(ValueError, match="HasExperience"):
        CompletionTable().on_fit_start(trainer(tmp_path), LightningModule())
