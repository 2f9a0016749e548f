"""The number of processes is checked before anything is trained."""

import pytest
from jsonargparse import Namespace

from triptych import ROOT
from triptych.callbacks.command_line.processes import planned_processes, refuse_processes
from triptych.cli import main


def options(trainer: dict, **model) -> Namespace:
    return Namespace(trainer=Namespace(trainer), model=Namespace(init_args=Namespace(model)))


def launched(monkeypatch, count: int) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7f3a")
    monkeypatch.setenv("WORLD_SIZE", str(count))


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"devices": 1}, 1),
        ({"devices": "2", "num_nodes": 3}, 6),
        ({"devices": [1, 3], "accelerator": "gpu"}, 2),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": -1, "accelerator": "tpu"}, None),
    ],
)
def test_planned_processes(trainer, expected):
    assert planned_processes(Namespace(trainer)) == expected


def test_all_gpus_are_counted(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert planned_processes(Namespace(devices="auto", num_nodes=2)) == 8


def test_a_launcher_with_another_number_is_refused(monkeypatch):
    launched(monkeypatch, 8)
    refuse_processes(options({"devices": 4, "num_nodes": 2}))
    with pytest.raises(ValueError, match=r"torchrun started 8 processes, but trainer\.devices=1"):
        refuse_processes(options({"devices": 1}))


def test_slurm_is_a_launcher(monkeypatch):
    for name, value in {
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NAME": "job",
        "SLURM_NTASKS_PER_NODE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="SLURM started 2 processes"):
        refuse_processes(options({"devices": 1}))
    refuse_processes(options({"devices": 2}))


def test_parts_of_one_process_are_refused_by_place():
    path = "triptych.objectives.diversify.molecules"
    for key, name in {
        "replay": "experience_replay.ExperienceReplay",
        "diversity_filter": "diversity_filters.DiversityFilter",
        "other": "random_distillation.RandomDistillation",
    }.items():
        part = Namespace(class_path=f"{path}.{name}")
        refuse_processes(options({"devices": 1}, **{key: part}))
        with pytest.raises(ValueError, match=f"model.init_args.{key}: .*but there are 2 processes"):
            refuse_processes(options({"devices": 2}, **{key: part}))


def test_a_search_over_two_processes_trains_no_prior(workdir):
    words = ["fit", "--config", str(ROOT / "configs/diversify/molecules.yaml")]
    words += ["--config", str(ROOT / "configs/hardware/ddp2_cpu.yaml")]
    with pytest.raises(ValueError, match=r"ExperienceReplay keeps one memory.*trainer\.devices"):
        main(words)
    assert not (workdir / "runs").exists()
