"""Every configuration in `configs/` parses, and every experiment among them takes two steps."""

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from train import main

CONFIGS = ROOT / "configs"
HARDWARE = sorted((CONFIGS / "hardware").glob("*.yaml"))
DATA = sorted((CONFIGS / "data").glob("*.yaml"))
EXPERIMENTS = sorted({*CONFIGS.rglob("*.yaml")} - {CONFIGS / "base.yaml", *HARDWARE, *DATA})

# Too large to be trained here; another test builds them without memory for their weights.
ONLY_PARSED = {CONFIGS / "remember" / "pretrain_1b.yaml"}


def parsed(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    """What the command line composes, without building anything of it."""
    with pytest.raises(SystemExit) as end:
        main(["fit", *map(str, words), "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def embedded_data(experiment: Path) -> list[str]:
    """Options that replace data from outside the repository by the embedded ones of their kind."""
    data = yaml.safe_load(experiment.read_text())["data"]
    if not isinstance(data, str):
        return []
    kind = Path(data).stem.removesuffix("_local").removesuffix("_hub").removesuffix("_embedded")
    there = (CONFIGS / "data" / f"{name}.yaml" for name in (f"{kind}_embedded", kind))
    return ["--data", str(next(path for path in there if path.is_file()))]


def relative(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=relative)
def test_experiment_parses(path, capsys):
    composed = parsed(capsys, "--config", path)
    assert composed["trainer"]["use_distributed_sampler"] is False
    assert composed["model"]["class_path"].startswith("lit_modules.")
    assert path.read_text().startswith("#"), "its first line says what it is for"


@pytest.mark.parametrize("path", HARDWARE, ids=relative)
def test_hardware_goes_over_any_experiment(path, capsys):
    for experiment in EXPERIMENTS[:1]:
        composed = parsed(capsys, "--config", experiment, "--config", path)
        overlay = yaml.safe_load(path.read_text())["trainer"]
        assert {key: composed["trainer"][key] for key in ("accelerator", "devices")} == {
            key: overlay[key] for key in ("accelerator", "devices")
        }


@pytest.mark.parametrize("path", DATA, ids=relative)
def test_data_can_be_taken_by_name(path, capsys):
    composed = parsed(capsys, "--config", CONFIGS / "quickstart.yaml", "--data", path)
    assert composed["data"]["class_path"] == yaml.safe_load(path.read_text())["class_path"]


@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if p not in ONLY_PARSED], ids=relative)
def test_experiment_takes_two_steps(path, workdir):
    run = main(
        [
            *("fit", "--config", str(path), *embedded_data(path)),
            *("--config", str(CONFIGS / "hardware" / "cpu.yaml")),
            *("--trainer.fast_dev_run", "2"),
        ]
    )
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 2)
    assert summary["metrics"]
