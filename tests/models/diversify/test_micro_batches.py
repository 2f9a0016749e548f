"""Scoring part by part: one graph at a time, the gradient of the whole batch."""

import numpy as np
import pytest
import torch

from tests.models.diversify.test_scoring import gradients, packed, read_shapes
from tests.models.diversify.tiny_policies import KINDS, VOCABULARY, tiny_model
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig
from triptych.models.diversify.scoring import completion_log_prob, scoring_plan
from triptych.models.gradient_checkpointing import checkpoint_blocks
from triptych.models.lora import LoRAConfig, add_lora

BUDGETS = (1, 40, 90)


def random_rows() -> list[tuple[list[int], list[int]]]:
    """Eighteen completions of three prompts, in turns, of 1 to 13 tokens."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(2, VOCABULARY, length).tolist() for length in (9, 4, 12)]
    return [
        (prompts[row % 3], draw.integers(2, VOCABULARY, draw.integers(1, 14)).tolist())
        for row in range(18)
    ]


ROWS = random_rows()
WEIGHTS = torch.linspace(-1, 2, len(ROWS))


def backward(model, **settings) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Score, and differentiate a loss that needs all rows at once."""
    scores = completion_log_prob(model, *packed(ROWS), **settings)
    score_B = scores.sum(1)
    ((score_B * WEIGHTS).sum() + score_B.logsumexp(0) + score_B.std()).backward()
    return scores.detach(), gradients(model)


def assert_same_gradients(ours, theirs) -> None:
    """To 1e-6 of the norm of the whole gradient: float32 with another order of sums."""
    assert ours.keys() == theirs.keys()
    norm = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0, name
        assert (ours[name] - gradient).abs().max() < 1e-6 * norm, name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_gradients_are_those_of_one_pass(kind, checkpointing):
    expected, theirs = backward(tiny_model(kind).eval())
    model = tiny_model(kind).eval()
    if checkpointing:
        checkpoint_blocks(model)
    for budget in BUDGETS:
        scores, ours = backward(model, micro_batch_tokens=budget)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
        assert_same_gradients(ours, theirs)


def test_a_budget_for_all_changes_no_bit():
    model = tiny_model("llama").eval()
    expected, theirs = backward(model)
    scores, ours = backward(model, micro_batch_tokens=1000)
    assert torch.equal(scores, expected)
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())


def test_adapters_get_the_gradient_of_one_pass():
    model = tiny_model("qwen2").eval()
    add_lora(model, LoRAConfig(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    _, theirs = backward(model)
    _, ours = backward(model, micro_batch_tokens=40)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_read_of_a_table_counts_once(checkpointing):
    def reads(budget: int | None):
        model = tiny_model("memory").eval()
        if checkpointing and budget:
            checkpoint_blocks(model)
        (table,) = model.memory_values
        table.set_gradient("selected_rows")
        backward(model, micro_batch_tokens=budget)
        ids = torch.cat([one.ids_BK for one in table.reads])
        return ids, table.row_gradient()

    (all_ids, whole), (ids, ours) = reads(None), reads(60)
    # The three prompts are read once by a part each; nothing else is read more often.
    plan = scoring_plan(tiny_model("memory"), *packed(ROWS)[:2], packed(ROWS)[3])
    assert len(plan) == 1
    tokens = sum(len(reply) - 1 for _, reply in ROWS)
    assert len(all_ids) == tokens + sum({tuple(p): len(p) for p, _ in ROWS}.values())
    assert tokens < len(ids) < len(all_ids) + sum(len(p) for p, _ in ROWS)
    assert torch.equal(ours.rows_U, whole.rows_U)
    scale = whole.grad_UD.norm()
    assert (ours.grad_UD - whole.grad_UD).abs().max() < 1e-6 * scale


@pytest.mark.parametrize("budget", [60, 90, 150])
def test_parts_keep_to_the_budget_and_prompts_stay_together(budget):
    prompts, prompt_mask, _, mask = packed(ROWS)
    parts = scoring_plan(tiny_model("llama"), prompts, prompt_mask, mask, micro_batch_tokens=budget)
    assert len(parts) > 1
    assert all(part.num_tokens <= budget for part in parts)
    read = [one.index_RS.numel() for part in parts for one in (part.prompts, *part.passes) if one]
    assert sum(read) == sum(part.num_tokens for part in parts)
    places = torch.cat(
        [one.place_N for part in parts for one in (part.prompts, *part.passes) if one]
    )
    # Every sampled token once.
    assert torch.equal(places.sort().values, mask.flatten().nonzero().squeeze(1))
    if budget == 150:  # six rows of a prompt fit, so no prompt is in two parts
        assert len(parts) == 2
        assert all(part.prompts is not None for part in parts)


def test_only_the_last_part_is_computed_once():
    model = tiny_model("llama").eval()
    forward = len(read_shapes(model, ROWS, micro_batch_tokens=90))
    shapes = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: shapes.append(tuple(inputs[0].shape))
    )
    backward(model, micro_batch_tokens=90)
    hook.remove()
    last = scoring_plan(model, *packed(ROWS)[:2], packed(ROWS)[3], micro_batch_tokens=90)[-1]
    assert len(shapes) == 2 * forward - len([last.prompts, *last.passes])


def saved_bytes(model, **settings) -> int:
    """Bytes that autograd holds when the backward pass begins, without parameters."""
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    total = 0

    def pack(tensor):
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        completion_log_prob(model, *packed(ROWS), **settings).sum()
    return total


def test_less_is_saved_for_the_backward_pass():
    model = tiny_model("llama").eval()
    whole = saved_bytes(model)
    assert saved_bytes(model, micro_batch_tokens=60) < 0.4 * whole
    checkpoint_blocks(model)
    assert saved_bytes(model) < 0.4 * whole
    assert saved_bytes(model, micro_batch_tokens=60) < 0.2 * whole


def test_autocast_sums_the_gradients_of_parts_in_float32():
    """The weights are cast anew for each part, so that bfloat16 sums do not add up errors."""
    model = tiny_model("llama").eval()
    _, exact = backward(model)
    with torch.autocast("cpu", torch.bfloat16):
        _, whole = backward(model)
        _, ours = backward(model, micro_batch_tokens=1)

    def error(found) -> float:
        return sum(float((found[n] - g).norm() / g.norm()) for n, g in exact.items())

    assert 0 < error(ours) < 1.1 * error(whole)


@pytest.mark.parametrize("number", [0, -3])
def test_a_budget_below_one_is_refused(number):
    with pytest.raises(ValueError, match=f"micro_batch_tokens is {number}: set it to at least 1"):
        CausalLMPolicyConfig(micro_batch_tokens=number)
    with pytest.raises(ValueError, match=f"micro_batch_tokens is {number}: set it to at least 1"):
        CausalLMPolicy(tiny_model("llama"), 4, micro_batch_tokens=number)
