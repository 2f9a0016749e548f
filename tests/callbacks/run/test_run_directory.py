"""All processes of a run agree on one folder, and no two runs do."""

import os
from pathlib import Path

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from triptych.callbacks.run.run_directory import RunDirectory


@pytest.fixture
def as_rank(monkeypatch, workdir):
    """Claims a folder in the place of a rank, with some environment of its own."""

    def claim(rank: int, environment: dict[str, str] | None = None, **settings: str):
        with monkeypatch.context() as patch:
            patch.setattr(rank_zero_only, "rank", rank)
            patch.delenv("TRIPTYCH_RUN_DIR", raising=False)
            for name, value in (environment or {}).items():
                patch.setenv(name, value)
            run = RunDirectory.claim("tiny", seed=3, **settings)
            return run, os.environ["TRIPTYCH_RUN_DIR"]

    return claim


def test_children_are_told_by_rank_zero(as_rank):
    first, told = as_rank(0)
    child, _ = as_rank(1, {"TRIPTYCH_RUN_DIR": told})
    assert child.path == first.path
    assert first.path.is_dir()
    # a later run in the same process is another one, whatever the first has left behind
    second, _ = as_rank(0, {"TRIPTYCH_RUN_DIR": told})
    assert second.path != first.path


@pytest.mark.parametrize(
    "job",
    [
        {"TORCHELASTIC_RUN_ID": "7f3a"},
        {"TORCHELASTIC_RUN_ID": "none"},
        {"SLURM_JOB_ID": "99", "SLURM_PROCID": "1"},
    ],
    ids=["torchrun", "torchrun without an id", "slurm"],
)
def test_processes_of_a_job_agree_without_talking(as_rank, job):
    paths = {as_rank(rank, job)[0].path for rank in (1, 0)}
    assert len(paths) == 1


def test_restarted_workers_of_torchrun_go_on_in_their_folder(as_rank):
    job = {"TORCHELASTIC_RUN_ID": "7f3a"}
    run, _ = as_rank(0, job)
    (run.path / "summary.json").write_text("{}")
    again, _ = as_rank(0, job | {"TORCHELASTIC_RESTART_COUNT": "1"})
    assert again.path == run.path


def test_folder_of_another_run_is_refused(as_rank):
    run, _ = as_rank(0, run_dir="here")
    (run.path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds a run"):
        as_rank(0, run_dir="here")
    with pytest.raises(ValueError, match="already holds a run"):
        as_rank(0, run_dir="here", resumed_from="elsewhere/checkpoints/last.ckpt")
    assert as_rank(0, run_dir="here", resumed_from="here/checkpoints/last.ckpt")[0] == run


def test_only_an_empty_folder_is_released(as_rank):
    empty, filled = as_rank(0)[0], as_rank(0)[0]
    (filled.path / "metrics.csv").touch()
    for run in (empty, filled):
        run.release_if_empty()
    assert not empty.path.exists()
    assert filled.path == Path(filled.path)
    assert filled.path.is_dir()


def test_machines_without_an_id_in_common_are_refused(as_rank):
    job = {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "2"}
    with pytest.raises(ValueError, match=r"torchrun runs on 2 machines.*--rdzv_id NAME"):
        as_rank(0, job)
    assert as_rank(1, job, run_dir="here")[0].path == as_rank(0, job, run_dir="here")[0].path
    assert as_rank(0, job | {"TORCHELASTIC_RUN_ID": "run7"})[0].path.name == "run7-seed3"
