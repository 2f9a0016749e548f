"""Files that a search needs are looked for before its prior is trained."""

import pytest
import yaml

from triptych import ROOT
from triptych.callbacks.command_line.init_from import Stage
from triptych.cli import main


def test_docking_without_a_receptor_trains_no_prior(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Stage, "export", lambda stage: pytest.fail(f"{stage.config} is run first"))
    config = ROOT / "configs" / "diversify" / "synth.yaml"
    with pytest.raises(FileNotFoundError) as caught:
        main(["fit", "--config", str(config), "--run_dir", "run", "--tracking.uri", "null"])
    message = str(caught.value)
    assert "VinaDocking.receptor is receptor.pdbqt, and there is no such file" in message
    assert "VinaDocking.ligand is ligand.pdb, and there is no such file" in message
    # So is a program, among the options of this run.
    settings = yaml.safe_load(config.read_text())
    objective = settings["model"]["init_args"]["reward"]["init_args"]["objective"]
    objective["init_args"]["components"] = [
        {
            "class_path": "triptych.objectives.rewards.molecules.external_process.ExternalProcess",
            "init_args": {"command": "./dock.sh --fast"},
        }
    ]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(FileNotFoundError, match=r"begins with \./dock\.sh, and there is no such"):
        main(["fit", "--config", "own.yaml", "--run_dir", "run", "--tracking.uri", "null"])
