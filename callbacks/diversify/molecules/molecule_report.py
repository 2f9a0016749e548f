"""The report of a molecule search: a table, figures, and a file of all hits."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.diversify.molecules.chemical_space import draw_space
from triptych.callbacks.diversify.molecules.property_histograms import draw_properties
from triptych.callbacks.report.guard import only_a_warning, reports
from triptych.callbacks.tracking.run_artifacts import log_file
from triptych.metrics.display.figure_style import (
    BLACK,
    BLUE,
    SKY,
    VERMILLION,
    WIDTH,
    count_axis,
    run_stamp,
    stamp,
    styled,
)
from triptych.metrics.diversify.molecules.circles import Circles, bit_vectors
from triptych.metrics.diversify.molecules.fingerprints import morgan_fingerprints
from triptych.metrics.diversify.molecules.internal_diversity import InternalDiversity
from triptych.metrics.diversify.molecules.oracle_calls import OracleBurden, Yield, format_burden
from triptych.metrics.diversify.molecules.scaffolds import Scaffolds
from triptych.metrics.diversify.molecules.search_curve import AucTopK
from triptych.models.diversify.molecules.molecule import read_molecule
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.oracle_ledger import Call, OracleLedger
from triptych.objectives.rewards.molecules.oracle_reward import OracleReward
from triptych.objectives.rewards.molecules.transforms import Identity
from triptych.protocols import HasReward

#: Numbers of best molecules whose mean, and area under its curve, are reported.
TOP_K = (1, 10, 100)


class MoleculeReport(Callback):
    """Writes the content of the oracle's ledger when training ends, after the last checkpoint.

    - ``hits.csv``: every molecule at the threshold, best first, with its components and call.
      Where a component has a transform, ``<name>`` is its score and ``<name>_raw`` the property;
    - ``poses.sdf``: the poses of these molecules, if there is a docking component;
    - ``figures/oracle_calls.png``: score and Yield over calls;
    - ``figures/best_molecules.png``: the best hits;
    - ``figures/diverse_molecules.png``: the hits that differ most from each other;
    - ``figures/properties.png``: properties of the first calls, the last calls and the hits;
    - ``figures/chemical_space.png``: a map of the molecules, from the first call to the last;
    - rows of the final table: Yield, oracle burden, AUC and mean of the best 1, 10 and 100,
      internal diversity, Circles, scaffolds.

    Args:
        threshold: Least score of a hit.
        num_hits: N of the oracle burdens OB(N).
        num_shown: Molecules in a grid.

    Raises:
        ValueError: if the module has no `OracleReward`.
    """

    def __init__(
        self,
        threshold: float = 0.8,
        num_hits: Sequence[PositiveInt] = (1, 10, 100),
        num_shown: PositiveInt = 20,
    ) -> None:
        self.threshold = threshold
        self.num_hits = list(num_hits)
        self.num_shown = num_shown
        self._rows: list[tuple[str, str]] = []
        #: The numbers of the table: "yield", "oracle_burden_10", ...
        self.numbers: dict[str, float] = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        oracle_of(pl_module, "MoleculeReport")

    @override
    @reports
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        reward = oracle_of(pl_module, "MoleculeReport")
        calls = reward.ledger.calls()
        hits = sorted(
            (call for call in calls if call.score >= self.threshold),
            key=lambda call: (-call.score, call.number),
        )
        self.numbers = search_numbers(calls, self.threshold, self.num_hits, reward.budget)
        raw = raw_labels(reward.objective)
        failures = reward.ledger.failures()
        self._rows = self._table(calls, reward.budget, raw, len(failures))
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"search/{k}": v for k, v in self.numbers.items() if math.isfinite(v)},
                step=trainer.global_step,
            )
        folder = Path(trainer.default_root_dir)
        names = reward.objective.names
        paths = [write_hits(hits, names, folder / "hits.csv", list(raw))]
        poses = write_poses(hits or calls, reward.ledger, folder / "poses.sdf")
        paths += [] if poses is None else [poses]
        paths += self._draw(calls, hits, reward.objective, folder / "figures")
        for path in paths:
            log_file(trainer, path)

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return the results of the search."""
        return self._rows

    def _table(
        self, calls: Sequence[Call], budget: int, raw: Mapping[str, str], num_failed: int
    ) -> list[tuple[str, str]]:
        numbers, hit = self.numbers, f"score >= {self.threshold:g}"
        rows = [
            ("oracle calls", f"{len(calls):,} of {budget:,}"),
            (f"Yield: different molecules with {hit}", f"{numbers['yield']:,.0f}"),
        ]
        for count in self.num_hits:
            burden = numbers[f"oracle_burden_{count}"]
            rows.append((f"oracle calls until hit {count:,}", format_burden(burden, len(calls))))
        if calls:
            for text, key in (("AUC top-k over the budget", "auc_top"), ("top-k score", "top")):
                best = ", ".join(f"{numbers[f'{key}_{k}']:.4f}" for k in TOP_K)
                rows.append((f"{text}: k = {', '.join(map(str, TOP_K))}", best))
        named = {
            "hits_int_div1": "internal diversity of the hits (MOSES)",
            "hits_circles": "Circles of the hits (Leader, distance 0.75)",
            "hits_scaffolds": "different scaffolds of the hits",
            "mean_score_last_100": "mean score of the last 100 calls",
        }
        rows += [(text, f"{numbers[k]:,.4g}") for k, text in named.items() if k in numbers]
        hits = [call for call in calls if call.score >= self.threshold]
        whose, shown = ("hits", hits) if hits else ("calls", calls)
        for name, label in raw.items():
            values = [call.raw[name] for call in shown if name in call.raw]
            if values:
                low, middle, high = np.percentile(values, (0, 50, 100))
                text = f"{middle:.4g} ({low:.4g} to {high:.4g})"
                rows.append((f"{label} of the {whose}: median (range)", text))
        if num_failed:
            rows.append(("molecules the oracle failed on", f"{num_failed:,}"))
        return rows

    def _draw(
        self,
        calls: Sequence[Call],
        hits: Sequence[Call],
        objective: MoleculeObjective,
        folder: Path,
    ) -> list[Path]:
        if not calls:
            return []
        draw: dict[str, Callable[[], Figure]] = {
            "oracle_calls": lambda: draw_calls(calls, self.threshold),
            "properties": lambda: draw_properties(
                calls, self.threshold, objective.names, raw_labels(objective)
            ),
        }
        if len(calls) > 1:
            draw["chemical_space"] = lambda: draw_space(calls, self.threshold)
        paths = []
        for name, drawn in draw.items():
            path = folder / f"{name}.png"
            with only_a_warning(f"figures/{path.name}"), atomic_file(path) as partial:
                figure = stamp(drawn(), run_stamp(folder.parent))
                figure.savefig(partial, dpi=150, format="png")
                paths.append(path)
        # Without hits, the best of all molecules show how far the search is from one.
        pool = list(hits) or sorted(calls, key=lambda call: -call.score)
        diverse = [pool[place] for place in most_diverse([c.smiles for c in pool], self.num_shown)]
        for name, chosen in (("best", pool[: self.num_shown]), ("diverse", diverse)):
            path = folder / f"{name}_molecules.png"
            with atomic_file(path) as partial:
                partial.write_bytes(draw_grid(chosen, _units(objective)))
            paths.append(path)
        return paths


def oracle_of(pl_module: LightningModule, needed_by: str) -> OracleReward:
    """Return the reward of a molecule search.

    Raises:
        ValueError: if the module has no `OracleReward`.
    """
    reward = pl_module.reward if isinstance(pl_module, HasReward) else None
    if not isinstance(reward, OracleReward):
        raise ValueError(
            f"{needed_by} reads the ledger of an oracle, but model.init_args.reward is no "
            "triptych.objectives.rewards.molecules.oracle_reward.OracleReward: leave the callback "
            "out"
        )
    return reward


def search_numbers(
    calls: Sequence[Call], threshold: float, num_hits: Sequence[int], budget: int
) -> dict[str, float]:
    """Compute Yield, oracle burdens (infinite if not reached), AUC top-k and diversity of hits."""
    smiles = [call.smiles for call in calls]
    scores = [call.score for call in calls]
    alone: dict[str, Any] = {"sync_on_compute": False}  # the other processes do not take part
    found = Yield(threshold, **alone)
    found.update(smiles, scores)
    numbers = {"calls": float(len(calls)), "yield": float(found.compute())}
    for count in num_hits:
        burden = OracleBurden(count, threshold, **alone)
        burden.update(smiles, scores, [call.number for call in calls])
        numbers[f"oracle_burden_{count}"] = float(burden.compute())
    if scores:
        numbers["mean_score_last_100"] = float(np.mean(scores[-100:]))
        for k in TOP_K:
            area = AucTopK(k, budget, **alone)
            area.update(scores, [call.number for call in calls])
            numbers[f"auc_top_{k}"] = float(area.compute())
            numbers[f"top_{k}"] = float(np.mean(np.sort(scores)[-k:]))
    hits = [call.smiles for call in calls if call.score >= threshold]
    if hits:
        for name, metric in (
            ("int_div1", InternalDiversity(**alone)),
            ("circles", Circles(**alone)),
        ):
            metric.update(hits)
            numbers[f"hits_{name}"] = float(metric.compute())
        scaffolds = Scaffolds(**alone)
        scaffolds.update(hits)
        numbers["hits_scaffolds"] = float(scaffolds.compute()["num_scaffolds"])
    return numbers


def most_diverse(smiles: Sequence[str], count: int) -> list[int]:
    """Return the places of diverse molecules: the first, then always the farthest (MaxMin)."""
    from rdkit.SimDivFilters import rdSimDivPickers

    vectors = bit_vectors(morgan_fingerprints(smiles)[1])
    picker = rdSimDivPickers.MaxMinPicker()
    return list(picker.LazyBitVectorPick(vectors, len(vectors), min(count, len(vectors)), [0]))


def raw_labels(objective: MoleculeObjective) -> dict[str, str]:
    """Return the components whose property differs from its score: name -> label with its unit."""
    return {
        name: name.replace("_", " ") + (f" ({part.unit})" if part.unit else "")
        for name, part in objective.parts.items()
        if not isinstance(part.transform, Identity)
    }


def _units(objective: MoleculeObjective) -> dict[str, str]:
    """Return the components with a unit: name -> unit."""
    return {name: part.unit for name, part in objective.parts.items() if part.unit}


def write_hits(
    hits: Sequence[Call], names: Sequence[str], path: Path, raw_names: Sequence[str] = ()
) -> Path:
    """Write hits to a CSV file with six significant digits; return its path.

    Args:
        hits: The molecules.
        names: Components, whose scores are columns.
        path: The file.
        raw_names: Components whose property is a further column, before its transform.
    """
    with atomic_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        raw_columns = [f"{name}_raw" for name in raw_names]
        writer.writerow(["smiles", "score", *names, *raw_columns, "oracle_call", "seed"])
        for call in hits:
            parts = [_short(call.components.get(name)) for name in names]
            parts += [_short(call.raw.get(name)) for name in raw_names]
            writer.writerow([call.smiles, _short(call.score), *parts, call.number, call.seed])
    return path


def write_poses(calls: Sequence[Call], ledger: OracleLedger, path: Path) -> Path | None:
    """Write the poses of molecules to an SD file; return its path, None if there is no pose."""
    entries = []
    for call in calls:
        for name, sdf in ledger.poses(call.smiles).items():
            block = sdf.rstrip("\n").removesuffix("$$$$").rstrip("\n")
            more = {"component": name, "score": _short(call.score), "oracle_call": call.number}
            text = "".join(f">  <{key}>\n{value}\n\n" for key, value in more.items())
            entries.append(f"{block}\n\n{text}$$$$\n")
    if not entries:
        return None
    with atomic_file(path) as partial:
        partial.write_text("".join(entries))
    return path


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


@styled
def draw_calls(calls: Sequence[Call], threshold: float) -> Figure:
    """Draw scores and the number of hits over oracle calls."""
    numbers = [call.number for call in calls]
    scores = np.array([call.score for call in calls])
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(numbers, scores, ".", markersize=2, alpha=0.5, color=SKY, label="one molecule")
    width = min(100, len(scores))
    means = np.convolve(scores, np.ones(width) / width, mode="valid")
    left.plot(numbers[width - 1 :], means, color=BLACK, label=f"mean of {width} calls")
    left.axhline(threshold, color=VERMILLION, linestyle="--", linewidth=1.0, label="threshold")
    left.set(title="score", ylabel="score")
    left.legend(markerscale=4, loc="lower right")
    found = np.cumsum(scores >= threshold)
    right.plot(numbers, found, color=BLUE)
    right.set(title=f"hits: molecules with a score of at least {threshold:g}", ylabel="molecules")
    right.set_ylim(0, max(1.0, 1.05 * float(found[-1])))
    if not found[-1]:
        right.text(0.5, 0.5, "no hits yet", ha="center", transform=right.transAxes, fontsize=12)
    count_axis(right, "y")
    for axis in (left, right):
        axis.set(xlabel="oracle calls")
        count_axis(axis)
    return figure


def draw_grid(calls: Sequence[Call], units: Mapping[str, str] | None = None) -> bytes:
    """Draw molecules with their scores, as the bytes of a PNG file.

    Args:
        calls: The molecules.
        units: Components whose property is shown too, with its unit.
    """
    from io import BytesIO

    from rdkit.Chem import Draw

    draw: Any = Draw.MolsToGridImage
    image = draw(
        [read_molecule(call.smiles) for call in calls],
        molsPerRow=5,
        subImgSize=(240, 200),
        legends=[_legend(call, units or {}) for call in calls],
    )
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _legend(call: Call, units: Mapping[str, str]) -> str:
    shown = [f"{call.raw[name]:.4g} {unit}" for name, unit in units.items() if name in call.raw]
    return f"{call.score:.3f} ({', '.join([*shown, f'call {call.number}'])})"
