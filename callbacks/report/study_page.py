"""The report of a study, made from its `results.json` and its figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.report.figures_of import figure_blocks
from triptych.callbacks.report.page import Block, Cell, Column, Page, Row
from triptych.callbacks.report.run_page import REPORT, number

RESULTS = "results.json"
_SHOWN = {"claim", "preset", "device", "arms", "tests", "checks", "held", "seeds", "samples"}


def write_study_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a study, and return its path.

    Args:
        folder: Folder with `results.json`.

    Raises:
        FileNotFoundError: if there is no `results.json`.
    """
    path = folder / REPORT
    html = study_page(folder).html()
    with atomic_file(path) as partial:
        partial.write_text(html, encoding="utf-8")
    return path


def study_page(folder: Path) -> Page:
    """Collect what the folder of a study holds."""
    results: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    held = bool(results["held"])
    facts = {
        "preset": results["preset"],
        "device": results["device"],
        "seeds": ", ".join(map(str, results.get("seeds", []))),
        "arms": len(results["arms"]),
    }
    page = Page(
        title=str(results["claim"]),
        subtitle=f"study in {folder}",
        badge="every check held" if held else "not every check held",
        badge_kind="held" if held else "",
        facts=[(name, str(value)) for name, value in facts.items() if value not in ("", None)],
    )
    page.add("Checks", _checks(results["checks"]), "Bounds were fixed before the runs.")
    page.add("Figures", figure_blocks(folder))
    page.add(
        "Arms", _arms(results["arms"]), "Mean over seeds, with the 95% interval (Student's t)."
    )
    page.add("Tests", _tests(results["tests"]))
    page.add("Samples", _samples(results.get("samples", {})), "Of each arm's first seed.")
    more = {key: value for key, value in results.items() if key not in _SHOWN}
    if more:
        page.add("More numbers", [Block(code=json.dumps(more, indent=2))], folded=True)
    return page


def _checks(checks: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    rows = [
        Row(
            [
                Cell(name),
                Cell(number(check["value"]), "number"),
                Cell(number(check["bound"]), "number"),
                Cell("held" if check["held"] else "not held", "short"),
            ]
        )
        for name, check in checks.items()
    ]
    columns = [Column("check"), Column("value", True), Column("bound", True), Column("verdict")]
    return [Block(columns=columns, rows=rows)] if rows else []


def _arms(arms: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Block]:
    rows: list[Row] = []
    for arm, metrics in arms.items():
        rows.append(Row(group=arm))
        for name, entry in metrics.items():
            interval = entry["interval"]
            spread = "" if interval is None else " to ".join(number(end) for end in interval)
            cells = [Cell(name), Cell(number(entry["mean"]), "number"), Cell(spread, "number")]
            rows.append(Row(cells))
    columns = [Column("metric"), Column("mean", True), Column("interval", True)]
    return [Block(columns=columns, rows=rows)] if rows else []


def _tests(tests: list[Mapping[str, Any]]) -> list[Block]:
    rows = [
        Row(
            [
                Cell(test["name"]),
                Cell("not defined" if test["p"] is None else f"{test['p']:.2g}", "number"),
            ]
        )
        for test in tests
    ]
    return [Block(columns=[Column("test"), Column("p", True)], rows=rows)] if rows else []


def _samples(samples: Mapping[str, Mapping[str, list[str]]]) -> list[Block]:
    """Make a table of replies, prompt by prompt: arm -> prompt -> replies."""
    rows: list[Row] = []
    prompts = dict.fromkeys(prompt for of_arm in samples.values() for prompt in of_arm)
    for prompt in prompts:
        rows.append(Row(group=prompt))
        for arm, of_arm in samples.items():
            rows.append(Row([Cell(arm), Cell(" / ".join(of_arm.get(prompt, [])))]))
    return [Block(columns=[Column("arm"), Column("replies")], rows=rows)] if rows else []
