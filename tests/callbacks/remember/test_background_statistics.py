"""Background statistics as runs leave them: after fit, from validate, on two processes."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer

import triptych.callbacks.remember.background_statistics as collected
from tests.conftest import ROOT, run_in
from tests.lit_modules.remember.test_memory_pretraining import TINY
from tests.train_process import run_train_on_two
from triptych.callbacks.remember.background_statistics import (
    CollectBackgroundStatistics,
    documents_of,
)
from triptych.callbacks.run.checkpoint import Checkpoint
from triptych.callbacks.run.export_model import ExportModel
from triptych.cli import main
from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.datamodules.remember.text.text_and_facts import TextAndFacts
from triptych.datamodules.remember.text.text_corpus import TextConfig
from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining
from triptych.models import long_loop
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.remember.background_statistics import BackgroundStatistics

NAME = "triptych.callbacks.remember.background_statistics.CollectBackgroundStatistics"
ROWS, DOCUMENTS, LENGTH = 6, 3, 96  # documents of one and a half batches
SIZES = {"num_documents": DOCUMENTS, "rows_per_document": ROWS, "on_validate": True}
SLOTS = 32**2


def sections() -> dict[str, Any]:
    """The tiny run, collecting at its end."""
    trainer = {**TINY["trainer"], "callbacks+": [{"class_path": NAME, "init_args": SIZES}]}
    memory = {**TINY["model"]["init_args"]["memory"], "num_keys": 32}
    model = {**TINY["model"], "init_args": {**TINY["model"]["init_args"], "memory": memory}}
    return {**TINY, "model": model, "trainer": trainer}


def starting_from(export: Path) -> dict[str, Any]:
    """The same, on a model that exists."""
    model = {**TINY["model"]["init_args"], "base": None, "memory": None, "init_from": str(export)}
    return {**sections(), "model": {**TINY["model"], "init_args": model}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny memory model, and statistics collected at the end of its training."""
    return run_in(tmp_path_factory.mktemp("collected"), **sections())


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    return run / "export"


def data_of(export: Path, **settings: Any) -> TextAndFacts:
    """The data of the tiny run, with the tokenizer that it trained."""
    return TextAndFacts(
        tokenizer=TokenizerConfig(path=str(export)),
        text=TextConfig(max_validation_rows=8),
        facts=FactsConfig(num_facts=40, validation_facts=6),
        context_length=LENGTH,
        batch_size=4,
        **settings,
    )


def module_of(export: Path, **settings: Any) -> MemoryPretraining:
    vocab_size = load_memory_lm(export).config.vocab_size
    return MemoryPretraining(vocab_size, init_from=str(export), max_new_tokens=3, **settings)


def trainer_in(folder: Path, *callbacks: Any, **settings: Any) -> Trainer:
    """A silent trainer of three steps; a collector comes after the callbacks."""
    collector = CollectBackgroundStatistics(**SIZES | settings.pop("collector", {}))
    defaults = {
        "max_steps": 3,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        callbacks=[*callbacks, collector],
        **defaults | settings,
    )


def assert_equal(one, other):
    for mine, others in zip(one.tables, other.tables, strict=True):
        assert torch.equal(mine.document_frequency_S, others.document_frequency_S)
        assert torch.equal(mine.counts_S, others.counts_S)
        assert mine.num_documents == others.num_documents
    assert (one.num_tokens, one.index_fingerprint) == (other.num_tokens, other.index_fingerprint)


def counted_by_hand(export):
    """Reads of the first documents of the tiny data, one row after the other."""
    data = data_of(export)
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


def test_fit_leaves_statistics_beside_the_model(run):
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
    assert "background/" not in (run / "metrics.csv").read_text()  # constants are no curves


def test_validate_finds_what_fit_found(tiny, exported):
    run = main(["validate", *tiny(**starting_from(exported))[1:]])
    found = BackgroundStatistics.load(run / "background.safetensors")
    assert_equal(found, BackgroundStatistics.load(exported / "background.safetensors"))
    assert not (run / "export").exists()


def test_the_configuration_of_its_own_collects_for_a_model_that_exists(workdir, exported):
    """As its first lines say, with fewer and shorter documents."""
    run = main(
        [
            *("validate", "--config", str(ROOT / "configs/remember/background_statistics.yaml")),
            *("--model.init_args.init_from", str(exported)),
            *("--data.init_args.context_length", str(LENGTH)),
            *("--trainer.callbacks.init_args.num_documents", "2"),
            *("--trainer.callbacks.init_args.path", "mine.safetensors"),
            *("--trainer.accelerator", "cpu", "--tracking.uri", "null"),
        ]
    )
    background = BackgroundStatistics.load("mine.safetensors")
    assert (background.num_documents, background.tokens_per_row) == (2, LENGTH)
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert set(metrics) == {
        "background/num_documents",
        "background/num_tokens",
        "background/slots_read_share",
        "background/slots_always_read_share",
    }


class Diverging(MemoryPretraining):
    """Its score gets worse with each validation."""

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("val/score", float(self.trainer.global_step))


def test_statistics_are_of_the_exported_model_even_where_an_earlier_one_was_the_best(
    exported, tmp_path
):
    module = Diverging(
        load_memory_lm(exported).config.vocab_size, init_from=str(exported), max_new_tokens=3
    )
    best = Checkpoint(monitor="val/score", mode="min")
    trainer = trainer_in(
        tmp_path, ExportModel(), best, max_steps=4, limit_val_batches=1, val_check_interval=2
    )
    trainer.fit(module, data_of(exported))
    background = BackgroundStatistics.load(tmp_path / "export" / "background.safetensors")
    left = load_memory_lm(tmp_path / "export")
    assert not torch.equal(left.lm_head.weight, module.model.lm_head.weight)
    tokenizer = build_tokenizer(TokenizerConfig(path=str(exported)), list, "", tmp_path)
    background.check(left, tokenizer)


def test_another_path_and_number_can_be_chosen(exported, tmp_path):
    path = tmp_path / "elsewhere" / "mine.safetensors"
    trainer = trainer_in(tmp_path, collector={"path": str(path), "num_documents": 1})
    trainer.validate(module_of(exported), data_of(exported), verbose=False)
    assert BackgroundStatistics.load(path).num_documents == 1
    assert not (tmp_path / "background.safetensors").exists()


def test_what_was_trained_on_before_does_not_matter(exported, tmp_path):
    """Fit goes on for an epoch of three batches; then the same rows are read from the first on.

    Without an export, the module's own model is read.
    """
    module = module_of(exported, learning_rate=0.0, value_learning_rate=0.0)
    trainer_in(tmp_path, max_epochs=1, max_steps=-1).fit(
        module, data_of(exported, rows_per_epoch=12)
    )
    assert module.trainer.global_step == 3
    again = BackgroundStatistics.load(tmp_path / "background.safetensors")
    assert_equal(again, BackgroundStatistics.load(exported / "background.safetensors"))


def test_a_model_without_memory_is_left_alone_by_fit_and_refused_by_validate(exported, tmp_path):
    data = data_of(exported)
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2)
    module = MemoryPretraining(data.vocab_size, base, MemoryConfig(layers=[0], dense_twin=True))
    trainer_in(tmp_path, ExportModel(), max_steps=1).fit(module, data)
    assert (tmp_path / "export" / "config.json").is_file()
    assert not list(tmp_path.rglob("background.safetensors"))
    with pytest.raises(ValueError, match="no memory layers"):
        trainer_in(tmp_path).validate(module, data, verbose=False)


def test_a_dry_run_reads_as_many_documents_as_it_takes_steps(exported, tmp_path):
    trainer = trainer_in(tmp_path, ExportModel(), fast_dev_run=2, collector={"num_documents": 1000})
    trainer.fit(module_of(exported), data_of(exported))
    background = BackgroundStatistics.load(tmp_path / "export" / "background.safetensors")
    assert background.num_documents == 2


def test_progress_is_a_line_now_and_then_or_a_bar(exported, tmp_path, capsys, monkeypatch):
    module, data = module_of(exported), data_of(exported)

    def shown(with_bar: bool = True) -> str:
        capsys.readouterr()
        trainer = trainer_in(tmp_path, enable_progress_bar=with_bar)
        trainer.validate(module, data, verbose=False)
        return capsys.readouterr().out

    assert "document" not in shown()
    monkeypatch.setattr(long_loop, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(long_loop, "SECONDS_BETWEEN_LINES", 0.0)
    assert "documents for background statistics: 2/3  ETA 0:00:0" in shown()
    assert "document" not in shown(with_bar=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    assert "documents for background statistics" in shown()


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
