"""How good are REINVENT and REINVENT with MARA on PMO, a benchmark of practical optimisation?

    python -m studies.pmo --preset cpu --data_dir FOLDER

PMO (Gao et al. 2022, "Sample Efficiency Matters") gives a search 10,000 oracle calls and judges it
by the area under the mean of its ten best scores (AUC top-10). REINVENT is the best of its 25
methods. Settings are mol_opt's for REINVENT: sigma 500, learning rate 5e-4, 64 samples and 24
replayed molecules a step, no diversity filter. The second arm adds MARA, whose threshold is the
90th percentile of a step's rewards, since the oracles have no common scale (ours, fixed
beforehand). The prior is trained on ZINC, or on embedded molecules without `--data_dir`.

`cpu` runs five oracles with three seeds, two searches at a time; `full` all 20 that are formulas of
RDKit, with five seeds (drd2, gsk3b and jnk3 are pickled models, which are not loaded). Finished
searches are not repeated. Published results of REINVENT stand beside.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import stats

from triptych.metrics.display.figure_style import GREY, WIDTH, series, styled
from triptych.metrics.diversify.molecules.search_curve import auc_top_k
from triptych.studies.arms import Arm, device_of, probe, run_arms, written
from triptych.studies.diversify.molecules.search_runs import (
    add_prior_option,
    prior_of,
    search_trainer,
)
from triptych.studies.diversify.pmo.ledger_scores import scores_of_calls, top_k
from triptych.studies.diversify.pmo.oracles import ORACLES
from triptych.studies.diversify.pmo.published import REINVENT_AUC_TOP_10
from triptych.studies.figures import save_figure, spread_out
from triptych.studies.options import study_parser
from triptych.studies.results import Check, Numbers, at_least, summarize, write_results
from triptych.studies.study_tracking import begin_study

CLAIM = "REINVENT here reaches the published AUC top-10 of REINVENT on PMO"
REINVENT, MARA = "REINVENT", "REINVENT with MARA"
AUC = "AUC top-10"
BATCH, REPLAYED, SIGMA, LEARNING_RATE = 64, 24, 500.0, 5e-4
PERCENTILE = 90.0
FIRST_SEED = 1


@dataclass(frozen=True)
class Preset:
    """The size of the study.

    Args:
        oracles: Names of the oracles.
        num_seeds: Number of seeds.
        budget: Oracle calls of a search.
        max_samples: Samples after which a search ends that finds nothing new.
    """

    oracles: tuple[str, ...]
    num_seeds: int
    budget: int = 10_000
    max_samples: int = 64_000


FIVE = (
    *("albuterol_similarity", "celecoxib_rediscovery", "median1", "osimertinib_mpo"),
    "perindopril_mpo",
)
PRESETS = {
    "smoke": Preset(("median1", "isomers_c7h8n2o2"), 1, budget=60, max_samples=2 * BATCH),
    "cpu": Preset(FIVE, 3),
    "full": Preset(tuple(sorted(ORACLES)), 5),
}


def arm_of(oracle: str, way: str, preset: Preset, start: Path, folder: Path) -> Arm:
    """Return the searches of one oracle with one method."""
    rewards = "triptych.objectives.rewards.molecules"
    component = probe(
        f"{rewards}.python_component.PythonComponent",
        function=f"{ORACLES[oracle].__module__}:{oracle}",
    )
    return written(
        label(oracle, way),
        {
            "data": probe("triptych.datamodules.diversify.unprompted.Unprompted"),
            "model": probe(
                "triptych.lit_modules.diversify.molecules.molecule_optimization.MoleculeOptimization",
                init_from=str(start),
                reward=probe(
                    f"{rewards}.oracle_reward.OracleReward",
                    objective=probe(
                        f"{rewards}.objective.MoleculeObjective", components=[component]
                    ),
                    budget=preset.budget,
                    keep_stereo=False,
                ),
                sigma=SIGMA,
                mara={"percentile": PERCENTILE, "scope": "batch_and_replay"}
                if way == MARA
                else None,
                replay=probe(
                    "triptych.objectives.diversify.molecules.experience_replay.ExperienceReplay",
                    size=100,
                    num_draws=REPLAYED,
                ),
                num_samples=BATCH,
                learning_rate=LEARNING_RATE,
                max_new_tokens=100,
            ),
            "trainer": search_trainer(preset.max_samples, BATCH, log_every_n_steps=10),
        },
        folder,
    )


def label(oracle: str, way: str) -> str:
    """Return the name of an arm."""
    return f"{oracle}: {way}"


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    seeds_help = "number of seeds of each arm; default: that of the preset"
    parser = study_parser(__doc__, "pmo", PRESETS, ("data_dir", "workers"), None, seeds_help)
    parser.add_argument("--oracles", nargs="+", choices=sorted(ORACLES), help="these alone")
    add_prior_option(parser)
    options = begin_study(parser, args)
    preset = PRESETS[options.preset]
    oracles = tuple(options.oracles or preset.oracles)
    seeds = list(range(FIRST_SEED, FIRST_SEED + (options.seeds or preset.num_seeds)))
    start, out = prior_of(options), options.out / options.preset
    arms = [
        arm_of(oracle, way, preset, start, out / "arms")
        for oracle in oracles
        for way in (REINVENT, MARA)
    ]
    runs = run_arms(arms, seeds, out, options.workers)
    numbers: Numbers = {
        name: [numbers_of(scores_of_calls(run), preset.budget) for run in dirs]
        for name, dirs in runs.items()
    }
    draw(_aucs(numbers, oracles), options.out / "figure.png")
    results = write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        [_paired(oracle, numbers) for oracle in oracles],
        gates(numbers, oracles),
        device=device_of(*runs.values()),
        seeds=seeds,
        published={oracle: list(REINVENT_AUC_TOP_10[oracle]) for oracle in oracles},
        aucs=_aucs(numbers, oracles),
    )
    show(results, oracles)
    return results


def numbers_of(scores: Sequence[float], budget: int) -> dict[str, float]:
    """Return the numbers of one search.

    Args:
        scores: Scores in the order of the calls.
        budget: Calls of the benchmark.
    """
    return {
        AUC: auc_top_k(scores, 10, budget) if scores else 0.0,
        "top-1": top_k(scores, 1),
        "top-10": top_k(scores, 10),
        "top-100": top_k(scores, 100),
        "oracle calls": float(len(scores)),
    }


def gates(numbers: Numbers, oracles: Sequence[str]) -> dict[str, Check]:
    """Count the oracles on which REINVENT is at most two published deviations below."""
    held = 0
    for oracle in oracles:
        published, deviation = REINVENT_AUC_TOP_10[oracle]
        found = [seed[AUC] for seed in numbers[label(oracle, REINVENT)]]
        held += sum(found) / len(found) >= published - 2 * deviation
    name = "oracles with REINVENT at least at the published mean less two deviations"
    return {name: at_least(held, math.ceil(0.8 * len(oracles)))}


def _paired(oracle: str, numbers: Numbers) -> dict[str, Any]:
    """Compare both arms seed by seed, two-sided: whether MARA helps is not known beforehand."""
    pairs = [[seed[AUC] for seed in numbers[label(oracle, way)]] for way in (MARA, REINVENT)]
    name = f"{oracle}: {AUC} with MARA and without"
    if len(pairs[0]) < 2 or pairs[0] == pairs[1]:
        return {"name": name, "statistic": None, "p": 1.0}
    tested: Any = stats.ttest_rel(*pairs)
    return {"name": name, "statistic": float(tested.statistic), "p": float(tested.pvalue)}


Aucs = Mapping[str, Mapping[str, Sequence[float]]]


def _aucs(numbers: Numbers, oracles: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    return {
        oracle: {
            way: [seed[AUC] for seed in numbers[label(oracle, way)]] for way in (REINVENT, MARA)
        }
        for oracle in oracles
    }


def show(results: Mapping[str, Any], oracles: Sequence[str]) -> None:
    """Print mean and 95% interval of both arms beside the published numbers."""
    table = Table(title=f"PMO, {AUC}", title_justify="left")
    for name in ("oracle", REINVENT, MARA, "REINVENT, published"):
        table.add_column(name, justify="left" if name == "oracle" else "right")
    for oracle in oracles:
        cells = [_interval(results["arms"][label(oracle, way)][AUC]) for way in (REINVENT, MARA)]
        mean, deviation = REINVENT_AUC_TOP_10[oracle]
        table.add_row(oracle, *cells, f"{mean:.3f} +- {deviation:.3f}")
    Console().print(table)


def _interval(summary: Mapping[str, Any]) -> str:
    interval = summary["interval"]
    text = f"{summary['mean']:.3f}"
    return text if interval is None else f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]"


def draw_results(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure from the content of `results.json`."""
    draw(results["aucs"], path)


def draw(aucs: Aucs, path: Path) -> None:
    """Draw the AUC top-10 of each seed beside the published mean and two deviations.

    Args:
        aucs: Oracle -> method -> AUC of each seed.
        path: Picture to write.
    """
    save_figure(_draw(aucs), path)


@styled
def _draw(aucs: Aucs) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.2 + 0.35 * len(aucs)), layout="constrained")
    axis = figure.subplots()
    for row, (oracle, ways) in enumerate(aucs.items()):
        mean, deviation = REINVENT_AUC_TOP_10[oracle]
        published = "REINVENT, published (mean, two deviations)" if row == 0 else None
        axis.errorbar(
            mean, row, xerr=2 * deviation, color=GREY, marker="|", capsize=3, label=published
        )
        for place, (way, values) in enumerate(ways.items()):
            style = series(place)
            rows = [row + 0.2 * (2 * place - 1) + each for each in spread_out(len(values), 0.1)]
            color, marker = style["color"], style["marker"]
            axis.plot(
                values,
                rows,
                linestyle="",
                color=color,
                marker=marker,
                label=way if not row else None,
            )
    axis.set_yticks(range(len(aucs)), list(aucs))
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel(AUC)
    axis.legend(loc="best")
    return figure


if __name__ == "__main__":
    main()
