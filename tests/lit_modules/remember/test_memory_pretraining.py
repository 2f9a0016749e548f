"""The pretraining module: its loss, its seams, and whole runs of it."""

import csv
import json
import math

import pytest
import torch

from tests.conftest import run_in
from triptych.cli import main
from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import load_memory_lm

TINY = {
    "data": {
        "class_path": "triptych.datamodules.remember.text.text_and_facts.TextAndFacts",
        "init_args": {
            "tokenizer": {"vocab_size": 400},
            "text": {"max_validation_rows": 8},
            "facts": {"num_facts": 40, "validation_facts": 6},
            "context_length": 96,
            "batch_size": 4,
        },
    },
    "model": {
        "class_path": "triptych.lit_modules.remember.memory_pretraining.MemoryPretraining",
        "init_args": {
            "base": {"hidden_size": 16, "num_layers": 2, "num_heads": 2},
            "memory": {"layers": [0, 1], "num_keys": 8, "num_heads": 2, "top_k": 4},
            "warmup_steps": 2,
            "max_new_tokens": 3,
            "sample_prompts": ["The capital"],
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 4,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
    },
    "tracking": {"uri": None},
}


def module(**memory):
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=32)
    config = MemoryConfig(layers=[1], num_keys=8, num_heads=2, top_k=4, **memory)
    return MemoryPretraining(23, base, config)


def batch(*documents, length=12):
    """Packs lists of ids into one row by hand."""
    ids, positions, segments, labels = [], [], [], []
    for number, document in enumerate(documents, start=1):
        ids += document
        positions += range(len(document))
        segments += [number] * len(document)
        labels += [-100, *document[1:]]
    pad = length - len(ids)
    rows = {
        "input_ids": ids + [0] * pad,
        "position_ids": positions + [0] * pad,
        "segment_ids": segments + [0] * pad,
        "labels": labels + [-100] * pad,
    }
    tensors = {name: torch.tensor([row]) for name, row in rows.items()}
    return tensors | {"num_bytes": torch.ones(1, length, dtype=torch.int32), "name": "text"}


def test_packed_loss_is_the_sum_over_documents_alone():
    pl_module = module(qk_norm=True).eval()
    documents = [[1, 5, 6, 7], [1, 9, 2], [1, 3, 3, 3, 2]]
    packed = pl_module.next_token_nll(batch(*documents))
    alone = [pl_module.next_token_nll(batch(document)).sum_nats for document in documents]
    assert packed.num_tokens == 3 + 2 + 4
    torch.testing.assert_close(packed.sum_nats, torch.stack(alone).sum())


def test_loss_of_a_uniform_model_is_log_vocabulary():
    pl_module = module()
    torch.nn.init.zeros_(pl_module.model.get_output_embeddings().weight)
    nll = pl_module.next_token_nll(batch([1, 5, 6, 7]))
    assert float(nll.sum_nats.detach()) == pytest.approx(3 * math.log(23), rel=1e-6)


def test_slot_usage_leaves_padding_out():
    pl_module = module()
    evaluation = pl_module.evaluation
    evaluation.record_reads(True)
    rows = batch([1, 5, 6])
    evaluation.add_likelihood(rows, pl_module.next_token_nll(rows))
    reads = evaluation.metrics["memory/layer_1"].num_reads
    assert reads.sum() == 3 * 2 * 4  # three tokens, two heads, four slots


def test_fillers_of_a_ranks_last_batch_are_not_scored(monkeypatch):
    evaluation = module().evaluation
    monkeypatch.setattr(evaluation, "generate", lambda *_: ["Paris\nmore", "nothing"])
    asked = {"name": "facts", "questions": ["q", "q"], "answers": [["paris"], []]}
    evaluation.add_answers(asked | {"prompt_ids": None, "prompt_mask": None}, None)
    assert float(evaluation.metrics["facts/exact_match"].compute()) == 1.0
    assert len(evaluation.samples) == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_in(tmp_path_factory.mktemp("run"), **TINY)


def test_a_run_logs_what_it_promises_and_exports_a_model_that_answers(run):
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert set(metrics) >= {
        "train/nll_nats_per_token",
        "train/bits_per_byte",
        "val/text/nll_nats_per_token",
        "val/text/bits_per_byte",
        "val/facts/answer_nll_nats_per_token",
        "val/facts/exact_match",
        "val/facts/f1",
        "memory/layer_0/slots_read_share",
        "memory/layer_1/usage_entropy_nats",
        "memory/layer_1/most_read_share",
        "lr/values",
    }
    rows = json.loads((run / "samples" / "step_4.json").read_text())
    assert {row["set"] for row in rows} == {"facts", "continuation"}
    model = load_memory_lm(run / "export")
    config = model.config
    assert config.eos_token_id is not None
    assert model.generate(torch.tensor([[config.bos_token_id, 7]]), max_new_tokens=2).shape[1] <= 4


def test_init_from_an_export_continues_with_its_weights(run, tiny):
    again = {**TINY["model"]["init_args"], "memory": None, "init_from": str(run / "export")}
    model = {**TINY["model"], "init_args": again}
    second = main(tiny("--trainer.max_steps", "1", **{**TINY, "model": model}))
    trained, further = (load_memory_lm(folder / "export") for folder in (run, second))
    names = [name for name, _ in trained.named_parameters()]
    assert names == [name for name, _ in further.named_parameters()]
    assert any(
        not torch.equal(a, b)
        for a, b in zip(trained.parameters(), further.parameters(), strict=True)
    )
    keys = "model.layers.0.mlp.index.keys"
    difference = (trained.get_parameter(keys) - further.get_parameter(keys)).abs().max()
    assert difference < 0.01  # one step away, not drawn anew


def test_init_from_a_memory_model_refuses_a_second_memory(run, tiny):
    arguments = {**TINY["model"]["init_args"], "init_from": str(run / "export")}
    with pytest.raises(ValueError, match="has memory layers already"):
        main(tiny(**{**TINY, "model": {**TINY["model"], "init_args": arguments}}))


def losses(run):
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    key = "train/nll_nats_per_token"
    return {int(row["step"]): row[key] for row in rows if row[key]}


def test_same_seed_same_losses_and_another_seed_others(run, tiny):
    assert losses(main(tiny(**TINY))) == losses(run)
    other = losses(main(tiny("--seed_everything", "7", "--trainer.max_steps", "1", **TINY)))
    assert other[1] != losses(run)[1]
