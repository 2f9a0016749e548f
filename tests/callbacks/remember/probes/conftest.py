"""A tiny language model that has learned some facts and not others, in float64."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from triptych.callbacks.remember.probes.base import ProbeSetting
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.facts import Facts, FactsConfig
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm

CONTEXT = 128
#: Eighteen facts; the model has been trained on every other one.
FACTS = FactsConfig(num_facts=18, relations=["capital", "continent", "author"])


@dataclass
class TinyLM:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    def setting(self, shard: Shard | None = None, datamodule: Any = None) -> ProbeSetting:
        row_format = RowFormat(self.tokenizer, CONTEXT, seed=0, cache_dir=None)
        return ProbeSetting(row_format, shard or Shard(), datamodule)


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory) -> TinyLM:
    torch.manual_seed(1)
    cache = tmp_path_factory.mktemp("cache")
    data = Facts(FACTS, tokenizer=TokenizerConfig(vocab_size=400), cache_dir=str(cache))
    base = BaseLMConfig(hidden_size=24, num_layers=2, num_heads=2, max_position_embeddings=CONTEXT)
    memory = MemoryConfig(layers=[1], num_keys=8, num_heads=2, top_k=4)
    model = build_memory_lm(base, memory, data.vocab_size).double()
    tokenizer = data.tokenizer
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    templates = data.parts[0].templates
    sentences = []
    for fact in data.parts[0].facts[::2]:
        sentences += [(r.prompt, r.answer, "") for r in templates.questions(fact, "held_out")]
        sentences += [(r.prompt, r.answer, r.remainder) for r in templates.statements(fact)[:2]]
    learn(model, tokenizer, sentences)
    return TinyLM(model.eval(), tokenizer)


def learn(model, tokenizer, sentences, steps: int = 60) -> None:
    """Learn sentences by heart: their answers and ends."""
    rows = []
    for prompt, *rest in sentences:
        first = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
        then = [t for part in rest for t in tokenizer.encode(part, add_special_tokens=False)]
        rows.append((first, [*then, tokenizer.eos_token_id]))
    longest = max(len(a) + len(b) for a, b in rows)
    ids = torch.tensor([a + b + [0] * (longest - len(a) - len(b)) for a, b in rows])
    labels = torch.tensor(
        [[-100] * len(a) + b + [-100] * (longest - len(a) - len(b)) for a, b in rows]
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture
def write_jsonl(tmp_path) -> Callable[[str, list], str]:
    """Write rows as JSON lines and return the path."""

    def write(name: str, rows: list) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write
