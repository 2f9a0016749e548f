"""How many processes a command starts, checked before a stage of it trains.

Lightning compares its settings with the launcher's only once training starts, and only for
distributed strategies. A part that cannot work on several processes says so by a class attribute
`one_process`, the reason in words: "keeps one memory".
"""

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

_ALL = ("auto", "-1", -1)


def refuse_processes(options: Namespace) -> None:
    """Check the number of processes against the launcher and against every part.

    Args:
        options: Parsed options of a run.

    Raises:
        ValueError: if torchrun or SLURM started another number of processes than the trainer's
            settings name, or a part works on one process alone and there are several.
    """
    trainer = options.get("trainer") or Namespace()
    planned = planned_processes(trainer)
    launcher = _launched()
    if launcher is not None and planned is not None and launcher[1] != planned:
        name, launched = launcher
        raise ValueError(
            f"{name} started {_count(launched)}, but trainer.devices={trainer.get('devices')} with "
            f"trainer.num_nodes={trainer.get('num_nodes') or 1} plans {_count(planned)}: add "
            "--config configs/hardware/ddp.yaml (one machine), multi_node_torchrun.yaml or "
            "multi_node_slurm.yaml in the same folder, or set both to what was started"
        )
    if planned is None or planned == 1:
        return
    for place, class_path in _parts(options, ""):
        reason = getattr(_class(class_path), "one_process", None)
        if isinstance(reason, str):
            raise ValueError(
                f"{place}: {class_path.rpartition('.')[2]} {reason}, but there are {planned} "
                f"processes: set {place} to null, or trainer.devices to 1"
            )


def planned_processes(trainer: Namespace) -> int | None:
    """Count the processes of a trainer's settings; None if only the accelerator knows."""
    devices = num_devices(trainer.get("devices"))
    if devices is None:
        devices = _available(trainer.get("accelerator") or "auto")
    return None if devices is None else devices * int(trainer.get("num_nodes") or 1)


def num_devices(devices: Any) -> int | None:
    """Count the devices that `trainer.devices` names; None: all that there are.

    >>> [num_devices(devices) for devices in (2, "2", [3], "0,1", "3,", "auto")]
    [2, 2, 1, 2, 1, None]
    """
    if devices is None or devices in _ALL:
        return None
    chosen = chosen_devices(devices)
    return int(devices) if chosen is None else len(chosen)


def chosen_devices(devices: Any) -> list[int] | None:
    """Return the indices in `trainer.devices`; None if it is a number of devices.

    >>> [chosen_devices(devices) for devices in (2, "2", [3], "0,1", "3,", "auto")]
    [None, None, [3], [0, 1], [3], None]
    """
    if isinstance(devices, list | tuple):
        return None if list(devices) == [-1] else [int(index) for index in devices]
    if isinstance(devices, str) and "," in devices:
        return [int(index) for index in devices.split(",") if index.strip()]
    return None


def _available(accelerator: str) -> int | None:
    """Count the devices of an accelerator that Lightning would take."""
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.cuda.device_count()
    if accelerator == "cpu":
        return 1
    return None


def _launched() -> tuple[str, int] | None:
    """Return the launcher's name and its number of processes; None if Lightning starts them."""
    if TorchElasticEnvironment.detect():
        return "torchrun", TorchElasticEnvironment().world_size()
    if SLURMEnvironment.detect():
        return "SLURM", SLURMEnvironment().world_size()
    return None


def _count(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _parts(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Find all classes that options name, each with its place, such as `model.init_args.replay`."""
    if isinstance(node, Namespace):
        node = vars(node)
    if isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            yield place, node["class_path"]
        for key, child in node.items():
            yield from _parts(child, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from _parts(child, f"{place}[{number}]")


def _class(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name, None) if module else None
