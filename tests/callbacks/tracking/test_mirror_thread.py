"""The thread between a run and its tracker, with a mirror that fails when it is told to."""

import threading
import time

import pytest

from triptych.callbacks.tracking import mirror_thread
from triptych.callbacks.tracking.mirror_thread import MirrorThread
from triptych.callbacks.tracking.mlflow_store import MirrorBusyError


class FakeMirror:
    """Counts its updates; raises what `error` holds."""

    def __init__(self) -> None:
        self.num_updates = 0
        self.error: Exception | None = None
        self.attempted = threading.Event()

    def update(self) -> None:
        self.attempted.set()
        if self.error is not None:
            raise self.error
        self.num_updates += 1


@pytest.fixture
def mirror() -> FakeMirror:
    return FakeMirror()


def test_many_changes_need_few_updates(mirror):
    thread = MirrorThread(mirror, "it")
    for _ in range(1000):
        thread.wake()
    assert thread.flush(10)
    assert 1 <= mirror.num_updates <= 3


def test_a_failure_is_said_once_and_tried_again(mirror, monkeypatch, caplog):
    monkeypatch.setattr(mirror_thread, "FIRST_PAUSE_SECONDS", 0.01)
    thread = MirrorThread(mirror, "the store")
    assert thread.flush(10)
    mirror.error = ConnectionError("away")
    started = time.monotonic()
    assert not thread.flush(0.3)
    assert time.monotonic() - started > 0.3
    assert thread.last_error == "ConnectionError: away"
    assert caplog.text.count("the store does not answer (ConnectionError: away)") == 1
    mirror.error = None
    assert thread.flush(10)
    assert thread.last_error is None


def test_another_process_that_sends_the_run_is_said_and_waited_for(mirror, monkeypatch, caplog):
    monkeypatch.setattr(mirror_thread, "FIRST_PAUSE_SECONDS", 0.01)
    mirror.error = MirrorBusyError("another process is sending this run")
    thread = MirrorThread(mirror, "MLflow at x")
    assert not thread.flush(0.3)
    assert thread.last_error == "another process is sending this run"
    assert caplog.text.count("another process is sending this run to MLflow at x.") == 1
    assert "does not answer" not in caplog.text
    threading.Timer(0.2, lambda: setattr(mirror, "error", None)).start()
    assert thread.flush(10)
    mirror.error = ConnectionError("away")
    thread.flush(0.1)
    assert "MLflow at x does not answer (ConnectionError: away)" in caplog.text


def test_the_end_does_not_wait_for_a_store_that_has_never_answered(mirror):
    mirror.error = ConnectionError("away")
    started = time.monotonic()
    assert not MirrorThread(mirror, "it").flush(30)
    assert time.monotonic() - started < 5


def test_a_store_that_comes_back_needs_no_further_change(mirror, monkeypatch):
    monkeypatch.setattr(mirror_thread, "FIRST_PAUSE_SECONDS", 0.01)
    mirror.error = ConnectionError("away")
    thread = MirrorThread(mirror, "it", seconds_between=0.0)
    thread.wake()
    assert mirror.attempted.wait(10)
    mirror.error = None
    deadline = time.monotonic() + 10
    while mirror.num_updates == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_stuck_in_a_request_does_not_hold_up_the_end():
    free = threading.Event()

    class Stuck:
        def update(self) -> None:
            free.wait(30)

    thread = MirrorThread(Stuck(), "it")
    started = time.monotonic()
    assert not thread.flush(0.1)
    assert time.monotonic() - started < 5
    free.set()


def test_wake_returns_at_once(mirror):
    mirror.error = ConnectionError("away")
    thread = MirrorThread(mirror, "it")
    started = time.monotonic()
    for _ in range(100):
        thread.wake()
    assert time.monotonic() - started < 1
