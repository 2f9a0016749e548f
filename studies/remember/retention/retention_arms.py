"""The arms of the retention study: their pretrained bases and their learning methods."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from triptych.studies.arms import (
    SEED_OF_DATA_TOO,
    Arm,
    Settings,
    exports,
    probe,
    run_arms,
    written,
)

Base = Literal["memory", "dense twin", "plain"]
Split = Literal["report", "tuning"]
Hold = Literal["replay", "EWC", "KL to the base"]

NUM_OLD, NUM_TUNING = 1024, 300
# Tuning facts with answers from OLD facts; a higher number would take reported facts.
MOST_TUNED = 140
# Relations of EntityQuestions from the pilot; few facts share an answer.
REAL_FACTS: Settings = {
    "source": {"path": "qa/facts.jsonl.gz"},
    "relations": ["P17", "P20", "P106", "P136", "P159", "P407", "P413", "P495"],
    "max_facts_per_answer": 8,
    "subset_seed": 0,
}
REAL_TEXT: Settings = {
    "train": [
        {"path": "pretrain/books_train.jsonl.gz"},
        {"path": "pretrain/reference_train.jsonl.gz"},
    ],
    "validation": {"text": {"path": "pretrain/books_valid.jsonl.gz"}},
    "max_validation_rows": 256,
}
NUM_OLD_EMBEDDED = 1400
# Chosen on the tuning split, whose facts and seeds are not reported. The first moment is off: it
# would push a row in the direction of the previous fact that used it.
SPARSE: Settings = {
    "num_slots": 512,
    "ranking": "tfidf",
    "idf_exponent": 4.0,
    "optimizer": "adamw",
    "betas": [0.0, 0.999],
    "learning_rate": 0.03,
}


@dataclass(frozen=True)
class Visit:
    """Duration of training on one fact.

    Args:
        steps: Maximum number of optimizer steps.
        stop_below_nats: Mean loss of its statements (nats per token) that ends the visit early.
    """

    steps: int
    stop_below_nats: float


# Longer visits help if only slots learn; they only add forgetting if all weights learn.
SPARSE_VISIT, OTHER_VISIT = Visit(100, 0.02), Visit(40, 0.1)
BRIEF_STEPS = 5
# One row per statement of a fact. EWC's weight is large because it sums over short rows.
HELD_ROWS = 12
HOLDS: dict[Hold, tuple[str, Settings]] = {
    "replay": ("triptych.callbacks.remember.replay.Replay", {"weight": 1.0}),
    "EWC": (
        "triptych.callbacks.remember.elastic_weight_consolidation.ElasticWeightConsolidation",
        {"weight": 1e4, "num_rows": 512},
    ),
    "KL to the base": ("triptych.callbacks.remember.kl_to_base.KLToBase", {"weight": 1.0}),
}


@dataclass(frozen=True)
class World:
    """The data of a study and the length of pretraining.

    Args:
        data_dir: Folder with `pretrain/` and `qa/`; None: embedded text and facts.
        split: NEW facts that are reported, or other ones for tuning.
        base_steps: Optimizer steps of pretraining.
        num_new: Number of facts to learn.
        num_old: Number of facts of pretraining that are tested again.
        num_windows: Number of text windows for the perplexity.
        brief: Shorten validation, background statistics and visits, for smoke runs.
    """

    data_dir: str | None
    split: Split
    base_steps: int
    num_new: int
    num_old: int = 400
    num_windows: int = 96
    brief: bool = False

    def facts(self) -> Settings:
        """Return the source of the facts."""
        return {} if self.data_dir is None else dict(REAL_FACTS)

    def old_facts(self) -> Settings:
        """Return the settings of the facts of pretraining."""
        count = NUM_OLD_EMBEDDED if self.data_dir is None else NUM_OLD
        return {**self.facts(), "num_facts": count}

    def new_facts(self, count: int, novel_answers: bool = False) -> Settings:
        """Return the settings of the facts to learn; on real data the tuning facts come first.

        On real data the answers occur in OLD facts, unless `novel_answers`. As in the pilot, the
        model then learns which answer belongs to a subject, not the spelling of a name.
        """
        skip = self.old_facts()["num_facts"]
        if self.data_dir is not None and self.split == "report":
            skip += NUM_TUNING
        elif self.data_dir is not None:
            count = min(count, MOST_TUNED)
        chosen = {**self.facts(), "skip_facts": skip, "num_facts": count}
        if self.data_dir is None or novel_answers:
            return chosen
        return {**chosen, "answers_of_first": NUM_OLD}

    def located(self) -> Settings:
        """Return the folder of relative paths."""
        return {} if self.data_dir is None else {"data_dir": self.data_dir}

    def held_by(self, hold: Hold) -> Settings:
        """Return the callback that limits forgetting, with the OLD facts as its data."""
        class_path, settings = HOLDS[hold]
        old = {"facts": self.old_facts(), "context_length": 128, "batch_size": HELD_ROWS}
        data = probe("triptych.datamodules.remember.facts.facts.Facts", **old, **self.located())
        return probe(class_path, data=data, **settings)

    def probes(self) -> Settings:
        """Return the probes that run before, during and after learning."""
        text = (
            {"source": {"path": "embedded"}}
            if self.data_dir is None
            else {"source": {"path": "pretrain/books_valid.jsonl.gz"}}
        )
        recall = "triptych.callbacks.remember.probes.fact_recall.FactRecall"
        new = {"role": "learned", "first_visits": 20}
        return {
            "new_question": probe(recall, wording="held_out", **new),
            "new_statement": probe(recall, wording="statement", **new),
            "old": probe(
                recall,
                facts=self.old_facts(),
                wording="held_out",
                role="retained",
                num_rows=self.num_old,
                **self.located(),
            ),
            "text": probe(
                "triptych.callbacks.remember.probes.text_perplexity.TextPerplexity",
                num_windows=self.num_windows,
                context_length=128,
                role="retained",
                **text,
                **self.located(),
            ),
        }


@dataclass(frozen=True)
class Way:
    """One learning method.

    Args:
        name: Name in tables and figures.
        base: Pretrained model to start from.
        model: Settings of `ContinualFinetuning`.
        sparse: Settings of `SparseMemoryFinetuning`; None: without it.
        data: Settings of `FactStream`.
        callbacks: Further callbacks.
        held_by: Method against forgetting, applied to rows of OLD facts; None: without one.
        num_passes: Passes over the facts.
        num_new: Number of facts to learn; None: that of the world.
        novel_answers: Allow answers that occur in no OLD fact.
    """

    name: str
    base: Base
    model: Settings = field(default_factory=dict)
    sparse: Settings | None = None
    data: Settings = field(default_factory=dict)
    callbacks: tuple[Settings, ...] = ()
    held_by: Hold | None = None
    num_passes: int = 1
    num_new: int | None = None
    novel_answers: bool = False


def pretraining(world: World, base: Base, folder: Path) -> Arm:
    """Return the run that pretrains a base."""
    config = Path("configs/remember/finetune_base.yaml")
    content = yaml.safe_load(config.read_text())
    data = content["data"]["init_args"]
    data["facts"] |= world.old_facts()
    if world.data_dir is not None:
        new_facts = {**world.facts(), "skip_facts": NUM_OLD}  # exclude texts that contain them
        data |= {"text": {**REAL_TEXT, "without_facts": new_facts}, **world.located()}
    content["model"]["init_args"]["memory"]["dense_twin"] = base == "dense twin"
    content["trainer"] |= {"max_steps": world.base_steps, "val_check_interval": world.base_steps}
    if world.brief:
        data["facts"]["validation_facts"] = world.num_old
        (background,) = content["trainer"]["callbacks+"]
        background["init_args"]["num_documents"] = world.num_old
    if base == "plain":
        content["model"]["init_args"]["memory"] = None
        del content["trainer"]["callbacks+"]  # they count the reads of a memory
    return written(base, content, folder)


def learning(world: World, way: Way, start: Mapping[int, Path], folder: Path) -> Arm:
    """Return the run in which a base learns the NEW facts in one way."""
    callbacks = [*way.callbacks]
    if way.sparse is not None:
        callbacks.append(
            probe(
                "triptych.callbacks.remember.sparse_memory_finetuning.SparseMemoryFinetuning",
                **way.sparse,
            )
        )
    if way.held_by is not None:
        callbacks.append(world.held_by(way.held_by))
    visit = OTHER_VISIT if way.sparse is None else SPARSE_VISIT
    num_new = way.num_new or world.num_new
    measured = probe(
        "triptych.callbacks.remember.forgetting.forgetting_evaluation.ForgettingEvaluation",
        probes=world.probes(),
        every_n_visits=max(1, num_new * way.num_passes // 7),
    )
    content = {
        "data": probe(
            "triptych.datamodules.remember.facts.fact_stream.FactStream",
            **{
                "facts": world.new_facts(num_new, way.novel_answers),
                "context_length": 128,
                **world.located(),
                "steps_per_visit": min(visit.steps, BRIEF_STEPS) if world.brief else visit.steps,
                **way.data,
            },
        ),
        "model": probe(
            "triptych.lit_modules.remember.continual_finetuning.ContinualFinetuning",
            **{"stop_below_nats": visit.stop_below_nats, **way.model},
        ),
        "trainer": {
            "max_epochs": way.num_passes,
            "limit_val_batches": 0,
            "callbacks+": [*callbacks, measured],
        },
    }
    return written(way.name, content, folder, start)


def pretrained_memory(
    world: World, options: argparse.Namespace, seeds: Sequence[int]
) -> tuple[Arm, dict[int, Path]]:
    """Pretrain the memory model, or find it in `--bases`; return its arm and exported folders."""
    arm = pretraining(world, "memory", options.bases.parent / options.preset / "arms")
    runs = run_arms([arm], seeds, options.bases, options.workers, SEED_OF_DATA_TOO)
    return arm, exports(seeds, runs[arm.name])


def world_of(
    options: argparse.Namespace, base_steps: int, num_new: int, split: Split = "report"
) -> World:
    """Return the data of a study; preset `smoke` is small and brief.

    Args:
        options: Parsed options with `preset` and `data_dir`.
        base_steps: Optimizer steps of pretraining.
        num_new: Number of facts to learn.
        split: Split of the NEW facts.
    """
    small: Settings = {"num_old": 16, "num_windows": 8, "brief": True}
    sizes = small if options.preset == "smoke" else {}
    return World(options.data_dir, split, base_steps, num_new, **sizes)
