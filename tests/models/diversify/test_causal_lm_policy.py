"""A language model policy: groups, references, exports, errors."""

import pytest
import torch

from tests.models.diversify.tiny_policies import (
    END,
    KINDS,
    VOCABULARY,
    WORDS,
    prompt,
    tiny_model,
    tiny_tokenizer,
)
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig, build_policy
from triptych.models.diversify.rollout import join_rollouts
from triptych.models.lora import LoRAConfig, add_lora
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import load_memory_lm

PROMPTS = [prompt([5, 7, 3]), prompt([4])]


def policy(kind="llama", trainable="all", **settings) -> CausalLMPolicy:
    from triptych.models.remember.trainable import choose_trainable

    model = tiny_model(kind)
    choose_trainable(model, trainable)
    return CausalLMPolicy(model, 8, tiny_tokenizer(), **settings)


def sample(policy, prompts=PROMPTS, num_samples=3, seed=1, **settings):
    return policy.sample(prompts, num_samples, torch.Generator().manual_seed(seed), **settings)


def train_a_little(policy, rollout) -> None:
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (-policy.log_prob(rollout).mean()).backward()
        optimizer.step()


# -- rollouts -------------------------------------------------------------------------------------


def test_a_rollout_has_a_group_for_each_prompt_and_the_words_of_its_tokens():
    rollout = sample(policy())
    assert len(rollout) == 6
    assert rollout.group_B.tolist() == [0, 0, 0, 1, 1, 1]
    assert list(rollout.prompts) == ["d f b"] * 3 + ["c"] * 3
    assert [row["answer"] for row in rollout.records] == [3] * 3 + [1] * 3
    assert rollout.prompt_ids_BP[:, 2].tolist() == [3, 3, 3, 4, 4, 4]
    assert rollout.prompt_mask_BP.sum(1).tolist() == [3, 3, 3, 1, 1, 1]
    for row, text in enumerate(rollout.texts):
        ids = rollout.token_ids_BT[row][rollout.token_mask_BT[row]].tolist()
        assert text.split() == [WORDS[i] for i in ids if i > END]
        assert bool(rollout.finished_B[row]) == (ids[-1] == END)
    assert len(set(rollout.texts)) > 1
    assert rollout.log_prob_B.requires_grad is False


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_sampled_is_scored_the_same_in_training_and_out_of_it(kind):
    made = policy(kind)
    rollout = sample(made, num_samples=6)
    for mode in (True, False):
        made.train(mode)
        assert not made.model.training
        log_prob = made.log_prob(rollout)
        assert log_prob.requires_grad
        torch.testing.assert_close(log_prob.detach(), rollout.log_prob_B, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        made.reference_log_prob(rollout), rollout.log_prob_B, rtol=0, atol=1e-4
    )


def test_dropout_never_parts_the_sampled_from_the_scored():
    base = BaseLMConfig(family="gpt2", hidden_size=16, num_layers=1, num_heads=2, dropout=0.5)
    made = build_policy(CausalLMPolicyConfig(base=base), VOCABULARY, tiny_tokenizer()).train()
    rollout = sample(made)
    torch.testing.assert_close(
        made.log_prob(rollout).detach(), rollout.log_prob_B, rtol=0, atol=1e-5
    )


def test_temperature_sharpens():
    made = policy()
    cold = sample(made, num_samples=40, temperature=0.05)
    assert len(set(cold.texts)) < len(set(sample(made, num_samples=40).texts))


# -- references -----------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["all", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_the_policy_and_not_its_reference(kind, trainable):
    made = policy(kind, trainable)
    rollout = sample(made)
    before = made.reference_token_log_prob(rollout)
    plain = CausalLMPolicy(tiny_model(kind), 8, tiny_tokenizer())
    assert torch.equal(before, plain.token_log_prob(rollout).detach())  # the base, to the bit
    train_a_little(made, rollout)
    assert torch.equal(made.reference_token_log_prob(rollout), before)
    assert not before.requires_grad
    assert (made.token_log_prob(rollout) - before).abs().max() > 1e-3


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_the_reference_is_sampled_as_it_was_at_the_start(trainable):
    made = policy() if trainable == "all" else lora_policy()
    before = sample(made)
    train_a_little(made, before)
    drawn = made.reference_sample(PROMPTS, 3, torch.Generator().manual_seed(1))
    assert list(drawn.texts) == list(before.texts)
    assert list(sample(made).texts) != list(before.texts)
    torch.testing.assert_close(drawn.log_prob_B, made.reference_log_prob(drawn), rtol=0, atol=1e-4)


def lora_policy() -> CausalLMPolicy:
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=4))
    return CausalLMPolicy(model, 8, tiny_tokenizer())


def test_joined_rollouts_score_as_their_parts():
    made = policy()
    parts = [sample(made), sample(made, [prompt([4, 9, 9, 8])], seed=2)]
    joined = join_rollouts(parts)
    assert joined.group_B.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert list(joined.prompts) == [p for part in parts for p in part.prompts]
    scores = made.log_prob(joined).detach()
    torch.testing.assert_close(scores, joined.log_prob_B, rtol=0, atol=1e-4)
    assert joined.token_log_prob_BT.shape == joined.token_ids_BT.shape
    assert joined.reference_log_prob_B is None
    torch.testing.assert_close(scores, torch.cat([made.log_prob(p).detach() for p in parts]))
    log_prob, entropy = made.token_log_prob_and_entropy(joined)
    torch.testing.assert_close(log_prob.sum(1).detach(), scores)
    assert (entropy[joined.token_mask_BT] > 0).all()
    assert not entropy[~joined.token_mask_BT].any()


def test_a_reference_may_be_asked_for_between_forward_and_backward():
    """Switching adapters off for a moment keeps their gradients."""
    made = policy(trainable="lora")
    rollout = sample(made)
    log_prob = made.log_prob(rollout)
    made.reference_log_prob(rollout)
    log_prob.sum().backward()
    learns = [p for p in made.parameters() if p.requires_grad]
    assert learns
    assert any(p.grad.abs().sum() > 0 for p in learns)


def test_a_reference_shares_what_is_frozen_and_copies_the_table_that_is_written_to():
    made = policy("memory", "none")
    rollout = sample(made)
    (reference,) = made._reference
    before = made.reference_token_log_prob(rollout)
    own = dict(made.model.named_parameters())
    copied = {n for n, p in reference.named_parameters() if p is not own[n]}
    assert copied == {"memory_values.0.weight"}
    made.model.memory_values[0].weight.data.add_(1.0)  # as a row optimizer does
    assert torch.equal(made.reference_token_log_prob(rollout), before)
    assert not torch.equal(made.token_log_prob(rollout).detach(), before)
    everything = policy("memory", "all")
    own = dict(everything.model.named_parameters())
    assert not [n for n, p in everything._reference[0].named_parameters() if p is own[n]]


def test_nothing_of_a_reference_is_found_in_the_policy():
    made = policy("memory")
    assert len(list(made.parameters())) == len(list(made.model.parameters()))
    assert len(value_tables(made)) == 1
    assert {name.partition(".")[0] for name in made.state_dict()} == {"model", "_extra_state"}
    assert not any(p.requires_grad for p in made._reference[0].parameters())
    made.double()
    rollout = sample(made)
    assert made.reference_token_log_prob(rollout).dtype == torch.float64
    assert torch.equal(
        made.reference_token_log_prob(rollout), made.token_log_prob(rollout).detach()
    )


@pytest.mark.parametrize("trainable", ["all", "values", "lora"])
def test_a_resumed_policy_has_the_same_reference_to_the_bit(trainable):
    made = policy("memory", trainable)
    rollout = sample(made)
    train_a_little(made, rollout)
    state = made.state_dict()
    resumed = policy("memory", trainable)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.token_log_prob(rollout), made.token_log_prob(rollout))
    assert torch.equal(
        resumed.reference_token_log_prob(rollout), made.reference_token_log_prob(rollout)
    )


def test_a_checkpoint_of_another_reference_is_refused():
    state = policy().state_dict()
    other = CausalLMPolicy(tiny_model("llama", seed=1), 8, tiny_tokenizer())
    with pytest.raises(ValueError, match=r"another reference policy .* init_from"):
        other.load_state_dict(state)


# -- memory ---------------------------------------------------------------------------------------


def test_sampling_and_references_are_no_training_accesses():
    made = policy("memory", "none")
    (table,) = made.model.memory_values
    anchor = torch.nn.Parameter(torch.zeros(()))
    table.set_gradient("selected_rows")
    table.set_anchor(anchor)
    rollout = sample(made)
    made.reference_log_prob(rollout)
    assert table.reads == []
    made.log_prob(rollout).sum().backward()
    counted = sum(len(reads.ids_BK) for reads in table.reads)
    prompts = sum(len(row["prompt_ids"]) for row in PROMPTS)
    assert counted == prompts + int(rollout.token_mask_BT.sum()) - len(rollout)


def test_adapters_and_learning_slots_together_have_no_reference():
    made = policy("memory", "lora")
    rollout = sample(made)
    made.model.memory_values[0].set_anchor(torch.nn.Parameter(torch.zeros(())))
    with pytest.raises(ValueError, match="leave one of them out"):
        made.reference_log_prob(rollout)


# -- building and leaving ------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["all", "lora", "values"])
def test_an_export_is_a_plain_model_that_a_policy_starts_from(trainable, tmp_path):
    made = policy("memory", trainable)
    rollout = sample(made)
    train_a_little(made, rollout)
    made.export(tmp_path)
    loaded = load_memory_lm(tmp_path)
    assert [n for n, _ in loaded.named_parameters() if "lora_" in n] == []
    again = build_policy(
        CausalLMPolicyConfig(init_from=str(tmp_path), max_new_tokens=8), VOCABULARY
    )
    assert again.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert again.tokenizer.eos_token_id == again.model.config.eos_token_id == END
    torch.testing.assert_close(
        again.token_log_prob(rollout), made.token_log_prob(rollout), rtol=0, atol=1e-4
    )
    reference = dict(again._reference[0].named_parameters())
    assert all(torch.equal(reference[n], p) for n, p in again.model.named_parameters())


def test_a_policy_is_built_from_its_options():
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2)
    memory = MemoryConfig(layers=[1], num_keys=8, num_heads=2, top_k=4)
    config = CausalLMPolicyConfig(
        base=base, memory=memory, trainable="lora", lora=LoRAConfig(rank=2), max_new_tokens=5
    )
    made = build_policy(config, VOCABULARY)
    learns = {n for n, p in made.named_parameters() if p.requires_grad}
    assert learns
    assert all(".lora_" in name for name in learns)
    assert made.max_new_tokens == 5
    with pytest.raises(ValueError, match="no tokenizer"):
        made.sample(PROMPTS, 1)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        CausalLMPolicyConfig(max_new_tokens=0)
    with pytest.raises(ValueError, match="init_from=x and base"):
        CausalLMPolicyConfig(init_from="x", base=BaseLMConfig())
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        policy(chunk_tokens=0)
    with pytest.raises(ValueError, match="embeds only 5"):
        CausalLMPolicy(tiny_model("llama", vocab_size=5), 8, tiny_tokenizer())
    ends_never = tiny_tokenizer()
    ends_never.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        CausalLMPolicy(tiny_model("llama"), 8, ends_never)


def test_bad_prompts_are_named():
    made = policy()
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        made.sample([PROMPTS[0], prompt([])], 1)
    with pytest.raises(ValueError, match=r"prompt 1 has 41 tokens .* 48 positions"):
        made.sample([PROMPTS[0], prompt([3] * 41)], 1)
    with pytest.raises(ValueError, match="above 0"):
        made.sample(PROMPTS, 0)
    made.sample([prompt([3] * 40)], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_within_autocast_takes_no_gradient_away(kind):
    """Autocast caches casts of weights, and casts made in sampling have no gradient."""
    made = policy(kind)
    rollout = sample(made)
    gradients = []
    for samples_first in (False, True):
        made.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if samples_first:
                sample(made)
                made.reference_log_prob(rollout)
            made.log_prob(rollout).sum().backward()
        gradients.append({n: p.grad for n, p in made.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name
