"""Sampling: correct distribution and log-probabilities with all optimizations."""

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.diversify.tiny_policies import END, KINDS, PAD, VOCABULARY, tiny_model
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.diversify import sampling
from triptych.models.diversify.sampling import _invert, _invert_by_blocks, sample_completions
from triptych.models.diversify.scoring import completion_log_prob
from triptych.models.lora import LoRAConfig, add_lora

PROMPTS = [[5, 7, 3, 9], [4], [8, 8]]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny_model(request.param).eval()


def padded(prompts: list[list[int]], extra: int = 0):
    """Left-pad with an ordinary token, so that attention to it would change results."""
    width = max(map(len, prompts)) + extra
    ids = torch.tensor([[11] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    return ids, mask


def sampled(model, prompts=PROMPTS, num_samples=5, seed=3, extra=0, max_new_tokens=12, **settings):
    ids, mask = padded(prompts, extra)
    settings = {"end_ids": [END], "pad_id": PAD} | settings
    return sample_completions(
        model,
        ids,
        mask,
        num_samples,
        max_new_tokens,
        generator=torch.Generator().manual_seed(seed),
        **settings,
    )


@torch.no_grad()
def scored_alone(model, prompt: list[int], reply: list[int]) -> list[float]:
    """Compute each token's log-probability, one sequence at a time and without a cache."""
    logits = model(input_ids=torch.tensor([prompt + reply]), use_cache=False).logits[0].double()
    log_prob = logits.log_softmax(-1)
    return [float(log_prob[len(prompt) - 1 + i, token]) for i, token in enumerate(reply)]


def test_log_probabilities_are_those_of_the_sequence_read_alone(model):
    made = sampled(model)
    assert made.token_ids_BT.shape[0] == 15
    for row in range(15):
        length = int(made.token_mask_BT[row].sum())
        reply = made.token_ids_BT[row, :length].tolist()
        expected = torch.tensor(scored_alone(model, PROMPTS[row // 5], reply))
        torch.testing.assert_close(
            made.token_log_prob_BT[row, :length], expected, rtol=0, atol=2e-5
        )
        assert (made.token_log_prob_BT[row, length:] == 0).all()


def test_the_end_is_part_of_the_completion_and_nothing_follows_it(model):
    made = sampled(model, num_samples=12, max_new_tokens=30)
    lengths = made.token_mask_BT.sum(1)
    assert made.finished_B.any()
    for row, length in enumerate(lengths.tolist()):
        reply = made.token_ids_BT[row].tolist()
        assert made.token_mask_BT[row].tolist() == [i < length for i in range(len(reply))]
        assert END not in reply[: length - 1]
        assert bool(made.finished_B[row]) == (reply[length - 1] == END)
        assert bool(made.finished_B[row]) or length == 30
        assert reply[length:] == [PAD] * (len(reply) - length)
    assert made.token_ids_BT.shape[1] == lengths.max()


def test_compaction_and_left_padding_change_no_sample(model):
    plain = sampled(model, num_samples=12, max_new_tokens=30, compact=False)
    for settings in ({}, {"extra": 3}, {"extra": 1, "compact": False}):
        other = sampled(model, num_samples=12, max_new_tokens=30, **settings)
        assert torch.equal(other.token_ids_BT, plain.token_ids_BT)
        assert torch.equal(other.token_mask_BT, plain.token_mask_BT)
        assert torch.equal(other.finished_B, plain.finished_B)
        torch.testing.assert_close(
            other.token_log_prob_BT, plain.token_log_prob_BT, rtol=0, atol=2e-5
        )


def test_rows_leave_the_batch_and_the_last_one_ends_the_loop(model):
    widths = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: widths.append(tuple(inputs[0].shape))
    )
    made = sampled(model, num_samples=12, max_new_tokens=40, extra=0, temperature=2.0)
    hook.remove()
    assert widths[0] == (3, 4)  # each prompt is read once
    assert widths[1] == (36, 1)
    decoding = [rows for rows, _ in widths[1:]]
    assert decoding == sorted(decoding, reverse=True)
    assert decoding[-1] < 27  # three quarters of 36
    longest = made.token_ids_BT.shape[1]
    assert len(widths) == longest  # the last token is never read
    still_written = made.token_mask_BT.sum(0).tolist()
    for step, rows in enumerate(decoding):
        assert rows >= still_written[step + 1]
        assert still_written[step + 1] >= 0.75 * rows


def test_everything_stops_as_soon_as_all_have_ended(model):
    made = sampled(model, end_ids=range(VOCABULARY))
    assert made.token_ids_BT.shape == (15, 1)
    assert made.finished_B.all()
    never = sampled(model, end_ids=[])
    assert never.token_ids_BT.shape == (15, 12)
    assert not never.finished_B.any()


def test_a_row_depends_on_its_own_numbers_alone(model):
    generator = torch.Generator().manual_seed(3)
    torch.rand(12, 15, dtype=torch.float64, generator=generator)
    after = torch.rand(4, generator=generator)
    for end_ids in ([END], range(VOCABULARY)):
        generator = torch.Generator().manual_seed(3)
        ids, mask = padded(PROMPTS)
        sample_completions(model, ids, mask, 5, 12, end_ids, PAD, generator)
        assert torch.equal(torch.rand(4, generator=generator), after)
    first, again, other = sampled(model), sampled(model), sampled(model, seed=4)
    assert torch.equal(first.token_ids_BT, again.token_ids_BT)
    assert torch.equal(first.token_log_prob_BT, again.token_log_prob_BT)
    assert first.token_ids_BT.tolist() != other.token_ids_BT.tolist()


def test_completions_follow_the_models_distribution():
    """Every completion of at most two tokens over four words, enumerated."""
    model = tiny_model("llama", vocab_size=4).eval()
    prompt, num_samples = [2, 3], 20_000
    probability = {(END,): math.exp(scored_alone(model, prompt, [END])[0])}
    for pair in itertools.product(range(4), repeat=2):
        if pair[0] != END:
            probability[pair] = math.exp(sum(scored_alone(model, prompt, list(pair))))
    assert sum(probability.values()) == pytest.approx(1, abs=1e-6)
    made = sampled(model, [prompt], num_samples, max_new_tokens=2)
    counts = dict.fromkeys(probability, 0)
    for ids, mask in zip(made.token_ids_BT.tolist(), made.token_mask_BT.tolist(), strict=True):
        counts[tuple(token for token, real in zip(ids, mask, strict=True) if real)] += 1
    expected = [p * num_samples / sum(probability.values()) for p in probability.values()]
    assert min(expected) > 5
    assert chisquare(list(counts.values()), expected).pvalue > 0.01
    uniform = [num_samples / len(counts)] * len(counts)
    assert chisquare(list(counts.values()), uniform).pvalue < 1e-9


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, [0.2, 0.8]), (0.5, [1 / 17, 16 / 17])])
def test_one_number_chooses_the_token_by_the_cumulative_distribution(temperature, expected):
    """By hand: logits 0 and ln 4 give 1/5 and 4/5; squared and normalised 1/17 and 16/17."""
    model = tiny_model("llama", vocab_size=2).eval()
    made = []
    for ids in ([[0]], [[1]]):
        model.lm_head = torch.nn.Linear(16, 2)  # with a bias: logits are had from the model
        model.lm_head.weight.data.zero_()
        model.lm_head.bias.data = torch.tensor([0.0, math.log(4)])
        generator = torch.Generator().manual_seed(1)
        mask = torch.ones(1, 1, dtype=torch.bool)
        made.append(
            sample_completions(model, torch.tensor(ids), mask, 50, 3, [], 0, generator, temperature)
        )
    uniforms = torch.rand(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made[0].token_ids_BT, (expected[0] <= uniforms.T).long())
    assert torch.equal(made[0].token_ids_BT, made[1].token_ids_BT)
    log_prob = torch.tensor(expected).log()[made[0].token_ids_BT]
    torch.testing.assert_close(made[0].token_log_prob_BT, log_prob)


def test_a_word_without_probability_is_never_said():
    model = tiny_model("llama", vocab_size=6).eval()
    model.lm_head = torch.nn.Linear(16, 6)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias.data = torch.tensor([-1e4, 0.0, -1e4, 0.0, -1e4, -1e4])
    made = sample_completions(
        model, torch.tensor([[2]]), torch.ones(1, 1, dtype=torch.bool), 400, 5, [], 0
    )
    assert set(made.token_ids_BT.flatten().tolist()) == {1, 3}


def test_eager_attention_samples_the_same():
    """Windowed attention uses the masks of transformers."""
    model = tiny_model("llama").eval()
    plain = sampled(model)
    model.config._attn_implementation = "eager"
    assert torch.equal(sampled(model).token_ids_BT, plain.token_ids_BT)


def test_layers_that_see_a_window_keep_their_own_cache():
    base = BaseLMConfig(
        family="mistral",
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        overrides={"sliding_window": 4, "initializer_range": 0.3},
    )
    torch.manual_seed(0)
    model = build_base_lm(base, VOCABULARY).eval()
    made = sampled(model, num_samples=8, max_new_tokens=20)
    assert made.token_mask_BT.sum(1).max() > 8  # well beyond the window
    wide = []
    for row in range(24):
        reply = made.token_ids_BT[row][made.token_mask_BT[row]].tolist()
        expected = torch.tensor(scored_alone(model, PROMPTS[row // 8], reply))
        got = made.token_log_prob_BT[row, : len(reply)]
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
        model.config.sliding_window, kept = None, model.config.sliding_window
        wide += scored_alone(model, PROMPTS[row // 8], reply)
        model.config.sliding_window = kept
    narrow = made.token_log_prob_BT[made.token_mask_BT]
    assert (narrow - torch.tensor(wide)).abs().max() > 0.1  # the window does something


def test_probabilities_that_are_not_finite_are_an_error():
    model = tiny_model("llama").eval()
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="training has diverged"):
        sampled(model)


def test_sampling_leaves_no_reads_behind():
    model = tiny_model("memory")
    table = model.memory_values[0]
    table.set_gradient("selected_rows")
    sampled(model)
    assert table.reads == []


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_steps_of_fixed_shape_sample_the_same(kind):
    """What CUDA graphs replay, run without a graph; batches shrink by halves."""
    model = tiny_model(kind).eval()
    plain = sampled(model, num_samples=12, max_new_tokens=30)
    shapes = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: shapes.append(len(inputs[0]))
    )
    made = sampled(model, num_samples=12, max_new_tokens=30, static=True)
    hook.remove()
    assert set(shapes[1:]) <= {36, 18, 9, 4, 2, 1}
    assert len(set(shapes[1:])) > 1
    assert torch.equal(made.token_ids_BT, plain.token_ids_BT)
    assert torch.equal(made.finished_B, plain.finished_B)
    torch.testing.assert_close(made.token_log_prob_BT, plain.token_log_prob_BT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 19, 4097])
def test_a_draw_in_two_steps_is_the_same_draw(vocab_size):
    generator = torch.Generator().manual_seed(0)
    logits_LV = torch.randn(300, vocab_size, generator=generator) * 4
    logits_LV[:, vocab_size // 2 + 1 :: 3] = -torch.inf
    probability_LV = logits_LV.softmax(-1)
    uniform_L1 = torch.rand(300, 1, dtype=torch.float64, generator=generator)
    uniform_L1[:2, 0] = torch.tensor([0.0, 1 - 2**-50], dtype=torch.float64)
    drawn = _invert_by_blocks(probability_LV, uniform_L1)
    assert torch.equal(drawn, _invert(probability_LV, uniform_L1))
    assert (probability_LV.gather(1, drawn) > 0).all()


class Casts(TorchDispatchMode):
    """Counts casts of weights and of cached keys to bfloat16."""

    def __init__(self):
        super().__init__()
        self.weights = self.caches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and made.dtype == torch.bfloat16:
            self.weights += args[0].dim() == 2 and args[0].numel() > 100
            self.caches += args[0].dim() == 4 and args[0].numel() > 15 * 16  # several tokens' keys
        return made


@pytest.mark.parametrize("kind", ["trainable", "frozen", "lora", "bfloat16"])
def test_autocast_casts_each_weight_once_and_no_cache(kind):
    model = tiny_model("llama").eval()
    if kind == "lora":
        add_lora(model, LoRAConfig(rank=4))
    elif kind != "trainable":
        model.requires_grad_(False)
    if kind == "bfloat16":
        model.bfloat16()
    before = {name: (id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    counts = []
    for max_new_tokens in (4, 12):
        with torch.autocast("cpu", torch.bfloat16), Casts() as casts:
            sampled(model, end_ids=[], max_new_tokens=max_new_tokens)
        counts.append((casts.weights, casts.caches))
    assert counts[0][0] == counts[1][0]
    assert (counts[0][0] == 0) == (kind == "bfloat16")
    assert counts[0][1] == counts[1][1] == 0
    after = {name: (id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    assert after == before


@pytest.mark.parametrize("kind", KINDS)
def test_weights_cast_once_sample_the_same_to_the_bit(kind, monkeypatch):
    model = tiny_model(kind).eval().requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        made = sampled(model)
        monkeypatch.setattr(sampling, "weights_cast_once", lambda _: nullcontext())
        plain = sampled(model)
    assert torch.equal(made.token_ids_BT, plain.token_ids_BT)
    assert torch.equal(made.token_log_prob_BT, plain.token_log_prob_BT)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "phi"])
def test_logits_are_float32_under_autocast_in_sampling_and_scoring(family):
    """Also in families that cap or scale their logits, or have a bias in the output layer."""
    torch.manual_seed(0)
    base = BaseLMConfig(family=family, hidden_size=16, num_layers=1, num_heads=4)
    model = build_base_lm(base, VOCABULARY).eval()
    prompt_ids, prompt_mask = padded(PROMPTS)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        made = sampled(model, num_samples=1)
        scores = completion_log_prob(
            model, prompt_ids, prompt_mask, made.token_ids_BT, made.token_mask_BT
        )
    for log_prob in (made.token_log_prob_BT, scores):
        assert log_prob.dtype == torch.float32
        kept = log_prob[made.token_mask_BT]
        assert (kept != kept.bfloat16().float()).any()
    assert "forward" not in vars(model.get_output_embeddings())
    # One layer without a cache's history: what is left is the rounding within the layer.
    assert (scores - made.token_log_prob_BT).abs().max() < 2e-2
