"""Histograms of a search's molecules: first calls, last calls and hits."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from triptych.callbacks.diversify.molecules.chemical_space import spread
from triptych.metrics.display.figure_style import (
    BLUE,
    GREY,
    VERMILLION,
    WIDTH,
    count_axis,
    styled,
)
from triptych.models.diversify.molecules.molecule import read_molecule
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.oracle_ledger import Call
from triptych.objectives.rewards.molecules.properties import (
    HydrogenBondDonors,
    LogP,
    MolecularWeight,
    PolarSurfaceArea,
    Rings,
)
from triptych.objectives.rewards.molecules.synthesizability import SyntheticAccessibility

PROPERTIES: dict[str, MoleculeComponent] = {
    "molecular weight (g/mol)": MolecularWeight(),
    "logP": LogP(),
    "polar surface area (Å²)": PolarSurfaceArea(),
    "hydrogen bond donors": HydrogenBondDonors(),
    "rings": Rings(),
    "SA score (1 easy, 10 hard)": SyntheticAccessibility(),
}
COUNTED = ("hydrogen bond donors", "rings")
# In a group: more take time to compute and change little.
MOST_MOLECULES = 400
PART = 0.2
_COLUMNS, _LABEL = 3, 24


@styled
def draw_properties(
    calls: Sequence[Call],
    threshold: float,
    names: Sequence[str],
    raw: Mapping[str, str] | None = None,
) -> Figure:
    """Draw a panel for each property, and one for each component's score.

    Args:
        calls: All calls, in order.
        threshold: Least score of a hit.
        names: Names of the objective's components in the ledger.
        raw: Components whose property is drawn too, before its transform: name -> label.
    """
    part = max(1, round(PART * len(calls)))
    groups = {
        f"first {PART:.0%} of the calls": spread(calls[:part], MOST_MOLECULES),
        f"last {PART:.0%}": spread(calls[-part:], MOST_MOLECULES),
        f"hits (score of at least {threshold:g})": spread(
            [c for c in calls if c.score >= threshold], MOST_MOLECULES
        ),
    }
    panels = {
        **property_values(groups),
        **raw_values(groups, raw or {}),
        **component_values(groups, names),
    }
    rows = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(WIDTH, 2.2 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axis, (name, values) in zip(axes, panels.items(), strict=False):
        edges = bin_edges([value for group in values.values() for value in group], name in COUNTED)
        for number, (group, own) in enumerate(values.items()):
            weights = np.full(len(own), 1 / max(1, len(own)))
            axis.hist(
                own,
                edges,
                weights=weights,
                histtype="step",
                color=(GREY, BLUE, VERMILLION)[number],
                linestyle=(":", "--", "-")[number],
                linewidth=1.4,
                label=group if own else f"{group}: none yet",
            )
        # A panel is this wide, and a longer label would be cut off at the figure's edge.
        axis.set_xlabel(textwrap.fill(name, _LABEL))
        if name in COUNTED:
            count_axis(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for row in range(rows):
        axes[row * _COLUMNS].set_ylabel("share of the molecules")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def property_values(groups: dict[str, list[Call]]) -> dict[str, dict[str, list[float]]]:
    """Compute properties: property -> group -> one value a molecule."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in PROPERTIES}
    for group, calls in groups.items():
        molecules = [(read_molecule(call.smiles), call.smiles) for call in calls]
        for name, component in PROPERTIES.items():
            found[name][group] = [component.value(m, text) for m, text in molecules]
    return found


def component_values(
    groups: dict[str, list[Call]], names: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Collect component scores; a molecule that another component ruled out has none."""
    return {
        f"score: {name.replace('_', ' ')} (0 to 1)": {
            group: [call.components[name] for call in calls if name in call.components]
            for group, calls in groups.items()
        }
        for name in names
    }


def raw_values(
    groups: dict[str, list[Call]], labels: Mapping[str, str]
) -> dict[str, dict[str, list[float]]]:
    """Collect properties before their transform; none from ledgers that do not hold them."""
    found = {
        label: {
            group: [call.raw[name] for call in calls if name in call.raw]
            for group, calls in groups.items()
        }
        for name, label in labels.items()
        if label.lower() not in {known.lower() for known in PROPERTIES}
    }
    return {label: parts for label, parts in found.items() if any(parts.values())}


def bin_edges(values: Sequence[float], is_count: bool) -> npt.NDArray[np.float64]:
    """Return bin edges: around whole numbers for counts, else those of 24 equal bins."""
    if is_count:
        return np.arange(min(values, default=0), max(values, default=0) + 2) - 0.5
    return np.histogram_bin_edges(np.asarray(values, dtype=float), bins=24)
