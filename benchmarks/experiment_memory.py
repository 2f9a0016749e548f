"""Peak memory of whole experiments: which machine does an experiment need?

Each experiment runs a few steps and a validation in processes of its own, the stage that it starts
from included. On the CPU the peak is the resident memory of the largest process, with Python and
its libraries in it; on a GPU it is what torch has reserved there.

``python -m benchmarks.experiment_memory configs/quickstart.yaml configs/commune/adapter.yaml``
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from triptych import ROOT
from triptych.benchmarks.report import (
    Report,
    benchmark_parser,
    describe_device,
    prepare_device,
    run_main,
    wide_console,
)

CONFIGS = (
    "configs/quickstart.yaml",
    "configs/remember/finetune_sparse.yaml",
    "configs/diversify/one_or_two.yaml",
    "configs/diversify/molecules.yaml",
    "configs/commune/adapter.yaml",
)
#: Run in the process of the experiment; its last line is torch's peak on the GPU in bytes.
PROGRAM = """
import sys, torch
from triptych.callbacks.command_line.error_report import one_message_per_error
from triptych.cli import main
with one_message_per_error():
    main(sys.argv[1:])
print(torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0)
"""


def peak_bytes(config: str, words: Sequence[str], device: torch.device) -> int:
    """Run an experiment, and return the peak of its memory in bytes.

    Args:
        config: Path of its configuration.
        words: Further command-line words.
        device: Where it runs.

    Raises:
        ValueError: if the experiment fails.
    """
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    options = ["--trainer.accelerator", accelerator, "--trainer.devices", "1"]
    options += ["--tracking.uri", "null", *words]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                "fit",
                "--config",
                str(Path(config).resolve()),
                *options,
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        lines = log.read().splitlines()
    if process.returncode:
        raise ValueError(f"{config} failed:\n" + "\n".join(lines[-15:]))
    if device.type == "cuda":
        return int(lines[-1])
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere


def main(arguments: list[str] | None = None) -> Report:
    """Measure the experiments, and print a table."""
    parser = benchmark_parser(__doc__.partition("\n")[0])
    parser.add_argument("configs", nargs="*", default=CONFIGS, help="default: one of each panel")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of each experiment")
    options = parser.parse_args(arguments)
    device = prepare_device(options.device, options.threads)
    limits = ["--trainer.max_steps", str(options.steps), "--trainer.limit_val_batches", "2"]
    if options.quick:
        limits = ["--trainer.fast_dev_run", "1"]
    report = Report("peak memory of experiments", describe_device(device))
    table = Table("experiment", "peak", title="peak memory", title_justify="left")
    console = wide_console()
    for config in options.configs:
        with console.status(config):
            peak = peak_bytes(config, limits, device)
        report.rows.append({"name": str(config), "size": options.steps, "peak_bytes": peak})
        table.add_row(str(config), f"{peak / 2**30:.2f} GiB")
    console.print(table)
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
