"""Does MARA find more good molecules than REINVENT, within the same budget of oracle calls?

    python -m studies.molecules --preset cpu --data_dir FOLDER

One prior on ZINC (embedded molecules without `--data_dir`) is trained once. From it molecules are
searched for with REINVENT's loss, with MARA on top of it, and with both under a diversity filter.
A search ends after 3,000 oracle calls, or 6,400 samples: known molecules cost samples, no calls.

The gates are fixed beforehand on the cell of a pilot: any of six fused rings and QED >= .6, sigma
64, learning rate 1e-3, ten seeds. Beside them stand, always, both methods at equal calls, at equal
samples, and each at its own best sigma, which is chosen on other seeds than those reported.

`cpu` runs the gated cell, and sigma 32 and 64 for the best of both; `full` all ways over four
sigmas on four tasks: the rings, likeness to drugs, a product of properties, and a stand-in for
docking. To its ways belong two rivals: REINVENT with an entropy bonus, and with one for novelty.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from triptych.studies.arms import Arm, exported_start, probe, run_arms, written
from triptych.studies.diversify.molecules.molecule_comparison import (
    AT_CALLS,
    YIELD,
    compare,
    gates,
    show,
)
from triptych.studies.diversify.molecules.molecule_search import Search, read_search
from triptych.studies.diversify.molecules.molecule_tasks import Settings, Task, tasks
from triptych.studies.results import mean_interval, write_results

CLAIM = "MARA finds more good molecules than REINVENT within the same oracle calls and samples"
REINVENT, MARA = "REINVENT", "MARA"
FILTERED = " with a diversity filter"
ENTROPY, DISTILLED = "REINVENT with an entropy bonus", "REINVENT with random distillation"
SIGMA = 64.0
TASK = "scaffolds"
BATCH = 64


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Args:
        tasks: By name.
        ways: Of searching.
        sigmas: Among which each way has its best.
        num_tuning: Seeds that decide which is best.
        num_seeds: Seeds that are reported.
        budget: Oracle calls of a search.
        max_samples: Its samples.
    """

    tasks: tuple[str, ...] = (TASK,)
    ways: tuple[str, ...] = (REINVENT, MARA)
    sigmas: tuple[float, ...] = (32.0, SIGMA)
    num_tuning: int = 2
    num_seeds: int = 10
    budget: int = 3000
    max_samples: int = 6400


ALL = (REINVENT, MARA, REINVENT + FILTERED, MARA + FILTERED, ENTROPY, DISTILLED)
#: What is compared, each at its best sigma.
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
# The pilot's seeds were 0 to 4.
FIRST_SEED, FIRST_TUNING_SEED = 5, 101


@dataclass(frozen=True)
class Cell:
    """One way of searching, with its settings.

    Args:
        task: What for.
        way: As in `ALL`.
        sigma: Nats per unit of reward.
    """

    task: str
    way: str
    sigma: float

    @property
    def label(self) -> str:
        """As in tables."""
        return f"{self.task}: {self.way}, sigma {self.sigma:g}"

    def arm(self, task: Task, preset: Preset, start: Path, folder: Path) -> Arm:
        """Its run."""
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
                "trainer": {
                    "max_steps": -(-preset.max_samples // BATCH),
                    "log_every_n_steps": 1,
                    "callbacks": [
                        probe("triptych.callbacks.run.step_seeds.StepSeeds"),
                        probe("triptych.callbacks.run.nan_guard.NanGuard"),
                        probe(
                            "triptych.callbacks.diversify.molecules.stop_search.StopSearch",
                            # All samples may be known for long: the cap alone ends that.
                            patience=preset.max_samples,
                            max_samples=preset.max_samples,
                        ),
                    ],
                },
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
    """Run the study; returns what `results.json` holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="smoke", help="how much to run")
    parser.add_argument("--seeds", type=int, help="number of seeds that are reported")
    parser.add_argument("--data_dir", help="folder with smiles/; default: embedded molecules")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/molecules"))
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument(
        "--init_from",
        help="the prior: an exported folder, or a config that is run first; default: zinc_prior or "
        "molecules_prior of configs/diversify, after --data_dir",
    )
    options = parser.parse_args(args)
    preset = PRESETS[options.preset]
    num_seeds = preset.num_seeds if options.seeds is None else options.seeds
    seeds = [*range(FIRST_SEED, FIRST_SEED + num_seeds)]
    bench = Bench(preset, _prior(options), options.out / options.preset, options.workers)
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
    draw({cell.label: found[cell] for cell in cells}, options.out / "figure.png")
    results = write_results(
        options.out,
        CLAIM,
        options.preset,
        {cell.label: arm_numbers(searches) for cell, searches in found.items()},
        [
            {"name": f"{title}: {key}, one-sided", "statistic": None, "p": numbers[key].p}
            for title, numbers in comparisons.items()
            for key in (YIELD, AT_CALLS)
        ],
        gates(comparisons["the gated cell"], len(seeds)),
        comparisons={
            title: {key: paired.entry() for key, paired in numbers.items()}
            for title, numbers in comparisons.items()
        },
        burdens={cell.label: [s.burden(100) for s in found[cell]] for cell in found},
        best_sigmas={f"{task}: {way}": cell.sigma for (task, way), cell in best.items()},
        seeds=seeds,
    )
    show(comparisons)
    return results


@dataclass(frozen=True)
class Bench:
    """Runs cells from one prior.

    Args:
        preset: How much.
        start: The exported prior.
        out: Where runs are kept.
        num_workers: Runs at a time.
    """

    preset: Preset
    start: Path
    out: Path
    num_workers: int

    def run(self, cells: Sequence[Cell], seeds: Sequence[int]) -> dict[Cell, list[Search]]:
        """A search of each seed, for each cell."""
        known = tasks()
        arms = [
            cell.arm(known[cell.task], self.preset, self.start, self.out / "arms") for cell in cells
        ]
        runs = run_arms(arms, seeds, self.out, self.num_workers) if arms else {}
        return {
            cell: [read_search(run, known[cell.task].threshold) for run in runs[arm.name]]
            for cell, arm in zip(cells, arms, strict=True)
        }

    def best(self, seeds: Sequence[int]) -> dict[tuple[str, str], Cell]:
        """For each task and way the sigma with the highest mean Yield."""
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


def arm_numbers(searches: Sequence[Search]) -> dict[str, dict[str, Any]]:
    """Numbers of one arm over its seeds."""
    return {
        YIELD: mean_interval([s.found() for s in searches]),
        "oracle calls": mean_interval([s.num_calls for s in searches]),
        "samples": mean_interval([s.num_samples for s in searches]),
    }


def _mean_yield(searches: Sequence[Search]) -> float:
    return float(np.mean([search.found() for search in searches]))


def _prior(options: argparse.Namespace) -> Path:
    if options.init_from is not None:
        return exported_start(options.init_from, options.out / "prior")
    if options.data_dir is None:
        return exported_start("configs/diversify/molecules_prior.yaml", options.out / "prior")
    words = ("--data.init_args.data_dir", options.data_dir)
    return exported_start("configs/diversify/zinc_prior.yaml", options.out / "prior", more=words)


def draw(searches: dict[str, list[Search]], path: Path) -> None:
    """Draw hits over oracle calls and over samples, of each seed and their mean."""
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    by_calls, by_samples = figure.subplots(1, 2)
    for place, (label, each) in enumerate(searches.items()):
        color = f"C{place}"
        calls = np.arange(max(s.num_calls for s in each) + 1)
        samples = np.arange(0, max(s.num_samples for s in each) + 1, BATCH)
        for axis, grid, curves in (
            (by_calls, calls, [[s.found(int(n)) for n in calls] for s in each]),
            (by_samples, samples, [[s.found_in_samples(int(n)) for n in samples] for s in each]),
        ):
            for curve in curves:
                axis.plot(grid, curve, color=color, linewidth=0.5, alpha=0.5)
            axis.plot(grid, np.mean(curves, axis=0), color=color, linewidth=2, label=label)
    by_calls.set(xlabel="oracle calls", ylabel="hits")
    by_samples.set(xlabel="samples")
    for axis in (by_calls, by_samples):
        axis.spines[["top", "right"]].set_visible(False)
    by_calls.legend(frameon=False, fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
