"""A full disk costs neither the last good checkpoint nor the message that says what happened."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from triptych.callbacks.atomic_file import atomic_file, atomic_folder
from triptych.callbacks.run.atomic_checkpoint_io import AtomicCheckpointIO

# Files may have a hundred thousand bytes: torch's writer fails in the middle of the checkpoint.
SAVES = """
import resource, signal, sys, torch
from pathlib import Path
from triptych.callbacks.run.atomic_checkpoint_io import AtomicCheckpointIO
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(100_000)}, Path(sys.argv[1]))
except OSError as error:
    print(error)
"""


def saved(path: Path) -> str:
    command = [sys.executable, "-c", SAVES, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr[-500:]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_checkpoint_that_does_not_fit_names_path_cause_and_the_last_good_one(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"weights": torch.zeros(3)}, path)
    message = saved(path)
    assert message.startswith(f"the checkpoint {path} could not be written (")
    assert "No space left" in message or "File too large" in message
    assert f"{path} is as before: resume from it" in message
    assert torch.load(path)["weights"].shape == (3,)
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


def test_errors_of_the_disk_name_the_file_that_was_to_be_written(tmp_path):
    def fill() -> None:
        with atomic_file(tmp_path / "summary.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*/summary\.json'"):
        fill()


def test_a_flipped_bit_in_the_weights_of_a_checkpoint_is_found(tmp_path):
    path = tmp_path / "last.ckpt"
    weights = torch.arange(1000, dtype=torch.float32)
    AtomicCheckpointIO().save_checkpoint({"weights": weights}, path)
    content = bytearray(path.read_bytes())
    place = content.index(weights.numpy().tobytes()) + 2001
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be loaded.*it is damaged: .*data/0"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_what_killed_processes_left_is_removed_by_the_next_write(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".last.ckpt.notes").write_text("of the user")
    with atomic_file(tmp_path / "last.ckpt") as partial:
        partial.write_text("whole")
    with atomic_folder(tmp_path / "export") as folder:
        (folder / "a").write_text("whole")
    names = sorted(found.name for found in tmp_path.iterdir())
    assert names == [".last.ckpt.notes", "export", "last.ckpt"]


def test_a_write_of_a_living_process_is_left_alone(tmp_path):
    with atomic_file(tmp_path / "a") as first:
        first.write_text("first")
        with atomic_file(tmp_path / "a") as second:
            second.write_text("second")
        assert first.read_text() == "first"
        assert first.name != second.name
    assert (tmp_path / "a").read_text() == "first"


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "a") as partial:
            partial.write_text("private")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


KILLED = """
import os, sys
from pathlib import Path
from triptych.callbacks.atomic_file import atomic_file, atomic_folder
folder = Path(sys.argv[1])
with atomic_file(folder / "last.ckpt") as partial, atomic_folder(folder / "export") as other:
    partial.write_text("half of")
    (other / "model").write_text("half of")
    os.kill(os.getpid(), 9)
"""
