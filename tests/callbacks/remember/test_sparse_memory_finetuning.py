"""Sparse memory finetuning in a module of its own kind, against a dense reference."""

import copy
import math
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.callbacks.remember.tiny_memory import (
    NUM_KEYS,
    TinyMemoryModule,
    ValidatedModule,
    built,
    rows,
    same_bits,
    trainer_for,
)
from triptych.callbacks.remember.sparse_memory_finetuning import (
    ANCHOR,
    RowObserver,
    SparseMemoryFinetuning,
)
from triptych.callbacks.remember.training_reads import keep_mask
from triptych.models.remember.values.value_table import ValueTable
from triptych.objectives.remember.background_statistics import (
    BACKGROUND_FILE,
    BackgroundStatistics,
    index_fingerprint,
)
from triptych.objectives.remember.slot_scores import TableStatistics

OPTIMIZERS = [
    {"optimizer": "sgd", "learning_rate": 3.0},
    {"optimizer": "sgd", "learning_rate": 3.0, "momentum": 0.9, "weight_decay": 0.2},
    {"optimizer": "adagrad", "learning_rate": 0.3, "weight_decay": 0.2},
    {"optimizer": "adamw", "learning_rate": 0.3, "weight_decay": 0.2},
]
every_optimizer = pytest.mark.parametrize("settings", OPTIMIZERS, ids=str)
NUM_SLOTS = NUM_KEYS**2


def tf(num_slots: int = 4, **settings: Any) -> SparseMemoryFinetuning:
    return SparseMemoryFinetuning(num_slots, ranking="tf", **settings)


def fit(
    module: LightningModule, callback: SparseMemoryFinetuning, folder: Any, data: Any, **more: Any
) -> Any:
    trainer = trainer_for(callback, folder, **more)
    trainer.fit(module, data)
    return trainer


def tables_of(module: TinyMemoryModule) -> list[Tensor]:
    return [table.weight.detach().clone() for table in module.tables]


# -- against a reference --------------------------------------------------------------------------


def reference_step(
    module: TinyMemoryModule,
    batches: list[dict[str, Tensor]],
    num_slots: int,
    rate: float,
    frequency: list[list[int]] | None = None,
    num_documents: int = 0,
) -> list[set[int]]:
    """One step with dense gradients and counts by hand; returns the rows of each table.

    For a module whose tables are not frozen. A slot scores c / sum c * ln((N + 1) / (df + 1)).
    """
    counts = [Counter() for _ in module.tables]
    module.zero_grad()
    for layer in module.layers:
        layer.recording = True
    for batch in batches:
        (module.loss(batch) / len(batches)).backward()
        text = batch["segment_ids"] > 0
        for layer in module.layers:
            number = [table is layer.values for table in module.tables].index(True)
            counts[number].update(layer.last_ids[text].flatten().tolist())
    chosen = []
    for number, table in enumerate(module.tables):
        total = sum(counts[number].values())
        scores = {}
        for slot, count in counts[number].items():
            scores[slot] = count / total
            if frequency is not None:
                scores[slot] *= math.log((num_documents + 1) / (frequency[number][slot] + 1))
        best = sorted((-score, slot) for slot, score in scores.items() if score > 0)
        selected = sorted(slot for _, slot in best[:num_slots])
        with torch.no_grad():
            table.weight[selected] -= rate * table.weight.grad[selected]
        chosen.append(set(selected))
    return chosen


@pytest.mark.parametrize(("num_layers", "shared"), [(1, True), (2, True), (2, False)])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_it_equals_a_masked_dense_gradient(num_layers, shared, accumulated, tmp_path):
    """Two layers on one table: their counts are added, and they have one set of rows."""
    module = built(lambda: TinyMemoryModule(num_layers, shared))
    reference = copy.deepcopy(module)
    callback = tf(learning_rate=0.5)
    fit(module, callback, tmp_path, rows(18), accumulate_grad_batches=accumulated)
    batches, written = list(rows(18)), [set() for _ in reference.tables]
    for start in range(0, 9, accumulated):
        chosen = reference_step(reference, batches[start : start + accumulated], 4, 0.5)
        written = [seen | new for seen, new in zip(written, chosen, strict=True)]
    assert callback.num_updates == 9 / accumulated
    assert [set(table.tolist()) for table in callback.rows_written] == written
    for table, expected in zip(tables_of(module), tables_of(reference), strict=True):
        torch.testing.assert_close(table, expected, rtol=1e-5, atol=1e-6)


def statistics_of(module: nn.Module, folder: Any) -> BackgroundStatistics:
    """Some statistics of a module's tables, saved where the callback looks for them."""
    generator = torch.Generator().manual_seed(1)
    tables = []
    for _ in module.tables:
        frequency = torch.randint(10, (NUM_SLOTS,), generator=generator)
        tables.append(TableStatistics(frequency, frequency * 3, 9))
    statistics = BackgroundStatistics(tuple(tables), 1, 1, 1, "none", index_fingerprint(module))
    statistics.save(folder / BACKGROUND_FILE)
    return statistics


@pytest.mark.parametrize("where", ["file", "folder", "init_from"])
def test_tf_idf_holds_reads_against_those_of_other_text(where, tmp_path):
    module = built(lambda: TinyMemoryModule(2, shared=False))
    reference = copy.deepcopy(module)
    statistics = statistics_of(module, tmp_path)
    background = {"file": str(tmp_path / BACKGROUND_FILE), "folder": str(tmp_path)}.get(where)
    module.init_from = str(tmp_path) if where == "init_from" else None
    callback = SparseMemoryFinetuning(4, background=background, learning_rate=0.5)
    fit(module, callback, tmp_path, rows(8))
    frequency = [table.document_frequency_S.tolist() for table in statistics.tables]
    by_tf = copy.deepcopy(reference)
    for batch in rows(8):
        reference_step(reference, [batch], 4, 0.5, frequency, 9)
        reference_step(by_tf, [batch], 4, 0.5)
    for number, table in enumerate(tables_of(module)):
        torch.testing.assert_close(table, tables_of(reference)[number], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(table, tables_of(by_tf)[number])


def test_a_share_of_the_score_and_all_slots_that_were_read(tmp_path):
    module = built(TinyMemoryModule)
    callback = SparseMemoryFinetuning(None, 1.0, "all", learning_rate=0.5)
    fit(module, callback, tmp_path, rows(2))
    expected = built(TinyMemoryModule)
    (chosen,) = reference_step(expected, list(rows(2)), NUM_SLOTS, 0.5)
    assert set(callback.rows_written[0].tolist()) == chosen
    torch.testing.assert_close(tables_of(module)[0], tables_of(expected)[0])
    narrow = SparseMemoryFinetuning(None, 0.3, "tf", learning_rate=0.5)
    fit(built(TinyMemoryModule), narrow, tmp_path, rows(2))
    assert 0 < len(narrow.rows_written[0]) < len(chosen) / 2


def test_pooled_tables_compete(tmp_path):
    module = built(lambda: TinyMemoryModule(2, shared=False))
    callback = tf(5, scope="pooled")
    fit(module, callback, tmp_path, rows(2))
    assert sum(map(len, callback.rows_written)) == 5


# -- what must not move ---------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("accumulated", [1, 2])
def test_rows_that_were_not_selected_stay_the_same_to_the_bit(settings, accumulated, tmp_path):
    module = built(lambda: TinyMemoryModule(2))
    before = copy.deepcopy(module.state_dict())
    callback = tf(3, **settings)
    fit(module, callback, tmp_path, rows(12), accumulate_grad_batches=accumulated, max_epochs=2)
    after = module.state_dict()
    assert after.pop(ANCHOR).item() == 0.0  # though its optimizer decays by half its learning rate
    table, old = after.pop("tables.0.weight"), before.pop("tables.0.weight")
    written = torch.zeros(NUM_SLOTS, dtype=torch.bool)
    written[callback.rows_written[0]] = True
    assert 3 < written.sum() < NUM_SLOTS / 2
    assert torch.equal(same_bits(table, old), ~written)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)


class Looks(SparseMemoryFinetuning):
    """Looks at the gradients of each step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.gradients = {
            name: parameter.grad
            for name, parameter in pl_module.named_parameters()
            if parameter.grad is not None
        }
        self.kept = [group["params"] for group in optimizer.param_groups]
        super().on_before_optimizer_step(trainer, pl_module, optimizer)


def test_no_dense_gradient_and_nothing_below_the_lowest_layer(tmp_path):
    module, callback = built(lambda: TinyMemoryModule(2)), Looks(3, ranking="tf")
    trainer = fit(module, callback, tmp_path, rows(4))
    assert list(callback.gradients) == [ANCHOR]
    assert callback.gradients[ANCHOR].shape == ()
    lowest, second = module.entering
    assert lowest.grad_fn is None
    assert not lowest.requires_grad
    assert second.requires_grad
    assert [[id(p) for p in group] for group in callback.kept] == [
        [id(module.get_parameter(ANCHOR))]
    ]
    state = trainer.optimizers[0].state_dict()["state"]
    assert sum(t.numel() for entry in state.values() for t in entry.values()) == 3  # scalars
    assert module.tables[0].reads == []


def test_sampling_and_validation_never_count(tmp_path):
    plain = built(TinyMemoryModule)
    fit(plain, tf(), tmp_path, rows(8))
    sampling = built(lambda: ValidatedModule(samples=True))
    callback = tf()
    trainer = trainer_for(callback, tmp_path, val_check_interval=2, num_sanity_val_steps=1)
    trainer.fit(sampling, rows(8), rows(6))
    assert torch.equal(tables_of(sampling)[0], tables_of(plain)[0])


def test_a_forward_pass_that_the_loss_does_not_come_from_never_counts(tmp_path):
    class Wasteful(TinyMemoryModule):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            self((batch["input_ids"] + 5) % 12)  # with gradient, and then forgotten
            return self.loss(batch)

    plain, wasteful = built(TinyMemoryModule), built(Wasteful)
    fit(plain, tf(), tmp_path, rows(8))
    fit(wasteful, tf(), tmp_path, rows(8))
    assert torch.equal(tables_of(wasteful)[0], tables_of(plain)[0])


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_skipped_step_leaves_everything_as_it_is(tmp_path):
    """Batches 1 and 2 of four are skipped: what is left equals a run without them."""
    settings = {"optimizer": "adamw", "learning_rate": 0.3, "weight_decay": 0.1}
    skipping = built(lambda: TinyMemoryModule(skipped=(1, 2)))
    callback = tf(**settings)
    fit(skipping, callback, tmp_path, rows(8))
    plain, all_steps = built(TinyMemoryModule), tf(**settings)
    batches = list(rows(8))
    fit(plain, all_steps, tmp_path, DataLoader([batches[0], batches[3]], batch_size=None))
    assert callback.num_updates == all_steps.num_updates == 2
    assert torch.equal(tables_of(skipping)[0], tables_of(plain)[0])
    ours, theirs = callback.state_dict(), all_steps.state_dict()
    steps = [state["optimizers"][0]["state"]["steps"].tolist() for state in (ours, theirs)]
    assert steps[0] == steps[1]
    assert set(steps[0]) <= {1, 2}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_micro_batch_that_is_skipped_counts_for_nothing(tmp_path):
    skipping, callback = built(lambda: TinyMemoryModule(skipped=(1,))), tf(learning_rate=0.5)
    fit(skipping, callback, tmp_path, rows(4), accumulate_grad_batches=2)
    reference, (first, second) = built(TinyMemoryModule), rows(4)
    nothing = {**second, "segment_ids": second["segment_ids"] * 0}
    reference_step(reference, [first, nothing], 4, 0.5)
    torch.testing.assert_close(tables_of(skipping)[0], tables_of(reference)[0])
    only_skipped, callback = built(lambda: TinyMemoryModule(skipped=(0, 1))), tf(4)
    fit(only_skipped, callback, tmp_path, rows(4), accumulate_grad_batches=2)
    assert torch.equal(tables_of(only_skipped)[0], tables_of(built(TinyMemoryModule))[0])
    assert callback.num_updates == 0


# -- other ways to train --------------------------------------------------------------------------


def test_without_any_optimizer(tmp_path):
    module, with_adamw = built(lambda: TinyMemoryModule(optimizer="none")), built(TinyMemoryModule)
    with pytest.warns(UserWarning, match="this fit will run with no optimizer"):
        fit(module, tf(), tmp_path, rows(8))
    fit(with_adamw, tf(), tmp_path, rows(8))
    assert torch.equal(tables_of(module)[0], tables_of(with_adamw)[0])


def test_manual_optimization_steps_with_the_optimizer_that_has_the_anchor(tmp_path):
    class Manual(TinyMemoryModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            other, own = self.optimizers()
            own.zero_grad()
            self.manual_backward(self.loss(batch))
            self.before = tables_of(self)
            other.step()
            assert torch.equal(tables_of(self)[0], self.before[0])
            own.step()
            assert not torch.equal(tables_of(self)[0], self.before[0])

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
            return [other, super().configure_optimizers()]

    manual, automatic = built(Manual), built(TinyMemoryModule)
    fit(manual, tf(), tmp_path, rows(8))
    fit(automatic, tf(), tmp_path, rows(8))
    assert torch.equal(tables_of(manual)[0], tables_of(automatic)[0])


@every_optimizer
def test_bfloat16_mixed_and_a_bfloat16_table(settings, tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        module, callback = (
            built(lambda dtype=dtype: TinyMemoryModule(2, dtype=dtype)),
            tf(**settings),
        )
        before = tables_of(module)[0]
        fit(module, callback, tmp_path, rows(8), precision="bf16-mixed")
        table = tables_of(module)[0]
        written = torch.zeros(NUM_SLOTS, dtype=torch.bool)
        written[callback.rows_written[0]] = True
        assert table.dtype == dtype
        assert torch.equal(same_bits(table, before), ~written)
        assert written.sum() >= 4


def half_precision() -> MixedPrecision:
    """Scales the loss by 1,024; halves that when a gradient is not finite."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
    return MixedPrecision("16-mixed", "cpu", scaler)


def test_a_gradient_scaler_is_undone(tmp_path):
    half, full = built(TinyMemoryModule), built(TinyMemoryModule)
    fit(half, tf(learning_rate=0.5), tmp_path, rows(8), plugins=[half_precision()])
    fit(full, tf(learning_rate=0.5), tmp_path, rows(8))
    torch.testing.assert_close(tables_of(half)[0], tables_of(full)[0], rtol=1e-2, atol=1e-3)
    assert not torch.equal(tables_of(half)[0], tables_of(built(TinyMemoryModule))[0])


class Overflowing(TinyMemoryModule):
    """Its second step has a finite loss whose gradient is not."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if batch_idx == 1:
            loss = loss + (self(batch["input_ids"]).sum() * 0).sqrt()
        return loss


@pytest.mark.parametrize("scaled", [True, False])
def test_a_step_whose_gradient_is_not_finite_writes_nothing(scaled, tmp_path):
    module, callback = built(Overflowing), tf(optimizer="adamw", learning_rate=0.3)
    plugin = half_precision()
    more = {"plugins": [plugin]} if scaled else {}
    expectation = (
        nullcontext() if scaled else pytest.warns(UserWarning, match="not finite at step 1")
    )
    with expectation:
        fit(module, callback, tmp_path, rows(6), **more)
    assert callback.num_updates == 2
    assert torch.isfinite(tables_of(module)[0]).all()
    assert module.get_parameter(ANCHOR).item() == 0.0
    if scaled:
        assert plugin.scaler.get_scale() == 512.0


def test_gradients_are_clipped_by_their_own_norm(tmp_path):
    module, callback = built(TinyMemoryModule), tf(learning_rate=1.0, gradient_clip_norm=1e-3)
    before = tables_of(module)[0]
    fit(module, callback, tmp_path, rows(2), gradient_clip_val=1e-9)
    moved = (tables_of(module)[0] - before).norm().item()
    assert moved == pytest.approx(1e-3, rel=1e-3)
    free = built(TinyMemoryModule)
    trainer = fit(free, tf(learning_rate=1.0, gradient_clip_norm=1e3), tmp_path, rows(2))
    norm = float(trainer.callback_metrics["sparse_memory/gradient_norm"])
    assert (tables_of(free)[0] - before).norm().item() == pytest.approx(norm, rel=1e-5)


def test_training_the_same_module_twice(tmp_path):
    module, callback = built(TinyMemoryModule), tf()
    fit(module, callback, tmp_path, rows(4))
    fit(module, callback, tmp_path, rows(4))
    assert callback.num_updates == 2
    assert sum(name.endswith(ANCHOR) for name, _ in module.named_parameters()) == 1
    assert module.tables[0].anchor is module.get_parameter(ANCHOR)


# -- what it tells --------------------------------------------------------------------------------


class Diary(RowObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int, list[int], Tensor]] = []

    def before_update(self, table_id: int, table: ValueTable, rows: Tensor) -> None:
        self.entries.append(("before", table_id, rows.tolist(), table.weight.detach().clone()))

    def after_update(self, table_id: int, table: ValueTable, rows: Tensor) -> None:
        self.entries.append(("after", table_id, rows.tolist(), table.weight.detach().clone()))


def test_observers_see_the_rows_before_and_after(tmp_path):
    module, callback, diary = built(lambda: TinyMemoryModule(2, shared=False)), tf(), Diary()
    callback.observers.append(diary)
    start = tables_of(module)
    fit(module, callback, tmp_path, rows(4))
    assert [entry[:2] for entry in diary.entries] == 2 * [
        ("before", 0),
        ("after", 0),
        ("before", 1),
        ("after", 1),
    ]
    assert torch.equal(diary.entries[0][3], start[0])
    for (_, _, told, old), (_, _, again, new) in zip(
        diary.entries[::2], diary.entries[1::2], strict=True
    ):
        assert told == again == sorted(told)
        assert (~same_bits(old, new)).nonzero().flatten().tolist() == told
    assert torch.equal(diary.entries[-3][3], tables_of(module)[0])


def test_it_logs_what_a_step_read_and_wrote(tmp_path):
    module, callback = built(TinyMemoryModule), tf(3)
    trainer = fit(module, callback, tmp_path, rows(6))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["sparse_memory/rows_per_step"] == 3
    assert logged["sparse_memory/rows_written"] == len(callback.rows_written[0]) > 3
    last, reference = list(rows(6))[-1], built(TinyMemoryModule)
    (layer,) = reference.layers
    layer.recording = True
    reference(last["input_ids"])
    read = layer.last_ids[last["segment_ids"] > 0].unique()
    assert logged["sparse_memory/slots_read"] == len(read)
    assert logged["sparse_memory/gradient_norm"] > 0


def test_padding_is_told_by_the_batch():
    segments, attention = torch.tensor([[1, 2, 0]]), torch.tensor([[1, 0, 0]])
    both = {"attention_mask": attention, "segment_ids": segments}
    assert keep_mask(both, 3).tolist() == [True, True, False]
    assert keep_mask({"attention_mask": attention}, 3).tolist() == [True, False, False]
    assert keep_mask({"segment_ids": segments, "attention_mask": torch.ones(2, 2)}, 4).all()
    assert keep_mask(both, 4) is None
    assert keep_mask({"segment_ids": "no tensor"}, 3) is None
    assert keep_mask([segments], 3) is None


# -- checkpoints ----------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_equals_one_that_was_never_stopped(settings, precision, tmp_path):
    path = tmp_path / "last.ckpt"
    more = {"precision": precision, "accumulate_grad_batches": 2}

    def make() -> TinyMemoryModule:
        return built(lambda: TinyMemoryModule(2))

    whole, callback = make(), tf(3, **settings)
    fit(whole, callback, tmp_path, rows(12), max_epochs=4, **more)
    stopped = make()
    trainer = fit(stopped, tf(3, **settings), tmp_path, rows(12), max_epochs=2, **more)
    trainer.save_checkpoint(path)
    resumed, again = make(), tf(3, **settings)
    trainer = trainer_for(again, tmp_path, max_epochs=4, **more)
    trainer.fit(resumed, rows(12), ckpt_path=path, weights_only=True)
    assert not torch.equal(tables_of(stopped)[0], tables_of(whole)[0])
    assert torch.equal(tables_of(resumed)[0], tables_of(whole)[0])
    assert again.num_updates == callback.num_updates == 12
    assert torch.equal(again.rows_written[0], callback.rows_written[0])
    ours, theirs = (c.state_dict()["optimizers"][0]["state"] for c in (again, callback))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_can_be_validated(tmp_path):
    trainer = fit(built(TinyMemoryModule), tf(), tmp_path, rows(4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module = built(ValidatedModule, seed=4)
    trainer = trainer_for(tf(), tmp_path)
    trainer.validate(module, rows(4), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert module.tables[0].weight.requires_grad


# -- errors ---------------------------------------------------------------------------------------


def test_a_module_without_memory(tmp_path):
    class Plain(TinyMemoryModule):
        def __init__(self) -> None:
            super().__init__(num_layers=0)

    with pytest.raises(ValueError, match=r"Plain has no memory layers to finetune. Start from"):
        fit(built(Plain), tf(), tmp_path, rows(2))


def test_more_slots_than_the_first_step_read(tmp_path):
    module = built(TinyMemoryModule)
    message = (
        r"num_slots is 60, but the first step read only \d+ different slots: set it to at most"
    )
    with pytest.raises(ValueError, match=message):
        fit(module, tf(60), tmp_path, rows(4))
    assert torch.equal(tables_of(module)[0], tables_of(built(TinyMemoryModule))[0])


def test_fewer_slots_that_score_are_taken_and_said_once(tmp_path):
    module = built(TinyMemoryModule)
    statistics = statistics_of(module, tmp_path)
    statistics.tables[0].document_frequency_S[:] = 9  # all of other text reads it: no score
    statistics.tables[0].document_frequency_S[:12] = 0
    statistics.save(tmp_path / BACKGROUND_FILE)
    callback = SparseMemoryFinetuning(8, background=str(tmp_path))
    with pytest.warns(UserWarning, match="fewer|not num_slots=8") as warned:
        fit(module, callback, tmp_path, rows(6))
    assert sum("num_slots" in str(warning.message) for warning in warned) == 1
    assert callback.num_updates == 3
    assert callback.rows_written[0].max() < 12


def test_statistics_are_missing_or_of_another_model(tmp_path):
    module = built(TinyMemoryModule)
    with pytest.raises(ValueError, match=r"background: ranking tfidf .* or set ranking: tf"):
        fit(module, SparseMemoryFinetuning(4), tmp_path, rows(2))
    nowhere = SparseMemoryFinetuning(4, background=str(tmp_path / "no.safetensors"))
    with pytest.raises(ValueError, match="there are no background statistics"):
        fit(module, nowhere, tmp_path, rows(2))
    statistics_of(built(TinyMemoryModule, seed=4), tmp_path)
    with pytest.raises(ValueError, match=r"SparseMemoryFinetuning.background: .* another model"):
        fit(module, SparseMemoryFinetuning(4, background=str(tmp_path)), tmp_path, rows(2))


def test_a_checkpoint_of_another_optimizer(tmp_path):
    trainer = fit(built(TinyMemoryModule), tf(optimizer="adamw"), tmp_path, rows(4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer = trainer_for(tf(), tmp_path, max_epochs=2)
    with pytest.raises(
        ValueError, match=r"SparseMemoryFinetuning, from the checkpoint: .* RowAdamW"
    ):
        trainer.fit(built(TinyMemoryModule), rows(4), ckpt_path=tmp_path / "last.ckpt")


def test_sharded_parameters(tmp_path):
    callback = tf()
    trainer = trainer_for(callback, tmp_path)
    trainer.strategy.__class__ = type("Sharding", (FSDPStrategy,), {})
    with pytest.raises(ValueError, match=r"but Sharding shards them: set trainer\.strategy to DDP"):
        callback.setup(trainer, built(TinyMemoryModule), "fit")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_slots": 5, "score_share": 0.5}, "give one of them and set the other to null"),
        ({"num_slots": None}, "give one of them and set the other to null"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"optimizer": "adamw", "betas": (0.9, 1.0)}, "betas are"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(ValueError, match=words):
        SparseMemoryFinetuning(**settings)
