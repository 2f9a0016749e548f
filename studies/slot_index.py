"""Does a memory model find and learn as well with the faiss index as with product keys?

    python -m studies.slot_index --preset cpu --data_dir FOLDER

A pretrained memory model gets `FaissSlotIndex` in place of its product keys, with the same keys.
How many of the true best 32 slots its own queries find is counted. Then both learn the same NEW
facts by sparse memory finetuning, each with background statistics of its own, and are asked.

The pretrained models are those of `retention` and are found there if it ran before.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from triptych.cli import main as run_train
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.datamodules.sources.records import RecordSource
from triptych.models.progress_bars import no_progress_bars
from triptych.models.remember.index.faiss_index import FaissSlotIndex
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.remember.background_statistics import BACKGROUND_FILE
from triptych.studies.arms import SEED_OF_DATA_TOO, probe, run_arms, seed_words
from triptych.studies.options import seeds_of, study_parser
from triptych.studies.remember.asked_again import ask
from triptych.studies.remember.index_replacement import replace_index
from triptych.studies.remember.retention.retention_arms import (
    SPARSE,
    Way,
    World,
    learning,
    pretraining,
    world_of,
)
from triptych.studies.results import at_least, at_most, mean_interval, write_results

CLAIM = "on the faiss index a memory model finds and learns as on product keys"
PRESETS = {"smoke": (4, 2), "cpu": (1000, 140), "full": (1000, 140)}
PRODUCT_KEYS, FAISS = "product keys", "faiss index"
RECALL, F1 = "recall@32 of the true best slots", "NEW, questions (F1)"
NUM_KEPT, NUM_FACTS = 32, 64


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study; returns what `results.json` holds."""
    takes = ("data_dir", "bases", "workers")
    parser = study_parser(__doc__, "slot_index", PRESETS, takes, seeds_help="number of seeds")
    options = parser.parse_args(args)
    steps, num_new = PRESETS[options.preset]
    world = world_of(options, steps, num_new)
    seeds = seeds_of(options)
    out = options.out / options.preset
    base = pretraining(world, "memory", options.bases.parent / options.preset / "arms")
    runs = run_arms([base], seeds, options.bases, options.workers, SEED_OF_DATA_TOO)[base.name]
    exports = {seed: run / "export" for seed, run in zip(seeds, runs, strict=True)}
    replaced = {seed: out / "replaced" / f"seed{seed}" for seed in seeds}
    recalls = [_replace(exports[s], replaced[s], world, base.args, s) for s in seeds]
    f1 = {}
    for name, starts in ((PRODUCT_KEYS, exports), (FAISS, replaced)):
        arm = learning(world, Way(name, "memory", sparse=SPARSE), starts, out / "arms")
        taught = run_arms([arm], seeds, out, options.workers, SEED_OF_DATA_TOO)[name]
        f1[name] = [
            _f1(run, arm.args, out / "asked" / name / f"seed{seed}", seed)
            for seed, run in zip(seeds, taught, strict=True)
        ]
    columns = {
        PRODUCT_KEYS: {
            RECALL: mean_interval([1.0] * len(seeds)),
            F1: mean_interval(f1[PRODUCT_KEYS]),
        },
        FAISS: {RECALL: mean_interval(recalls), F1: mean_interval(f1[FAISS])},
    }
    lost = sum(f1[PRODUCT_KEYS]) / len(seeds) - sum(f1[FAISS]) / len(seeds)
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        columns,
        [],
        {
            f"{RECALL}, worst seed": at_least(min(recalls), 0.95),
            "F1 of product keys - faiss index, difference of means": at_most(abs(lost), 0.02),
        },
        seeds=seeds,
    )


def _replace(start: Path, folder: Path, world: World, args: Sequence[str], seed: int) -> float:
    """Export the model with the faiss index and background statistics; recall of its queries."""
    model = load_memory_lm(start).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    replace_index(model)
    recall = _recall(model, tokenizer, world)
    if not (folder / BACKGROUND_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with no_progress_bars():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        collected = probe(
            "triptych.callbacks.remember.background_statistics.CollectBackgroundStatistics",
            num_documents=world.num_old if world.brief else 150,
            rows_per_document=8,
            path=str(folder / BACKGROUND_FILE),
        )
        run_train(
            [
                *("validate", *args, *seed_words(seed), "--run_dir", f"{folder}-background"),
                *("--model.init_args.init_from", str(folder)),
                *("--model.init_args.base", "null", "--model.init_args.memory", "null"),
                *("--trainer.limit_val_batches", "0"),
                *("--trainer.callbacks", json.dumps([collected])),
            ]
        )
    return recall


def _recall(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World) -> float:
    """Mean over the memory layers of the recall of the queries that facts' wordings ask."""
    settings = world.old_facts()
    source = RecordSource(**settings.pop("source", {}))
    part = FactsPart(FactsConfig(source=source, **settings), world.data_dir)
    texts = [
        rendering.text
        for fact in part.facts[:NUM_FACTS]
        for rendering in (*part.templates.statements(fact)[:2], *part.templates.questions(fact)[:2])
    ]
    recalls = []
    for layer in memory_layers(model):
        queries: list[torch.Tensor] = []
        hook = layer.query.register_forward_hook(lambda *call, kept=queries: kept.append(call[2]))
        with torch.no_grad():
            for text in texts:
                model(tokenizer(text, return_tensors="pt")["input_ids"])
        hook.remove()
        index = layer.index
        assert isinstance(index, FaissSlotIndex)
        query_BHD = torch.cat([q.reshape(-1, index.num_heads, index.query_dim) for q in queries])
        recalls.append(index.recall_at_k(query_BHD, NUM_KEPT))
    return sum(recalls) / len(recalls)


def _f1(run: Path, args: Sequence[str], place: Path, seed: int) -> float:
    asked = probe(
        "triptych.callbacks.remember.probes.fact_recall.FactRecall",
        wording="held_out",
        scoring="generate",
    )
    rows = ask(run / "export", args, {"new": asked}, place, seed_words(seed))
    return float(next(row["value"] for row in rows if row["metric"] == "f1"))


if __name__ == "__main__":
    main()
