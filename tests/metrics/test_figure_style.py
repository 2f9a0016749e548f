"""The style of figures: it reaches the figure, and nothing else."""

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import (
    COLORS,
    LINES,
    MARKERS,
    SMALL,
    TEXT,
    count_axis,
    run_stamp,
    series,
    stamp,
    styled,
)


@styled
def drawn() -> Figure:
    figure = Figure(layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1500], [0, 1], **series(1))
    axis.set_title("title")
    count_axis(axis)
    return figure


def test_the_style_reaches_the_figure_and_nothing_else(tmp_path):
    before = dict(matplotlib.rcParams)
    pyplot = "matplotlib.pyplot" in sys.modules
    figure = stamp(drawn(), "runs/mine")
    figure.savefig(tmp_path / "figure.png")
    (axis,) = figure.axes
    assert axis.lines[0].get_color() == COLORS[1]
    assert (axis.lines[0].get_marker(), axis.lines[0].get_linestyle()) == (MARKERS[1], LINES[1])
    assert axis.title.get_fontsize() == TEXT
    assert {label.get_fontsize() for label in axis.get_xticklabels()} == {SMALL}
    assert "1,200" in [label.get_text() for label in axis.get_xticklabels()]
    assert not axis.spines["top"].get_visible()
    assert figure.get_supxlabel() == "runs/mine"
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def test_series_differ_without_colour():
    looks = {(style["marker"], style["linestyle"]) for style in map(series, range(len(COLORS)))}
    assert len(looks) == len(COLORS) == len(set(COLORS))


def test_the_corner_names_the_run_and_a_date():
    assert run_stamp(Path("runs/a/20261130-091500-seed1")) == "a/20261130-091500-seed1"
    name, date = run_stamp(Path("runs/studies/one_or_two")).split(", ")
    assert (name, date[4], len(date)) == ("studies/one_or_two", "-", 10)
