"""Checks that train."""

# Shapes: B bags, K reads a bag, D value width

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from triptych import ROOT
from triptych.benchmarks.gpu_checks.check import Setting, largest_difference
from triptych.lit_modules.optimization import ClipsValuesApart
from triptych.models.commune.perceptron import Perceptron
from triptych.models.remember.values.row_optimizers import RowAdamW
from triptych.models.remember.values.value_table import ValueTable
from triptych.objectives.commune.jacobian_penalty import ESTIMATORS, JacobianPenalty


def quickstart(setting: Setting) -> dict[str, Any]:
    """Train the quickstart on the device in two precisions, and in float32 on the CPU.

    Raises:
        ModuleNotFoundError: if the command line's library is not installed.
    """
    import jsonargparse  # noqa: F401 (the programs below need it)

    steps = setting.size(100, 2)
    kinds = [
        ("cpu_float32", "cpu", "32-true"),
        ("float32", setting.device.type, "32-true"),
        ("bf16-mixed", setting.device.type, "bf16-mixed"),
    ]
    losses = {
        name: _trained(setting, accelerator, precision, steps)
        for name, accelerator, precision in kinds[: setting.size(3, 1)]
    }
    expected = losses["cpu_float32"]
    held = all(abs(loss - expected) < 0.02 * expected for loss in losses.values())
    return {f"{name}_nats": loss for name, loss in losses.items()} | {"held": held}


def _trained(setting: Setting, accelerator: str, precision: str, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", "--config", str(ROOT / "configs/quickstart.yaml"), "--run_dir", "run"]
        words += ["--tracking.uri", "null", "--trainer.max_steps", str(steps)]
        words += ["--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1"]
        words += ["--trainer.accelerator", accelerator.replace("cuda", "gpu")]
        words += ["--trainer.devices", "1", "--trainer.precision", precision]
        words += ["--trainer.enable_progress_bar", "false"]
        threads = {} if setting.device.type == "cuda" else {"OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "-m", "triptych", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | threads,
            check=True,
            capture_output=True,
        )
        with open(Path(folder) / "run" / "metrics.csv") as rows:
            losses = [row["train/nll_nats_per_token"] for row in csv.DictReader(rows)]
    last = [float(loss) for loss in losses if loss][-5:]
    return sum(last) / len(last)


def sparse_finetuning(setting: Setting) -> dict[str, Any]:
    """Update 512 rows of a table in 20 steps; all others stay the same to the bit."""
    torch.manual_seed(0)
    num_slots, width = setting.size(2**20, 2**10), setting.size(1024, 16)
    device = setting.device
    with device:
        table = ValueTable(num_slots, width, "selected_rows")
        ids_BK = torch.randint(num_slots, (setting.size(4096, 64), 32))
        weights_BK = torch.rand(ids_BK.shape)
        grad_BD = torch.randn(len(ids_BK), width)
        rows = ids_BK.flatten().unique()[:512]
        kept = torch.ones(num_slots, dtype=torch.bool)
        kept[rows] = False
    before, optimizer = table.weight.detach().clone(), RowAdamW(1e-2)

    def step() -> None:
        table(ids_BK, weights_BK.requires_grad_()).backward(grad_BD)
        gradient = table.row_gradient(rows)
        table.clear_reads()
        optimizer.step(table.weight.data, *gradient)

    took = [setting.milliseconds(step, 1) for _ in range(setting.size(10, 1))]
    unchanged = torch.equal(table.weight[kept], before[kept])
    changed = bool((table.weight[rows] != before[rows]).any(1).all())
    return {
        "step_ms": sorted(took)[len(took) // 2],
        "others_unchanged": unchanged,
        "held": unchanged and changed,
    }


def penalties(setting: Setting) -> dict[str, Any]:
    """Compare the Jacobian penalties and their gradients with those of the CPU."""
    numbers: dict[str, Any] = {}
    width, latents = setting.size(3072, 24), setting.size(256, 8)
    for norm, estimators in ESTIMATORS.items():
        for estimator in estimators:
            # The names in ESTIMATORS are those literals, but its keys are plain strings.
            penalty = JacobianPenalty("mean", norm, estimator, num_columns=latents, num_rows=width)  # type: ignore[arg-type]  # names from a table
            results = []
            for device in (torch.device("cpu"), setting.device):
                torch.manual_seed(0)
                decoder = Perceptron(latents, width, [latents]).to(device)
                drawn_BZ = torch.randn(16, latents).to(device).requires_grad_()
                generator = torch.Generator(device).manual_seed(0)
                value = penalty(decoder, drawn_BZ, [width // 3] * 3, generator)
                (gradient,) = torch.autograd.grad(value, drawn_BZ, allow_unused=True)
                results.append((value.detach(), gradient))
            apart = largest_difference(results[1][0][None], results[0][0][None])
            if estimator != "probes":  # the two devices draw other random numbers
                numbers[f"{norm}_{estimator}"] = apart
    return numbers | {"held": max(numbers.values()) < 1e-3}


class _Tiny(ClipsValuesApart, L.LightningModule):
    """A module with clipping and a fused optimizer, as ours are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 1)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        loss: torch.Tensor = 100 * self.layer(batch).square().mean()  # above the norm of clipping
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, fused=True)


def scaled_clipping(setting: Setting) -> dict[str, Any]:
    """Clip gradients that are scaled for float16 to the norm that float32 ones are clipped to."""
    setting.need_cuda("16-mixed")
    weights = []
    for precision in ("32-true", "16-mixed"):
        module = _Tiny()
        rows: Any = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        loader: Any = torch.utils.data.DataLoader(rows, batch_size=4)
        with tempfile.TemporaryDirectory() as folder:
            L.Trainer(
                accelerator="gpu",
                devices=1,
                precision=precision,
                gradient_clip_val=1.0,
                max_steps=2,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                default_root_dir=folder,
            ).fit(module, loader)
        weights.append(module.layer.weight.detach())
    difference = largest_difference(weights[1], weights[0])
    return {"difference": difference, "held": difference < 1e-2}
