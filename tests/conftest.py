"""What every test has: one thread, no network, a process left as it was found."""

import os

# Before anything imports torch, tokenizers or the hub's client, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRIPTYCH_DEBUG"] = "0"

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.train_process import start_train
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


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the test runs in: `runs/` and `mlflow.db` land there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def _forked(command: list[str | Path], env: dict[str, str], check: bool) -> SimpleNamespace:
    """`subprocess.run` of `train.py`."""
    assert not check
    running = start_train(Path.cwd(), *command[2:], **env)
    code = running.wait()
    print(running.stdout(), running.stderr(), sep="\n")
    return SimpleNamespace(returncode=code)


@pytest.fixture
def stages_of_all(
    workdir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Experiments that others start from (`init_from`) are run once for all tests that ask.

    They run in processes that need not import everything anew.
    """
    monkeypatch.setattr(
        "triptych.callbacks.command_line.init_from.subprocess", SimpleNamespace(run=_forked)
    )
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # that of all workers: whoever comes second waits for the first
    (folder / "stages").mkdir(exist_ok=True)
    (workdir / "runs").mkdir()
    (workdir / "runs" / "stages").symlink_to(folder / "stages")
    return folder / "stages"


@pytest.fixture
def tiny(workdir: Path) -> Callable[..., list[str]]:
    """Makes the command line of a run that takes well under a second, without MLflow.

    Keyword arguments are sections of the configuration, merged over those of `TINY`.
    """

    def words(*options: object, name: str = "tiny", **sections: dict) -> list[str]:
        config = {
            key: {**TINY.get(key, {}), **sections.get(key, {})} for key in {**TINY, **sections}
        }
        path = workdir / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return ["fit", "--config", str(path), *map(str, options)]

    return words
