"""Policy optimisation of molecules: budget, replay, filter, MARA over both, and going on."""

import csv
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from tests.models.diversify.molecules.tiny_molecules import tiny_rnn, tiny_tokenizer
from triptych.callbacks.diversify.molecules.molecule_report import MoleculeReport
from triptych.callbacks.diversify.molecules.stop_search import StopSearch
from triptych.callbacks.diversify.stop_on_collapse import StopOnCollapse
from triptych.datamodules.diversify.unprompted import Unprompted
from triptych.lit_modules.diversify.molecules.molecule_optimization import MoleculeOptimization
from triptych.models.diversify.rollout import Rollout
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.molecules.diversity_filters import DiversityFilter
from triptych.objectives.diversify.molecules.experience_replay import ExperienceReplay
from triptych.objectives.diversify.policy_loss import Rloo
from triptych.objectives.rewards.base import Scores
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.oracle_failures import OracleFailedError
from triptych.objectives.rewards.molecules.oracle_reward import OracleReward
from triptych.objectives.rewards.molecules.transforms import Sigmoid


class ShareOfOxygen(MoleculeComponent):
    """Oxygens among the heavy atoms."""

    def value(self, molecule, smiles: str) -> float:
        symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
        return symbols.count("O") / len(symbols)


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("prior")
    tiny_rnn().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


class Reworded(OracleReward):
    """Says in other words that the budget is spent."""

    def score(self, rollout: Rollout) -> Scores:
        scores = super().score(rollout)
        return replace(scores, errors=dict.fromkeys(scores.errors, "come back next year"))


def search(
    prior: str, budget: int = 30, oracle: type[OracleReward] = OracleReward, **settings
) -> MoleculeOptimization:
    seed_everything(7)
    reward = oracle(MoleculeObjective([ShareOfOxygen()], mean="arithmetic"), budget)
    given = {"num_samples": 16, "max_new_tokens": 8, "learning_rate": 0.01, "sigma": 16.0}
    return MoleculeOptimization(reward, prior, **given | settings)


def with_memories() -> dict:
    return {
        "mara": Mara(threshold=0.5, scope="batch_and_replay"),
        "replay": ExperienceReplay(20, 4),
        "diversity_filter": DiversityFilter("molecule", bucket_size=6, min_score=0.5),
    }


def trainer(folder: Path, max_steps: int = 100, callbacks=()) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )


def test_a_search_ends_with_its_budget_and_reports(prior, tmp_path):
    module = search(prior, **with_memories())
    stop, report = StopSearch(), MoleculeReport(threshold=0.5, num_hits=[1, 1000], num_shown=4)
    trainer(tmp_path, callbacks=[stop, report]).fit(module, Unprompted())
    assert stop.reason == "the budget of 30 oracle calls is spent"
    calls = module.reward.ledger.calls()
    assert [call.number for call in calls] == list(range(1, 31))
    assert len({call.smiles for call in calls}) == 30
    assert (tmp_path / "oracle.sqlite").is_file()
    with (tmp_path / "hits.csv").open() as file:
        hits = list(csv.DictReader(file))
    expected = sorted((call.score for call in calls if call.score >= 0.5), reverse=True)
    assert [float(row["score"]) for row in hits] == pytest.approx(expected, rel=1e-5)
    assert max(len(row["score"]) for row in hits) <= 8  # six digits
    assert [row["share_of_oxygen"] for row in hits] == [row["score"] for row in hits]
    rows = dict(report.summary_rows())
    assert rows["oracle calls"] == "30 of 30"
    assert rows["oracle calls until hit 1,000"] == ">30"
    assert report.numbers["yield"] == len(hits)
    names = ("oracle_calls", "best_molecules", "diverse_molecules", "properties", "chemical_space")
    for name in names:
        picture = (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
    module.reward.close()


@pytest.mark.parametrize("oracle", [OracleReward, Reworded])
def test_the_end_of_the_budget_is_counted_whatever_its_words(prior, tmp_path, oracle):
    module, stop = search(prior, budget=8, oracle=oracle), StopSearch()
    trainer(tmp_path, callbacks=[stop]).fit(module, Unprompted())
    assert module.oracle_calls == 8
    assert stop.reason == "the budget of 8 oracle calls is spent"
    assert module.experience.reward.isnan().any()  # the last step reached the end
    assert module.experience.scores.over_budget
    assert module.experience.scores.errors == {}
    assert module.experience_log.failed_samples == 0
    module.reward.close()


def test_samples_that_only_repeat_end_a_search(prior, tmp_path):
    module = search(prior, budget=500, max_new_tokens=2, num_samples=64)
    stop = StopSearch(patience=3)
    with pytest.warns(UserWarning, match="samples only repeat"):
        trainer(tmp_path, callbacks=[stop]).fit(module, Unprompted())
    assert "no molecule of the last 3 training steps was new" in stop.reason
    bounded, stop = search(prior, budget=500), StopSearch(max_samples=32)
    trainer(tmp_path / "bounded", callbacks=[stop]).fit(bounded, Unprompted())
    assert stop.reason.startswith("32 molecules were sampled (max_samples)")
    module.reward.close()
    bounded.reward.close()


def test_going_on_is_never_having_stopped(prior, tmp_path):
    whole = search(prior, budget=400, **with_memories())
    trainer(tmp_path / "whole", 6).fit(whole, Unprompted(4))
    first = search(prior, budget=400, **with_memories())
    running = trainer(tmp_path / "parts", 3)
    running.fit(first, Unprompted(4))
    running.save_checkpoint(tmp_path / "at_3.ckpt")
    second = search(prior, budget=400, **with_memories())
    trainer(tmp_path / "parts", 6).fit(second, Unprompted(4), ckpt_path=tmp_path / "at_3.ckpt")
    assert second.generated_samples == whole.generated_samples == 6 * 16
    for mine, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert second.reward.ledger.calls() == whole.reward.ledger.calls()
    assert second.replay.state_dict() == whole.replay.state_dict()
    assert second.diversity_filter.counts == whole.diversity_filter.counts
    other = search(prior, budget=400)
    with pytest.raises(ValueError, match="replay is null, unlike in"):
        trainer(tmp_path / "other", 6).fit(other, Unprompted(4), ckpt_path=tmp_path / "at_3.ckpt")
    checkpoint = torch.load(tmp_path / "at_3.ckpt", weights_only=False)
    search(prior, budget=400, **with_memories()).on_load_checkpoint(checkpoint)  # without a trainer
    second.reward.close()
    ledger = tmp_path / "parts" / "oracle.sqlite"
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("DELETE FROM calls WHERE call > 2")
    for told in (r"oracle\.sqlite has 2: .*an older copy", r"oracle\.sqlite is empty \(0 bytes\)"):
        lost = search(prior, budget=400, **with_memories())
        with pytest.raises(ValueError, match=told):
            trainer(tmp_path / "parts", 6).fit(
                lost, Unprompted(4), ckpt_path=tmp_path / "at_3.ckpt"
            )
        lost.reward.close()
        ledger.write_bytes(b"")
    ledger.unlink()
    astray = search(prior, budget=400, **with_memories())
    with pytest.raises(ValueError, match=r"oracle calls, but .*oracle\.sqlite is gone"):
        trainer(tmp_path / "astray", 6).fit(astray, Unprompted(4), ckpt_path=tmp_path / "at_3.ckpt")
    for module in (whole, first, second):
        module.reward.close()


def test_the_anchor_may_be_a_remembered_molecule(prior, tmp_path):
    module = search(prior, budget=400, **with_memories())
    trainer(tmp_path, 8).fit(module, Unprompted())
    fresh, replayed = module.experience, module.replayed
    reward = torch.cat([fresh.reward, replayed.reward])
    reference = torch.cat([fresh.reference_log_prob, replayed.reference_log_prob])
    good = [row for row in range(len(reward)) if reward[row] >= 0.5]
    anchor = max(good, key=lambda row: float(reference[row]))
    augmented = torch.cat([fresh.augmentation.reward_B, replayed.augmentation.reward_B])
    for row in range(len(reward)):  # equation 11, with beta = 1 / sigma
        level = reward[row]
        if row in good:
            level = reward[anchor] + (reference[anchor] - reference[row]) / 16.0
        torch.testing.assert_close(augmented[row], level)
    assert 1 < len(replayed.rollout) <= 4
    assert replayed.augmentation.first_row == len(fresh.rollout) == 16
    module.reward.close()


def test_settings_that_contradict(prior):
    with pytest.raises(ValueError, match="hold only for fresh samples"):
        search(prior, loss=Rloo(), replay=ExperienceReplay())
    with pytest.raises(ValueError, match="there is no replay"):
        search(prior, mara=Mara(threshold=0.5, scope="batch_and_replay"))


class Fickle(ShareOfOxygen):
    """Cannot score molecules without nitrogen; is down while it is told so."""

    is_down = False

    def value(self, molecule, smiles: str) -> float:
        if Fickle.is_down or "N" not in smiles:
            raise RuntimeError("no licence" if Fickle.is_down else "no nitrogen")
        return super().value(molecule, smiles)


def fickle_search(prior: str) -> MoleculeOptimization:
    module = search(prior, budget=400, num_samples=64)
    module.reward = OracleReward(MoleculeObjective([Fickle()], mean="arithmetic"), 400)
    return module


@pytest.mark.filterwarnings("ignore:OracleReward could not score")
def test_failed_molecules_have_no_weight_and_are_counted(prior, tmp_path):
    module = fickle_search(prior)
    trainer(tmp_path, 3).fit(module, Unprompted())
    failed = module.experience.reward.isnan()
    assert 0 < failed.sum() < len(failed)
    assert module.experience_log.failed_samples >= failed.sum()
    inputs = module.loss_inputs(module.experience, module.experience.old_log_prob_BT)
    assert torch.equal(inputs.reward_B.isnan(), failed)
    assert all("N" in call.smiles for call in module.reward.ledger.calls())
    assert set(module.reward.ledger.failures().values()) == {"RuntimeError: no nitrogen"}
    module.reward.close()


def test_a_search_whose_oracle_is_down_pauses_with_its_words(prior, tmp_path, monkeypatch):
    module = fickle_search(prior)
    monkeypatch.setattr(Fickle, "is_down", True)
    with pytest.raises(OracleFailedError, match="no licence"):
        trainer(tmp_path, 3).fit(module, Unprompted())
    assert module.trainer.global_step == 0  # nothing was learned from it
    assert module.reward.num_calls == 0


class WithTransform(ShareOfOxygen):
    unit = "O/atom"


def test_raw_values_and_poses_are_beside_the_scores(prior, tmp_path):
    seed_everything(7)
    oxygen = WithTransform(Sigmoid(0, 1), name="oxygen")
    reward = OracleReward(MoleculeObjective([oxygen]), 20)
    module = MoleculeOptimization(reward, prior, num_samples=16, max_new_tokens=8)
    report = MoleculeReport(threshold=0.5, num_shown=4)
    trainer(tmp_path, callbacks=[StopSearch(), report]).fit(module, Unprompted())
    with (tmp_path / "hits.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        atoms = [letter for letter in row["smiles"].replace("Cl", "X") if letter.isalpha()]
        raw = atoms.count("O") / len(atoms)
        assert float(row["oxygen_raw"]) == pytest.approx(raw, rel=1e-5)
        assert float(row["oxygen"]) == pytest.approx(Sigmoid(0, 1)(raw), rel=1e-5)
    assert "oxygen (O/atom) of the hits: median (range)" in dict(report.summary_rows())
    assert not (tmp_path / "poses.sdf").exists()
    module.reward.close()


def test_texts_are_those_of_a_search(prior, tmp_path):
    module = search(prior, budget=100, sigma=128.0)
    assert module._settings_findings == []  # sigma is REINVENT's own, however small beta is
    assert module.experience_log.reworded("beta is 0.01") == "sigma is 100"
    stop = StopOnCollapse("train/distinct_share", below=2.0, patience=1)
    with pytest.warns(UserWarning, match=r"A smaller model\.init_args\.sigma or learning rate"):
        trainer(tmp_path, 3, callbacks=[stop]).fit(module, Unprompted())
    module.reward.close()
