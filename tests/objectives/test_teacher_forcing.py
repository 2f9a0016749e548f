"""Teacher forcing against full logits and against greedy decoding, token by token."""

import math

import pytest
import torch

from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm
from triptych.objectives.teacher_forcing import teacher_forced

VOCABULARY, EOS = 13, 12
PROMPTS = [[5, 1, 7], [3, 3], [2, 9, 4, 4, 1], [8]]


def build(family: str):
    torch.manual_seed(3)
    grouped = {} if family == "gpt2" else {"num_kv_heads": 1}
    base = BaseLMConfig(
        family=family,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        max_position_embeddings=32,
        **grouped,
    )
    memory = MemoryConfig(layers=[1], num_keys=6, num_heads=2, top_k=3)
    model = build_memory_lm(base, memory, VOCABULARY).eval().double()
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=2.0)  # decided, not flat
    return model


def rows(prompts, answers):
    """Right-padded rows with labels on the answers alone, laid out by hand."""
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    batch = {name: [] for name in ("input_ids", "labels", "position_ids", "segment_ids")}
    for prompt, answer in zip(prompts, answers, strict=True):
        pad = length - len(prompt) - len(answer)
        batch["input_ids"].append(prompt + answer + [0] * pad)
        batch["labels"].append([-100] * len(prompt) + answer + [-100] * pad)
        batch["position_ids"].append([*range(len(prompt) + len(answer)), *[0] * pad])
        batch["segment_ids"].append([1] * (len(prompt) + len(answer)) + [0] * pad)
    return {name: torch.tensor(values) for name, values in batch.items()}


@torch.no_grad()
def decode(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def nll_by_hand(model, prompt, answer):
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    total = 0.0
    for place, token in enumerate(answer, start=len(prompt) - 1):
        total += float(logits[place].logsumexp(0) - logits[place, token])
    return total


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@torch.no_grad()
def test_it_agrees_with_greedy_decoding_and_full_logits(family):
    model = build(family)
    written = [decode(model, prompt, 4) for prompt in PROMPTS]
    answers = [
        written[0],
        [*written[1][:2], (written[1][2] + 1) % VOCABULARY],  # the last token differs
        written[2][:1],
        [(written[3][0] + 1) % VOCABULARY, *written[3][1:]],  # the first one does
    ]
    nll, is_greedy = teacher_forced(model, rows(PROMPTS, answers))
    assert is_greedy.tolist() == [True, False, True, False]
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        assert float(nll.nats[row].sum()) == pytest.approx(nll_by_hand(model, prompt, answer))
        assert int(nll.keep_mask[row].sum()) == len(answer)
        kept = nll.nats[row][nll.keep_mask[row]]
        assert bool((kept > 0).all())


@torch.no_grad()
def test_a_difference_in_the_middle_is_seen_though_the_rest_follows():
    """After a wrong token the rest may be what the model would say next; that is no match."""
    model = build("llama")
    first = (decode(model, PROMPTS[0], 1)[0] + 1) % VOCABULARY
    rest = decode(model, [*PROMPTS[0], first], 2)
    _, is_greedy = teacher_forced(model, rows([PROMPTS[0]], [[first, *rest]]))
    assert is_greedy.tolist() == [False]
    _, is_greedy = teacher_forced(model, rows([[*PROMPTS[0], first]], [rest]))
    assert is_greedy.tolist() == [True]


@torch.no_grad()
def test_a_softcap_on_the_logits_counts():
    """Families that bend their logits after the output layer are scored as they generate."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.01,
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config).eval().double()
    torch.nn.init.normal_(model.lm_head.weight, std=5.0)
    nll, _ = teacher_forced(model, rows([[3, 1]], [[4, 5]]))
    assert nll.nats[0][nll.keep_mask[0]].tolist() == pytest.approx([math.log(13)] * 2, abs=0.03)


@torch.no_grad()
def test_rows_without_labels_score_nothing():
    model = build("llama")
    batch = rows([[3, 1], [3]], [[4], [5, 6]])
    batch["labels"][0] = -100
    nll, is_greedy = teacher_forced(model, batch)
    assert nll.nats[0].tolist() == [0.0, 0.0]
    assert bool(is_greedy[0])
    batch["labels"][:] = -100
    nll, is_greedy = teacher_forced(model, batch)
    assert int(nll.num_tokens) == 0
    assert is_greedy.tolist() == [True, True]
