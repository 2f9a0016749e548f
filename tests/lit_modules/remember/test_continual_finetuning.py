"""Finetuning from an export: what learns and what does not, steps passed over, resuming."""

import csv
import json
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import AdamW

from tests.callbacks.remember.finetuning_runs import CopyCheckpoint, Finetune, Finetuned, export
from tests.callbacks.remember.finetuning_runs import finetune as trained_here
from tests.lit_modules.remember.tiny_export import export_tiny_model, finetuning
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.callbacks.run.learning_rates import LearningRates
from triptych.cli import main
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.lit_modules.remember.continual_finetuning import ContinualFinetuning
from triptych.models.lora import LoRAConfig, merge_lora
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.batch_nll import batch_nll

__all__ = ["export", "trained_here"]

TAU = 4.5  # of the losses that the tiny model goes through
ALL = {"trainable": "all", "stop_below_nats": TAU, "learning_rate": 0.03}
LORA = {
    "trainable": "lora",
    "stop_below_nats": 5.95,
    "learning_rate": 0.1,
    "lora": {"rank": 4, "alpha": 16},
}


@pytest.fixture(scope="module")
def finetune(trained_here: Finetune) -> Finetune:
    """All 24 steps with AdamW, unless other arguments say otherwise."""

    def run(*callbacks: Callback, trainer: dict[str, Any] | None = None, **options: Any):
        trainer = {"limit_train_batches": 1.0, **(trainer or {})}
        defaults = {"optimizer": "adamw", "learning_rate": 0.02, "weight_decay": 0.1}
        return trained_here(*callbacks, trainer=trainer, **defaults | options)

    return run


@pytest.fixture
def finetune_by_yaml(tiny, export) -> Callable[..., Path]:
    """The same by `main`; `model` are arguments of the module, the rest are words."""

    def run(*words: object, **model: object) -> Path:
        return main(tiny(*words, **finetuning(export, **model)))

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_memory_lm(folder).state_dict()


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert list(before) == list(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def logged(run: Path | Finetuned, key: str) -> dict[int, str]:
    folder = run.folder if isinstance(run, Finetuned) else run
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): row[key] for row in rows if row.get(key)}


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


# -- what learns -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_all_weights_learn(finetune, export, optimizer):
    run = finetune(trainer={"max_steps": 2}, optimizer=optimizer)
    before = weights(export)
    assert changed(before, run.weights) == set(before)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_values_alone_learn(finetune, export, optimizer):
    run = finetune(trainer={"max_steps": 3}, trainable="values", optimizer=optimizer)
    assert changed(weights(export), run.weights) == {"memory_values.0.weight"}


def test_the_memory_module_alone_learns(finetune, export):
    run = finetune(trainer={"max_steps": 3}, trainable="memory")
    assert changed(weights(export), run.weights) == {
        "memory_values.0.weight",
        "model.layers.1.mlp.memory_gate",
        "model.layers.1.mlp.memory.index.keys",
        "model.layers.1.mlp.memory.query.weight",
        "model.layers.1.mlp.memory.query.bias",
        "model.layers.1.mlp.memory.gate.gate.weight",
        "model.layers.1.mlp.memory.gate.gate.bias",
        "model.layers.1.mlp.memory.gate.output.weight",
        "model.layers.1.mlp.memory.gate.output.bias",
    }


def test_lora_leaves_the_base_alone_and_is_merged_for_the_export(finetune_by_yaml, export):
    lora = {"rank": 2, "targets": "attention"}
    run = finetune_by_yaml("--trainer.max_steps", 4, trainable="lora", lora=lora)
    before = weights(export)
    saved = checkpoint(run)
    assert all(".lora_" in name for name in saved["state_dict"])
    merged = weights(run / "export")
    projections = {f"{name}_proj" for name in "qkvo"}
    assert changed(before, merged) == {
        f"model.layers.{layer}.self_attn.{name}.weight" for layer in (0, 1) for name in projections
    }

    module = ContinualFinetuning(
        len(merged["lm_head.weight"]), str(export), "lora", lora=_lora(lora)
    )
    module.on_load_checkpoint(saved)  # the base is the export's
    module.load_state_dict(saved["state_dict"])
    ids = torch.tensor([[1, 5, 7, 2, 9]])
    adapted, exported = (
        model.eval()(ids).logits for model in (module.model, load_memory_lm(run / "export"))
    )
    torch.testing.assert_close(adapted, exported, rtol=0, atol=1e-5)
    assert (exported - load_memory_lm(export).eval()(ids).logits).abs().max() > 1e-2


def _lora(settings: dict) -> LoRAConfig:
    return LoRAConfig(**settings)


def test_the_best_lora_model_is_exported_merged(finetune_by_yaml, export):
    """It is exported in mid-training, and training goes on with the adapters."""
    run = finetune_by_yaml(
        *("--trainer.max_epochs", 3, "--checkpoint.monitor", "val/statements/f1"),
        *("--checkpoint.mode", "max"),
        trainable="lora",
        lora={"rank": 2},
    )
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    exported = weights(run / "export")
    module = ContinualFinetuning(
        len(exported["lm_head.weight"]), str(export), "lora", lora=_lora({"rank": 2})
    )
    module.on_load_checkpoint(best)
    module.load_state_dict(best["state_dict"])
    merge_lora(module.model)
    assert changed(module.model.state_dict(), exported) == set()
    assert changed(weights(export), exported)


class FreezeAll(Callback):
    """What sparse memory finetuning does to a module."""

    def setup(self, trainer, pl_module, stage):
        pl_module.requires_grad_(False)
        pl_module.register_parameter("sparse_memory_anchor", torch.nn.Parameter(torch.zeros(())))
        tables = pl_module.model.memory_values
        tables[0].register_forward_hook(lambda *args: args[-1] + 0 * pl_module.sparse_memory_anchor)


def test_a_callback_may_take_over(tiny, export):
    sections = finetuning(export)
    callback = {"class_path": f"{__name__}.FreezeAll"}
    run = main(
        tiny("--trainer.max_steps", 3, f"--trainer.callbacks+={json.dumps(callback)}", **sections)
    )
    assert changed(weights(export), weights(run / "export")) == set()
    assert json.loads((run / "summary.json").read_text())["metrics"]["lr/anchor"] == 0.0
    assert float(logged(run, "train/steps_taken")[3]) == 3


# -- steps passed over -------------------------------------------------------------------------


def by_hand(export: Path, tau: float) -> tuple[dict[str, torch.Tensor], dict[int, float], int]:
    """The stream in a plain loop: weights, losses of the batches that were run, steps taken."""
    data = FactStream(
        FactsConfig(num_facts=6, validation_facts=3),
        tokenizer=TokenizerConfig(path=str(export)),
        context_length=96,
        steps_per_visit=4,
    )
    model = load_memory_lm(export).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=0.02, betas=(0.9, 0.999), weight_decay=0.1, fused=True)
    losses, learned, num_steps = {}, set(), 0
    for number, batch in enumerate(data.train_dataloader()):
        visit = number // 4
        if visit in learned:
            continue
        nll = batch_nll(model, batch)
        loss = nll.sum_nats / nll.num_tokens
        losses[number] = loss.item()
        if loss < tau:
            learned.add(visit)
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        num_steps += 1
    return model.state_dict(), losses, num_steps


def test_learned_facts_are_passed_over_as_in_a_plain_loop(
    finetune_by_yaml, export, capsys, monkeypatch
):
    expected, losses, num_steps = by_hand(export, TAU)
    assert 0 < num_steps < len(losses) < 24  # some batches are run and take no step, some neither
    forwards = []
    run_forward = ContinualFinetuning.next_token_nll
    monkeypatch.setattr(
        ContinualFinetuning,
        "next_token_nll",
        lambda self, batch: forwards.append(self.training) or run_forward(self, batch),
    )
    run = finetune_by_yaml(stop_below_nats=TAU)
    assert changed(expected, weights(run / "export")) == set()
    assert sum(forwards) == len(losses)
    shown = logged(run, "train/nll_nats_per_token")
    assert {step: float(shown[step + 1]) for step in losses} == losses
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 24
    assert summary["metrics"]["train/steps_taken"] == num_steps
    table = capsys.readouterr().out
    assert f"{num_steps} of 24" in table
    learned = sum(loss < TAU for loss in losses.values())
    assert f"{learned} of 6 visits" in table


def test_nothing_happens_where_everything_is_known(finetune, export):
    """Not even decay, and no complaint of torch about a schedule without steps."""
    run = finetune(stop_below_nats=100.0, weight_decay=0.5, warmup_steps=3)
    assert changed(weights(export), run.weights) == set()
    assert set(logged(run, "train/steps_taken").values()) == {"0.0"}


@pytest.mark.parametrize("settings", [ALL, LORA], ids=["all", "lora"])
@pytest.mark.parametrize("saved_at", [7, 15])
def test_resumed_equals_uninterrupted(finetune, settings, saved_at):
    settings = {**settings, "lora": LoRAConfig(**settings["lora"]) if "lora" in settings else None}
    whole = finetune(CopyCheckpoint(), every_n_train_steps=saved_at, **settings)
    taken = {step: float(n) for step, n in logged(whole, "train/steps_taken").items()}
    assert 0 < taken[saved_at] < taken[23] < 24
    resumed = finetune(ckpt_path=whole.folder / "checkpoints" / "copy.ckpt", **settings)
    assert changed(whole.weights, resumed.weights) == set()
    for key in ("train/nll_nats_per_token", "train/steps_taken"):
        later = {step: v for step, v in logged(whole, key).items() if step >= saved_at}
        assert logged(resumed, key) == later
    states = [checkpoint(run.folder)["continual_finetuning"] for run in (whole, resumed)]
    assert states[0] == states[1]
    if settings["trainable"] == "all" and saved_at == 15:  # within a visit that had ended early
        assert [taken[step] for step in (14, 15)] == [9.0, 9.0]


def test_sparse_memory_finetuning_takes_over(finetune, export):
    """The real one, with facts passed over; the run goes on as if it had not been stopped."""

    def run(*callbacks: Callback, **options: Any) -> Finetuned:
        sparse = SparseMemoryFinetuning(num_slots=8, ranking="tf", learning_rate=30.0, momentum=0.5)
        return finetune(sparse, LearningRates(), *callbacks, stop_below_nats=5.903, **options)

    whole = run(CopyCheckpoint(), every_n_train_steps=7)
    before, after = weights(export), whole.weights
    assert changed(before, after) == {"memory_values.0.weight"}
    values = [state["memory_values.0.weight"] for state in (before, after)]
    written = (values[0] != values[1]).any(1)
    assert 8 <= int(written.sum()) < 64
    taken = {step: float(n) for step, n in logged(whole, "train/steps_taken").items()}
    assert 0 < taken[23] < 24
    resumed = run(ckpt_path=whole.folder / "checkpoints" / "copy.ckpt")
    assert changed(after, resumed.weights) == set()
    assert set(logged(resumed, "lr/anchor").values()) == {"0.0"}


# -- schedules and what is refused ---------------------------------------------------------------


def rates(run: Finetuned) -> list[float]:
    return [float(rate) for rate in logged(run, "lr/values").values()]


def test_schedules(finetune):
    steps = {"max_steps": 6}
    constant = finetune(LearningRates(), trainer=steps, warmup_steps=4, learning_rate=0.4)
    assert rates(constant) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    cosine = finetune(LearningRates(), trainer=steps, schedule="cosine", learning_rate=1.0)
    half = 0.1 + 0.9 * 0.5  # three of six steps down a cosine that ends at a tenth
    assert rates(cosine)[0] == pytest.approx(1.0)
    assert rates(cosine)[3] == pytest.approx(half)


@pytest.mark.parametrize(
    ("model", "told"),
    [({"learning_rate": -1.0}, "learning_rate"), ({"stop_below_nats": float("nan")}, "stop_below")],
)
def test_numbers_out_of_range_are_named(finetune_by_yaml, model, told):
    with pytest.raises(ArgumentError, match=told):
        finetune_by_yaml(**model)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"lora": LoRAConfig(rank=4)}, "lora is set, but model.init_args.trainable is all"),
        ({"trainable": "none"}, "nothing would learn: set model.init_args.trainable to all"),
    ],
)
def test_bad_settings_are_named(finetune, model, told):
    with pytest.raises(ValueError, match=told):
        finetune(**model)


def test_what_is_trainable_is_checked_outside_of_a_yaml_too(export):
    with pytest.raises(ValueError, match="trainable is 'full': choose among all, lora"):
        ContinualFinetuning(400, str(export), "full")


def test_stopping_early_needs_whole_steps_of_known_facts(tiny, export):
    sections = finetuning(export, stop_below_nats=1.0)
    with pytest.raises(ValueError, match="accumulate_grad_batches is 2"):
        main(tiny("--trainer.accumulate_grad_batches", 2, **sections))
    facts = {"num_facts": 6, "validation_facts": 3}
    sections["data"] = {
        "class_path": "triptych.datamodules.remember.facts.facts.Facts",
        "init_args": {"facts": facts},
    }
    sections["data"]["init_args"]["context_length"] = 96
    with pytest.raises(ValueError, match=r"data that come fact by fact.*FactStream"):
        main(tiny(**sections))


def test_the_cosine_needs_an_end(finetune):
    with pytest.raises(ValueError, match="the cosine schedule needs an end"):
        finetune(trainer={"max_epochs": -1}, schedule="cosine")


@pytest.mark.parametrize("trainable", ["values", "memory"])
def test_memory_is_needed_to_train_memory(tmp_path, trainable):
    dense = export_tiny_model(tmp_path, memory=False)
    with pytest.raises(ValueError, match=f"trainable is {trainable}, but the model has no memory"):
        ContinualFinetuning(400, str(dense), trainable)


def test_another_tokenizer_is_refused(tiny, export, tmp_path):
    with pytest.raises(ValueError, match=r"has 400 tokens but the data's tokenizer 401"):
        ContinualFinetuning(401, str(export))
    other = json.loads((export / "tokenizer.json").read_text())
    ids = other["model"]["vocab"]
    ids["e"], ids["a"] = ids["a"], ids["e"]  # as many tokens, and others
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="tokenizer is another one than that of the model"):
        main(tiny("--data.init_args.tokenizer.path", tmp_path / "other.json", **finetuning(export)))


def test_selected_rows_are_given_up_for_a_dense_optimizer(tmp_path, export):
    config = json.loads((export / "config.json").read_text())
    config["memory"]["value_gradient"] = "selected_rows"
    for file in export.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = ContinualFinetuning(400, str(tmp_path), "values")
    assert module.model.memory_values[0].gradient == "dense"
