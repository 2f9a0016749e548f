"""What the import of metrics pulls in, in a process of its own."""

import subprocess
import sys

from tests.conftest import ROOT

IMPORTS = """
import importlib, pkgutil, sys
import triptych.metrics.diversify.molecules.circles
heavy = {"mlflow", "lightning", "jsonargparse", "datasets"}
print(sorted(heavy & set(sys.modules)))
for info in pkgutil.walk_packages(triptych.metrics.__path__, "triptych.metrics."):
    importlib.import_module(info.name)
print(sorted(heavy & set(sys.modules)))
"""


def test_metrics_need_neither_mlflow_nor_lightning():
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["[]", "[]"]
