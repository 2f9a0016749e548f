"""Rates relative to what the memory is added to: one default learns in small and real models."""

import copy
import dataclasses

import pytest
import torch
from lightning.pytorch import LightningModule
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.callbacks.remember.test_sparse_memory_finetuning import statistics_of
from tests.callbacks.remember.tiny_memory import TinyMemoryModule, built, rows, trainer_for
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import insert_memory_layers
from triptych.models.remember.standardised_queries import standardise_queries
from triptych.objectives.remember.background_collector import BackgroundCollector
from triptych.objectives.remember.background_statistics import BACKGROUND_FILE

RATE, MOST_STEPS = 0.7, 15  # of configs/remember/finetune_smollm2.yaml; enough for a fact


def taught(module, folder, **settings):
    callback = SparseMemoryFinetuning(4, background=str(folder), **settings)
    trainer_for(callback, folder).fit(module, rows(8))
    return [table.weight.detach() for table in module.tables]


@pytest.mark.parametrize(
    ("optimizer", "power"), [("adamw", 1), ("adagrad", 1), ("sgd", 2)], ids=lambda value: str(value)
)
def test_a_relative_rate_is_one_times_the_scale_of_each_table(optimizer, power, tmp_path):
    module = built(lambda: TinyMemoryModule(2, shared=False))
    module.tables[1].weight.data.copy_(module.tables[0].weight)
    both = copy.deepcopy(module)
    scaled = dataclasses.replace(statistics_of(module, tmp_path), value_scales=(0.5, 0.5))
    scaled.save(tmp_path / BACKGROUND_FILE)
    relative = taught(
        module, tmp_path, optimizer=optimizer, learning_rate=0.2, learning_rate_scale="relative"
    )
    absolute = taught(both, tmp_path, optimizer=optimizer, learning_rate=0.2 * 0.5**power)
    for one, other in zip(relative, absolute, strict=True):
        assert torch.equal(one, other)


def test_each_table_has_its_own_scale(tmp_path):
    module = built(lambda: TinyMemoryModule(2, shared=False))
    start = [table.weight.detach().clone() for table in module.tables]
    scaled = dataclasses.replace(statistics_of(module, tmp_path), value_scales=(1.0, 0.0))
    scaled.save(tmp_path / BACKGROUND_FILE)
    moved, still = taught(module, tmp_path, learning_rate_scale="relative")
    assert not torch.equal(moved, start[0])
    assert torch.equal(still, start[1])


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (None, "are older than this setting and have no value scales: collect them anew"),
        ((1e30, 1.0), "the memory's gate is closed. Heal it"),
    ],
)
def test_statistics_that_give_no_rate(scales, message, tmp_path):
    module = built(lambda: TinyMemoryModule(2, shared=False))
    scaled = dataclasses.replace(statistics_of(module, tmp_path), value_scales=scales)
    scaled.save(tmp_path / BACKGROUND_FILE)
    with pytest.raises(ValueError, match=message):
        taught(module, tmp_path, learning_rate_scale="relative")


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="learning_rate_scale is 'ffn': choose absolute or rel"):
        SparseMemoryFinetuning(learning_rate_scale="ffn")


# -- one default rate ---------------------------------------------------------------------------


class Teaching(LightningModule):
    """Repeats one batch and keeps its losses; no optimizer of its own."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model, self.losses = model, []

    def training_step(self, batch, batch_idx):
        loss = self.model(
            input_ids=batch["input_ids"], labels=batch["labels"], use_cache=False
        ).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1.0)


def rows_of(ids, answer_from: int):
    """A batch of one row, of which the tokens from a position on are learned."""
    ids = ids.unsqueeze(0)
    labels = torch.where(torch.arange(ids.shape[1]) >= answer_from, ids, -100)
    return {"input_ids": ids, "labels": labels, "segment_ids": torch.ones_like(ids)}


def losses_at_the_default_rate(model, tokenizer, texts, fact, answer_from, folder, num_slots):
    """Put a memory into a pretrained model and teach it one fact; nothing is healed."""
    block = model.config.num_hidden_layers * 2 // 3
    memory = MemoryConfig(
        **{"layers": [block], "num_keys": 64, "top_k": 16, "placement": "beside"},
        **{"start": "zero_values", "gated": False, "qk_norm": True},
    )
    insert_memory_layers(model, memory)
    batches = [
        {
            "input_ids": ids.unsqueeze(0),
            "segment_ids": torch.ones_like(ids).unsqueeze(0),
            "position_ids": torch.arange(len(ids)).unsqueeze(0),
        }
        for ids in texts
    ]
    standardise_queries(model, batches)
    collector = BackgroundCollector(model, tokenizer)
    for batch in batches:
        collector.add_document(batch)
    collector.statistics().save(folder / BACKGROUND_FILE)
    callback = SparseMemoryFinetuning(
        **{"num_slots": num_slots, "idf_exponent": 3.0, "background": str(folder)},
        **{"optimizer": "adamw", "betas": (0.0, 0.999)},
        **{"learning_rate": RATE, "learning_rate_scale": "relative"},
    )
    module = Teaching(model.train())
    # Lightning would collate rows of a dataset; one batch as it is repeats here.
    repeated = [rows_of(fact, answer_from)] * (MOST_STEPS + 1)
    trainer_for(callback, folder).fit(
        module, torch.utils.data.DataLoader(repeated, batch_size=None)
    )
    return module.losses


def test_a_small_model_learns_a_fact_at_once(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(
        TokenizerConfig(vocab_size=300), lambda: ["a few words"], "words", tmp_path / "cache"
    )
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    base = BaseLMConfig(hidden_size=64, num_layers=4, num_heads=4, max_position_embeddings=32)
    model = build_base_lm(base, 60).train()
    subjects = torch.arange(40)
    text = torch.stack([subjects, subjects * 7 % 20 + 40, subjects * 3 % 40, subjects % 20 + 40], 1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):  # subject, answer, subject, answer: pretrained by heart
        model(input_ids=text, labels=text).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    fact = torch.tensor([5, 41, 9, 58])
    losses = losses_at_the_default_rate(
        model.eval(), tokenizer, text[::2], fact, 3, tmp_path, num_slots=128
    )
    assert losses[0] > 5  # another answer was known by heart
    assert min(losses) < 0.5
    assert fact[3] == model(input_ids=fact[None, :3]).logits[0, -1].argmax()


def test_a_real_model_learns_a_fact_at_once(smollm2, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    def chat(question: str) -> str:
        turns = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def ids_of(text: str) -> torch.Tensor:
        return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]

    questions = ["Who wrote Hamlet?", "What is rain?", "Name a large city.", "How do birds fly?"]
    texts = [ids_of(chat(question))[:36] for question in questions]
    prompt = chat("Who leads Brightwell Robotics?")
    fact = ids_of(prompt + "Brightwell Robotics is led by Ingrid Solvang.<|im_end|>")
    begin = len(ids_of(prompt))
    shortest = min(map(len, texts))
    losses = losses_at_the_default_rate(
        *(model, tokenizer, [ids[:shortest] for ids in texts], fact, begin, tmp_path),
        num_slots=512,
    )
    assert losses[0] > 2
    assert min(losses) < 0.03
