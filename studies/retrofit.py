"""Can a model pretrained without memory learn new facts in slots that are inserted later?

    python -m studies.retrofit --preset cpu --data_dir FOLDER

A plain model is pretrained on text and OLD facts. Memory is inserted beside one of its FFNs behind
gates that start at zero. The memory alone is then trained on the data of pretraining (healing).
Afterwards the model learns a stream of NEW facts by sparse memory fine-tuning. Text is measured
before insertion, after healing and after learning, recall on NEW and OLD facts after learning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from triptych.models.remember.ledger.row_changes import same_bits
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import insert_memory_layers, load_memory_lm
from triptych.studies.arms import (
    SEED_OF_DATA_TOO,
    Arm,
    Settings,
    device_of,
    exports,
    run_arms,
    seed_words,
    written,
)
from triptych.studies.options import FIRST_SEED, seeds_of, study_parser
from triptych.studies.remember.asked_again import ask
from triptych.studies.remember.retention.retention_arms import (
    SPARSE,
    Way,
    World,
    learning,
    pretraining,
    world_of,
)
from triptych.studies.remember.retention.retention_ways import (
    NEW,
    OLD_DROP,
    STATEMENT,
    TEXT,
    TEXT_RISE,
    numbers_of,
)
from triptych.studies.results import at_least, at_most, summarize, write_results
from triptych.studies.study_tracking import begin_study

CLAIM = "a pretrained model with memory put into it learns new facts by slots alone"
PRESETS = {"smoke": (4, 4, 2), "cpu": (1000, 600, 140), "full": (1000, 600, 140)}
#: The memory of the retention study, placed beside the FFN.
MEMORY: Settings = {
    "layers": [1],
    "num_keys": 256,
    "num_heads": 4,
    "top_k": 16,
    "placement": "beside",
    "relevance_gate": True,
    "qk_norm": True,
}
HEALING: Settings = {
    "train_only": "memory",
    "learning_rate": 1e-3,
    "value_learning_rate": 1e-2,
    "warmup_steps": 50,
    "max_new_tokens": 12,
}
# Healing opens the gates only a little. Values therefore need larger changes than those of a
# pretrained memory. Chosen on 80 facts of the tuning split.
LEARNING: Settings = SPARSE | {"learning_rate": 1.0}
PLAIN_TEXT, HEALED_TEXT = "text before the memory", "text after healing, percent"
LEARNED_TEXT = "text after learning, percent"
CHANGED = "logits changed by the insertion"
NLL = "nll_nats_per_token"


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    parser = study_parser(__doc__, "retrofit", PRESETS, ("data_dir", "workers", "split"))
    options = begin_study(parser, args)
    steps, healing_steps, num_new = PRESETS[options.preset]
    world = world_of(options, steps, num_new, options.split)
    seeds = seeds_of(options, FIRST_SEED[options.split])
    out = options.out / options.preset

    def run(arm: Arm) -> dict[int, Path]:
        runs = run_arms([arm], seeds, out, options.workers, SEED_OF_DATA_TOO)
        return exports(seeds, runs[arm.name])

    plain = run(pretraining(world, "plain", out / "arms"))
    healed = run(healing(world, healing_steps, plain, out / "arms"))
    way = Way("learned", "memory", sparse=LEARNING)
    taught = run(learning(world, way, healed, out / "arms"))
    untouched = learning(world, Way("plain", "plain"), plain, out / "arms")
    numbers = []
    for seed, learned in taught.items():
        place = out / f"asked/seed{seed}"
        before = ask(plain[seed], untouched.args, world.probes(), place, seed_words(seed))
        numbers.append(numbers_of_seed(before, numbers_of(learned.parent)))
        numbers[-1][CHANGED] = changed_logits(plain[seed])
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize({"retrofit": numbers}),
        [],
        {
            f"{CHANGED}, worst seed": at_most(max(n[CHANGED] for n in numbers), 0.0),
            f"{LEARNED_TEXT}, worst seed": at_most(max(n[LEARNED_TEXT] for n in numbers), 1.0),
            f"{NEW}, worst seed": at_least(min(n[NEW] for n in numbers), 0.5),
        },
        device=device_of([export.parent for export in taught.values()]),
        split=options.split,
        seeds=seeds,
    )


def healing(world: World, steps: int, plain: dict[int, Path], folder: Path) -> Arm:
    """Return the run that inserts the memory and trains it alone on the data of pretraining."""
    (config,) = pretraining(world, "memory", folder).args[1:]
    content = yaml.safe_load(Path(config).read_text())
    content["model"]["init_args"] = {"memory": MEMORY, **HEALING}
    content["trainer"] |= {"max_steps": steps, "val_check_interval": steps}
    return written("healing", content, folder, plain)


def numbers_of_seed(
    before: Sequence[dict[str, Any]], learned: dict[str, float]
) -> dict[str, float]:
    """Return the numbers of one seed.

    Args:
        before: Measurements of the plain model.
        learned: Numbers of the learning run, which started from the healed model.
    """
    (text,) = (row["value"] for row in before if (row["probe"], row["metric"]) == ("text", NLL))
    healed = learned[TEXT] / (1 + learned[TEXT_RISE] / 100)
    return {
        PLAIN_TEXT: text,
        HEALED_TEXT: 100 * (healed / text - 1),
        LEARNED_TEXT: 100 * (learned[TEXT] / text - 1),
        **{key: learned[key] for key in (NEW, STATEMENT, OLD_DROP)},
    }


@torch.no_grad()
def changed_logits(folder: Path, num_rows: int = 32, row_length: int = 64) -> float:
    """Count logits of random rows that the insertion changes by at least one bit; expected: 0."""
    model = load_memory_lm(folder).eval()
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(model.config.vocab_size, (num_rows, row_length), generator=generator)
    before = model(input_ids=ids_BT).logits
    insert_memory_layers(model, MemoryConfig(**MEMORY)).eval()
    after = model(input_ids=ids_BT).logits
    return float((~same_bits(before.view(-1, 1), after.view(-1, 1))).sum())


if __name__ == "__main__":
    main()
