"""Does MARA give more distinct right answers to open questions at no lower reward?

    python -m studies.creative_qa --preset cpu

A small model knows many right answers to questions such as "Name a fruit." and gives a few of them
most of the time (a fixed Zipf law). It is trained with a reward of 1 for any right answer. The arms
are GRPO, RLOO, MARA under the reverse and the forward KL, and RLOO sampled at the temperature where
its reward is closest to that of MARA, which needs no training. All are measured on k = 10 samples
of held-out prompts: new phrasings of the training questions, and new categories.

`smollm2` trains SmolLM2-135M-Instruct, a real chat model, on NoveltyBench's prompts, which are read
from `--data_dir`, with a reward by embeddings. It compares MARA with RLOO, an entropy bonus and
differential smoothing.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import WIDTH, better_arrow, series, styled
from triptych.metrics.display.metric_names import set_name as words_of_set
from triptych.studies.arms import (
    SEED_OF_DATA_TOO,
    Arm,
    device_of,
    exported_start,
    read_summary,
    run_arms,
)
from triptych.studies.diversify import creative_chat
from triptych.studies.diversify.sampled_answers import NUM_SAMPLES, REWARD, RIGHT, Sampler
from triptych.studies.figures import save_figure
from triptych.studies.options import seeds_of, study_parser
from triptych.studies.results import (
    Check,
    Numbers,
    at_least,
    compare_arms,
    mean_interval,
    saved_numbers,
    summarize,
    write_results,
)
from triptych.studies.study_tracking import begin_study

CONFIG = Path("configs/diversify/creative_qa.yaml")
CLAIM = "at no lower reward MARA gives more different right answers than GRPO and RLOO"
STEPS = {"smoke": 2, "cpu": 300, "full": 600}
CHAT = "smollm2"
#: With all categories the base is trained for longer.
ALL_CATEGORIES = {"smoke": False, "cpu": False, "full": True}
FULL_BASE_STEPS = 3000
PROMPTS = {"smoke": 4, "cpu": None, "full": None}
PHRASINGS, CATEGORIES = "held_out_phrasings", "held_out_categories"
MARA, MARA_FORWARD, RLOO, GRPO = "MARA, reverse", "MARA, forward", "RLOO", "GRPO"
HOT = "RLOO, hotter"
TEMPERATURES = {
    "smoke": (1.0, 1.5),
    "cpu": (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0),
    "full": (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0),
}
#: Mean distinct answers out of distribution in the paper, MARA over RLOO.
PAPERS_GAIN = 4.62 / 3.88
WORDS = {
    MARA: (),
    MARA_FORWARD: ("--model.init_args.kl.estimator", "forward"),
    RLOO: ("--model.init_args.mara", "null"),
    GRPO: (
        *("--model.init_args.mara", "null"),
        *("--model.init_args.loss", "triptych.objectives.diversify.policy_loss.Grpo"),
        *("--model.init_args.kl.estimator", "k3"),
        *("--model.init_args.kl.place", "loss"),
        *("--model.init_args.kl.level", "token"),
    ),
}


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    parser = study_parser(
        __doc__,
        "creative_qa",
        [*STEPS, CHAT],
        ("workers", "data_dir"),
        num_seeds=None,
        seeds_help=f"seeds of each arm; default: 5, in preset {CHAT} {creative_chat.SEEDS}",
    )
    parser.add_argument("--arms", nargs="+", choices=list(WORDS), default=list(WORDS))
    parser.add_argument(
        "--init_from",
        default="configs/diversify/creative_qa_base.yaml",
        help="initial model: an exported folder, or a config that is run first",
    )
    parser.add_argument(
        "--model", default=CHAT, help=f"chat model of preset {CHAT}: a name or a folder"
    )
    options = begin_study(parser, args)
    if options.seeds is None:
        options.seeds = creative_chat.SEEDS if options.preset == CHAT else 5
    if options.preset == CHAT:
        return creative_chat.run_study(options)
    if not {MARA, RLOO} <= set(options.arms):
        parser.error(f"--arms: the checks compare {MARA} with {RLOO}, give both")
    # The settings were chosen on seed 42.
    seeds = seeds_of(options)
    all_categories = ALL_CATEGORIES[options.preset]
    start = exported_start(
        options.init_from,
        options.out / "base",
        more=(
            (
                *("--data.init_args.replies.source.subset", "creative_questions"),
                *("--trainer.max_steps", str(FULL_BASE_STEPS)),
            )
            if all_categories
            else ()
        ),
    )
    runs = run_arms(
        [Arm(name, _words(options, WORDS[name], start)) for name in options.arms],
        seeds,
        options.out / options.preset,
        options.workers,
        SEED_OF_DATA_TOO,
    )
    sampler = Sampler(
        (PHRASINGS, CATEGORIES),
        PROMPTS[options.preset],
        _embedder(options.preset),
        small=not all_categories,
    )
    numbers = {
        name: [sampler.measure(run / "export", seed) for run, seed in zip(dirs, seeds, strict=True)]
        for name, dirs in runs.items()
    }
    hotter = []
    for place, (run, seed) in enumerate(zip(runs[RLOO], seeds, strict=True)):
        export, temperatures = run / "export", TEMPERATURES[options.preset]
        rewards = sampler.rewards(export, seed, temperatures, PHRASINGS)
        chosen = hot(rewards, numbers[MARA][place])
        hotter.append(sampler.measure(export, seed, chosen["temperature"]))
    numbers[HOT] = hotter
    save_figure(_draw(numbers), options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        [
            compare_arms(numbers, key, MARA, rival)
            for rival in (RLOO, HOT)
            for key in (_on(PHRASINGS, REWARD), _on(PHRASINGS, RIGHT), _on(CATEGORIES, RIGHT))
        ],
        checks(numbers),
        device=device_of(*runs.values()),
        seeds=seeds,
        predicted=predicted(small=not all_categories),
        seconds_of_training={
            name: [read_summary(run)["wall_seconds"] for run in dirs] for name, dirs in runs.items()
        },
    )


def _embedder(preset: str) -> Any:
    from triptych.objectives.text_embedder import letter_counts

    return letter_counts if preset == "smoke" else None  # smoke runs do not load the real model


def hot(by_temperature: Sequence[dict[str, float]], rival: Mapping[str, float]) -> dict[str, float]:
    """Return the temperature at which the reward is closest to that of a rival.

    Args:
        by_temperature: Numbers of one model at each temperature.
        rival: Numbers of the rival.
    """
    key = _on(PHRASINGS, REWARD)
    return min(by_temperature, key=lambda numbers: abs(numbers[key] - rival[key]))


def predicted(small: bool) -> dict[str, dict[str, float]]:
    """Compute reward and distinct right answers at the optimum for a base that learned its prior.

    Args:
        small: Use the small set of categories.
    """
    import torch

    from triptych.datamodules.embedded.creative_questions import (
        answer_prior,
        categories,
        small_categories,
    )
    from triptych.objectives.diversify.mara import Mara
    from triptych.objectives.diversify.target_distribution import target

    settings = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]
    numbers: dict[str, dict[str, float]] = {}
    for arm, mara in ((RLOO, None), (MARA, Mara(**settings["mara"]))):
        numbers[arm] = {}
        for set_name in (PHRASINGS, CATEGORIES):
            reward, right = [], []
            for name in small_categories() if small else categories():
                entry = categories()[name]
                if entry["held_out"] != (set_name == CATEGORIES):
                    continue
                prior = answer_prior(name)
                reward_K = torch.tensor([float(reply in entry["answers"]) for reply in prior])
                prior_K = torch.tensor(list(prior.values()), dtype=torch.float64).log()
                share_K = target("reverse", reward_K, prior_K, settings["beta"], mara).exp()
                of_right_R = share_K[reward_K > 0]
                reward.append(float(of_right_R.sum()))
                right.append(float((1 - (1 - of_right_R) ** NUM_SAMPLES).sum()))
            numbers[arm][_on(set_name, REWARD)] = sum(reward) / len(reward)
            numbers[arm][_on(set_name, RIGHT)] = sum(right) / len(right)
    return numbers


def checks(numbers: Numbers) -> dict[str, Check]:
    """Compare the results with the bounds that were fixed beforehand."""

    def ratio(key: str, rival: str) -> float:
        ours, theirs = _columns(numbers, key, MARA, rival)
        return sum(ours) / max(sum(theirs), 1e-12)

    reward = mean_interval(_differences(numbers, _on(PHRASINGS, REWARD), MARA, RLOO))
    right = mean_interval(_differences(numbers, _on(PHRASINGS, RIGHT), MARA, HOT))
    upper = reward["mean"] if reward["interval"] is None else reward["interval"][1]
    lower = right["mean"] if right["interval"] is None else right["interval"][0]
    return {
        f"reward on other phrasings, {MARA} - {RLOO}, upper end of the interval": at_least(
            upper, 0.0
        ),
        f"right answers on other phrasings, {MARA} / {RLOO}": at_least(
            ratio(_on(PHRASINGS, RIGHT), RLOO), 1.5
        ),
        f"right answers on other phrasings, {MARA} - {HOT}, lower end of the interval": at_least(
            lower, 0.0
        ),
        f"right answers on other categories, {MARA} / {RLOO}": at_least(
            ratio(_on(CATEGORIES, RIGHT), RLOO), PAPERS_GAIN
        ),
    }


def _on(set_name: str, key: str) -> str:
    return f"{set_name.replace('_', ' ')}: {key}"


def _columns(
    numbers: Numbers, key: str, first: str, second: str
) -> tuple[list[float], list[float]]:
    return [n[key] for n in numbers[first]], [n[key] for n in numbers[second]]


def _differences(numbers: Numbers, key: str, first: str, second: str) -> list[float]:
    ours, theirs = _columns(numbers, key, first, second)
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _words(options: argparse.Namespace, own: Sequence[str], start: Path) -> tuple[str, ...]:
    steps = STEPS[options.preset]
    return (
        *("--config", str(CONFIG)),
        *("--model.init_args.init_from", str(start)),
        *own,
        *(
            ("--data.init_args.prompts.source.subset", "creative_questions")
            if ALL_CATEGORIES[options.preset]
            else ()
        ),
        *("--model.init_args.evaluate_first", "false"),
        *("--trainer.max_steps", str(steps)),
        *("--trainer.val_check_interval", str(steps)),
        *("--trainer.limit_val_batches", "1"),  # the study draws the samples itself
        *("--trainer.accelerator", "cpu"),
    )


def draw_results(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure from the content of `results.json`."""
    numbers = saved_numbers(results)
    if results["preset"] == CHAT:
        return save_figure(creative_chat.draw(numbers, results["start"]), path)
    return save_figure(_draw(numbers), path)


@styled
def _draw(numbers: Numbers) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    # The same scales in both panels, since a reader compares them.
    left, _ = axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, name in zip(axes, (PHRASINGS, CATEGORIES), strict=True):
        for place, (label, per_seed) in enumerate(numbers.items()):
            style = series(place) | {"linestyle": "none", "alpha": 0.8}
            if label == HOT:  # hollow and larger, since it may coincide with RLOO
                style |= {"markersize": 9, "markerfacecolor": "none"}
            rewards = [n[_on(name, REWARD)] for n in per_seed]
            axis.plot(rewards, [n[_on(name, RIGHT)] for n in per_seed], label=label, **style)
        axis.set(title=words_of_set(f"val/{name}/reward"), xlabel="right answers (share)")
    left.set_ylabel(f"different right answers in {NUM_SAMPLES} samples")
    left.set_ylim(bottom=0)
    left.margins(x=0.08)
    better_arrow(left, "up")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(numbers))
    return figure


if __name__ == "__main__":
    main()
