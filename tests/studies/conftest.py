"""Studies whose runs need not import everything anew."""

import pytest

from tests.train_process import CONTEXT, start_server
from triptych.studies import arms


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of `run_arms` are forked from a process that has imported what runs need."""
    start_server()
    monkeypatch.setattr(arms.multiprocessing, "get_context", lambda method: CONTEXT)
