"""Which card does an experiment need?

``python -m benchmarks.memory_budget configs/remember/pretrain_1b.yaml [--gpus 8 --sharded]``

Weights, gradients and optimizer states follow from the settings. Activations are counted by torch's
own bookkeeping on fake tensors at real size, one decoder block at a time; those of a memory layer
on real tensors of its widths. Rows are taken at their longest. A configuration names its card in
its first comment ("One GPU of 80 GB"); the command fails if the peak is above it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from triptych import ROOT
from triptych.benchmarks.memory_budget.budget import GIB, Budget
from triptych.benchmarks.memory_budget.composed import composed_settings, named_card
from triptych.benchmarks.memory_budget.experiments import BUDGETS
from triptych.benchmarks.report import wide_console

#: The shipped experiments for real GPUs.
CONFIGS = (
    "configs/remember/pretrain_1b.yaml",
    "configs/remember/retrofit_qwen3.yaml",
    "configs/diversify/one_or_two_qwen2.5_3b.yaml",
    "configs/diversify/creative_qa_qwen3.yaml",
    "configs/diversify/maths_qwen2.5_1.5b.yaml",
    "configs/diversify/zinc_prior.yaml",
    "configs/commune/math_qwen3_codec.yaml",
    "configs/commune/math_qwen3.yaml",
)


def budget_of(config: Path, gpus: int = 1, sharded: bool = False) -> Budget:
    """Compute the budget of one GPU.

    Args:
        config: The experiment's file.
        gpus: Number of GPUs.
        sharded: Whether weights, gradients and optimizer states are sharded over them (FSDP2)
            instead of copied (DDP).

    Raises:
        ValueError: if there is no budget for this kind of experiment.
    """
    hardware = ["--config", str(ROOT / "configs/hardware/gpu.yaml")]
    settings = composed_settings(config, hardware)
    kind = settings["model"]["class_path"].rpartition(".")[2]
    if kind not in BUDGETS:
        raise ValueError(f"{config}: no budget for {kind}; there is one for {', '.join(BUDGETS)}")
    model = settings["model"]["init_args"]
    start = model.get("init_from")
    if start and "agents" not in model:  # the agents of the stage before
        stage = composed_settings(ROOT / start, hardware)
        model["agents"] = stage["model"]["init_args"]["agents"]
    budget = Budget(str(config), named_card(config))
    mixed = str(settings["trainer"]["precision"]).endswith("mixed")
    BUDGETS[kind](budget, model, settings["data"]["init_args"], mixed)
    if sharded and gpus > 1:
        _shard(budget, gpus)
    return budget


def _shard(budget: Budget, gpus: int) -> None:
    largest = max(budget.resident.values())
    budget.resident = {name: size / gpus for name, size in budget.resident.items()}
    # Two units are gathered at a time: the one in use and the next; at most the largest part.
    budget.phases = {name: size + largest / 4 for name, size in budget.phases.items()}
    budget.notes.append(f"sharded over {gpus} GPUs; gathered units taken as a quarter of a part")


def table_of(budget: Budget) -> Table:
    """Return the budget as a table for the terminal."""
    table = Table("part", "GiB", title=budget.name, title_justify="left")
    table.columns[1].justify = "right"
    for name, size in budget.resident.items():
        table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    most = max(budget.phases.values())
    for name, size in budget.phases.items():
        mark = " (counts)" if size == most else ""
        table.add_row(f"{name}{mark}", f"{size / GIB:.2f}")
    table.add_section()
    table.add_row("peak, with context and fragmentation", f"{budget.peak / GIB:.1f}")
    if budget.card_gib is not None:
        verdict = "fits" if budget.fits else "DOES NOT FIT"
        table.add_row("card that the file names", f"{budget.card_gib} ({verdict})")
    table.caption = "; ".join(budget.notes) or None
    return table


def main(arguments: list[str] | None = None) -> list[Budget]:
    """Print the budgets, and exit with 1 if one is above the card that its file names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory_budget", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("configs", nargs="*", default=CONFIGS, help="default: those for real GPUs")
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs")
    parser.add_argument("--sharded", action="store_true", help="sharded (FSDP2), not copied")
    options = parser.parse_args(arguments)
    console = wide_console()
    budgets = []
    for config in options.configs:
        path: Any = Path(config)
        path = path if path.is_file() else ROOT / config
        with console.status(str(config)):
            budget = budget_of(path, options.gpus, options.sharded)
        budget.name = str(config)
        console.print(table_of(budget))
        budgets.append(budget)
    if any(budget.fits is False for budget in budgets):
        sys.exit(1)
    return budgets


if __name__ == "__main__":
    main()
