"""Searches in stages; memories that begin with given molecules and spell them anew."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from tests.models.diversify.molecules.tiny_molecules import tiny_rnn, tiny_tokenizer
from triptych.callbacks.diversify.molecules.molecule_report import MoleculeReport
from triptych.callbacks.diversify.molecules.stop_search import StopSearch
from triptych.datamodules.diversify.unprompted import Unprompted
from triptych.lit_modules.diversify.molecules.molecule_optimization import MoleculeOptimization
from triptych.lit_modules.diversify.molecules.staged_optimization import (
    SearchStage,
    StagedMoleculeOptimization,
)
from triptych.models.diversify.molecules.molecule import canonical_smiles
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.molecules.diversity_filters import DiversityFilter
from triptych.objectives.diversify.molecules.experience_replay import ExperienceReplay
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.oracle_reward import OracleReward


class Share(MoleculeComponent):
    """Atoms of one element among the heavy atoms."""

    def __init__(self, symbol: str) -> None:
        super().__init__()
        self.symbol = symbol

    def value(self, molecule, smiles: str) -> float:
        symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
        return symbols.count(self.symbol) / len(symbols)


def share(molecule_smiles: str, symbol: str) -> float:
    score = MoleculeObjective([Share(symbol)], mean="arithmetic").score(molecule_smiles)
    return pytest.approx(score.score)


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("prior")
    tiny_rnn().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def stage(symbol: str, budget: int = 400, **ends) -> SearchStage:
    reward = OracleReward(MoleculeObjective([Share(symbol)], mean="arithmetic"), budget)
    return SearchStage(reward, **ends)


def staged(prior: str, *stages: SearchStage, **settings) -> StagedMoleculeOptimization:
    seed_everything(7)
    given = {"num_samples": 16, "max_new_tokens": 8, "learning_rate": 0.01, "sigma": 16.0}
    given |= {
        "mara": Mara(threshold=0.5, scope="batch_and_replay"),
        "replay": ExperienceReplay(20, 4, num_spellings=2),
        "diversity_filter": DiversityFilter("murcko_scaffold", bucket_size=30, min_score=0.5),
    }
    return StagedMoleculeOptimization(list(stages), prior, **given | settings)


def trainer(folder: Path, max_steps: int = 60, callbacks=()) -> Trainer:
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


def test_stages_end_by_score_steps_and_budget(prior, tmp_path):
    own = Mara(threshold=0.7, scope="batch_and_replay")
    first = stage("O", until_score=0.01, min_steps=2)
    module = staged(prior, first, stage("N", max_steps=2), stage("C", budget=25, mara=own))
    stop, report = StopSearch(patience=3), MoleculeReport(threshold=0.5)
    trainer(tmp_path, callbacks=[stop, report]).fit(module, Unprompted())
    by_score, by_steps, by_budget = module.stage_ends
    assert by_score.startswith("a step's mean score is 0.")
    assert by_steps == "2 steps were made"
    assert by_budget == "the budget of 25 oracle calls is spent" == stop.reason
    assert module.mara is own
    rows = dict(module.summary_rows())
    assert rows["stage 3 ended"] == by_budget
    assert dict(report.summary_rows())["oracle calls"] == "25 of 25"
    names = ["oracle_stage1.sqlite", "oracle_stage2.sqlite", "oracle.sqlite"]
    for name, each, symbol in zip(names, module.stages, "ONC", strict=True):
        assert each.reward.ledger_path == str(tmp_path / name)
        calls = each.reward.ledger.calls()
        assert calls
        assert all(call.score == share(call.smiles, symbol) for call in calls)
    # What is remembered was scored anew by the last stage.
    for smiles, each in module.replay.memory.items():
        assert each.reward == share(smiles, "C")
    module.teardown("fit")


@pytest.mark.parametrize("cut", [2, 5])
def test_a_staged_search_goes_on_where_it_was(prior, tmp_path, cut):
    def made() -> StagedMoleculeOptimization:
        return staged(prior, stage("O", max_steps=4), stage("N"))

    whole, first, second = made(), made(), made()
    trainer(tmp_path / "whole", 7).fit(whole, Unprompted(4))
    running = trainer(tmp_path / "parts", cut)
    running.fit(first, Unprompted(4))
    running.save_checkpoint(tmp_path / "cut.ckpt")
    # In another folder, to which the calls of all stages are taken along.
    going_on = trainer(tmp_path / "others", 7)
    going_on.fit(second, Unprompted(4), ckpt_path=tmp_path / "cut.ckpt")
    assert second.stage == whole.stage == 1
    assert second.stage_ends == whole.stage_ends
    for mine, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(second.stages, whole.stages, strict=True):
        assert mine.reward.ledger.calls() == theirs.reward.ledger.calls()
    assert second.replay.state_dict() == whole.replay.state_dict()
    assert second.diversity_filter.state_dict() == whole.diversity_filter.state_dict()
    state = torch.load(tmp_path / "cut.ckpt", weights_only=False)
    single = staged(prior, stage("O"))
    single.stages = single.stages[: second.stage - 1]
    with pytest.raises(ValueError, match="of no search with at most 0 stages"):
        single.on_load_checkpoint(state)
    for module in (whole, first, second):
        module.teardown("fit")


def test_settings_of_stages_that_contradict(prior):
    with pytest.raises(ValueError, match="stages is empty"):
        staged(prior)
    with pytest.raises(ValueError, match="min_steps 3 and max_steps 2"):
        stage("O", min_steps=3, max_steps=2)


def seeded(prior: str, folder: Path, lines: list[str], **replay) -> MoleculeOptimization:
    path = folder / "actives.smi"
    path.write_text("".join(f"{line}\n" for line in lines))
    seed_everything(7)
    reward = OracleReward(MoleculeObjective([Share("O")], mean="arithmetic"), 50)
    settings = {"num_samples": 16, "max_new_tokens": 8, "sigma": 16.0}
    memory = ExperienceReplay(20, 4, seeds=str(path), **replay)
    return MoleculeOptimization(reward, prior, replay=memory, **settings)


def test_a_memory_begins_with_the_users_molecules(prior, tmp_path):
    lines = ["OCC ethanol", "O=C=O", "CBr bromide", "C1CC", "OOOOOOOOO long", "CC"]
    module = seeded(prior, tmp_path, lines)
    with pytest.warns(UserWarning, match=r"3 molecules .* left out: CBr \(no spelling\), C1CC"):
        trainer(tmp_path, 1).fit(module, Unprompted(4))
    calls = module.reward.ledger.calls()
    assert [call.smiles for call in calls[:3]] == ["CCO", "O=C=O", "CC"]
    assert {"CCO", "O=C=O"} <= module.replay.memory.keys()
    assert "CC" not in module.replay.memory  # its reward is 0
    assert {"CCO", "O=C=O"} <= {canonical_smiles(text) for text in module.replayed.rollout.texts}
    module.reward.close()
    none = seeded(prior, tmp_path, ["CBr"])
    with (
        pytest.warns(UserWarning, match="1 molecules"),
        pytest.raises(ValueError, match=r"no molecule of replay\.seeds"),
    ):
        trainer(tmp_path / "none", 1).fit(none, Unprompted(4))
    with pytest.raises(FileNotFoundError, match=r"replay\.seeds: there is no file"):
        ExperienceReplay(seeds=str(tmp_path / "gone.smi"))


def test_remembered_molecules_join_in_new_spellings(prior, tmp_path):
    module = seeded(prior, tmp_path, ["CCO", "CC(=O)N"], num_spellings=6)
    trainer(tmp_path, 1).fit(module, Unprompted(4))
    replayed = module.replayed
    texts = replayed.rollout.texts
    assert len(texts) == 6 * 2
    assert {canonical_smiles(text) for text in texts} == {"CCO", "CC(N)=O"}
    assert len(set(texts)) > 4
    by_molecule = dict(zip(map(canonical_smiles, texts), replayed.reward.tolist(), strict=True))
    assert by_molecule == {"CCO": share("CCO", "O"), "CC(N)=O": share("CC(N)=O", "O")}
    # Log-probabilities are those of the spellings.
    tokenizer = module.policy.tokenizer
    for row, text in enumerate(texts):
        ids = replayed.rollout.token_ids_BT[row][replayed.rollout.token_mask_BT[row]].tolist()
        assert ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    own = module.policy.reference_token_log_prob(replayed.rollout).sum(1)
    torch.testing.assert_close(replayed.reference_log_prob, own)
    module.reward.close()
