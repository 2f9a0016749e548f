"""Training of priors: what is logged, what is exported, and what starts from that."""

import csv
import importlib
import json
import math

import pytest
import torch

from tests.lit_modules.diversify.molecules.tiny_priors import prior_sections, write_molecules
from tests.models.diversify.molecules.tiny_molecules import tiny_smiles_policy
from triptych.cli import main
from triptych.lit_modules.diversify.molecules.molecule_pretraining import MoleculePretraining
from triptych.lit_modules.diversify.molecules.sampled_molecules import SampledMolecules
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.molecules.smiles_policy import SmilesPolicy, load_molecule_policy
from triptych.models.diversify.molecules.smiles_rnn import SmilesRNNConfig
from triptych.short_names import short_names_allowed

SMALL = {"cell": "gru", "embedding_size": 4, "hidden_size": 8}


def numbers(run) -> dict[str, float]:
    return json.loads((run / "summary.json").read_text())["metrics"]


def test_a_prior_learns_is_exported_and_tuned_further(workdir, tiny):
    path = write_molecules(workdir)
    sections = prior_sections(path, 30, rnn=SMALL, learning_rate=0.05)
    # The small CPU's way: products in bfloat16, gradients clipped all the same.
    sections["trainer"] |= {"precision": "bf16-mixed", "gradient_clip_val": 1.0}
    run = main(tiny(name="prior", **sections))
    found = numbers(run)
    assert found["val/nll_nats_per_token"] < 1.9 < math.log(14)  # below a uniform choice
    assert 0 <= found["val/validity"] <= 1
    rows = json.loads((run / "samples" / "step_30.json").read_text())
    assert len(rows) == 12
    assert set(rows[0]) == {"sample", "valid", "in_training_data", "log_prob_nats"}
    policy = load_molecule_policy(run / "export", 12)
    assert isinstance(policy, SmilesPolicy)

    # Fine-tuning without a learning rate validates exactly as the first run did at its end.
    tuned = prior_sections(path, 2, init_from=str(run / "export"), learning_rate=0.0)
    tuned["trainer"] |= {"precision": "bf16-mixed"}
    again = main(tiny(name="tuned", **tuned))
    assert numbers(again)["val/nll_nats_per_token"] == pytest.approx(
        found["val/nll_nats_per_token"], abs=1e-6
    )
    # ... and of a molecule with a token that the prior does not know, it says so.
    other = write_molecules(workdir, more=("CCBr",))
    with pytest.raises(ValueError, match="does not know all tokens of 'CCBr'"):
        main(tiny(name="other", **prior_sections(other, 2, init_from=str(run / "export"))))


def test_a_decoder_is_trained_alike(workdir, tiny):
    base = {
        "hidden_size": 8,
        "num_layers": 1,
        "num_heads": 2,
        "max_position_embeddings": 16,
    }
    sections = prior_sections(write_molecules(workdir), 2, base=base)
    run = main(tiny(**sections))
    assert "val/validity" in numbers(run)
    policy = load_molecule_policy(run / "export", 8)
    rollout = policy.sample([{"prompt_ids": [policy.tokenizer.bos_token_id], "prompt": ""}], 2)
    assert len(rollout.texts) == 2
    with (run / "metrics.csv").open() as file:
        assert any(row.get("train/nll_nats_per_token") for row in csv.DictReader(file))


def test_what_was_cut_off_is_no_molecule():
    rollout = tiny_smiles_policy().sample([{}], 6, torch.Generator().manual_seed(3))
    rollout.texts = ["CC", "CC", "CO", "CN", "C(", "CCO"]
    rollout.finished_B = torch.tensor([True, True, True, True, True, False])
    molecules = SampledMolecules(["CO"], torch.device("cpu"))
    molecules.add(rollout)
    found = molecules.compute()
    # Valid: CC CC CO CN of 6; 3 of these 4 differ; CC and CN of these 3 are new.
    assert found["validity"] == pytest.approx(4 / 6)
    assert found["uniqueness"] == pytest.approx(3 / 4)
    assert found["novelty"] == pytest.approx(2 / 3)
    rows = molecules.rows(rollout, 10)
    assert [row["valid"] for row in rows] == [True] * 4 + [False] * 2
    assert [row["in_training_data"] for row in rows] == [False, False, True, False, False, False]
    molecules.reset()
    molecules.add(rollout.select(torch.tensor([4, 5])))
    assert molecules.compute() == {"validity": 0.0}  # the others have no value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_share": 1.0}, "warmup_share is 1.0"),
        ({"rnn": SmilesRNNConfig(), "base": BaseLMConfig()}, "both"),
        ({"rnn": SmilesRNNConfig(), "init_from": "somewhere"}, "leave the others out"),
    ],
)
def test_settings_that_contradict(settings, message):
    with pytest.raises(ValueError, match=message):
        MoleculePretraining(vocab_size=10, **settings)


def test_the_former_name_is_the_same_class():
    with short_names_allowed():
        former = importlib.import_module("lit_modules.causal_lm")
    assert former.CausalLM is MoleculePretraining
