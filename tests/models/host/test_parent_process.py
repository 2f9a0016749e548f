"""A process that hangs ends with its parent, also when that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "getppid"), reason="needs processes of POSIX")

CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from triptych.models.host import parent_process
if sys.argv[2] == "thread":  # as where the kernel cannot do it
    parent_process.sys = type("other", (), {"platform": "elsewhere"})
parent_process.end_with_parent(os.getppid())
print(os.getpid(), flush=True)
while True:
    pass
"""
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
"""


@pytest.mark.parametrize("way", ["kernel", "thread"])
def test_a_child_that_hangs_is_killed_with_its_parent(way):
    command = [sys.executable, "-c", PARENT, CHILD, str(ROOT), way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while _lives(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        alive = _lives(child)
        if alive:
            os.kill(child, signal.SIGKILL)
    assert not alive


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
