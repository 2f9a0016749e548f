"""The style of every figure: colours that colour-blind readers tell apart, and one font size.

Decorate a function that draws with `styled`. It applies `STYLE` while the figure is drawn, and it
leaves matplotlib's settings as they were. Figures are `matplotlib.figure.Figure` objects, so pyplot
and its backend are never touched.
"""

from collections.abc import Callable
from datetime import date
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib import rcsetup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Drawn = ParamSpec("Drawn")

#: Okabe and Ito's palette without its yellow, which is too pale for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLORS
#: Series of a figure differ in marker and line style too, for print without colour.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
#: For what is not a series: references, totals, the rest.
GREY, PALE = "0.45", "0.8"
#: Inches. A wider figure is scaled down on a page, and its text with it.
WIDTH = 9.0
TEXT, SMALL = 9.0, 8.0

STYLE: Any = {
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "figure.titlesize": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": rcsetup.cycler(color=COLORS),
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "axes.formatter.useoffset": False,
}


def styled(draw: Callable[Drawn, Figure]) -> Callable[Drawn, Figure]:
    """Apply `STYLE` to the figure that a function draws, and to nothing else.

    Args:
        draw: Function that returns a new figure.
    """

    @wraps(draw)
    def with_style(*args: Drawn.args, **kwargs: Drawn.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        for axis in figure.axes:  # ticks are made when the figure is written, outside of the style
            axis.tick_params(labelsize=SMALL)
        return figure

    return with_style


def series(place: int) -> dict[str, Any]:
    """Return colour, marker and line style of the series with a number, counted from 0."""
    return {
        "color": COLORS[place % len(COLORS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
    }


def count_axis(axis: Axes, which: str = "x", most: int = 6) -> None:
    """Put ticks of an axis at whole numbers, with thousands separators.

    Args:
        axis: Axes of the figure.
        which: "x" or "y".
        most: Largest number of intervals.
    """
    one = axis.xaxis if which == "x" else axis.yaxis
    one.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def share_axis(axis: Axes, which: str = "y") -> None:
    """Let an axis run from 0 to 1, with a margin for markers."""
    (axis.set_ylim if which == "y" else axis.set_xlim)(-0.03, 1.03)


def without_minus_zero(value: float, digits: int = 2) -> str:
    """Format a number with fixed digits; what rounds to zero has no minus sign.

    >>> without_minus_zero(-0.001)
    '0.00'
    """
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def better_arrow(axis: Axes, where: str = "up") -> None:
    """Write "better" with an arrow beside the y axis ("up", "down") or below the top ("right")."""
    text, place, turned = {
        "up": ("better \N{RIGHTWARDS ARROW}", (0.01, 0.99), 90),
        "down": ("\N{LEFTWARDS ARROW} better", (0.01, 0.99), 90),
        "right": ("better \N{RIGHTWARDS ARROW}", (0.99, 0.01), 0),
    }[where]
    axis.text(
        *place,
        text,
        transform=axis.transAxes,
        rotation=turned,
        color=GREY,
        fontsize=SMALL,
        ha="left" if turned else "right",
        va="top" if turned else "bottom",
    )


def stamp(figure: Figure, text: str) -> Figure:
    """Write a note, such as the name of the run, into the lower right corner; return the figure."""
    figure.supxlabel(text, x=0.995, ha="right", fontsize=7, color=GREY)
    return figure


def run_stamp(run_dir: Path) -> str:
    """Return name and date of a run for the corner of its figures.

    The name is the folder below `runs/`; the date is today's unless the name begins with one.

    >>> run_stamp(Path("runs/quickstart/20261130-091500-seed42"))
    'quickstart/20261130-091500-seed42'
    """
    parts = run_dir.resolve().parts
    below = parts[parts.index("runs") + 1 :] if "runs" in parts[:-1] else parts[-1:]
    name = "/".join(below)
    dated = below[-1][:8].isdigit()
    return name if dated else f"{name}, {date.today().isoformat()}"
