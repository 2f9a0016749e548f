"""The 1-2 task on a real chat model: few-shot prompts, adapters, exact probabilities of answers."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import GREY, PALE, WIDTH, series, styled
from triptych.studies.arms import SEED_OF_DATA_TOO, Arm, device_of, read_summary, run_arms
from triptych.studies.diversify.answer_probabilities import reply_probabilities
from triptych.studies.figures import save_figure, spread_out
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

CONFIG = "configs/diversify/one_or_two_smollm2.yaml"
CLAIM = "on a real chat model MARA answers 1 and 2 equally often where a KL alone keeps the odds"
STEPS = 40
BETA, PAPERS_BETA = 0.25, 0.03
VANILLA, MARA, WEAK = "vanilla", "MARA", "MARA, beta 0.03"
BETA_OF = {VANILLA: BETA, MARA: BETA, WEAK: PAPERS_BETA}
VALID, LEAST = "valid answers", "valid answers, worst prompt"
SHARE, HELD_OUT = "share of 1, training prompts", "share of 1, held-out prompt"
SKEWED = "share of 1 where it started above .8"
FURTHEST = "share of 1, furthest from one half, training prompts"
OTHERWISE = "answers spelled otherwise"
#: Spellings of an answer; the reward takes the first alone.
SPELLINGS = ("{}", "{}.", "{}\n", " {}", "{},", "{}!", "({})", '"{}"')
FILE = "answer_probabilities.json"
START_ABOVE = 0.8


@dataclass(frozen=True)
class MeasureAnswers:
    """Computes the probabilities of 1 and 2 under a run's export, in the run's own process."""

    def is_done(self, run: Path) -> bool:
        """Return whether they have been written."""
        return (run / FILE).is_file()

    def is_possible(self, run: Path) -> bool:
        """Return whether the run has an export."""
        return (run / "export").is_dir()

    def __call__(self, run: Path) -> None:
        """Compute and write them."""
        if not self.is_done(run):
            (run / FILE).write_text(json.dumps(answer_probabilities(run / "export")) + "\n")


def run_study(options: argparse.Namespace) -> dict[str, Any]:
    """Run the arms, and return the content of `results.json`.

    Args:
        options: Those of `studies.one_or_two`; `model` is the chat model to start from.
    """
    from triptych.models.pretrained_source import pretrained_source

    seeds = seeds_of(options)
    words = _words(options.model)
    runs = run_arms(
        [Arm(name, (*words, *_own_words(name))) for name in BETA_OF],
        seeds,
        options.out / options.preset,
        options.workers,
        SEED_OF_DATA_TOO,
        MeasureAnswers(),
    )
    measured = {
        name: [json.loads((run / FILE).read_text()) for run in dirs] for name, dirs in runs.items()
    }
    start = answer_probabilities(pretrained_source(options.model))
    numbers = {
        name: [answer_numbers(probabilities, start) for probabilities in per_seed]
        for name, per_seed in measured.items()
    }
    begin = answer_numbers(start, start)
    save_figure(draw(numbers, begin), options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        [compare_arms(numbers, FURTHEST, MARA, VANILLA)],
        checks(numbers),
        device=device_of(*runs.values()),
        start=begin,
        seeds=seeds,
        predicted={name: predicted(start, name) for name in BETA_OF},
        by_prompt=_by_prompt(start, measured),
        last_step={
            name: [_last_step(read_summary(run)["metrics"]) for run in dirs]
            for name, dirs in runs.items()
        },
    )


def answer_probabilities(folder: str | Path) -> list[list[list[float]]]:
    """Compute the probabilities of all spellings of both answers to the N prompts.

    Returns:
        (N, 2, spellings) probabilities.
    """
    from triptych.datamodules.embedded.one_or_two import ANSWERS, few_shot_rows

    rows = [{"messages": row["conversation"]} for row in few_shot_rows()]
    replies = [spelling.format(answer) for answer in ANSWERS for spelling in SPELLINGS]
    table = reply_probabilities(folder, rows, replies)
    count = len(SPELLINGS)
    return [[of_prompt[:count], of_prompt[count:]] for of_prompt in table]


def answer_numbers(
    probabilities: Sequence[Sequence[Sequence[float]]],
    start: Sequence[Sequence[Sequence[float]]],
) -> dict[str, float]:
    """Reduce the probabilities of both answers to the numbers of the study.

    Args:
        probabilities: (N, 2, spellings) as `answer_probabilities` returns them; the last prompt is
            the held-out one.
        start: The same of the initial model, for the prompts that start above .8; without such
            prompts the number is that of the most skewed one.
    """
    shares, valid = _shares(probabilities), _valid(probabilities)
    began = _shares(start)[:-1]
    above = min(START_ABOVE, max(began))
    skewed = [share for share, at in zip(shares[:-1], began, strict=True) if at >= above]
    otherwise = [sum(sum(answer[1:]) for answer in p) for p in probabilities]
    return {
        VALID: sum(valid) / len(valid),
        LEAST: min(valid),
        SHARE: sum(shares[:-1]) / len(shares[:-1]),
        FURTHEST: max(shares[:-1], key=lambda share: abs(share - 0.5)),
        HELD_OUT: shares[-1],
        SKEWED: sum(skewed) / len(skewed),
        OTHERWISE: sum(otherwise) / len(otherwise),
    }


def predicted(start: Sequence[Sequence[Sequence[float]]], name: str) -> dict[str, float]:
    """Compute valid answers and share of 1 at the optimum of an arm, means of training prompts.

    Returns:
        Also `pull`: beta times the log of the initial odds, what MARA adds to the reward of the
        rarer answer. The reward itself is 1.
    """
    import torch

    from triptych.objectives.diversify.mara import Mara
    from triptych.objectives.diversify.target_distribution import target

    beta, mara = BETA_OF[name], None if name == VANILLA else Mara(threshold=0.9)
    shares, valid, pull = [], [], []
    for answers in start[:-1]:
        one, two = answers[0][0], answers[1][0]
        reference = torch.tensor([one, two, 1 - one - two], dtype=torch.float64).log()
        optimum = target("reverse", torch.tensor([1.0, 1.0, 0.0]), reference, beta, mara).exp()
        shares.append(float(optimum[0] / (optimum[0] + optimum[1])))
        valid.append(float(optimum[0] + optimum[1]))
        pull.append(beta * abs(math.log(one / two)))
    means = {SHARE: shares, VALID: valid, "pull": pull if mara is not None else [0.0]}
    return {key: sum(values) / len(values) for key, values in means.items()}


def checks(numbers: Numbers) -> dict[str, Check]:
    """Compare the results with the bounds that were fixed beforehand; each seed counts."""
    ours, theirs = numbers[MARA], numbers[VANILLA]

    def off(key: str) -> float:
        return max(abs(n[key] - 0.5) for n in ours)

    return {
        f"{MARA}: valid answers, worst seed": at_least(min(n[VALID] for n in ours), 0.98),
        f"{MARA}: share of 1 off one half, training prompts, worst seed": at_most(off(SHARE), 0.08),
        f"{MARA}: share of 1 off one half, furthest prompt, worst seed": at_most(
            off(FURTHEST), 0.08
        ),
        f"{MARA}: share of 1 off one half, held-out prompt, worst seed": at_most(
            off(HELD_OUT), 0.12
        ),
        f"{VANILLA}: {SKEWED}, worst seed": at_least(min(n[SKEWED] for n in theirs), 0.75),
    }


def _words(model: str) -> tuple[str, ...]:
    return (
        *("--config", CONFIG),
        *("--model.init_args.policy.base.pretrained", model),
        *("--model.init_args.evaluate_first", "false"),
        *("--trainer.max_steps", str(STEPS)),
        *("--trainer.val_check_interval", str(STEPS)),
        *("--trainer.limit_val_batches", "0"),  # the study computes exact probabilities
        *("--trainer.accelerator", "cpu"),
    )


def _own_words(name: str) -> tuple[str, ...]:
    words = ("--model.init_args.beta", str(BETA_OF[name]))
    return (*words, "--model.init_args.mara", "null") if name == VANILLA else words


def _shares(probabilities: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    return [one[0] / (one[0] + two[0]) for one, two in probabilities]


def _valid(probabilities: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    return [one[0] + two[0] for one, two in probabilities]


def _by_prompt(
    start: Sequence[Sequence[Sequence[float]]],
    measured: Mapping[str, Sequence[Sequence[Sequence[Sequence[float]]]]],
) -> dict[str, Any]:
    """Return valid answers and share of 1 of each prompt: at the start, and of each arm's seeds."""
    from triptych.datamodules.embedded.one_or_two import few_shot_rows

    def both(probabilities: Sequence[Sequence[Sequence[float]]], place: int) -> list[float]:
        return [_valid(probabilities)[place], _shares(probabilities)[place]]

    return {
        row["conversation"][-1]["content"]: {
            "start": both(start, place),
            **{name: [both(p, place) for p in per_seed] for name, per_seed in measured.items()},
        }
        for place, row in enumerate(few_shot_rows())
    }


def _last_step(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what the last training step says about MARA's work; nothing without MARA."""
    keys = ("train/anchor_shift_nats", "train/distinct_share", "train/reward")
    return {key: metrics[key] for key in keys if key in metrics}


@styled
def draw(numbers: Numbers, start: Mapping[str, float]) -> Figure:
    """Draw the share of 1 of each seed and arm, on training prompts and on the held-out one."""
    figure = Figure(figsize=(WIDTH, 1.6 + 0.42 * len(numbers)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = ("training prompts (mean)", "held-out prompt")
    for axis, key, title, half in zip(axes, (SHARE, HELD_OUT), titles, (0.08, 0.12), strict=True):
        axis.axvspan(0.5 - half, 0.5 + half, color=PALE, alpha=0.5, zorder=0)
        for place, per_seed in enumerate(numbers.values()):
            rows = [place + offset for offset in spread_out(len(per_seed), 0.44)]
            style = series(place) | {"linestyle": "none", "markersize": 5, "alpha": 0.8}
            # Shares of 0 and 1 lie on the frame and are drawn over it.
            axis.plot([n[key] for n in per_seed], rows, clip_on=False, **style)
        point = {"marker": "*", "color": GREY, "markersize": 10, "linestyle": "none"}
        axis.plot([start[key]], [len(numbers)], **point)
        axis.set(title=title, xlabel="share of 1 among 1 and 2 (exact)", xlim=(0, 1))
    axes[0].set_yticks(range(len(numbers) + 1), [*numbers, "start"])
    axes[0].invert_yaxis()
    return figure
