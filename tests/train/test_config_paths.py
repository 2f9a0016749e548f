"""One rule for relative paths: of configurations, of what they start from, of data, of code."""

import os
import sys
from argparse import ArgumentError
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, words_of
from triptych.callbacks.command_line.packaged_configs import shipped
from triptych.cli import main
from triptych.datamodules.batches.packed_datamodule import locate
from triptych.datamodules.remember.facts.facts import read_templates
from triptych.datamodules.sources.data_paths import data_path
from triptych.datamodules.sources.records import RecordSource


@pytest.fixture
def theirs(workdir: Path) -> Path:
    """A folder of configurations that is not the working directory."""
    folder = workdir / "theirs" / "configs"
    folder.mkdir(parents=True)
    return folder


def started_from(run: Path) -> str:
    return yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["init_from"]


def starting(folder: Path, start: str) -> list[str]:
    """The command line of a run that starts from something, with its file in a folder."""
    return words_of(folder, name="next", model={"init_args": {"init_from": start}})


def test_start_is_found_from_the_working_directory_then_from_the_file(workdir, theirs):
    export = main(words_of(workdir)) / "export"
    export.rename("theirs/export")
    run = main(starting(theirs, "../export"))
    assert started_from(run) == str(theirs.parent / "export")
    again = main(["fit", "--config", str(run / "config.yaml")])  # runs again as it is
    assert started_from(again) == started_from(run)

    (workdir / "theirs" / "export").rename("export")
    (theirs / "export").mkdir()  # empty: a run from it would fail
    assert started_from(main(starting(theirs, "export"))) == "export"


@pytest.mark.usefixtures("stages_in_this_process")
def test_experiment_to_start_from_is_found_from_the_file_at_any_depth(workdir, theirs):
    words_of(theirs.parent, name="first")
    (theirs / "deeper").mkdir()
    starting(theirs / "deeper", "../../first.yaml")
    (theirs / "deeper" / "next.yaml").rename(theirs / "deeper" / "second.yaml")
    run = main(starting(theirs, "deeper/second.yaml"))
    assert started_from(run) == str(theirs / "deeper" / "second.yaml")
    stages = sorted(path.name.partition("-")[0] for path in Path("runs/stages").glob("[!.]*"))
    assert stages == ["first", "second"]


def test_start_in_a_file_of_the_model_is_found_from_that_file(workdir, theirs):
    export = main(words_of(workdir)) / "export"
    export.rename("theirs/export")
    part = {
        "class_path": "tests.tiny_lightning.TinyModule",
        "init_args": {"init_from": "../export"},
    }
    (theirs / "part.yaml").write_text(yaml.safe_dump(part))
    words = [*words_of(workdir), "--model", "theirs/configs/part.yaml"]
    assert started_from(main(words)) == str(theirs.parent / "export")
    words += ["--model.init_args.init_from", "./export"]  # of the command line, not of the file
    with pytest.raises(FileNotFoundError, match=r"no folder \./export"):
        main(words)


def test_a_configuration_includes_shipped_ones(workdir, theirs, capsys):
    part = "configs/data/text_and_facts.yaml"
    file = theirs / "mine.yaml"
    model = {"class_path": "MemoryPretraining"}
    file.write_text(yaml.safe_dump({"model": model, "data": part}))

    def data(*words: str) -> dict:
        with pytest.raises(SystemExit):
            main(["fit", "--config", str(file), *words, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)["data"]

    shipped_class = yaml.safe_load((ROOT / part).read_text())["class_path"]
    assert data()["class_path"] == shipped_class
    for folder in (workdir, theirs):  # the file beside the configuration comes first
        own = {
            "class_path": "tests.tiny_lightning.TinyData",
            "init_args": {"rows": len(str(folder))},
        }
        (folder / "configs" / "data").mkdir(parents=True)
        (folder / part).write_text(yaml.safe_dump(own))
        assert data()["init_args"]["rows"] == len(str(folder))
    (theirs / part).write_text("class_path: [")
    with pytest.raises(ArgumentError, match=r"configs/data/text_and_facts\.yaml"):
        data()
    file.write_text(yaml.safe_dump({"model": model, "data": "configs/data/no_such.yaml"}))
    with pytest.raises(ArgumentError, match=r"there is no file configs/data/no_such\.yaml"):
        data()


def test_shipped_configurations_are_found_everywhere(workdir):
    found = str(ROOT / "configs" / "quickstart.yaml")
    assert shipped("configs/quickstart.yaml") == found
    assert shipped("--config=configs/quickstart.yaml") == f"--config={found}"
    (workdir / "configs").mkdir()
    (workdir / "configs" / "quickstart.yaml").touch()
    assert shipped("configs/quickstart.yaml") == "configs/quickstart.yaml"
    assert shipped("configs/mine.yaml") == "configs/mine.yaml"


@pytest.mark.parametrize("path", ["rows/a.jsonl", "rows/*.jsonl", "**/a.jsonl"])
def test_data_are_found_from_the_working_directory_then_from_the_data_folder(
    workdir, monkeypatch, path
):
    for folder in ("given", "variable", "data"):
        (workdir / folder / "rows").mkdir(parents=True)
        (workdir / folder / "rows" / "a.jsonl").touch()
    if "**" not in path:  # which finds the files of all folders from here
        assert data_path(path, None) == f"data/{path}"
        monkeypatch.setenv("TRIPTYCH_DATA", "variable")
        assert data_path(path, None) == f"variable/{path}"
        assert data_path(path, "given") == f"given/{path}"
    (workdir / "rows").mkdir()
    (workdir / "rows" / "a.jsonl").touch()
    assert data_path(path, "given") == path
    assert locate(RecordSource(path), "given").path == [path]
    assert data_path(str(workdir / "nothing"), "given") == str(workdir / "nothing")


def test_templates_are_data(workdir):
    (workdir / "given").mkdir()
    (workdir / "given" / "mine.yaml").write_text("[no mapping]")
    with pytest.raises(ValueError, match=r"given/mine\.yaml: expected a mapping"):
        read_templates("mine.yaml", "given")


@pytest.mark.usefixtures("workdir")
def test_classes_beside_the_configuration_are_found(theirs, monkeypatch):
    code = "from tests.tiny_lightning import TinyModule\nclass Beside{}(TinyModule): pass\n"
    (theirs / "beside_config.py").write_text(code.format("Config"))
    before = list(sys.path)
    words = words_of(theirs, model={"class_path": "beside_config.BesideConfig"})
    run = main([*words, "--trainer.fast_dev_run", "1"])
    assert run.is_dir()
    assert sys.path == before

    # The working directory comes first.
    monkeypatch.delitem(sys.modules, "beside_config")
    monkeypatch.syspath_prepend(os.getcwd())
    Path("beside_config.py").write_text(code.format("Cwd"))
    words = words_of(theirs, model={"class_path": "beside_config.BesideCwd"})
    assert main([*words, "--trainer.fast_dev_run", "1"]).is_dir()
