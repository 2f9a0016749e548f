"""The runs of the study of real facts: the memory, and each method that teaches facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from triptych.models.pretrained_source import pretrained_source
from triptych.studies.arms import Arm, Settings, probe, run_arms, written
from triptych.studies.remember.real_facts.invented_facts import invented_facts, write_facts
from triptych.studies.remember.real_facts.real_facts_settings import (
    DENSE_STEPS_PER_VISIT,
    DENSE_STOP_BELOW_NATS,
    FACTS,
    FINETUNE_CONFIG,
    LORA,
    PARAPHRASES,
    PLAIN_MODEL,
    RETROFIT_CONFIG,
    SMALL_BACKGROUND,
    SMALL_BASE,
    SMALL_MEMORY,
    SMALL_SPARSE,
    SMALL_STEPS_PER_VISIT,
)

MEMORY_SEED = 42
RECORD = probe("triptych.studies.remember.real_facts.training_record.TrainingRecord")
LEDGER = "triptych.callbacks.remember.ledger.slot_ledger.SlotLedger"
SPARSE = "triptych.callbacks.remember.sparse_memory_finetuning.SparseMemoryFinetuning"


@dataclass(frozen=True)
class Bases:
    """The models that are taught.

    Args:
        memory: Export with a memory and its background statistics.
        plain: The same model without memory, for full finetuning and LoRA.
        memory_run: Run that made `memory`.
        is_small: Whether they are the small ones of preset `smoke`.
    """

    memory: Path
    plain: Path
    memory_run: Path
    is_small: bool


@dataclass(frozen=True)
class Way:
    """One method of teaching.

    Args:
        name: Name in tables and figures.
        sparse: Changed settings of `SparseMemoryFinetuning`; None: without it, and without memory.
        model: Changed settings of `ContinualFinetuning`.
        data: Changed settings of `FactStream`.
        ledger: Whether to keep a ledger.
    """

    name: str
    sparse: Settings | None = None
    model: Settings = field(default_factory=dict)
    data: Settings = field(default_factory=dict)
    ledger: bool = False


@dataclass(frozen=True)
class TaughtArm(Arm):
    """An arm whose facts depend on the seed.

    Args:
        facts: File of facts of each seed.
    """

    facts: Mapping[int, Path] = field(default_factory=dict)

    def words(self, seed: int) -> tuple[str, ...]:
        """Return the command-line words for one seed."""
        return (*super().words(seed), "--data.init_args.facts.source.path", str(self.facts[seed]))


def sparse(name: str, **changed: Any) -> Way:
    """Return sparse memory finetuning with some settings changed."""
    return Way(name, sparse=changed)


def full(name: str, rate: float) -> Way:
    """Return full finetuning of the plain model."""
    return Way(name, model={"learning_rate": rate, "trainable": "all"})


def lora(name: str, rate: float) -> Way:
    """Return LoRA on all linear layers of the plain model."""
    return Way(name, model={"learning_rate": rate, "trainable": "lora", "lora": LORA})


def bases_of(preset: str, out: Path) -> Bases:
    """Insert the memory and collect its background statistics, once; find the plain model.

    Args:
        preset: Preset of the study.
        out: Folder that stores the runs.
    """
    content = yaml.safe_load(Path(RETROFIT_CONFIG).read_text(encoding="utf-8"))
    if preset == "smoke":
        plain = _small_plain_model(content, out)
        model = content["model"]["init_args"]
        model["base"] = {"pretrained": str(plain)}
        model["memory"] |= SMALL_MEMORY
        content["trainer"]["callbacks+"][-1]["init_args"] |= SMALL_BACKGROUND
    else:
        plain = Path(pretrained_source(PLAIN_MODEL))
    run = _run_once("memory", content, out)
    return Bases(run / "export", plain, run, preset == "smoke")


def teaching(
    way: Way, start: Mapping[int, Path], facts: Mapping[int, Path], is_small: bool, folder: Path
) -> TaughtArm:
    """Return the runs in which a model is taught facts in one way.

    Args:
        way: The method.
        start: Exported folder of each seed.
        facts: File of facts of each seed.
        is_small: Whether the model is that of preset `smoke`.
        folder: Folder of the configuration.
    """
    content = yaml.safe_load(Path(FINETUNE_CONFIG).read_text(encoding="utf-8"))
    data, model = content["data"]["init_args"], content["model"]["init_args"]
    del model["init_from"]
    data |= {"facts": dict(FACTS), "paraphrases": dict(PARAPHRASES), "shuffle": False}
    callbacks = {entry["class_path"]: entry for entry in content["trainer"]["callbacks+"]}
    if way.sparse is None:
        data["steps_per_visit"] = DENSE_STEPS_PER_VISIT
        model["stop_below_nats"] = DENSE_STOP_BELOW_NATS
        del callbacks[SPARSE]
    else:
        small = SMALL_SPARSE if is_small else {}
        callbacks[SPARSE]["init_args"] |= {**way.sparse, **small}
    if not way.ledger:
        callbacks.pop(LEDGER, None)
    data |= way.data
    model |= way.model
    if is_small:
        data["steps_per_visit"] = SMALL_STEPS_PER_VISIT
    content["trainer"] |= {
        "limit_val_batches": 0,
        "enable_checkpointing": False,  # the export is all that is needed
        "callbacks+": [*callbacks.values(), RECORD],
    }
    arm = written(way.name, content, folder)
    return TaughtArm(arm.name, arm.args, start, facts)


def fact_files(count: int, seeds: Sequence[int], folder: Path) -> dict[int, Path]:
    """Write the facts of each seed, and return their files."""
    return {
        seed: write_facts(invented_facts(count, seed), folder, f"{count}-facts-seed{seed}")
        for seed in seeds
    }


def _small_plain_model(content: Settings, out: Path) -> Path:
    plain: Settings = {
        "data": content["data"],
        "model": {
            "class_path": content["model"]["class_path"],
            "init_args": {"base": SMALL_BASE, "memory": None},
        },
        "trainer": {"max_steps": 0, "limit_val_batches": 0},
    }
    return _run_once("plain", plain, out) / "export"


def _run_once(name: str, content: Settings, out: Path) -> Path:
    content["trainer"]["enable_checkpointing"] = False
    arm = written(name, content, out / "arms")
    (run,) = run_arms([arm], [MEMORY_SEED], out, 1)[name]
    return run
