"""The recurrent policy: sampled and scored distributions are equal, also with a shrinking batch."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models.diversify.molecules.tiny_molecules import (
    tiny_rnn,
    tiny_smiles_policy,
    tiny_tokenizer,
)
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.diversify.molecules.smiles_policy import SmilesPolicy, load_molecule_policy
from triptych.models.remember.memory_lm import build_memory_lm


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_what_is_sampled_is_what_is_scored(cell):
    policy = tiny_smiles_policy(cell)
    rollout = policy.sample([{}, {}], 20, seeded())
    assert rollout.group_B.tolist() == [0] * 20 + [1] * 20
    assert not rollout.finished_B.all()  # some are cut
    assert rollout.finished_B.any()
    torch.testing.assert_close(policy.log_prob(rollout), rollout.log_prob_B)
    torch.testing.assert_close(policy.reference_log_prob(rollout), rollout.log_prob_B)
    # Against the plain definition, row by row, padding left out.
    for row in range(0, 40, 7):
        ids = rollout.token_ids_BT[row][rollout.token_mask_BT[row]]
        read = torch.cat([rollout.prompt_ids_BP[row], ids[:-1]])[None]
        hidden, _ = policy.model.rnn(policy.model.embedding(read.t()))
        nll = cross_entropy(policy.model.output(hidden)[:, 0], ids, reduction="sum")
        torch.testing.assert_close(rollout.log_prob_B[row], -nll, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_sampled_inside_autocast_is_scored_outside_it(cell):
    policy = tiny_smiles_policy(cell)
    with torch.autocast("cpu", torch.bfloat16):
        rollout = policy.sample([{}], 40, seeded())
        inside = policy.log_prob(rollout)
    assert rollout.texts == policy.sample([{}], 40, seeded()).texts
    assert torch.equal(inside, policy.log_prob(rollout))
    torch.testing.assert_close(inside, rollout.log_prob_B)
    inside.sum().backward()  # in eval mode, where cuDNN has no backward pass
    assert all(each.grad.dtype == torch.float32 for each in policy.model.parameters())


def test_rows_end_with_the_end_token_and_are_spelled_without_it():
    policy = tiny_smiles_policy()
    rollout = policy.sample([{}], 30, seeded())
    end, pad = policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id
    for row, text in enumerate(rollout.texts):
        ids = rollout.token_ids_BT[row][rollout.token_mask_BT[row]].tolist()
        assert (ids[-1] == end) == bool(rollout.finished_B[row])
        assert end not in ids[:-1]
        words = policy.tokenizer.convert_ids_to_tokens([token for token in ids if token != end])
        assert text == "".join(words)
    assert (rollout.token_ids_BT[~rollout.token_mask_BT] == pad).all()


def test_who_leaves_the_batch_changes_no_sample(monkeypatch):
    policy = tiny_smiles_policy()
    with_all = policy.sample([{}], 40, seeded())
    monkeypatch.setattr("triptych.models.diversify.molecules.smiles_sampling.COMPACT_BELOW", 0.0)
    kept = policy.sample([{}], 40, seeded())
    assert with_all.texts == kept.texts
    torch.testing.assert_close(with_all.log_prob_B, kept.log_prob_B)


def test_sampling_stops_when_all_have_ended(monkeypatch):
    policy = tiny_smiles_policy(max_new_tokens=500)
    steps = []
    step = type(policy.model).step
    monkeypatch.setattr(
        type(policy.model), "step", lambda *args: (steps.append(len(args[1])), step(*args))[1]
    )
    rollout = policy.sample([{}], 16, seeded())
    assert rollout.finished_B.all()
    assert len(steps) == rollout.token_ids_BT.shape[1] < 500
    assert steps[0] == 16 > steps[-1]  # ended rows had left


def test_frequencies_are_the_models():
    policy = tiny_smiles_policy(max_new_tokens=1)
    rollout = policy.sample([{}], 4000, seeded())
    start = torch.tensor([[policy.tokenizer.bos_token_id]])
    expected = policy.model(start)[0, 0].softmax(-1)
    counts = torch.bincount(rollout.token_ids_BT[:, 0], minlength=len(expected)).float()
    deviation = (counts / 4000 - expected).abs() / (expected * (1 - expected) / 4000).sqrt().clamp(
        1e-3
    )
    assert deviation.max() < 4.5


def test_the_reference_stays_and_is_no_parameter():
    policy = tiny_smiles_policy()
    rollout = policy.sample([{}], 10, seeded())
    before = policy.reference_log_prob(rollout)
    policy.log_prob(rollout).sum().backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert torch.equal(policy.reference_log_prob(rollout), before)
    assert not torch.allclose(policy.log_prob(rollout), before)
    assert len(list(policy.parameters())) == len(list(policy.model.parameters()))
    assert not any("reference" in name for name in policy.state_dict())


def test_a_checkpoint_of_another_prior_is_refused():
    state = tiny_smiles_policy(seed=1).state_dict()
    tiny_smiles_policy(seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="another reference policy"):
        tiny_smiles_policy(seed=2).load_state_dict(state)


def test_another_vocabulary_is_refused():
    words = ("#", "(", ")", "=", "C", "Br", "N", "O")
    with pytest.raises(ValueError, match="only the model has Cl; only the data has Br"):
        SmilesPolicy(tiny_rnn(), tiny_tokenizer(words))
    policy = tiny_smiles_policy()
    for bad in ({"num_samples": 0}, {"num_samples": 1, "temperature": 0.0}):
        with pytest.raises(ValueError, match="above 0"):
            policy.sample([{}], **bad)


def test_an_export_is_loaded_by_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        load_molecule_policy(tmp_path)
    recurrent, decoder = tmp_path / "recurrent", tmp_path / "decoder"
    model, tokenizer = tiny_rnn(), tiny_tokenizer()
    model.save_pretrained(recurrent)
    tokenizer.save_pretrained(recurrent)
    policy = load_molecule_policy(recurrent, 7)
    assert isinstance(policy, SmilesPolicy)
    assert policy.max_new_tokens == 7
    base = BaseLMConfig(hidden_size=8, num_layers=1, num_heads=2, max_position_embeddings=32)
    build_memory_lm(base, None, len(tokenizer)).save_pretrained(decoder)
    tokenizer.save_pretrained(decoder)
    decoding = load_molecule_policy(decoder, 7)
    assert isinstance(decoding, CausalLMPolicy)
    prompt = {"prompt_ids": [tokenizer.bos_token_id], "prompt": ""}
    rollout = decoding.sample([prompt], 4, seeded())
    torch.testing.assert_close(decoding.log_prob(rollout), rollout.log_prob_B)
