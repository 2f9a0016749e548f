"""The Triton programs in triton's interpreter against torch's operations, without a GPU.

They run in a process of their own: triton decides at import whether it interprets.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from triptych import ROOT

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is missing: install the extra `kernels`"
)
HERE = Path(__file__).parent


def run(script, *words):
    """Run a script of this folder and return its output; its assertions are the test's."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow  # half a minute on a busy core
def test_interpreted_programs_equal_torch():
    assert "all equal" in run("interpreted.py")


@pytest.mark.parametrize("capability", ["80", "90"])
def test_programs_compile_ahead_without_spills(capability):
    assert "no spills" in run("compiled_ahead.py", capability)
