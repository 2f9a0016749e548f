"""The extensions that docs/extending.md prints, run as a user runs them: from another folder."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.train_process import TrainProcess, start_train
from triptych import ROOT
from triptych.callbacks.command_line.init_from import _environment as stage_environment
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_lm import load_memory_lm

PAGE = (ROOT / "docs" / "extending.md").read_text()


@dataclass(frozen=True)
class Example:
    """A section of the page.

    Attributes:
        files: The blocks that begin with a file's name, by that name.
        command: The words after `train.py`.
    """

    files: dict[str, str]
    command: list[str]

    def written(self, folder: Path) -> Path:
        for name, text in self.files.items():
            (folder / name).write_text(text)
        return folder


def example(section: str) -> Example:
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    blocks = re.findall(r"^```(python|yaml|bash)\n(.*?)^```$", text, re.M | re.S)
    files = {}
    for language, block in blocks:
        if language != "bash":
            first = block.partition("\n")[0]
            assert re.fullmatch(r"# \w+\.(py|yaml)", first), f"{section}: {first} names no file"
            files[first.removeprefix("# ")] = block
    (command,) = (block for language, block in blocks if language == "bash")
    program, *words = command.split()[1:]
    assert program == "/path/to/triptych/train.py"
    return Example(files, words)


def run(section: str, folder: Path) -> Path:
    """Give the section's command in a folder with its files; return the run's directory."""
    made = example(section)
    made.written(folder)
    words = ("--run_dir", "run", "--tracking.uri", "null")
    running = start_train(folder, *made.command, *words, PYTHONPATH="")
    assert running.wait() == 0, _ends(running)
    return folder / "run"


def _ends(running: TrainProcess) -> str:
    return running.stdout()[-2000:] + running.stderr()[-2000:]


def metrics(run_dir: Path) -> dict[str, float]:
    return json.loads((run_dir / "summary.json").read_text())["metrics"]


def samples(run_dir: Path) -> list[dict]:
    (last,) = sorted((run_dir / "samples").glob("*.json"))[-1:]
    return json.loads(last.read_text())


SECTIONS = re.findall(r"^### (An? .+)$", PAGE, re.M)


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_is_one_file_in_the_projects_style(section, tmp_path):
    files = example(section).files
    assert sorted(Path(name).suffix for name in files) == [".py", ".yaml"]
    folder = example(section).written(tmp_path)
    settings = ["--config", str(ROOT / "pyproject.toml"), str(folder)]
    for words in (["check"], ["format", "--check"]):
        ruff = subprocess.run(
            [sys.executable, "-m", "ruff", *words, *settings], capture_output=True, text=True
        )
        assert ruff.returncode == 0, ruff.stdout + ruff.stderr


@pytest.mark.slow
def test_a_reward(tmp_path):
    # By `python train.py`, as printed; the other examples are forked, which is quicker.
    made = example("A reward")
    made.written(tmp_path)
    command = [sys.executable, str(ROOT / "train.py"), *made.command, "--run_dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = samples(tmp_path / "run")
    assert len(rows) > 4
    for row in rows:
        assert row["reward"] == pytest.approx(max(0, 1 - len(row["completion"]) / 60), abs=1e-5)
    assert len({row["reward"] for row in rows}) > 1


@pytest.mark.slow
def test_a_datamodule(tmp_path):
    text = "def salutation():\n    return 'salutation'\n\n\n"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "greetings.py").write_text(text * 40)
    run_dir = run("A datamodule", tmp_path)
    assert metrics(run_dir)["train/nll_nats_per_token"] > 0
    # The tokenizer was trained on the files, so it knows their word as one token.
    vocabulary = json.loads((run_dir / "export" / "tokenizer.json").read_text())["model"]["vocab"]
    assert any("salutation" in token for token in vocabulary)
    assert "source_code.SourceCode" in (run_dir / "config.yaml").read_text()


@pytest.mark.slow
def test_a_metric(tmp_path):
    run_dir = run("A metric", tmp_path)
    openings: dict[str, list[str]] = {}
    for row in samples(run_dir):
        openings.setdefault(row["prompt"], []).append(row["completion"][:1])
    assert {len(texts) for texts in openings.values()} == {6}
    shares = [len(set(texts)) / len(texts) for texts in openings.values()]
    measured = metrics(run_dir)["val/held_out_phrasings/distinct_openings"]
    assert measured == pytest.approx(sum(shares) / len(shares), abs=1e-6)
    assert 0 < measured < 1


@pytest.mark.slow
def test_a_slot_index(tmp_path, monkeypatch):
    run_dir = run("A slot index", tmp_path)
    memory = json.loads((run_dir / "export" / "config.json").read_text())["memory"]
    assert memory["index"] == "cosine_index.CosineIndex"
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="TRIPTYCH_TRUSTED_MODULES=cosine_index"):
        load_memory_lm(run_dir / "export")
    monkeypatch.setenv("TRIPTYCH_TRUSTED_MODULES", "cosine_index")
    (layer,) = memory_layers(load_memory_lm(run_dir / "export"))
    assert type(layer.index).__name__ == "CosineIndex"
    assert (layer.index.sharpness, layer.index.num_slots) == (8.0, 256)
    assert metrics(run_dir)["memory/layer_0/slots_read_share"] > 0


@pytest.mark.slow
def test_a_task_for_agents(tmp_path):
    run_dir = run("A task for agents", tmp_path)
    # Alone an agent knows the largest of two digits below 3 in at most 6 of 9 cases.
    accuracy = {name: metrics(run_dir)[f"val/{name}/accuracy"] for name in ("single", "text_full")}
    assert 0.4 < accuracy["single"] < 0.8
    assert accuracy["text_full"] > 0.85


@pytest.mark.slow
def test_a_stage_finds_the_package_from_a_users_folder(tmp_path, monkeypatch):
    # `init_from` runs another of the user's experiments as a process of its own.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    words = [sys.executable, "-c", "import triptych; print(triptych.ROOT)"]
    found = subprocess.run(words, cwd=tmp_path, env=stage_environment(), stdout=subprocess.PIPE)
    assert found.returncode == 0
    assert Path(found.stdout.decode().strip()) == ROOT
