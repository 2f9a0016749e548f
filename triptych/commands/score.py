"""``python train.py score FILE --config search.yaml --output scores.csv``: a file of molecules."""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track
from rich.table import Table

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.command_line.config_paths import importable_beside_configs
from triptych.callbacks.command_line.packaged_configs import shipped
from triptych.callbacks.run.save_config import CONFIG_FILE
from triptych.commands.options import CommandParser, positive_int
from triptych.commands.training_molecules import molecules_of_file
from triptych.models.diversify.rollout import only_texts
from triptych.objectives.rewards.base import Scores
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.oracle_reward import OracleReward

EPILOG = """--config: the configuration of a search, whose reward scores here as it does there; a
  run's directory; or a YAML with `objective:` alone, as in a search's reward.

--output: a .csv with the columns smiles (as in FILE), canonical, score, each component (empty where
  it was not computed), and error. A string that is no molecule has no score.

--ledger: the ledger of a search with the same objective (oracle.sqlite). Molecules in it cost
  nothing, and others are added to it. Without it all are scored, and nothing is kept but --output.

examples:
  python train.py score molecules.smi --config configs/diversify/molecules.yaml --output scores.csv
  python train.py score own.csv --config search.yaml --stage 1 --output scores.csv
"""
_AT_ONCE = 256
_MOST_SHOWN = 5


def run_score_command(words: Sequence[str]) -> Path:
    """Score the molecules of a file into a table.

    Args:
        words: The command line after ``score``.

    Raises:
        argparse.ArgumentError: for an option that does not exist.
        OSError: if a file is missing.
        ValueError: if the configuration has no objective, or the output exists.

    Returns:
        The table.
    """
    parser = CommandParser("score", description="Score a file of molecules.", epilog=EPILOG)
    parser.add_argument(
        "molecules", metavar="FILE", help="molecules: .smi .csv .jsonl .parquet .txt, .gz too"
    )
    parser.add_argument("--config", metavar="YAML", required=True, help="what scores, see below")
    parser.add_argument("--output", metavar="CSV", required=True, help="new .csv")
    parser.add_argument("--column", default="smiles", help="field of SMILES; by default smiles")
    parser.add_argument("--stage", type=positive_int, help="of a staged search; default: the last")
    parser.add_argument("--ledger", metavar="FILE", help="scores of a search to use and add to")
    parser.add_argument("--num_workers", type=int, help="processes; by default as in --config")
    parser.add_argument("--overwrite", action="store_true", help="replace --output")
    options = parser.read(words)
    output = Path(options.output)
    if output.suffix != ".csv":
        raise ValueError(f"--output {output}: scores are written as .csv")
    if output.exists() and not options.overwrite:
        raise ValueError(f"--output {output} exists already: choose another name, or --overwrite")
    texts = molecules_of_file(options.molecules, options.column)
    with _reward(options, len(texts)) as reward:
        rows = list(_scored(reward, texts))
    names = reward.objective.names
    with atomic_file(output) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["smiles", "canonical", "score", *names, "error"])
        writer.writeheader()
        writer.writerows(rows)
    _print_table(rows, names, output)
    return output


@contextmanager
def _reward(options: Any, count: int) -> Iterator[OracleReward]:
    """Build the reward of the settings, with a call for each molecule."""
    path = Path(shipped(options.config))
    path = path / CONFIG_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: there is no such file")
    settings = reward_settings(path, options.stage)
    settings["init_args"] |= {"ledger": options.ledger}
    if options.num_workers is not None:
        settings["init_args"]["num_workers"] = options.num_workers
    words = ["--config", str(path)]
    with importable_beside_configs(words):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--reward", type=OracleReward)
        try:
            parsed: Namespace = parser.parse_object({"reward": settings})
        except ArgumentError as error:
            raise ValueError(f"the reward in {path} cannot be built: {error}") from error
        reward: OracleReward = parser.instantiate(parsed).reward
        reward.budget = count + (reward.num_calls if options.ledger is not None else 0)
        try:
            yield reward
        finally:
            reward.close()


def reward_settings(path: Path, stage: int | None = None) -> dict[str, Any]:
    """Read what scores molecules from a configuration.

    Args:
        path: The configuration of a search, or a YAML with `objective`.
        stage: Number of a stage of a staged search, from 1; None: the last.

    Returns:
        Class path and arguments of an `OracleReward`.

    Raises:
        ValueError: if it has none, or no such stage.
    """
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = settings if isinstance(settings, Mapping) else {}
    own = f"{OracleReward.__module__}.{OracleReward.__name__}"
    if "objective" in settings:
        objective = settings["objective"]
        if isinstance(objective, Mapping) and "class_path" not in objective:
            kind = f"{MoleculeObjective.__module__}.{MoleculeObjective.__name__}"
            objective = {"class_path": kind, "init_args": dict(objective)}
        return {"class_path": own, "init_args": {"objective": objective, "budget": 1}}
    model = (settings.get("model") or {}).get("init_args") or {}
    stages = model.get("stages") or []
    if stage is not None and not stage <= len(stages):
        raise ValueError(f"--stage {stage}: {path} has {len(stages)} stages")
    reward = stages[(stage or 0) - 1].get("reward") if stages else model.get("reward")
    if not isinstance(reward, Mapping) or "objective" not in (reward.get("init_args") or {}):
        raise ValueError(
            f"{path} has no objective: give the configuration of a search of molecules "
            "(model.init_args.reward is an OracleReward), or a YAML with `objective:`"
        )
    return {"class_path": reward["class_path"], "init_args": dict(reward["init_args"])}


def _scored(reward: OracleReward, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    console = Console(stderr=True)
    starts = range(0, len(texts), _AT_ONCE)
    for start in track(starts, "scoring", console=console, disable=not console.is_terminal):
        part = texts[start : start + _AT_ONCE]
        scores = reward(only_texts(part))
        canonical = [reward.canonical(text) for text in part]
        calls = reward.ledger.look_up([text for text in canonical if text is not None])
        for row, text in enumerate(part):
            call = calls.get(canonical[row] or "")
            error = scores.errors.get(row) or (call.error if call is not None else None)
            yield _row(text, canonical[row], row, scores, error, reward.objective.names)


def _row(
    text: str,
    canonical: str | None,
    row: int,
    scores: Scores,
    error: str | None,
    names: Sequence[str],
) -> dict[str, Any]:
    if canonical is None:
        return {"smiles": text, "error": "no molecule"}
    columns = {"score": scores.reward_B, **{name: scores.components[name] for name in names}}
    numbers = {name: float(column[row]) for name, column in columns.items()}
    written = {name: f"{number:.6g}" for name, number in numbers.items() if number == number}
    return {"smiles": text, "canonical": canonical, **written, "error": error or ""}


def _print_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str], output: Path) -> None:
    valid = [row for row in rows if "canonical" in row]
    scored = [row for row in valid if "score" in row and not row["error"]]
    table = Table(title=f"{len(rows):,} molecules in {output}", title_justify="left")
    table.add_column()
    for name in ("score", *names):
        table.add_column(name, justify="right")
    for name in ("mean", "largest"):
        numbers = [_summary(scored, column, name) for column in ("score", *names)]
        table.add_row(name, *numbers)
    table.add_section()
    for row in sorted(scored, key=lambda row: -float(row["score"]))[:_MOST_SHOWN]:
        table.add_row(row["canonical"], *(str(row.get(name, "")) for name in ("score", *names)))
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    console.print(table)
    console.print(
        f"{len(scored):,} scored, {len(rows) - len(valid):,} no molecules, "
        f"{len(valid) - len(scored):,} failed (see the column error)"
    )


def _summary(rows: Sequence[Mapping[str, Any]], column: str, how: str) -> str:
    numbers = [float(row[column]) for row in rows if column in row]
    if not numbers:
        return ""
    return f"{sum(numbers) / len(numbers) if how == 'mean' else max(numbers):.4g}"
