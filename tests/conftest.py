"""What every test has: one thread, no network, a process left as it was found."""

import os

# Before anything imports torch, tokenizers or the hub's client, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRIPTYCH_DEBUG"] = "0"

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from triptych import ROOT
from triptych.callbacks.run.process_state import restored_process_state

TINY = {
    "model": {"class_path": "tests.tiny_lightning.TinyModule"},
    "data": {"class_path": "tests.tiny_lightning.TinyData"},
    "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1},
    "tracking": {"uri": None},
}


@pytest.fixture(autouse=True)
def _process_left_as_found() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with restored_process_state():
        yield


@pytest.fixture
def real_data() -> Path:
    """The folder of real data that TRIPTYCH_TEST_DATA names, or a skip without it."""
    folder = os.environ.get("TRIPTYCH_TEST_DATA")
    if not folder:
        pytest.skip("needs real data: set TRIPTYCH_TEST_DATA to a folder with qa/, smiles/, ...")
    return Path(folder)


@contextmanager
def without_learning_curves() -> Iterator[None]:
    """Draw no figure and write no page at the end of a run: they take a fifth of a small one."""
    from triptych.callbacks.report.run_report import RunReport
    from triptych.callbacks.run.learning_curves import LearningCurves

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunReport, "write", lambda *_: None)
        patch.setattr(LearningCurves, "on_fit_end", lambda *_: None)
        yield


@pytest.fixture
def workdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """An empty folder that the test runs in: `runs/` and `mlflow.db` land there.

    Runs draw their learning curves, and write their report, only in tests marked `learning_curves`.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    draws = request.node.get_closest_marker("learning_curves")
    with nullcontext() if draws else without_learning_curves():
        yield tmp_path


def _in_this_process(command: list[str]) -> int:
    """Run `python -m triptych` by the same function and without its imports."""
    from lightning.pytorch.utilities.seed import isolate_rng

    from triptych.callbacks.command_line.init_from import _environment
    from triptych.cli import main

    assert command[:3] == [sys.executable, "-m", "triptych"]
    with isolate_rng(), pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(_environment()):
            patch.delenv(name)
        try:
            main(list(map(str, command[3:])))
        except Exception:
            traceback.print_exc()
            return 1
    return 0


@pytest.fixture
def stages_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments that others start from (`init_from`) need no process that imports everything."""
    monkeypatch.setattr(
        "triptych.callbacks.command_line.init_from._run_to_its_end", _in_this_process
    )


@pytest.fixture
def stages_of_all(
    workdir: Path, tmp_path_factory: pytest.TempPathFactory, stages_in_this_process: None
) -> Path:
    """Experiments that others start from are run once for all tests that ask."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # that of all workers: whoever comes second waits for the first
    (folder / "stages").mkdir(exist_ok=True)
    (workdir / "runs").mkdir()
    (workdir / "runs" / "stages").symlink_to(folder / "stages")
    return folder / "stages"


def words_of(folder: Path, *options: object, name: str = "tiny", **sections: dict) -> list[str]:
    """The command line of a run that takes well under a second, without MLflow.

    Args:
        folder: Where its configuration is written.
        options: Further words of the command line.
        name: Of the configuration.
        sections: Sections of the configuration, merged over those of `TINY`.
    """
    config = {key: {**TINY.get(key, {}), **sections.get(key, {})} for key in {**TINY, **sections}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(path), *map(str, options)]


def run_in(folder: Path, *options: object, **sections: dict) -> Path:
    """Run what `words_of` says in a folder, for fixtures that many tests share.

    Returns:
        The run's directory, absolute.
    """
    from triptych.cli import main

    with chdir(folder), without_learning_curves():
        return main(words_of(folder, *options, **sections)).absolute()


@pytest.fixture
def tiny(workdir: Path) -> Callable[..., list[str]]:
    """`words_of` for the test's own folder, which it runs in."""
    return partial(words_of, workdir)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """A folder with SmolLM2-135M-Instruct, a real chat model, with its real tokenizer."""
    from triptych.models.pretrained_source import pretrained_source

    return pretrained_source("smollm2")
