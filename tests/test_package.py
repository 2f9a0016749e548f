"""`pip install triptych`: a package of its own, beside whatever the user's project has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

USER_CODE = """
import sys
import metrics, models
from triptych.metrics.diversify.molecules.circles import Circles
assert (metrics.MINE, models.MINE) == ("metrics", "models")
assert "mlflow" not in sys.modules and "lightning.pytorch.cli" not in sys.modules
from triptych.models.remember.memory_lm import load_memory_lm
print(Circles(0.5).threshold, type(load_memory_lm(sys.argv[1])).__name__)
import triptych
print(triptych.ROOT)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pip has installed the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(built, check=True)
    (wheel,) = folder.glob("triptych-*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    assert sorted(path.name for path in target.iterdir() if "dist-info" not in path.name) == [
        "bin",
        "triptych",
    ]
    return target


def run(installed: Path, folder: Path, *command: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_beside_a_project_with_the_same_folder_names(installed, tmp_path):
    for name in ("models", "metrics"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"MINE = {name!r}\n")
    (tmp_path / "main.py").write_text(USER_CODE)
    former = ROOT / "tests" / "data" / "version_0_1" / "export"
    printed = run(installed, tmp_path, "main.py", former).splitlines()
    assert printed == ["0.5 MemoryLlamaForCausalLM", str(installed / "triptych")]


def test_command_in_an_empty_folder(installed, tmp_path):
    words = ["fit", "--config", "configs/quickstart.yaml", "--trainer.fast_dev_run", "1"]
    printed = run(installed, tmp_path, installed / "bin" / "triptych", *words)
    assert "val/facts/exact_match" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_own_modules_win_over_short_names(installed, tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "mine.py").write_text("VALUE = 3\n")
    (tmp_path / "short.py").write_text(
        "from triptych.short_names import short_names_allowed\n"
        "with short_names_allowed():\n"
        "    import callbacks.progress, metrics.mine, metrics.self_bleu\n"
        "    import triptych.callbacks.run.progress as progress\n"
        "print(metrics.mine.VALUE, callbacks.progress is progress, metrics.self_bleu.__name__)\n"
    )
    printed = run(installed, tmp_path, "short.py")
    assert printed.split() == ["3", "True", "triptych.metrics.diversify.self_bleu"]
