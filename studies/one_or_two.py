"""Does MARA answer 1 and 2 equally often where a KL alone keeps the initial odds?

    python -m studies.one_or_two --preset cpu

A small transformer is taught an uneven prior over the answers 1 and 2 to requests for a random
integer. Then it is trained with a reward of 1 for either answer: with and without MARA, under the
reverse and the forward KL. The probabilities of both answers are computed exactly for all eight
prompts, two of which are held out. They are compared with the closed forms of `target_distribution`
for the initial model.

`cpu` trains at beta .03; `full` at .001, .01 and .03, which cover the grid of the paper. `smollm2`
does it with SmolLM2-135M-Instruct, a real chat model, with few-shot prompts and adapters: MARA and
vanilla at a beta that suits it, and MARA at .03. Each finished run is kept, seed by seed.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import (
    GREY,
    PALE,
    WIDTH,
    better_arrow,
    series,
    styled,
)
from triptych.studies.arms import SEED_OF_DATA_TOO, Arm, device_of, exported_start, run_arms
from triptych.studies.diversify import one_or_two_chat
from triptych.studies.diversify.answer_probabilities import reply_probabilities
from triptych.studies.figures import save_figure, spread_out
from triptych.studies.options import seeds_of, study_parser
from triptych.studies.results import (
    Check,
    Numbers,
    at_least,
    at_most,
    compare_arms,
    saved_numbers,
    summarize,
    write_results,
)
from triptych.studies.study_tracking import begin_study

CLAIM = "MARA answers 1 and 2 equally often where a KL alone keeps the initial odds"
BETA = 0.03
BETAS = {"smoke": (BETA,), "cpu": (BETA,), "full": (0.001, 0.01, BETA)}
STEPS = {"smoke": 2, "cpu": 250, "full": 400}
CHAT = "smollm2"
SHARE, VALID, ENTROPY, PREDICTED = (
    "share of 1 among 1 and 2",
    "valid answers",
    "entropy of 1 and 2 (bits)",
    "share of 1 predicted",
)
REPLIES = ("<answer>1</answer>", "<answer>2</answer>")
VANILLA, MARA = "vanilla, reverse", "MARA, reverse"
FORWARD, OVERSHOOT, EXACT = "vanilla, forward", "MARA, forward", "MARA, forward, exact"


@dataclass(frozen=True)
class Way:
    """One training method.

    Args:
        name: `VANILLA`, `MARA`, ...
        beta: Strength of the KL.
    """

    name: str
    beta: float

    @property
    def label(self) -> str:
        """Name in tables."""
        return self.name if self.beta == BETA else f"{self.name}, beta {self.beta:g}"

    @property
    def algorithm(self) -> Literal[1, 2] | None:
        """Algorithm of MARA; None without it."""
        numbers: dict[str, Literal[1, 2]] = {MARA: 1, OVERSHOOT: 1, EXACT: 2}
        return numbers.get(self.name)

    @property
    def divergence(self) -> Literal["reverse", "forward"]:
        """Direction of the KL."""
        return "reverse" if self.name in (VANILLA, MARA) else "forward"

    def words(self) -> tuple[str, ...]:
        """Return the command-line words of the method."""
        words = ["--model.init_args.beta", str(self.beta)]
        if self.algorithm is None:
            words += ["--model.init_args.mara", "null"]
        elif self.algorithm == 2:
            words += ["--model.init_args.mara.algorithm", "2"]
        if self.divergence == "forward":
            words += ["--model.init_args.kl.estimator", "forward"]
        return tuple(words)


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    parser = study_parser(__doc__, "one_or_two", [*STEPS, CHAT], num_seeds=5)
    parser.add_argument(
        "--init_from",
        default="configs/diversify/one_or_two_base.yaml",
        help="initial model: an exported folder, or a config that is run first",
    )
    parser.add_argument(
        "--model", default=CHAT, help=f"chat model of preset {CHAT}: a name or a folder"
    )
    options = begin_study(parser, args)
    if options.preset == CHAT:
        return one_or_two_chat.run_study(options)
    # The settings were chosen on seed 42.
    seeds = seeds_of(options)
    names = (VANILLA, MARA, FORWARD, OVERSHOOT, EXACT)
    ways = [Way(name, beta) for beta in BETAS[options.preset] for name in names]
    start = exported_start(options.init_from, options.out / "base")
    runs = run_arms(
        [Arm(way.label, _words(options, way, start)) for way in ways],
        seeds,
        options.out / options.preset,
        options.workers,
        SEED_OF_DATA_TOO,
    )
    prompts = _prompts()
    base = reply_probabilities(start, prompts, REPLIES)
    numbers = {
        way.label: [_numbers(run / "export", prompts, predicted_share(base, way)) for run in dirs]
        for way, dirs in zip(ways, runs.values(), strict=True)
    }
    shares = _shares(base)
    save_figure(_draw(numbers, shares), options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        [compare_arms(numbers, ENTROPY, MARA, VANILLA)],
        checks(numbers),
        device=device_of(*runs.values()),
        start=shares,
        seeds=seeds,
    )


def predicted_share(base: Sequence[Sequence[float]], way: Way) -> float:
    """Compute the share of 1 at the optimum, averaged over prompts.

    Each prompt has three outcomes: 1, 2, and any wrong answer.

    Args:
        base: Probabilities of 1 and 2 under the initial model, for each prompt.
        way: Method that defines the objective.
    """
    import torch

    from triptych.objectives.diversify.mara import Mara
    from triptych.objectives.diversify.target_distribution import target

    mara = None if way.algorithm is None else Mara(threshold=0.9, algorithm=way.algorithm)
    shares = []
    for one, two in base:
        reference = torch.tensor([one, two, 1 - one - two], dtype=torch.float64).log()
        optimum = target(
            way.divergence, torch.tensor([1.0, 1.0, 0.0]), reference, way.beta, mara
        ).exp()
        shares.append(float(optimum[0] / (optimum[0] + optimum[1])))
    return sum(shares) / len(shares)


def checks(numbers: Numbers) -> dict[str, Check]:
    """Compare the results with the bounds that were fixed beforehand."""

    def mean(label: str, key: str) -> float:
        return sum(n[key] for n in numbers[label]) / len(numbers[label])

    def off(label: str) -> float:
        return abs(mean(label, SHARE) - mean(label, PREDICTED))

    within = [0.45 <= n[SHARE] <= 0.55 for n in numbers[MARA]]
    return {
        "valid answers, worst arm": at_least(
            min(mean(name, VALID) for name in (VANILLA, MARA, FORWARD, OVERSHOOT, EXACT)), 0.98
        ),
        f"{MARA}: seeds with a share of 1 in [.45, .55]": at_least(sum(within), 0.8 * len(within)),
        f"{VANILLA}: share of 1 off its prediction": at_most(off(VANILLA), 0.06),
        f"{OVERSHOOT}: share of 1 off its prediction": at_most(off(OVERSHOOT), 0.06),
        f"{EXACT}: share of 1 off one half": at_most(abs(mean(EXACT, SHARE) - 0.5), 0.06),
    }


def _words(options: argparse.Namespace, way: Way, start: Path) -> tuple[str, ...]:
    steps = STEPS[options.preset]
    return (
        *("--config", "configs/diversify/one_or_two.yaml"),
        *("--model.init_args.init_from", str(start)),
        *way.words(),
        *("--model.init_args.evaluate_first", "false"),
        *("--trainer.max_steps", str(steps)),
        *("--trainer.val_check_interval", str(steps)),
        *("--trainer.accelerator", "cpu"),
    )


def _prompts() -> list[dict[str, Any]]:
    from triptych.datamodules.embedded.one_or_two import prompt_rows

    return prompt_rows()


def _shares(probabilities: Sequence[Sequence[float]]) -> dict[str, float]:
    import math

    shares = [one / (one + two) for one, two in probabilities]
    entropies = [-sum(p * math.log2(p) for p in (s, 1 - s) if p > 0) for s in shares]
    return {
        SHARE: sum(shares) / len(shares),
        VALID: sum(one + two for one, two in probabilities) / len(probabilities),
        ENTROPY: sum(entropies) / len(entropies),
    }


def _numbers(export: Path, prompts: Sequence[Any], predicted: float) -> dict[str, float]:
    return _shares(reply_probabilities(export, prompts, REPLIES)) | {PREDICTED: predicted}


def draw_results(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure from the content of `results.json`."""
    draw = one_or_two_chat.draw if results["preset"] == CHAT else _draw
    save_figure(draw(saved_numbers(results), results["start"]), path)


@styled
def _draw(numbers: Numbers, start: Mapping[str, float]) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.6 + 0.42 * len(numbers)), layout="constrained")
    shares, plane = figure.subplots(1, 2, width_ratios=(1.2, 1))
    for place, (label, per_seed) in enumerate(numbers.items()):
        style = series(place) | {"linestyle": "none", "markersize": 5, "alpha": 0.8}
        offsets = spread_out(len(per_seed), 0.44)
        rows = [place + offset for offset in offsets]
        shares.plot([n[SHARE] for n in per_seed], rows, label=label, **style)
        shares.plot([per_seed[0][PREDICTED]] * 2, [place - 0.36, place + 0.36], color="black")
        plane.plot([n[VALID] for n in per_seed], [n[ENTROPY] for n in per_seed], **style)
    shares.axvline(0.5, color=PALE, zorder=0)
    shares.plot(
        [start[SHARE]], [len(numbers)], marker="*", color=GREY, markersize=10, linestyle="none"
    )
    shares.set_yticks(range(len(numbers) + 1), [*numbers, "start"])
    shares.invert_yaxis()
    shares.set(xlabel="share of 1 among 1 and 2; black: predicted", xlim=(0, 1))
    shares.set_title("how often the answer is 1 (a point a seed)")
    plane.plot([start[VALID]], [start[ENTROPY]], marker="*", color=GREY, markersize=10)
    plane.annotate(
        "start", (start[VALID], start[ENTROPY]), xytext=(7, 0), textcoords="offset points"
    )
    plane.set(xlabel="valid answers (share)", ylabel="entropy of 1 and 2 (bits)")
    plane.set_title("variety and validity")
    plane.margins(0.1)
    better_arrow(plane, "up")
    return figure


if __name__ == "__main__":
    main()
