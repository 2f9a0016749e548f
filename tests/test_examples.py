"""The extensions that CONTRIBUTING.md prints, run as a user runs them: from another folder."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.train_process import TrainProcess, start_train
from triptych import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


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
    (text,) = re.findall(rf"^### {section}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
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


def run(section: str, folder: Path, *words: str) -> Path:
    """Give the section's command in a folder with its files; return the run's directory."""
    made = example(section)
    made.written(folder)
    running = start_train(folder, *made.command, *words, "--run_dir", "run", PYTHONPATH="")
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
