"""Open prompts on a real chat model: MARA and its rivals, rewarded for replies about the prompt."""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import GREY, WIDTH, better_arrow, series, styled
from triptych.studies.arms import SEED_OF_DATA_TOO, Arm, device_of, run_arms
from triptych.studies.diversify.chat_runs import (
    ENTROPY,
    MARA,
    RLOO,
    SMOOTHING,
    first_words,
    last_samples,
    rival_words,
    run_words,
    validations,
)
from triptych.studies.figures import save_figure
from triptych.studies.options import seeds_of
from triptych.studies.results import (
    Check,
    Numbers,
    at_least,
    at_most,
    compare_arms,
    summarize,
    write_results,
)

CONFIG = "configs/diversify/creative_smollm2.yaml"
CLAIM = "on open prompts MARA gives more different replies than RLOO at the same reward"
STEPS, SEEDS = 60, 3
ARMS = (RLOO, MARA, ENTROPY, SMOOTHING)
ENTROPY_COEFFICIENT, GAMMA, RIGHT = 0.02, 0.05, 0.9
PROMPTS_FILE = Path("prompts/wildchat_style.jsonl.gz")
#: NoveltyBench's own prompts, without WildChat's.
CATEGORIES = (
    "Random Generation & Selection",
    "Subjective Rankings & Opinions",
    "Creativity",
    "Character & Entity Naming",
    "Factual Knowledge",
)
REWARD, DISTINCT, DISTANCE = "reward", "different replies at 10", "embedding distance"
KL, FINISHED = "KL (nats)", "finished (share)"
KEYS = {
    REWARD: "reward",
    DISTINCT: "distinct",
    DISTANCE: "cosine_distance",
    KL: "kl_nats",
    FINISHED: "finished_share",
}
#: Numbers that are compared and drawn.
TESTED = (REWARD, DISTINCT)
#: Bounds of the check: times as many different replies, at a reward within this.
GAIN, WITHIN = 1.2, 0.02


def run_study(options: argparse.Namespace) -> dict[str, Any]:
    """Run the arms, and return the content of `results.json`.

    Args:
        options: Those of `studies.creative_qa`; `model` is the chat model to start from.
    """
    seeds = seeds_of(options)
    words = (*run_words(CONFIG, options.model, STEPS), *prompt_words(options.data_dir))
    rivals = rival_words(RIGHT, ENTROPY_COEFFICIENT, GAMMA)
    runs = run_arms(
        [Arm(name, (*words, *rivals[name], *first_words(name))) for name in ARMS],
        seeds,
        options.out / options.preset,
        options.workers,
        SEED_OF_DATA_TOO,
    )
    held_out = "held_out_categories" if options.data_dir is None else "held_out"
    found = {
        name: [validations(run, held_out, KEYS) for run in dirs] for name, dirs in runs.items()
    }
    numbers = {name: [of_run[-1] for of_run in per_seed] for name, per_seed in found.items()}
    start = found[RLOO][0][0]
    save_figure(draw(numbers, start), options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        [compare_arms(numbers, key, MARA, rival) for rival in (RLOO, *ARMS[2:]) for key in TESTED],
        checks(numbers),
        device=device_of(*runs.values()),
        start=start,
        seeds=seeds,
        samples={name: last_samples(dirs[0], held_out) for name, dirs in runs.items()},
    )


def prompt_words(data_dir: str | None) -> tuple[str, ...]:
    """Return the words that take NoveltyBench's prompts from a folder; none: embedded questions.

    Raises:
        FileNotFoundError: if the folder does not hold them.
    """
    if data_dir is None:
        return ()
    path = Path(data_dir) / PROMPTS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}: give the folder of {PROMPTS_FILE} in data_dir"
        )
    prompts = "--data.init_args.prompts"
    return (
        *(f"{prompts}.source", json.dumps({"path": str(path.resolve())})),
        *(f"{prompts}.keep.categories", json.dumps(list(CATEGORIES))),
        *(f"{prompts}.held_out_share", "0.25", f"{prompts}.validation_prompts", "16"),
    )


def checks(numbers: Numbers) -> dict[str, Check]:
    """Compare the results with the bounds that were fixed beforehand."""

    def mean(name: str, key: str) -> float:
        return sum(n[key] for n in numbers[name]) / len(numbers[name])

    ratio = mean(MARA, DISTINCT) / mean(RLOO, DISTINCT)
    return {
        f"{DISTINCT}, {MARA} / {RLOO}": at_least(ratio, GAIN),
        f"reward, {RLOO} - {MARA}": at_most(mean(RLOO, REWARD) - mean(MARA, REWARD), WITHIN),
    }


@styled
def draw(numbers: Numbers, start: dict[str, float]) -> Figure:
    """Draw different replies over reward, a point a seed."""
    figure = Figure(figsize=(WIDTH * 0.7, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, (name, per_seed) in enumerate(numbers.items()):
        style = series(place) | {"linestyle": "none", "alpha": 0.8}
        points = [[n[key] for n in per_seed] for key in TESTED]
        axis.plot(*points, label=name, **style)
    star: dict[str, Any] = {"marker": "*", "color": GREY, "markersize": 10, "linestyle": "none"}
    axis.plot(*([start[key]] for key in TESTED), label="start", **star)
    axis.set(xlabel="reward of held-out prompts", ylabel=DISTINCT)
    axis.margins(0.1)
    better_arrow(axis, "up")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
