"""Does MARA raise pass@16 where RLOO raises pass@1 alone?

    python -m studies.pass_at_k --preset smollm2

A real chat model is asked for one of many right answers ("Name a metal."), in a few words as three
examples show. The reward is 1 for any right answer, as the table of the category tells it. Arms are
RLOO, MARA and its rivals. Measured on held-out phrasings and on held-out categories, before and
after: pass@1, pass@16, and the number of different right answers among 16.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import GREY, WIDTH, series, styled
from triptych.studies.arms import SEED_OF_DATA_TOO, Arm, device_of, run_arms
from triptych.studies.diversify.chat_runs import (
    MARA,
    RLOO,
    first_words,
    last_samples,
    rival_words,
    run_words,
    validations,
)
from triptych.studies.figures import save_figure, spread_out
from triptych.studies.options import seeds_of, study_parser
from triptych.studies.results import (
    Check,
    Numbers,
    at_least,
    compare_arms,
    saved_numbers,
    summarize,
    write_results,
)
from triptych.studies.study_tracking import begin_study

CONFIG = "configs/diversify/creative_smollm2.yaml"
CLAIM = "MARA raises pass@16 and the number of different right answers more than RLOO"
STEPS = {"smoke": 2, "smollm2": 60}
#: Prompts of each held-out set in a validation.
PROMPTS = {"smoke": 2, "smollm2": 24}
NUM_SAMPLES = 16
ENTROPY_COEFFICIENT, GAMMA = 0.02, 0.05
SETS = ("held_out_phrasings", "held_out_categories")
PASS_1, PASS_16, DISTINCT = "pass@1", "pass@16", "different right answers at 16"
KEYS = {
    PASS_1: "pass_at_1",
    PASS_16: "pass_at_16",
    DISTINCT: "distinct_right_answers_at_16",
    "KL (nats)": "kl_nats",
}


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    parser = study_parser(__doc__, "pass_at_k", STEPS)
    parser.add_argument("--model", default="smollm2", help="chat model: a name or a folder")
    options = begin_study(parser, args)
    seeds = seeds_of(options)
    words = (
        *run_words(CONFIG, options.model, STEPS[options.preset]),
        *task_words(PROMPTS[options.preset]),
    )
    rivals = rival_words(1.0, ENTROPY_COEFFICIENT, GAMMA)
    runs = run_arms(
        [Arm(name, (*words, *own, *first_words(name))) for name, own in rivals.items()],
        seeds,
        options.out / options.preset,
        options.workers,
        SEED_OF_DATA_TOO,
    )
    keys = {f"{words_of(name)}: {n}": (name, key) for name in SETS for n, key in KEYS.items()}
    found = {arm: [_validations(run, keys) for run in dirs] for arm, dirs in runs.items()}
    numbers = {arm: [of_run[-1] for of_run in per_seed] for arm, per_seed in found.items()}
    start = found[RLOO][0][0]
    save_figure(_draw(numbers, start), options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        [
            compare_arms(numbers, f"{words_of(name)}: {key}", MARA, RLOO)
            for name in SETS
            for key in (PASS_1, PASS_16, DISTINCT)
        ],
        checks(numbers, start),
        device=device_of(*runs.values()),
        start=start,
        seeds=seeds,
        samples={arm: last_samples(dirs[0], SETS[1]) for arm, dirs in runs.items()},
    )


def task_words(num_prompts: int) -> tuple[str, ...]:
    """Return the words that make known right answers the reward, and measure pass@k."""
    model = "--model.init_args"
    return (
        *(f"{model}.reward", "triptych.objectives.rewards.answer_in_set.AnswerInSet"),
        *(f"{model}.metrics", "[]", f"{model}.eval_samples", str(NUM_SAMPLES)),
        *("--data.init_args.prompts.validation_prompts", str(num_prompts)),
        *("--callback.RewardDiversityFront.diversity", "distinct_right_answers"),
    )


def words_of(set_name: str) -> str:
    """Return a set's name in words, as it stands before the names of numbers."""
    return set_name.replace("_", " ")


def _validations(run: Any, keys: Mapping[str, tuple[str, str]]) -> list[dict[str, float]]:
    merged: list[dict[str, float]] = []
    for set_name in SETS:
        own = {name: key for name, (of_set, key) in keys.items() if of_set == set_name}
        rows = validations(run, set_name, own)
        merged = merged or [{} for _ in rows]
        for numbers, row in zip(merged, rows, strict=True):
            numbers |= row
    return merged


def checks(numbers: Numbers, start: Mapping[str, float]) -> dict[str, Check]:
    """Compare the results with the bounds that were fixed beforehand."""

    def mean(name: str, key: str) -> float:
        full = f"{words_of(SETS[0])}: {key}"
        return sum(n[full] for n in numbers[name]) / len(numbers[name])

    first = f"{words_of(SETS[0])}: "
    return {
        f"{first}{PASS_16}, {MARA} - {RLOO}": at_least(
            mean(MARA, PASS_16) - mean(RLOO, PASS_16), 0.0
        ),
        f"{first}{PASS_16}, {MARA} - start": at_least(
            mean(MARA, PASS_16) - start[first + PASS_16], 0.0
        ),
        f"{first}{PASS_1}, {MARA} - start": at_least(
            mean(MARA, PASS_1) - start[first + PASS_1], 0.05
        ),
        f"{first}{DISTINCT}, {MARA} / {RLOO}": at_least(
            mean(MARA, DISTINCT) / max(mean(RLOO, DISTINCT), 1e-12), 1.2
        ),
    }


def draw_results(results: Mapping[str, Any], path: Any) -> None:
    """Draw the figure from the content of `results.json`."""
    save_figure(_draw(saved_numbers(results), results["start"]), path)


@styled
def _draw(numbers: Numbers, start: Mapping[str, float]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True, sharex="col")
    for row, set_name in zip(axes, SETS, strict=True):
        for axis, key in zip(row, (PASS_1, PASS_16, DISTINCT), strict=True):
            full = f"{words_of(set_name)}: {key}"
            for place, per_seed in enumerate(numbers.values()):
                rows = [place + offset for offset in spread_out(len(per_seed), 0.44)]
                style = series(place) | {"linestyle": "none", "markersize": 5, "alpha": 0.8}
                axis.plot([n[full] for n in per_seed], rows, **style)
            axis.axvline(start[full], color=GREY, linestyle="--")
            axis.set_title(key)
        row[0].set_yticks(range(len(numbers)), list(numbers))
        row[0].set_ylabel(words_of(set_name))
    axes[0, 0].invert_yaxis()
    for axis in axes[1]:
        axis.set_xlabel("dashed: start")
    return figure


if __name__ == "__main__":
    main()
