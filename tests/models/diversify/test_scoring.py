"""Scoring in packed passes: numbers and gradients equal those of one plain pass per row."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models.diversify.tiny_policies import KINDS, VOCABULARY, tiny_model
from triptych.models.diversify.scoring import (
    completion_log_prob,
    completion_log_prob_and_entropy,
    scoring_plan,
)
from triptych.models.linear_nll import linear_nll, linear_nll_and_entropy
from triptych.models.lora import LoRAConfig, add_lora
from triptych.models.remember.values.value_table import ValueTable

# Lengths that need more than one pass, and prompts of different lengths.
ROWS = [([5, 7, 3], [4, 6, 1]), ([9] * 20, [3, 2, 8, 8, 1]), ([2], [1]), ([3, 3], [5, 4, 4, 4, 4])]
# Two prompts in turns, so that one is read for three completions and the other for one.
SHARED = [([5, 7, 3, 9, 2], [4, 6, 1]), ([8], [1]), ([5, 7, 3, 9, 2], [1]), ([5, 7, 3, 9, 2], [4])]
WEIGHTS = torch.tensor([0.5, -2.0, 1.0, 3.0])


def packed(rows=ROWS):
    width = max(len(prompt) for prompt, _ in rows)
    length = max(len(reply) for _, reply in rows)
    prompts = torch.tensor([[0] * (width - len(p)) + p for p, _ in rows])
    prompt_mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p, _ in rows])
    replies = torch.tensor([r + [0] * (length - len(r)) for _, r in rows])
    reply_mask = torch.tensor([[True] * len(r) + [False] * (length - len(r)) for _, r in rows])
    return prompts, prompt_mask, replies, reply_mask


def plain(model, rows=ROWS) -> list[torch.Tensor]:
    """Compute log-probabilities of each reply, one row at a time, from full logits."""
    scores = []
    for prompt, reply in rows:
        ids = torch.tensor([prompt + reply])
        log_prob = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        taken = torch.arange(len(prompt) - 1, len(prompt) + len(reply) - 1)
        scores.append(log_prob[taken, torch.tensor(reply)])
    return scores


def gradients(model) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny_model(request.param).eval()


@pytest.mark.parametrize(
    ("rows", "chunk_tokens"), [(ROWS, 2), (ROWS, 1024), (SHARED, 1024)], ids=["2", "1024", "shared"]
)
def test_value_and_gradient_are_those_of_a_plain_pass(model, rows, chunk_tokens):
    scores = completion_log_prob(model, *packed(rows), chunk_tokens=chunk_tokens)
    assert scores.shape == (4, max(len(reply) for _, reply in rows))
    (scores.sum(1) * WEIGHTS).sum().backward()
    ours = gradients(model)
    expected = plain(model, rows)
    for row, log_prob in enumerate(expected):
        got = scores[row].detach()
        torch.testing.assert_close(got[: len(log_prob)], log_prob.detach(), rtol=0, atol=1e-5)
        assert (got[len(log_prob) :] == 0).all()
    sum(w * log_prob.sum() for w, log_prob in zip(WEIGHTS, expected, strict=True)).backward()
    theirs = gradients(model)
    assert ours.keys() == theirs.keys() == dict(model.named_parameters()).keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def read_shapes(model, rows, **settings) -> list[tuple[int, int]]:
    shapes = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: shapes.append(tuple(inputs[0].shape))
    )
    completion_log_prob(model, *packed(rows), **settings)
    hook.remove()
    return shapes


def test_passes_take_rows_of_similar_length(model):
    # Lengths without the last token are 5, 24, 1, 6: the 24 alone, then 6 and 5, then 1.
    assert read_shapes(model, ROWS) == [(1, 24), (2, 6), (1, 1)]


def test_a_prompt_is_read_once_for_all_of_its_completions(model):
    # Both prompts, then the one completion with more than one token, without its last.
    assert read_shapes(model, SHARED) == [(2, 5), (1, 2)]
    assert read_shapes(model, SHARED, share_prompts=False) == [(1, 7), (2, 5), (1, 1)]


def test_sharing_changes_no_score(model):
    shared = completion_log_prob(model, *packed(SHARED))
    alone = completion_log_prob(model, *packed(SHARED), share_prompts=False)
    torch.testing.assert_close(shared, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [ROWS, SHARED], ids=["alone", "shared"])
def test_what_stands_in_padding_does_not_matter(model, rows):
    prompts, prompt_mask, replies, reply_mask = packed(rows)
    clean = completion_log_prob(model, prompts, prompt_mask, replies, reply_mask)
    noisy = completion_log_prob(
        model,
        prompts.masked_fill(~prompt_mask, 13),
        prompt_mask,
        replies.masked_fill(~reply_mask, 13),
        reply_mask,
    )
    assert torch.equal(clean, noisy)


@pytest.mark.parametrize("rows", [ROWS, SHARED], ids=["alone", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_stays_close_and_returns_float32(kind, rows):
    model = tiny_model(kind).eval()
    exact = completion_log_prob(model, *packed(rows)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        scores = completion_log_prob(model, *packed(rows))
    assert scores.dtype == torch.float32
    assert 0 < (scores - exact).abs().max() < 0.3
    scores.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_families_that_rescale_their_logits_are_scored_through_the_model():
    model = tiny_model("llama").eval()
    model.config.logit_scale = 1.0  # as Cohere says it; the model itself decides what to do
    scores = completion_log_prob(model, *packed())
    for row, log_prob in enumerate(plain(model)):
        torch.testing.assert_close(scores[row, : len(log_prob)], log_prob, rtol=0, atol=1e-5)


def test_adapters_learn_and_nothing_else():
    model = tiny_model("qwen2").eval()
    add_lora(model, LoRAConfig(rank=2))
    completion_log_prob(model, *packed()).sum().backward()
    assert gradients(model).keys() == {n for n, _ in model.named_parameters() if "lora_" in n}


@pytest.mark.parametrize("rows", [ROWS, SHARED], ids=["alone", "shared"])
def test_reads_of_a_scored_batch_are_those_of_its_tokens_without_padding(rows):
    model = tiny_model("memory")
    (table,) = model.memory_values
    table.set_gradient("selected_rows")
    completion_log_prob(model, *packed(rows)).sum().backward()
    in_passes, ids = table.row_gradient(), torch.cat([r.ids_BK for r in table.reads])
    # Every prompt once, every completion without its last token, which predicts nothing.
    prompts = {tuple(prompt) for prompt, _ in rows}
    assert len(prompts) == (4 if rows is ROWS else 2)
    assert len(ids) == sum(map(len, prompts)) + sum(len(reply) - 1 for _, reply in rows)
    table.clear_reads()
    sum(log_prob.sum() for log_prob in plain(model, rows)).backward()
    one_by_one = table.row_gradient(in_passes.rows_U)
    torch.testing.assert_close(in_passes.grad_UD, one_by_one.grad_UD, rtol=1e-4, atol=1e-5)
    left_out = set(table.row_gradient().rows_U.tolist()) - set(in_passes.rows_U.tolist())
    assert (
        table.row_gradient(torch.tensor(sorted(left_out), dtype=torch.int64)).grad_UD == 0
    ).all()
    table.clear_reads()
    assert table.counted_mask_B is None
    with torch.no_grad():
        completion_log_prob(model, *packed(rows))
    assert table.reads == []


def test_the_loss_of_a_table_by_itself_counts_as_before():
    """The mask belongs to a pass inside `counting_only`, not to the table."""
    table = ValueTable(5, 2, "selected_rows")
    ids, weights = torch.tensor([[0], [1]]), torch.ones(2, 1)
    table(ids, weights).sum().backward()
    assert table.reads[0].ids_BK.tolist() == [[0], [1]]


def test_logits_of_all_tokens_never_exist():
    """Measure the peak tensor memory of scoring, in tokens times vocabulary."""
    from triptych.benchmarks.paired import peak_bytes

    vocabulary, tokens = 3000, 400
    model = tiny_model("llama", vocab_size=vocabulary).eval()
    ids = torch.randint(vocabulary, (10, tokens // 10))
    batch = (ids[:, :1], torch.ones(10, 1, dtype=torch.bool), ids, torch.ones_like(ids).bool())

    def score() -> None:
        completion_log_prob(model, *batch, chunk_tokens=20).sum().backward()
        model.zero_grad()

    def naive() -> None:
        logits = model(input_ids=torch.cat(batch[::2], 1)).logits[:, :-1]
        cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        model.zero_grad()

    everything = tokens * vocabulary * 4
    score()
    assert peak_bytes(score, torch.device("cpu")) < 0.5 * everything
    assert peak_bytes(naive, torch.device("cpu")) > 1.5 * everything
    assert vocabulary > VOCABULARY


@pytest.mark.parametrize("micro_batch_tokens", [None, 24])
def test_entropies_are_those_of_full_logits(model, micro_batch_tokens):
    """Value and gradient, beside log-probabilities that stay as they are."""
    batch = packed()
    prompts, prompt_mask, _, reply_mask = batch
    plan = scoring_plan(model, prompts, prompt_mask, reply_mask, True, micro_batch_tokens)
    assert (len(plan) > 1) == (micro_batch_tokens is not None)
    scores, entropies = completion_log_prob_and_entropy(model, *batch, chunk_tokens=2, plan=plan)
    ((scores + entropies).sum(1) * WEIGHTS).sum().backward()
    ours = gradients(model)
    expected, total = torch.zeros_like(entropies), torch.zeros(())
    for row, (prompt, reply) in enumerate(ROWS):
        log_prob = model(input_ids=torch.tensor([prompt + reply]), use_cache=False).logits[0]
        log_prob = log_prob.log_softmax(-1)[len(prompt) - 1 : len(prompt) + len(reply) - 1]
        entropy = -(log_prob.exp() * log_prob).sum(-1)
        expected[row, : len(reply)] = entropy.detach()
        picked = log_prob[torch.arange(len(reply)), torch.tensor(reply)]
        total = total + WEIGHTS[row] * (picked.sum() + entropy.sum())
    torch.testing.assert_close(entropies.detach(), expected, rtol=1e-5, atol=1e-5)
    alone = completion_log_prob(model, *batch, plan=plan).detach()
    torch.testing.assert_close(scores.detach(), alone, rtol=1e-5, atol=1e-5)
    total.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_the_fused_entropy_has_the_gradient_of_finite_differences():
    torch.manual_seed(0)
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(
        lambda h, w: linear_nll_and_entropy(h, w, targets, 2), (hidden, weight)
    )
    nll, _ = linear_nll_and_entropy(hidden, weight, targets, 2)
    torch.testing.assert_close(nll, linear_nll(hidden, weight, targets))
