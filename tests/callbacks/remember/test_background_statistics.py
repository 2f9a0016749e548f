"""Background statistics as runs leave them: after fit, from validate, on two processes."""

import csv
import json
from itertools import islice

import pytest
import torch
from lightning.pytorch import LightningDataModule

import triptych.callbacks.remember.background_statistics as collected
from tests.conftest import ROOT
from tests.lit_modules.remember.test_memory_pretraining import TINY
from tests.train_process import run_train_on_two
from triptych.callbacks.remember.background_statistics import (
    documents_of,
)
from triptych.cli import main
from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.datamodules.remember.text.text_and_facts import TextAndFacts
from triptych.datamodules.remember.text.text_corpus import TextConfig
from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.remember.background_statistics import BackgroundStatistics

NAME = "triptych.callbacks.remember.background_statistics.CollectBackgroundStatistics"
ROWS, DOCUMENTS, LENGTH = 6, 3, 96  # documents of one and a half batches
SLOTS = 32**2


def sections(**init_args):
    """The tiny run, collecting at its end."""
    arguments = {"num_documents": DOCUMENTS, "rows_per_document": ROWS} | init_args
    trainer = {**TINY["trainer"], "callbacks+": [{"class_path": NAME, "init_args": arguments}]}
    memory = {**TINY["model"]["init_args"]["memory"], "num_keys": 32}
    model = {**TINY["model"], "init_args": {**TINY["model"]["init_args"], "memory": memory}}
    return {**TINY, "model": model, "trainer": trainer}


def starting_from(export, **init_args):
    """The same, on a model that exists."""
    model = {**TINY["model"]["init_args"], "base": None, "memory": None, "init_from": str(export)}
    found = sections(**init_args)
    return {**found, "model": {**TINY["model"], "init_args": model}}


def validate(words):
    return main(["validate", *words[1:]])


def assert_equal(one, other):
    for mine, others in zip(one.tables, other.tables, strict=True):
        assert torch.equal(mine.document_frequency_S, others.document_frequency_S)
        assert torch.equal(mine.counts_S, others.counts_S)
        assert mine.num_documents == others.num_documents
    assert (one.num_tokens, one.index_fingerprint) == (other.num_tokens, other.index_fingerprint)


def counted_by_hand(export):
    """Reads of the first documents of the tiny data, one row after the other."""
    data = TextAndFacts(
        tokenizer=TokenizerConfig(path=str(export)),
        text=TextConfig(max_validation_rows=8),
        facts=FactsConfig(num_facts=40, validation_facts=6),
        context_length=LENGTH,
        batch_size=4,
    )
    model = load_memory_lm(export)
    layers = memory_layers(model)
    rows = []
    for batch in islice(data.train_dataloader(), -(-DOCUMENTS * ROWS // 4)):
        rows += [{name: batch[name][i : i + 1] for name in batch} for i in range(4)]
    counts = torch.zeros(DOCUMENTS, SLOTS, dtype=torch.int64)
    for number, row in enumerate(rows[: DOCUMENTS * ROWS]):
        for layer in layers:
            layer.recording = True
        segments_T = row["segment_ids"][0]
        same_TT = (segments_T[:, None] == segments_T) & (segments_T > 0)
        mask_TT = torch.tril(same_TT) | torch.eye(LENGTH, dtype=torch.bool)
        with torch.no_grad():
            model(
                row["input_ids"],
                position_ids=row["position_ids"],
                attention_mask=mask_TT[None, None],
            )
        for layer in layers:
            read = layer.last_ids[0][segments_T > 0].flatten()
            counts[number // ROWS].index_add_(0, read, torch.ones_like(read))
    return counts


@pytest.fixture
def exported(tiny):
    """A tiny memory model, and statistics collected at the end of its training."""
    return main(tiny(**sections())) / "export"


def test_fit_leaves_statistics_beside_the_model(tiny, capsys):
    run = main(tiny(**sections()))
    background = BackgroundStatistics.load(run / "export" / "background.safetensors")
    tokenizer = build_tokenizer(TokenizerConfig(path=str(run / "export")), list, "", run)
    background.check(load_memory_lm(run / "export"), tokenizer)

    (table,) = background.tables  # both layers share it
    expected = counted_by_hand(run / "export")
    assert torch.equal(table.counts_S, expected.sum(0))
    assert torch.equal(table.document_frequency_S, (expected > 0).sum(0))
    assert (background.num_documents, background.rows_per_document) == (DOCUMENTS, ROWS)
    assert background.tokens_per_row == LENGTH

    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert metrics["background/num_documents"] == DOCUMENTS
    assert metrics["background/num_tokens"] == background.num_tokens
    read = int((table.document_frequency_S > 0).sum())
    always = int((table.document_frequency_S == DOCUMENTS).sum())
    assert 0 < always < read < SLOTS
    assert metrics["background/slots_read_share"] == pytest.approx(read / SLOTS)
    assert metrics["background/slots_always_read_share"] == pytest.approx(always / SLOTS)
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["background/slots_read_share"]) == pytest.approx(read / SLOTS)


def test_statistics_are_of_the_exported_model_even_where_an_earlier_one_was_the_best(tiny):
    class_path = "tests.callbacks.remember.test_background_statistics.Diverging"
    found = sections()
    model = {**found["model"], "class_path": class_path}
    run = main(
        tiny(
            "--checkpoint.monitor",
            "val/score",
            "--checkpoint.mode",
            "min",
            **found | {"model": model},
        )
    )
    background = BackgroundStatistics.load(run / "export" / "background.safetensors")
    exported, last = load_memory_lm(run / "export"), torch.load(run / "checkpoints" / "last.ckpt")
    name = "lm_head.weight"
    assert not torch.equal(exported.state_dict()[name], last["state_dict"][f"model.{name}"])
    tokenizer = build_tokenizer(TokenizerConfig(path=str(run / "export")), list, "", run)
    background.check(exported, tokenizer)


class Diverging(MemoryPretraining):
    """Its score gets worse with each validation."""

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("val/score", float(self.trainer.global_step))


def test_validate_finds_what_fit_found(tiny, exported):
    run = validate(tiny(**starting_from(exported)))
    found = BackgroundStatistics.load(run / "background.safetensors")
    assert_equal(found, BackgroundStatistics.load(exported / "background.safetensors"))
    assert not (run / "export").exists()
    elsewhere = starting_from(exported, path="elsewhere/mine.safetensors", num_documents=1)
    run = validate(tiny("--trainer.limit_val_batches", "0", **elsewhere))
    assert BackgroundStatistics.load("elsewhere/mine.safetensors").num_documents == 1
    assert not (run / "background.safetensors").exists()


def test_the_configuration_of_its_own_collects_for_a_model_that_exists(workdir, exported):
    """As its first lines say, with fewer and shorter documents."""
    run = main(
        [
            *("validate", "--config", str(ROOT / "configs/remember/background_statistics.yaml")),
            *("--model.init_args.init_from", str(exported)),
            *("--data.init_args.context_length", str(LENGTH)),
            *("--trainer.callbacks.init_args.num_documents", "2"),
            *("--trainer.callbacks.init_args.path", str(exported / "background.safetensors")),
            *("--trainer.accelerator", "cpu", "--tracking.uri", "null"),
        ]
    )
    background = BackgroundStatistics.load(exported / "background.safetensors")
    assert (background.num_documents, background.tokens_per_row) == (2, LENGTH)
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert set(metrics) == {
        "background/num_documents",
        "background/num_tokens",
        "background/slots_read_share",
        "background/slots_always_read_share",
    }


def test_what_was_trained_on_before_does_not_matter(tiny, exported):
    """Fit goes on for an epoch of three batches; then the same rows are read from the first on."""
    found = starting_from(exported)
    found["model"]["init_args"] |= {"learning_rate": 0.0, "value_learning_rate": 0.0}
    found["data"] = {
        **TINY["data"],
        "init_args": {**TINY["data"]["init_args"], "rows_per_epoch": 12},
    }
    found["trainer"] |= {"max_steps": -1, "max_epochs": 1}
    run = main(tiny(**found))
    again = BackgroundStatistics.load(run / "export" / "background.safetensors")
    assert_equal(again, BackgroundStatistics.load(exported / "background.safetensors"))


def test_a_model_without_memory_is_left_alone_by_fit_and_refused_by_validate(tiny):
    found = sections()
    arguments = {**TINY["model"]["init_args"], "memory": {"layers": [0], "dense_twin": True}}
    found["model"] = {**TINY["model"], "init_args": arguments}
    run = main(tiny(**found))
    assert (run / "export" / "config.json").is_file()
    assert not list(run.rglob("background.safetensors"))
    with pytest.raises(ValueError, match="no memory layers"):
        validate(tiny(**found))


def test_without_an_export_the_modules_own_model_is_read(tiny):
    found = sections()
    found["trainer"]["callbacks"] = found["trainer"].pop("callbacks+")
    run = main(tiny(**found))
    assert BackgroundStatistics.load(run / "background.safetensors").num_documents == DOCUMENTS


def test_a_dry_run_reads_as_many_documents_as_it_takes_steps(tiny):
    run = main(tiny("--trainer.fast_dev_run", "2", **sections(num_documents=1000)))
    background = BackgroundStatistics.load(run / "export" / "background.safetensors")
    assert background.num_documents == 2


def test_progress_is_a_line_now_and_then_or_a_bar(tiny, exported, capsys, monkeypatch):
    capsys.readouterr()
    validate(tiny(**starting_from(exported)))
    assert "document" not in capsys.readouterr().out
    monkeypatch.setattr(collected, "SECONDS_BETWEEN_LINES", 0.0)
    validate(tiny(**starting_from(exported)))
    assert "background statistics: document 2/3" in capsys.readouterr().out
    validate(tiny("--trainer.enable_progress_bar", "false", **starting_from(exported)))
    assert "document" not in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    validate(tiny(**starting_from(exported)))
    assert "Background statistics" in capsys.readouterr().out


def test_documents_are_the_training_rows_in_order_over_epochs():
    class Data(LightningDataModule):
        """Seven rows an epoch, in batches of three."""

        def train_dataloader(self):
            rows = torch.arange(7)
            return [dict.fromkeys(collected.LAYOUT, part[:, None]) for part in rows.split(3)]

    documents = list(islice(documents_of(Data(), 4), 4))
    ids = [[batch["input_ids"].flatten().tolist() for batch in one] for one in documents]
    assert ids == [[[0, 1, 2], [3]], [[4, 5], [6], [0]], [[1, 2], [3, 4]], [[5], [6], [0, 1]]]


def test_mistakes_are_explained():
    class Data(LightningDataModule):
        def __init__(self, batches):
            super().__init__()
            self.batches = batches

        def train_dataloader(self):
            return self.batches

    with pytest.raises(ValueError, match="no training rows"):
        next(documents_of(Data([]), 4))
    unpacked = {"input_ids": torch.zeros(1, 2), "attention_mask": torch.ones(1, 2)}
    with pytest.raises(ValueError, match=r"have no position_ids, segment_ids: use a datamodule"):
        next(documents_of(Data([unpacked]), 4))


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_find_what_one_finds(tiny, exported, workdir):
    """Of three documents, one process reads two and the other one."""
    found = starting_from(exported)
    del found["trainer"]["devices"]
    words = tiny(**found)[1:]
    overlay = ROOT / "configs" / "hardware" / "ddp2_cpu.yaml"
    run_train_on_two(workdir, "validate", *words, "--config", overlay, "--run_dir", "two")
    two = BackgroundStatistics.load("two/background.safetensors")
    assert_equal(two, BackgroundStatistics.load(exported / "background.safetensors"))
