"""Does a penalty on the Jacobian of the decoder recover the latents behind agents' states?

    python -m studies.identifiability --preset cpu

The data are synthetic: two agents with Laplace latents, some of them shared. If every state
dimension mixes 3 latents, each latent should be recovered individually. If it depends on all
latents of its agent, each block should be recovered. The arms are the penalty, no penalty
(decorrelation alone, or a plain autoencoder), and FastICA, which needs non-Gaussian latents and
runs on small linear problems. Each arm has several draws of the data; of each draw the restart with
the lowest objective counts. Smoke: one draw of the smallest problems with few steps.

Paper: ThoughtComm, 2510.20733, synthetic experiments; maps, sizes and bounds are ours.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final, get_args

from rich.progress import Progress

from triptych.studies.commune.identifiability_figure import draw
from triptych.studies.commune.identifiability_fits import Fit, Problem, Way, run_fit
from triptych.studies.options import seeds_of, study_parser
from triptych.studies.results import (
    Check,
    at_least,
    at_most,
    mean_interval,
    paired_test,
    write_results,
)
from triptych.studies.study_tracking import begin_study

CLAIM = (
    "a sparse decoder Jacobian recovers latents one by one, and blocks of them where it is dense"
)
LINEAR: Final = "row_sparse_linear"
NORMAL: Final = "row_sparse_gaussian"
BENT: Final = "row_sparse_nonlinear"
DENSE: Final = "block_dense_nonlinear"
SPARSE_24 = Problem(LINEAR, (8, 8, 8), 32, 6_000, weight=0.1)
SPARSE_128 = Problem(LINEAR, (43, 42, 43), 256, 20_000, weight=0.1)
SPARSE_512 = Problem(LINEAR, (171, 170, 171), 1024, 20_000, weight=0.05)
SPARSE_1024 = Problem(LINEAR, (341, 342, 341), 2048, 20_000, weight=0.05)
NORMAL_24 = replace(SPARSE_24, kind=NORMAL)
BENT_128 = replace(SPARSE_128, kind=BENT)  # fitted by a linear codec
BLOCKS = Problem(DENSE, (2, 2, 2), 6, 4_000, weight=0.2, decoder_hidden=64, num_steps=3_000)
PROBLEMS = {
    "smoke": [SPARSE_24, replace(BLOCKS, num_steps=30)],
    "cpu": [SPARSE_24, NORMAL_24, SPARSE_128, SPARSE_512, BLOCKS],
    "full": [SPARSE_24, NORMAL_24, SPARSE_128, BENT_128, SPARSE_512, SPARSE_1024, BLOCKS],
}
# Lower bounds on medians over draws of the data: MCC, routing.
GATES = {24: (0.97, 0.97), 128: (0.95, 0.97), 512: (0.93, 0.95), 1024: (0.90, None)}
MOST_WITHOUT, LEAST_DIAGONAL, MOST_OFF_DIAGONAL = 0.45, 0.75, 0.10
# With more latents than this FastICA takes minutes and adds no evidence.
MOST_FOR_ICA = 128
METRICS = ("mcc", "spearman_mcc", "routing", "diagonal", "off_diagonal", "seconds")

Numbers = dict[tuple[str, str], list[dict[str, Any]]]


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    parser = study_parser(
        __doc__, "identifiability", PROBLEMS, num_seeds=5, seeds_help="number of draws of the data"
    )
    parser.add_argument("--restarts", type=int, default=3, help="fits of each draw")
    parser.add_argument("--only", nargs="*", help="problems with one of these words in their name")
    options = begin_study(parser, args)
    seeds = seeds_of(options)
    problems = [
        problem
        for problem in PROBLEMS[options.preset]
        if not options.only or any(word in problem.name for word in options.only)
    ]
    if not problems:
        names = ", ".join(problem.name for problem in PROBLEMS[options.preset])
        parser.error(f"--only {options.only} names none of: {names}")
    fits = [
        Fit(problem, way, seed, 1 if options.preset == "smoke" else options.restarts)
        for problem in problems
        for way in get_args(Way)
        if way != "FastICA" or (not problem.decoder_hidden and problem.size <= MOST_FOR_ICA)
        for seed in seeds
    ]
    outcomes = run_fits(fits, options.out / options.preset / "fits", options.workers)
    numbers: Numbers = {}
    for fit, outcome in zip(fits, outcomes, strict=True):
        numbers.setdefault((fit.problem.name, fit.way), []).append(outcome)
    draw(numbers, options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        {
            f"{problem}, {way}": {
                metric: mean_interval([outcome[metric] for outcome in outcomes])
                for metric in METRICS
            }
            for (problem, way), outcomes in numbers.items()
        },
        [
            paired_test(
                f"MCC, {problem.name}, penalty - {rival}",
                [outcome["mcc"] for outcome in numbers[problem.name, "penalty"]],
                [outcome["mcc"] for outcome in numbers[problem.name, rival]],
            )
            for problem in problems
            for rival in get_args(Way)[1:]
            if (problem.name, rival) in numbers
        ],
        {name: check for problem in problems for name, check in _checks(problem, numbers).items()},
        device="cpu",  # the fits run on the CPU, without a Trainer
        median_mcc={
            f"{problem}, {way}": median(outcome["mcc"] for outcome in outcomes)
            for (problem, way), outcomes in numbers.items()
        },
        block_r2={
            f"{problem}, {way}": [outcome["block_r2"] for outcome in outcomes]
            for (problem, way), outcomes in numbers.items()
        },
    )


def run_fits(fits: Sequence[Fit], folder: Path, num_workers: int) -> list[dict[str, Any]]:
    """Run fits in spawned processes; fits that ran before with the same settings are read.

    Args:
        fits: Fits to run.
        folder: Folder with one JSON file per fit.
        num_workers: Number of processes with one thread each, so that results do not depend on it;
            1: this process.
    """
    paths = {fit: folder / f"{_digest(fit)}.json" for fit in fits}
    todo = [fit for fit in fits if not paths[fit].exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        task = progress.add_task("fits", total=len(fits), completed=len(fits) - len(todo))
        for fit, outcome in _outcomes(todo, num_workers):
            partial = paths[fit].with_suffix(".partial")
            content = {"fit": fit.key(), "outcome": outcome}
            partial.write_text(json.dumps(content, indent=2) + "\n")
            partial.replace(paths[fit])
            progress.advance(task)
    return [json.loads(paths[fit].read_text())["outcome"] for fit in fits]


def _outcomes(fits: Sequence[Fit], num_workers: int) -> Iterator[tuple[Fit, dict[str, Any]]]:
    """Yield the outcomes in the order of completion."""
    if num_workers == 1:
        yield from ((fit, _run_alone(fit)) for fit in fits)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        jobs = {pool.submit(_run_alone, fit): fit for fit in fits}
        for job in as_completed(jobs):
            yield jobs[job], job.result()


def _run_alone(fit: Fit) -> dict[str, Any]:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    with threadpool_limits(1):
        return run_fit(fit)


def _digest(fit: Fit) -> str:
    return hashlib.sha256(json.dumps(fit.key(), sort_keys=True).encode()).hexdigest()[:16]


def _checks(problem: Problem, numbers: Numbers) -> dict[str, Check]:
    """Compare medians over draws of the data with the bounds of a problem."""

    def middle(way: str, metric: str) -> float:
        value: float = median(outcome[metric] for outcome in numbers[problem.name, way])
        return value

    if problem.kind == DENSE:
        return {
            f"{problem.name}: block R^2 on the diagonal": at_least(
                middle("penalty", "diagonal"), LEAST_DIAGONAL
            ),
            f"{problem.name}: block R^2 off the diagonal": at_most(
                middle("penalty", "off_diagonal"), MOST_OFF_DIAGONAL
            ),
        }
    if problem.kind != LINEAR:
        return {}  # without a bound
    least_mcc, least_routing = GATES[problem.size]
    checks = {f"{problem.name}: MCC": at_least(middle("penalty", "mcc"), least_mcc)}
    if least_routing is not None:
        checks[f"{problem.name}: routing"] = at_least(middle("penalty", "routing"), least_routing)
    if problem.size == 24:
        checks[f"{problem.name}: MCC of a plain autoencoder"] = at_most(
            middle("plain autoencoder", "mcc"), MOST_WITHOUT
        )
    return checks


if __name__ == "__main__":
    main()
