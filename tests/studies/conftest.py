"""Studies whose runs need not import everything anew."""

from pathlib import Path

import pytest

from tests.train_process import CONTEXT, start_server
from triptych.studies import arms, redraw


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of `run_arms` are forked from a process that has imported what runs need."""
    start_server()
    monkeypatch.setattr(arms.multiprocessing, "get_context", lambda method: CONTEXT)


def redrawn(study: str, folder: Path) -> bytes:
    """The figure of a study, drawn from its `results.json` alone."""
    figure = redraw.main([study, str(folder / "results.json"), str(folder / "again.png")])
    return figure.read_bytes()
