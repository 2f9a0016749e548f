"""Does a memory model find slots and learn as well with the faiss index as with product keys?

    python -m studies.slot_index --preset cpu --data_dir FOLDER

In a pretrained memory model `FaissSlotIndex` replaces the product keys and keeps their keys. The
recall of the true best 32 slots is measured with the model's queries. Then both models learn the
same NEW facts by sparse memory fine-tuning, each with separate background statistics, and their
recall of these facts is compared.

The pretrained models are those of `retention`; they are reused if that study ran before.
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
from triptych.studies.arms import SEED_OF_DATA_TOO, device_of, probe, run_arms, seed_words
from triptych.studies.options import seeds_of, study_parser
from triptych.studies.remember.asked_again import ask
from triptych.studies.remember.index_replacement import replace_index
from triptych.studies.remember.retention.retention_arms import (
    SPARSE,
    Way,
    World,
    learning,
    pretrained_memory,
    world_of,
)
from triptych.studies.results import at_least, at_most, summarize, write_results
from triptych.studies.study_tracking import begin_study

CLAIM = "on the faiss index a memory model finds and learns as on product keys"
PRESETS = {"smoke": (4, 2), "cpu": (1000, 140), "full": (1000, 140)}
PRODUCT_KEYS, FAISS = "product keys", "faiss index"
RECALL, F1 = "recall@32 of the true best slots", "NEW, questions (F1)"
NUM_KEPT, NUM_FACTS = 32, 64


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    parser = study_parser(__doc__, "slot_index", PRESETS, ("data_dir", "bases", "workers"))
    options = begin_study(parser, args)
    steps, num_new = PRESETS[options.preset]
    world = world_of(options, steps, num_new)
    seeds = seeds_of(options)
    out = options.out / options.preset
    base, bases = pretrained_memory(world, options, seeds)
    replaced = {seed: out / "replaced" / f"seed{seed}" for seed in seeds}
    recalls = [_replace(bases[s], replaced[s], world, base.args, s) for s in seeds]
    f1, runs = {}, []
    for name, starts in ((PRODUCT_KEYS, bases), (FAISS, replaced)):
        arm = learning(world, Way(name, "memory", sparse=SPARSE), starts, out / "arms")
        taught = run_arms([arm], seeds, out, options.workers, SEED_OF_DATA_TOO)[name]
        runs += taught
        f1[name] = [
            _f1(run, arm.args, out / "asked" / name / f"seed{seed}", seed)
            for seed, run in zip(seeds, taught, strict=True)
        ]
    numbers = {
        PRODUCT_KEYS: [{RECALL: 1.0, F1: value} for value in f1[PRODUCT_KEYS]],
        FAISS: [{RECALL: r, F1: value} for r, value in zip(recalls, f1[FAISS], strict=True)],
    }
    lost = sum(f1[PRODUCT_KEYS]) / len(seeds) - sum(f1[FAISS]) / len(seeds)
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        [],
        {
            f"{RECALL}, worst seed": at_least(min(recalls), 0.95),
            "F1 of product keys - faiss index, difference of means": at_most(abs(lost), 0.02),
        },
        device=device_of(runs),
        seeds=seeds,
    )


def _replace(start: Path, folder: Path, world: World, args: Sequence[str], seed: int) -> float:
    """Export the model with the faiss index and its statistics; return its recall."""
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
            on_validate=True,
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
    """Return the recall of queries from texts of facts, averaged over the memory layers."""
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
