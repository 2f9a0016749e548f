"""Does everything work on this GPU, and how fast?

``python -m benchmarks.gpu_acceptance [--out results.json] [--only 2 9]``

Thirteen checks on randomly initialised models, each meant for less than a minute: nothing is
downloaded. The results are written after each check, so a crash loses only the check that crashed.
A check whose libraries are missing says so and is not counted as failed. ``--device cpu --quick``
runs all that a CPU can at the smallest sizes, to test the script itself.
"""

import json
import time
import traceback
from typing import Any

import torch
from rich.table import Table

from triptych.benchmarks.gpu_checks import kernels, policies, runs, scale
from triptych.benchmarks.gpu_checks.check import Check, Setting, Unavailable
from triptych.benchmarks.report import (
    Report,
    benchmark_parser,
    describe_device,
    prepare_device,
    run_main,
    wide_console,
)

CHECKS: tuple[tuple[str, Check], ...] = (
    ("versions and copy bandwidth", kernels.versions),
    ("lookup, gather and gradients against plain references", kernels.memory_operations),
    ("quickstart in float32 and bf16-mixed", runs.quickstart),
    ("molecules: sample, score, backward", policies.molecules),
    ("one_or_two: sampled against scored", policies.sampled_against_scored),
    ("sparse finetuning of a large table", runs.sparse_finetuning),
    ("bandwidth of the memory layer's parts", kernels.memory_layer_parts),
    ("compiled kernels", kernels.compiled_kernels),
    ("1.3B parameters: step, packed rows", scale.language_model_step),
    ("1.7B parameters: policy step, decoding", scale.policy_step),
    ("penalties of the autoencoder", runs.penalties),
    ("process groups: DDP and FSDP2", scale.process_groups),
    ("16-mixed with clipping", runs.scaled_clipping),
)


def run_check(check: Check, setting: Setting) -> dict[str, Any]:
    """Run one check; its result says whether it held, or why it could not run."""
    began = time.perf_counter()
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        result = check(setting)
        result.setdefault("held", True)
    except Unavailable as missing:
        result = {"held": None, "skipped": str(missing)}
    except ModuleNotFoundError as missing:
        result = {"held": None, "skipped": f"{missing.name} is not installed"}
    except Exception as error:  # the other checks still count
        result = {"held": False, "error": repr(error), "trace": traceback.format_exc()[-2000:]}
    if setting.device.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.empty_cache()
    result["seconds"] = time.perf_counter() - began
    return result


def main(arguments: list[str] | None = None) -> Report:
    """Run the checks, and print a table."""
    parser = benchmark_parser(__doc__.partition("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the checks, from 1")
    options = parser.parse_args(arguments)
    device = prepare_device(options.device, options.threads)
    setting = Setting(device, options.quick)
    report = Report("acceptance on a GPU", describe_device(device))
    console = wide_console()
    table = Table("", "check", "held", "s", "numbers", title=str(report.device["name"]))
    for number, (name, check) in enumerate(CHECKS, 1):
        if options.only and number not in options.only:
            continue
        with console.status(name):
            result = run_check(check, setting)
        report.more[f"{number}. {name}"] = result
        table.add_row(
            str(number), name, _verdict(result), f"{result['seconds']:.0f}", _short(result)
        )
        if options.out is not None:
            report.write(options.out)
    console.print(table)
    return report.finish(options.out, console)


def _verdict(result: dict[str, Any]) -> str:
    return {True: "yes", False: "[bold]NO[/bold]", None: "not run"}[result["held"]]


def _short(result: dict[str, Any]) -> str:
    if "error" in result or "skipped" in result:
        return str(result.get("error") or result["skipped"])[:200]
    shown = {k: v for k, v in result.items() if k not in ("held", "seconds")}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {json.dumps(value)}"
        for name, value in shown.items()
    )


if __name__ == "__main__":
    run_main(main)
