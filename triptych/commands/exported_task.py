"""The task of exported agents, built again from the settings in their folder."""

from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from triptych.callbacks.run.save_config import CONFIG_FILE
from triptych.datamodules.commune.debate_task import DebateTask
from triptych.models.trusted_code import refuse_foreign_code
from triptych.short_names import full_class_path

# What marks the settings of a `RecordSource`.
_SOURCE = {"path", "split", "columns"}


def exported_settings(folder: Path) -> dict[str, Any]:
    """Read the settings with which an export was trained: its own, or those of its run's directory.

    Raises:
        ValueError: if the folder has none, or they cannot be read.
    """
    path = folder / CONFIG_FILE
    if not path.is_file() and folder.name == "export":  # an export of 0.1, in its run's directory
        path = folder.parent / CONFIG_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {CONFIG_FILE}, which says how its agents were asked: copy the "
            f"{CONFIG_FILE} of its run into the folder"
        )
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} has no settings")
    return settings


def task_settings(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return class path and arguments of the task, both as they are today.

    Args:
        folder: The export, for messages.
        settings: Its settings.

    Raises:
        ValueError: if the settings name no task.
    """
    task = ((settings.get("data") or {}).get("init_args") or {}).get("task")
    if not isinstance(task, dict) or not isinstance(task.get("class_path"), str):
        raise ValueError(f"{folder / CONFIG_FILE} names no task (data.init_args.task)")
    made: dict[str, Any] = _with_full_paths(task)
    return {"class_path": made["class_path"], "init_args": made.get("init_args") or {}}


def build_task(folder: Path, task: dict[str, Any]) -> DebateTask:
    """Build the task of an export.

    Its settings come with the export, which may be anybody's: only tasks of Triptych are built, and
    those of modules that `TRIPTYCH_TRUSTED_MODULES` names.

    Args:
        folder: The export, for messages.
        task: What `task_settings` returned, changed or not.

    Raises:
        ValueError: if the task is not trusted, or does not take the settings.
    """
    path = folder / CONFIG_FILE
    for class_path in _class_paths(task):
        refuse_foreign_code(class_path, f"in {path}, the class", "triptych.datamodules")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=DebateTask)
    try:
        parsed = parser.parse_object({"task": task})
    except ArgumentError as error:
        raise ValueError(f"the task in {path} cannot be built: {error}") from error
    made: DebateTask = parser.instantiate(parsed).task
    return made


def _with_full_paths(node: Any) -> Any:
    """Replace short and former class paths, which a user's own module could take."""
    if isinstance(node, list):
        return [_with_full_paths(one) for one in node]
    if not isinstance(node, dict):
        return node
    return {
        name: full_class_path(value)
        if name == "class_path" and isinstance(value, str)
        else _with_full_paths(value)
        for name, value in node.items()
    }


def _class_paths(node: Any) -> Iterator[str]:
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        if name == "class_path":
            yield str(value)
        elif isinstance(value, dict | list):
            yield from _class_paths(value)


def with_source(node: Any, source: str) -> Any:
    """Replace every source of rows in settings by a file; the former ones are not read."""
    if isinstance(node, list):
        return [with_source(one, source) for one in node]
    if not isinstance(node, dict):
        return node
    if node.keys() >= _SOURCE:
        return {"path": source}
    return {name: with_source(value, source) for name, value in node.items()}
