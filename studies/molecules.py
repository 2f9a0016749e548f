"""Does MARA find more good molecules than REINVENT within the same budget of oracle calls?

    python -m studies.molecules --preset cpu --data_dir FOLDER

One prior is trained on ZINC, or on embedded molecules without `--data_dir`. Searches from this
prior use the loss of REINVENT, the same with MARA, and both with a diversity filter. A search ends
after 3,000 oracle calls or 6,400 samples. A known molecule counts as a sample, not as a call.

The bounds were fixed beforehand for the cell of a pilot: any of six fused rings and QED >= .6,
sigma 64, learning rate 1e-3, ten seeds. The study also compares both methods at equal calls, at
equal samples, and at the best sigma of each, which is chosen on other seeds.

`cpu` runs the gated cell, and sigma 32 and 64 to find the best of both. `full` runs all ways with
four sigmas on four tasks: the rings, similarity to drugs, a product of properties, and a docking
surrogate. Its ways include two rivals: REINVENT with an entropy bonus and with a novelty bonus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import GREY, WIDTH, count_axis, series, styled
from triptych.studies.arms import (
    Arm,
    Settings,
    device_of,
    probe,
    run_arms,
    written,
)
from triptych.studies.diversify.molecules.molecule_comparison import (
    AT_CALLS,
    YIELD,
    compare,
    gates,
    show,
)
from triptych.studies.diversify.molecules.molecule_search import Search, read_search
from triptych.studies.diversify.molecules.molecule_tasks import Task, tasks
from triptych.studies.diversify.molecules.search_runs import (
    add_prior_option,
    prior_of,
    search_trainer,
)
from triptych.studies.figures import save_figure
from triptych.studies.options import Taken, study_parser
from triptych.studies.results import Numbers, summarize, write_results
from triptych.studies.study_tracking import begin_study

CLAIM = "MARA finds more good molecules than REINVENT within the same oracle calls and samples"
REINVENT, MARA = "REINVENT", "MARA"
FILTERED = " with a diversity filter"
ENTROPY, DISTILLED = "REINVENT with an entropy bonus", "REINVENT with random distillation"
SIGMA = 64.0
TASK = "scaffolds"
BATCH = 64


@dataclass(frozen=True)
class Preset:
    """The size of the study.

    Args:
        tasks: Names of the tasks.
        ways: Search methods.
        sigmas: Candidates for the best sigma of each way.
        num_tuning: Number of seeds that select the best sigma.
        num_seeds: Number of seeds that are reported.
        budget: Maximum oracle calls of a search.
        max_samples: Maximum samples of a search.
    """

    tasks: tuple[str, ...] = (TASK,)
    ways: tuple[str, ...] = (REINVENT, MARA)
    sigmas: tuple[float, ...] = (32.0, SIGMA)
    num_tuning: int = 2
    num_seeds: int = 10
    budget: int = 3000
    max_samples: int = 6400


ALL = (REINVENT, MARA, REINVENT + FILTERED, MARA + FILTERED, ENTROPY, DISTILLED)
#: Pairs that are compared, each way at its best sigma.
PAIRS = (
    (MARA, REINVENT),
    (MARA + FILTERED, REINVENT + FILTERED),
    (MARA, ENTROPY),
    (MARA, DISTILLED),
)
PRESETS = {
    "smoke": Preset(ways=ALL, sigmas=(SIGMA,), num_seeds=1, budget=60, max_samples=2 * BATCH),
    "cpu": Preset(),
    "full": Preset(
        tasks=(TASK, "similarity", "properties", "docking stand-in"),
        ways=ALL,
        sigmas=(16.0, 32.0, SIGMA, 128.0),
        num_tuning=3,
    ),
}
# The pilot used seeds 0 to 4.
FIRST_SEED, FIRST_TUNING_SEED = 5, 101


@dataclass(frozen=True)
class Cell:
    """One search method with its settings.

    Args:
        task: Name of the task.
        way: One of `ALL`.
        sigma: Nats per unit of reward.
    """

    task: str
    way: str
    sigma: float

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.task}: {self.way}, sigma {self.sigma:g}"

    def arm(self, task: Task, preset: Preset, start: Path, folder: Path) -> Arm:
        """Return the run of this cell."""
        has_mara = self.way.startswith(MARA)
        bonus = 0.1 if self.way == ENTROPY else 0.0
        return written(
            self.label,
            {
                "data": probe("triptych.datamodules.diversify.unprompted.Unprompted"),
                "model": probe(
                    "triptych.lit_modules.diversify.molecules.molecule_optimization.MoleculeOptimization",
                    init_from=str(start),
                    reward=task.reward(preset.budget),
                    sigma=self.sigma,
                    mara={"threshold": task.threshold, "scope": "batch"} if has_mara else None,
                    loss=probe(
                        "triptych.objectives.diversify.policy_loss.Dap", entropy_bonus=bonus
                    ),
                    diversity_filter=self._filter(),
                    num_samples=BATCH,
                    learning_rate=1e-3,
                    max_new_tokens=60,
                ),
                "trainer": search_trainer(preset.max_samples, BATCH),
            },
            folder,
        )

    def _filter(self) -> Settings | None:
        if self.way == DISTILLED:
            return probe(
                "triptych.objectives.diversify.molecules.random_distillation.RandomDistillation",
                weight=0.25,
            )
        if not self.way.endswith(FILTERED):
            return None
        kind = "triptych.objectives.diversify.molecules.diversity_filters.DiversityFilter"
        return probe(kind, bucket="murcko_scaffold", bucket_size=25, penalty="step")


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    seeds_help = "number of seeds that are reported; default: that of the preset"
    takes: tuple[Taken, ...] = ("data_dir", "workers")
    parser = study_parser(__doc__, "molecules", PRESETS, takes, None, seeds_help)
    add_prior_option(parser)
    options = begin_study(parser, args)
    preset = PRESETS[options.preset]
    num_seeds = preset.num_seeds if options.seeds is None else options.seeds
    seeds = [*range(FIRST_SEED, FIRST_SEED + num_seeds)]
    bench = Bench(preset, prior_of(options), options.out / options.preset, options.workers)
    cells = [Cell(TASK, way, SIGMA) for way in (REINVENT, MARA)]
    found = bench.run(cells, seeds)
    best = bench.best([*range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + preset.num_tuning)])
    found |= bench.run([cell for cell in best.values() if cell not in found], seeds)

    comparisons = {"the gated cell": compare(found[cells[1]], found[cells[0]], seeds)}
    for task in preset.tasks:
        for ours, rival in PAIRS:
            if rival in preset.ways:
                pair = best[task, ours], best[task, rival]
                title = f"{task}: {ours} (sigma {pair[0].sigma:g}), {rival} ({pair[1].sigma:g})"
                comparisons[title] = compare(found[pair[0]], found[pair[1]], seeds)
    curves = {cell.way: hit_curves(found[cell]) for cell in cells}
    draw(curves, options.out / "figure.png")
    results = write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers_of(found)),
        [
            {"name": f"{title}: {key}, one-sided", "statistic": None, "p": numbers[key].p}
            for title, numbers in comparisons.items()
            for key in (YIELD, AT_CALLS)
        ],
        gates(comparisons["the gated cell"], len(seeds)),
        device=device_of(bench.dirs),
        comparisons={
            title: {key: paired.entry() for key, paired in numbers.items()}
            for title, numbers in comparisons.items()
        },
        burdens={cell.label: [s.burden(100) for s in found[cell]] for cell in found},
        best_sigmas={f"{task}: {way}": cell.sigma for (task, way), cell in best.items()},
        seeds=seeds,
        curves=curves,
    )
    show(comparisons)
    return results


@dataclass(frozen=True)
class Bench:
    """Runs cells from one prior.

    Args:
        preset: Size of the study.
        start: The exported prior.
        out: Folder of the runs.
        num_workers: Number of parallel runs.
        dirs: Directories of all finished runs, filled by `run`.
    """

    preset: Preset
    start: Path
    out: Path
    num_workers: int
    dirs: list[Path] = field(default_factory=list)

    def run(self, cells: Sequence[Cell], seeds: Sequence[int]) -> dict[Cell, list[Search]]:
        """Run a search for each cell and seed."""
        known = tasks()
        arms = [
            cell.arm(known[cell.task], self.preset, self.start, self.out / "arms") for cell in cells
        ]
        runs = run_arms(arms, seeds, self.out, self.num_workers) if arms else {}
        self.dirs.extend(run for dirs in runs.values() for run in dirs)
        return {
            cell: [read_search(run, known[cell.task].threshold) for run in runs[arm.name]]
            for cell, arm in zip(cells, arms, strict=True)
        }

    def best(self, seeds: Sequence[int]) -> dict[tuple[str, str], Cell]:
        """Find the cell with the highest mean Yield for each task and way."""
        preset = self.preset
        grid = [
            Cell(task, way, sigma)
            for task in preset.tasks
            for way in preset.ways
            for sigma in preset.sigmas
        ]
        found = self.run(grid, seeds) if len(preset.sigmas) > 1 else {}
        chosen: dict[tuple[str, str], Cell] = {}
        for cell in grid:
            best = chosen.setdefault((cell.task, cell.way), cell)
            if found and _mean_yield(found[cell]) > _mean_yield(found[best]):
                chosen[cell.task, cell.way] = cell
        return chosen


def numbers_of(found: dict[Cell, list[Search]]) -> Numbers:
    """Return the numbers of each cell and seed."""
    return {
        cell.label: [
            {YIELD: s.found(), "oracle calls": s.num_calls, "samples": s.num_samples}
            for s in searches
        ]
        for cell, searches in found.items()
    }


def _mean_yield(searches: Sequence[Search]) -> float:
    return float(np.mean([search.found() for search in searches]))


def hit_curves(searches: Sequence[Search]) -> list[dict[str, list[list[int]]]]:
    """Return hits over oracle calls and over samples of each search, up to its end.

    Args:
        searches: Searches of one way, one per seed.

    Returns:
        For each search: "oracle calls" and "samples" -> [numbers, hits], at most 200 points each.
    """
    curves = []
    for search in searches:
        calls = np.unique(np.linspace(0, search.num_calls, 200).astype(int)).tolist()
        samples = np.unique(np.linspace(0, search.num_samples, 200).astype(int)).tolist()
        curves.append(
            {
                "oracle calls": [calls, [search.found(n) for n in calls]],
                "samples": [samples, [search.found_in_samples(n) for n in samples]],
            }
        )
    return curves


HitCurves = Mapping[str, Sequence[Mapping[str, Sequence[Sequence[float]]]]]


def draw_results(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure from the content of `results.json`."""
    draw(results["curves"], path)


def draw(curves: HitCurves, path: Path) -> None:
    """Draw hits over oracle calls and over samples, for each seed and the mean.

    Args:
        curves: Way -> curves from `hit_curves`.
        path: Picture to write.
    """
    save_figure(_draw(curves), path)


@styled
def _draw(curves: HitCurves) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    figure.suptitle(
        f"molecules with one of six fused rings and QED of at least .6, sigma {SIGMA:g}"
    )
    axes = figure.subplots(1, 2, sharey=True)
    for axis, unit in zip(axes, ("oracle calls", "samples"), strict=True):
        for place, (way, searches) in enumerate(curves.items()):
            own = [search[unit] for search in searches]
            style = series(place)
            color, marker = style["color"], style["marker"]
            for numbers, hits in own:
                axis.plot(numbers, hits, color=color, linewidth=0.5, alpha=0.5)
                axis.plot(numbers[-1:], hits[-1:], color=color, marker=marker, alpha=0.6)
            ends = sorted(numbers[-1] for numbers, _ in own)
            grid = np.linspace(0, ends[-1], 300)
            mean = np.mean([np.interp(grid, numbers, hits) for numbers, hits in own], axis=0)
            running = grid <= ends[0]  # later, searches that have ended keep their last value
            line = {"color": color, "linewidth": 2}
            axis.plot(grid[running], mean[running], label=f"{way} (mean)", **line)
            axis.plot(grid[~running], mean[~running], linestyle=":", **line)
        axis.set_xlabel(unit)
        count_axis(axis)
    count_axis(axes[0], "y")
    axes[0].set_ylabel("hits")
    axes[0].set_ylim(bottom=0)
    axes[0].plot([], [], color=GREY, marker="o", linewidth=0.5, label="one seed, to its end")
    axes[0].plot([], [], color=GREY, linestyle=":", linewidth=2, label="some have ended")
    axes[0].legend(loc="upper left")
    return figure


if __name__ == "__main__":
    main()
