"""Killed at any time, a file is whole or it is the old one."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.train_process import CONTEXT, start_server
from triptych.callbacks.atomic_file import atomic_file, atomic_folder, recover_folder
from triptych.callbacks.run.atomic_checkpoint_io import AtomicCheckpointIO


def test_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with atomic_file(path) as partial:
            partial.write_text("half of the ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"


def test_error_leaves_the_old_folder(tmp_path):
    path = tmp_path / "export"
    with atomic_folder(path) as partial:
        (partial / "a").write_text("old")

    def fail_half_way() -> None:
        with atomic_folder(path) as partial:
            (partial / "b").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    assert [p.name for p in path.iterdir()] == ["a"]


def test_folder_is_replaced_as_a_whole(tmp_path):
    for name in "ab":
        with atomic_folder(tmp_path / "export") as partial:
            (partial / name).write_text(name)
    assert [p.name for p in (tmp_path / "export").iterdir()] == ["b"]


def test_error_in_the_exchange_brings_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "export"
    with atomic_folder(path) as partial:
        (partial / "a").write_text("old")
    rename = Path.rename

    def fail_second(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)

    def replace() -> None:
        with atomic_folder(path) as partial:
            (partial / "b").write_text("new")

    with pytest.raises(OSError, match="the disk is gone"):
        replace()
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    assert (path / "a").read_text() == "old"


def replace_and_die_between_the_renames(path: Path) -> None:
    rename = Path.rename

    def die_after(self: Path, target: Path) -> Path:
        rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.rename = die_after
    with atomic_folder(path) as partial:
        (partial / "b").write_text("new")


@pytest.mark.parametrize("recovered_by", ["a reader", "the next export"])
@pytest.mark.slow
def test_folder_comes_back_after_kill_9_between_the_renames(tmp_path, recovered_by):
    path = tmp_path / "export"
    with atomic_folder(path) as partial:
        (partial / "a").write_text("old")
    start_server()
    process = CONTEXT.Process(target=replace_and_die_between_the_renames, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()

    def fail_half_way() -> None:
        with atomic_folder(path):
            raise RuntimeError

    if recovered_by == "a reader":
        recover_folder(path)
    else:
        with pytest.raises(RuntimeError):
            fail_half_way()
    assert (path / "a").read_text() == "old"
    with atomic_folder(path) as partial:
        (partial / "c").write_text("newer")
    assert [p.name for p in path.iterdir()] == ["c"]
    assert not list(tmp_path.glob(".export.*.old"))


def test_folders_of_other_names_are_no_leftovers(tmp_path):
    (tmp_path / ".exports.1.old").mkdir()
    recover_folder(tmp_path / "export")
    assert not (tmp_path / "export").exists()


def save_forever(path: Path) -> None:
    step = 0
    while True:
        step += 1
        checkpoint = {"step": step, "weights": torch.full((2_000_000,), float(step))}
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)


@pytest.mark.slow
def test_checkpoint_is_whole_after_kill_9(tmp_path):
    path = tmp_path / "last.ckpt"
    start_server()
    process = CONTEXT.Process(target=save_forever, args=(path,))
    process.start()
    deadline = time.monotonic() + 120
    while not path.exists():  # from here on it is being replaced all the time
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    checkpoint = torch.load(path)
    assert (checkpoint["weights"] == checkpoint["step"]).all()


def test_checkpoint_needs_no_room_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "a" / "last.ckpt")
    assert torch.load(Path(tmp_path / "a" / "last.ckpt")) == {"step": 1}
