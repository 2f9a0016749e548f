"""Molecules of a file, and those that an exported prior was trained on."""

import sys
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from triptych import ROOT
from triptych.callbacks.run.save_config import CONFIG_FILE
from triptych.datamodules.diversify.molecules.smiles import Smiles, SmilesConfig, SmilesPart
from triptych.datamodules.sources.record_files import BadRowError, file_rows
from triptych.models.disk_cache import default_cache_dir
from triptych.short_names import full_class_path

# A search starts from a prior, and another search from that: so far back the prior is looked for.
_MOST_STARTS = 20


def molecules_of_file(path: str | Path, column: str) -> list[str]:
    """Read the molecules of a file as they are written there.

    Args:
        path: A .smi (SMILES, then a name), .csv, .jsonl, .parquet, or a .txt of one a line.
        column: Name of the field in files with fields.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a row has no such field, or there is no row.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}: name a file of molecules")
    found = []
    for row in file_rows(Path(path), txt_lines=column):
        if isinstance(row, BadRowError):
            raise row
        text = row.values.get(column, row.values.get("smiles"))
        if not isinstance(text, str):
            fields = ", ".join(row.values)
            raise ValueError(f"{row.place}: no field {column!r} with SMILES; there are {fields}")
        found.append(text)
    if not found:
        raise ValueError(f"{path} has no rows: give a file with at least one molecule")
    return found


def training_molecules(folder: Path) -> frozenset[str] | None:
    """Find the canonical SMILES that an exported model was trained on.

    A search says in its settings from which prior it started, and the prior which data it had.

    Args:
        folder: Export of a prior or a search.

    Returns:
        The molecules; None, with a line on standard error, if they are not known or gone.
    """
    try:
        return _training_molecules(folder)
    except (OSError, ValueError, ArgumentError, yaml.YAMLError) as error:
        print(f"the training molecules of {folder} are not known: {error}", file=sys.stderr)
        return None


def _training_molecules(folder: Path) -> frozenset[str]:
    place = _settings_of(folder)
    for _ in range(_MOST_STARTS):
        settings = _read(place)
        data, model = (settings.get(name) or {} for name in ("data", "model"))
        if full_class_path(str(data.get("class_path"))) == f"{Smiles.__module__}.{Smiles.__name__}":
            return _molecules_of(data.get("init_args") or {}, place.parent)
        start = (model.get("init_args") or {}).get("init_from")
        if not isinstance(start, str):
            break
        place = _start(start)
    raise ValueError(f"{place} names neither molecules nor a prior")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} has no settings")
    return settings


def _settings_of(folder: Path) -> Path:
    """Return the settings in an export, or of an export of 0.1, those in its run's directory."""
    own, of_run = folder / CONFIG_FILE, folder.parent / CONFIG_FILE
    is_old = not own.is_file() and folder.name == "export" and of_run.is_file()
    return of_run if is_old else own


def _start(start: str) -> Path:
    """Return the settings of what `init_from` names: a folder, or a configuration."""
    if not start.endswith((".yaml", ".yml")):
        return _settings_of(Path(start))
    return Path(start) if Path(start).is_file() else ROOT / start


def _molecules_of(init_args: dict[str, Any], export: Path) -> frozenset[str]:
    smiles = dict(init_args.get("smiles") or {})
    if (export / "tokenizer.json").is_file():  # it decided what was left out as not spelled
        smiles["tokenizer"] = str(export)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--smiles", type=SmilesConfig, default=SmilesConfig())
    parsed = parser.parse_object({"smiles": smiles})
    config: SmilesConfig = parser.instantiate(parsed).smiles
    cache = init_args.get("cache_dir")
    cache_dir = Path(cache) if cache else default_cache_dir()
    part = SmilesPart(config, init_args.get("data_dir"), cache_dir)
    return frozenset(part.splits["train"])
