"""MARA, KL and the losses for other trainers: their import needs torch alone."""

import subprocess
import sys

from tests.conftest import ROOT

MODULES = """
import importlib, pkgutil, sys
import torch
before = {name.partition(".")[0] for name in sys.modules}
import triptych.objectives.diversify as room
names = [info.name for info in pkgutil.walk_packages(room.__path__, room.__name__ + ".")]
for name in names:
    if ".molecules" not in name:
        importlib.import_module(name)
        print("imported", name.removeprefix(room.__name__ + "."))
after = {name.partition(".")[0] for name in sys.modules}
print("new", *sorted(after - before - set(sys.stdlib_module_names)))
print("heavy", *sorted({"lightning", "transformers", "torchmetrics", "jsonargparse"} & after))
"""


def test_objectives_import_torch_alone():
    run = subprocess.run(
        [sys.executable, "-c", MODULES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in run.stdout.splitlines()]
    imported = {line[1] for line in lines if line[0] == "imported"}
    assert imported >= {"mara", "kl", "policy_loss", "rivals.pass_at_k", "rivals.rehearsal"}
    assert lines[-2:] == [["new", "triptych"], ["heavy"]]
