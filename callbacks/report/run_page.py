"""The report of a run, made from the files in its directory."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.report.figures_of import CAPTIONS, figure_blocks
from triptych.callbacks.report.molecule_svg import is_smiles_column, molecule_uri
from triptych.callbacks.report.page import (
    Block,
    Cell,
    Column,
    Molecule,
    Page,
    Row,
    data_uri,
    image_uri,
)
from triptych.callbacks.run.learning_curves import (
    TRAINING,
    Curve,
    chosen_panels,
    draw_curves,
    read_curves,
)
from triptych.metrics.display.figure_style import run_stamp, stamp
from triptych.metrics.display.metric_names import (
    has_name,
    importance,
    quantity_of,
    set_name,
)

REPORT = "report.html"
#: More rows or molecules would make the page long and large.
MOST_SAMPLES, MOST_MOLECULES, MOST_HITS = 24, 12, 15
MOST_CHARACTERS = 600
FIRST_FIGURE = "learning_curves"

#: Places of log keys -> headline in the table of results.
_GROUPS = {
    "val": "validation",
    "test": "test",
    "search": "search",
    "forgetting": "learning and forgetting",
    "train": "training, last value",
}
_CHANGE_MARK = "_change"


def write_run_report(run_dir: Path) -> Path:
    """Write ``report.html`` into the directory of a run, and return its path.

    Args:
        run_dir: The directory; every file in it may be missing but one of `summary.json`,
            `metrics.csv` and `config.yaml`.

    Raises:
        FileNotFoundError: if the folder holds none of them.
    """
    path = run_dir / REPORT
    html = run_page(run_dir).html()
    with atomic_file(path) as partial:
        partial.write_text(html, encoding="utf-8")
    return path


def run_page(run_dir: Path) -> Page:
    """Collect what the directory of a run holds.

    Raises:
        FileNotFoundError: if the folder is no run.
    """
    known = ("summary.json", "metrics.csv", "config.yaml")
    if not any((run_dir / name).is_file() for name in known):
        raise FileNotFoundError(
            f"{run_dir} holds no run ({', '.join(known)}) and no study (results.json). Give the "
            "folder that a run printed at its end, such as runs/quickstart/20261130-091500-seed42"
        )
    summary: dict[str, Any] = {}
    if (run_dir / "summary.json").is_file():
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    metrics = run_dir / "metrics.csv"
    curves = read_curves(metrics) if metrics.is_file() else {}
    page = _head(run_dir, summary)
    last = {key: curve[1][-1] for key, curve in curves.items()} | (summary.get("metrics") or {})
    shown = results(last)
    page.add("Results", results_blocks(curves, {key: last[key] for key in shown}))
    page.add("Learning curves", _curve_blocks(run_dir, curves))
    hits = hit_blocks(run_dir / "hits.csv")
    page.add("Best molecules", hits, note="All hits are in hits.csv.")
    drawn = {FIRST_FIGURE, "best_molecules"} if hits else {FIRST_FIGURE}
    page.add("Figures", figure_blocks(run_dir / "figures", without=drawn))
    page.add("Samples", sample_blocks(run_dir / "samples"))
    page.add("Go on from here", next_steps(run_dir))
    rest = [Row([Cell(key), Cell(number(last[key]), "number")]) for key in sorted(last)]
    columns = [Column("log key"), Column("last", number=True)]
    all_numbers = [Block(columns=columns, rows=rest)] if len(rest) > len(shown) else []
    page.add("All numbers by log key", all_numbers, folded=True)
    config = run_dir / "config.yaml"
    if config.is_file():
        page.add("Configuration", [Block(code=config.read_text(encoding="utf-8"))], folded=True)
    return page


def _head(run_dir: Path, summary: Mapping[str, Any]) -> Page:
    status = str(summary.get("status", "not finished"))
    seconds = summary.get("wall_seconds")
    facts = {
        "experiment": summary.get("experiment"),
        "optimizer steps": f"{summary['steps']:,}" if "steps" in summary else None,
        "time": None if seconds is None else duration(float(seconds)),
        "ended": ended(run_dir / "summary.json"),
        "device": summary.get("device"),
        "processes": summary["processes"] if summary.get("processes", 1) > 1 else None,
        "seed": summary.get("seed"),
        "code version": summary.get("code_version"),
    }
    return Page(
        title=str(summary.get("run_name") or run_dir.resolve().name),
        subtitle=str(run_dir),
        badge=status,
        badge_kind=status if status in ("finished", "interrupted", "failed") else "",
        facts=[(name, str(value)) for name, value in facts.items() if value is not None],
    )


def ended(summary: Path) -> str | None:
    """Return when a run wrote its summary; None if it has not."""
    if not summary.is_file():
        return None
    return datetime.fromtimestamp(summary.stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def _curve_blocks(run_dir: Path, curves: Mapping[str, Curve]) -> list[Block]:
    """Return the figure of the learning curves; it is drawn if the run has left none."""
    caption = CAPTIONS[FIRST_FIGURE]
    path = run_dir / "figures" / f"{FIRST_FIGURE}.png"
    if path.is_file():
        return [Block(title=caption, image=data_uri(path))]
    groups = chosen_panels(curves)
    if not groups:
        return []
    figure = stamp(draw_curves(curves, groups), run_stamp(run_dir))
    with BytesIO() as file:
        figure.savefig(file, dpi=110, format="png")
        return [Block(title=caption, image=image_uri(file.getvalue(), "image/png"))]


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> duration(117.5), duration(4000)
    ('1 min 58 s', '1 h 6 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: float | None) -> str:
    """Return a number with four significant digits; a value that was not finite in words."""
    if value is None or value != value or abs(value) == float("inf"):
        return "not finite"
    is_whole = value == round(value) or abs(value) >= 1000
    if is_whole and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:,.4g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def change(value: float) -> str:
    """Return a difference with its sign.

    >>> change(0.93706), change(-11372.6), change(0.0)
    ('+0.937', '-11,373', '0')
    """
    if value == 0:
        return "0"
    return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def results(last: Mapping[str, float | None]) -> list[str]:
    """Choose the log keys of the table of results, the most important ones first.

    Args:
        last: Last value by log key.
    """
    kept = []
    for key in sorted(last, key=lambda key: (importance(key), key)):
        place, name = key.partition("/")[0], key.rpartition("/")[2]
        if place == "train":
            is_result = name in TRAINING
        elif place in ("val", "test"):
            is_result = True
        else:
            is_result = place in _GROUPS and has_name(key)
        if is_result and not name.endswith(_CHANGE_MARK):
            kept.append(key)
    return kept


def results_blocks(curves: Mapping[str, Curve], last: Mapping[str, float | None]) -> list[Block]:
    """Return the table of results: first value, last value and change.

    Args:
        curves: Curves by log key.
        last: Last value of each log key to show, in order.
    """
    starts = {key: curves[key][0][0] for key in last if len(curves.get(key, ((),))[0]) > 1}
    names = ("first", "last", "change") if starts else ("last",)
    rows: list[Row] = []
    for group, own in _grouped(last).items():
        rows.append(Row(group=group))
        rows += [_result_row(key, curves.get(key), last[key], bool(starts)) for key in own]
    columns = [Column(""), *(Column(name, number=True) for name in names)]
    blocks = [Block(columns=columns, rows=rows)] if rows else []
    judged = [step for key, step in starts.items() if not key.startswith("train/")]
    if judged:
        begin = "before training" if min(judged) == 0 else f"after {min(judged):,} steps"
        blocks.append(Block(text=f"The first validation was {begin}."))
    return blocks


def _grouped(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group log keys by place and data set, in the order of places; keep their order within."""
    groups: dict[str, list[str]] = {}
    ordered = sorted(keys, key=lambda key: list(_GROUPS).index(key.partition("/")[0]))
    for key in ordered:
        group, name = _GROUPS[key.partition("/")[0]], set_name(key)
        groups.setdefault(f"{group}: {name}" if name else group, []).append(key)
    return groups


def _result_row(key: str, curve: Curve | None, last: float | None, has_first: bool) -> Row:
    cells = [Cell(quantity_of(key).label, hint=key)]  # the group's headline names place and set
    if has_first:
        first = curve[1][0] if curve is not None and len(curve[1]) > 1 else None
        cells.append(Cell("" if first is None else number(first), "number"))
        cells.append(Cell(number(last), "number"))
        moved = "" if first is None or last is None else change(last - first)
        cells.append(Cell(moved, "number"))
        return Row(cells)
    return Row([*cells, Cell(number(last), "number")])


def hit_blocks(path: Path) -> list[Block]:
    """Draw the first molecules of a `hits.csv` with score and call."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(MOST_HITS), strict=False)]
    drawn = [
        Molecule(uri, row["smiles"], hit_caption(row))
        for row in rows
        if (uri := molecule_uri(row["smiles"])) is not None
    ]
    return [Block(molecules=drawn)] if drawn else []


def hit_caption(row: Mapping[str, str]) -> str:
    """Return score and call of a hit, and the first properties before their transforms."""
    raw = [
        f"{key.removesuffix('_raw').replace('_', ' ')} {float(value):.4g}"
        for key, value in row.items()
        if key.endswith("_raw") and value
    ]
    call = f"call {row['oracle_call']}"
    return ", ".join([f"score {float(row['score']):.3f}", *raw[:2], call])


def sample_blocks(folder: Path) -> list[Block]:
    """Return the samples of the last validation as tables, one for each data set."""
    files = sorted(folder.glob("step_*.json"), key=lambda path: int(path.stem.split("_")[1]))
    if not files:
        return []
    rows: list[dict[str, Any]] = json.loads(files[-1].read_text(encoding="utf-8"))
    step = int(files[-1].stem.split("_")[1])
    sets: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        sets.setdefault(str(row.get("set", "")), []).append(row)
    most = max(4, MOST_SAMPLES // max(1, len(sets)))
    return [block for name, own in sets.items() if (block := _sample_table(name, own, most, step))]


def _sample_table(
    name: str, rows: Sequence[Mapping[str, Any]], most: int, step: int
) -> Block | None:
    found = dict.fromkeys(key for row in rows for key in row if key != "set")
    values = {key: [row.get(key) for row in rows] for key in found}
    names = [key for key in found if any(value not in (None, "") for value in values[key])]
    if not names:
        return None
    drawn = {key for key in names if is_smiles_column(key, values[key])}
    shown = rows[: MOST_MOLECULES if drawn else most]
    numeric = {
        key
        for key in names
        if all(isinstance(v, int | float | None) and not isinstance(v, bool) for v in values[key])
    }
    columns = [Column(key.replace("_", " "), key in numeric) for key in names]
    title = f"{name.replace('_', ' ')}: " if name else ""
    return Block(
        title=f"{title}{len(shown)} of {len(rows)} after {step:,} steps",
        columns=columns,
        rows=[
            Row([_sample_cell(row.get(key), key in drawn, key in numeric) for key in names])
            for row in shown
        ],
    )


def _sample_cell(value: Any, is_molecule: bool, is_number: bool) -> Cell:
    if value is None:
        return Cell("")
    if isinstance(value, bool):
        return Cell("yes" if value else "no", "short")
    if is_number:
        return Cell(number(float(value)), "number")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if is_molecule and (uri := molecule_uri(text)) is not None:
        return Cell(text, image=uri, hint=text)
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS] + " ..."
    return Cell(text)


def next_steps(run_dir: Path) -> list[Block]:
    """Return the commands that go on with a run, ask its model, load it, or repeat it."""
    blocks = []
    config, last = run_dir / "config.yaml", run_dir / "checkpoints" / "last.ckpt"
    export = run_dir / "export"
    fit = f"python train.py fit --config {config}"
    if config.is_file() and last.exists():  # a folder, if it is in shards
        command = f"{fit} --run_dir {run_dir} --ckpt_path {last}"
        blocks.append(Block(title="Continue from the last checkpoint", code=command))
    model = _model_class(config)
    if (export / "tokenizer.json").is_file() and ".remember." in model:
        ask = f'python train.py ask {export} "your question"'
        blocks.append(Block(title="Ask the model", code=ask))
        load = (
            "from transformers import AutoTokenizer\n"
            "from triptych.models.remember.memory_lm import load_memory_lm\n\n"
            f'model = load_memory_lm("{export}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{export}")'
        )
        blocks.append(Block(title="Load it in Python", code=load))
    if export.is_dir():
        start = "python train.py fit --config YOUR.yaml --model.init_args.init_from " + str(export)
        blocks.append(Block(title="Start another experiment from it", code=start))
    if config.is_file():
        blocks.append(Block(title="Run it again", code=fit))
    return blocks


def _model_class(config: Path) -> str:
    if not config.is_file():
        return ""
    content = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    return str((content.get("model") or {}).get("class_path", ""))
