"""One run directory has one owner, and nobody keeps it longer than the owner lives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.callbacks.run.owner_lock import LOCK_FILE, DirectoryInUseError, OwnerLock, is_in_use
from triptych.callbacks.run.run_directory import RunDirectory

# Owns the folder; its forked child stays after it.
OWNER = """
import os, sys, time
from pathlib import Path
from triptych.callbacks.run.owner_lock import OwnerLock
lock = OwnerLock(Path(sys.argv[1]))
if os.fork() == 0:
    sys.stdout.close()
    os.close(1)
    time.sleep(20)
    os._exit(0)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def owner(workdir):
    """Another process that owns the folder `run`."""
    (workdir / "run").mkdir()
    command = [sys.executable, "-c", OWNER, "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_who_owns_the_folder(owner):
    with pytest.raises(DirectoryInUseError, match=rf"run is in use by process {owner.pid} on "):
        RunDirectory.claim("tiny", seed=1, run_dir="run", resumed_from="run/checkpoints/last.ckpt")
    assert is_in_use(Path("run"))


def test_the_right_ends_with_a_killed_owner_although_its_worker_lives(owner):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    run = RunDirectory.claim("tiny", seed=1, run_dir="run")
    assert f"process {os.getpid()} on " in (run.path / LOCK_FILE).read_text()
    run.release()
    assert not list(run.path.iterdir())


def test_a_released_folder_is_free(tmp_path):
    OwnerLock(tmp_path).release()
    OwnerLock(tmp_path).release()
    assert not is_in_use(tmp_path)
