"""The queue between a run and its tracker, with a store that fails when it is told to."""

import threading
from itertools import takewhile
from pathlib import Path

import pytest

from triptych.callbacks.tracking import tracking_sender
from triptych.callbacks.tracking.mlflow_store import Record, RejectedRecordError
from triptych.callbacks.tracking.tracking_sender import RECORDS_AT_ONCE, SPOOL_FILE, TrackingSender


class FakeStore:
    """Takes up to two records at once, none past a poisoned one; raises what `error` holds."""

    def __init__(self) -> None:
        self.taken: list[Record] = []
        self.error: Exception | None = None
        self.attempted = threading.Event()

    def send(self, records: list[Record]) -> int:
        self.attempted.set()
        if self.error is not None:
            raise self.error
        if records[0].get("poison"):
            raise RejectedRecordError("no")
        sent = list(takewhile(lambda record: not record.get("poison"), records[:2]))
        self.taken += sent
        return len(sent)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def numbered(count: int, start: int = 0) -> list[Record]:
    return [{"kind": "metrics", "number": i} for i in range(start, start + count)]


def test_everything_arrives_in_order(store, tmp_path):
    sender = TrackingSender(store, tmp_path)
    for record in numbered(50):
        sender.put(record)
    sender.close(timeout_seconds=10)
    assert store.taken == numbered(50)
    assert sender.num_unsent == 0
    assert not (tmp_path / SPOOL_FILE).exists()


def test_what_could_not_be_sent_is_kept_on_disk_and_sent_first_later(store, tmp_path):
    store.error = ConnectionError("away")
    sender = TrackingSender(store, tmp_path)
    for record in numbered(5):
        sender.put(record)
    sender.close(timeout_seconds=10)
    assert (sender.num_unsent, store.taken) == (5, [])
    assert len((tmp_path / SPOOL_FILE).read_text().splitlines()) == 5
    assert sender.last_error == "ConnectionError: away"

    store.error = None
    again = TrackingSender(store, tmp_path)  # the run is resumed
    for record in numbered(3, start=5):
        again.put(record)
    again.close(timeout_seconds=10)
    assert store.taken == numbered(8)
    assert not (tmp_path / SPOOL_FILE).exists()


def test_store_that_comes_back_gets_everything(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_sender, "FIRST_PAUSE_SECONDS", 0.01)
    store.error = ConnectionError("away")
    sender = TrackingSender(store, tmp_path)
    for record in numbered(5):
        sender.put(record)
    assert store.attempted.wait(timeout=10)
    store.error = None
    sender.close(timeout_seconds=10)
    assert store.taken == numbered(5)


def test_long_outage_does_not_fill_the_memory(store, tmp_path):
    store.error = ConnectionError("away")
    sender = TrackingSender(store, tmp_path)
    many = numbered(3 * RECORDS_AT_ONCE)
    for record in many:
        sender.put(record)
    sender.close(timeout_seconds=10)
    assert sender.num_unsent == len(many)
    store.error = None
    assert TrackingSender(store, tmp_path).drain() == 0
    assert store.taken == many


def test_refused_record_is_dropped_and_counted(store, tmp_path):
    sender = TrackingSender(store, tmp_path)
    for record in [*numbered(2), {"kind": "params", "poison": True}, *numbered(2, start=2)]:
        sender.put(record)
    sender.close(timeout_seconds=10)
    assert [record.get("number") for record in store.taken if "number" in record][-1] == 3
    assert (sender.num_rejected, sender.num_unsent) == (1, 0)


def test_store_stuck_in_a_request_does_not_hold_up_the_end(tmp_path):
    release = threading.Event()

    class Stuck:
        def send(self, records: list[Record]) -> int:
            release.wait(timeout=60)
            return 1

    sender = TrackingSender(Stuck(), tmp_path)
    for record in numbered(4):
        sender.put(record)
    sender.close(timeout_seconds=0.1)
    left = (tmp_path / SPOOL_FILE).read_text()
    assert sender.num_unsent == len(left.splitlines()) == 4
    release.set()  # the thread wakes up, and touches nothing any more
    sender._thread.join(timeout=10)
    assert (tmp_path / SPOOL_FILE).read_text() == left


def test_half_sent_spool_keeps_the_other_half(store, tmp_path: Path):
    store.error = ConnectionError("away")
    sender = TrackingSender(store, tmp_path)
    for record in numbered(6):
        sender.put(record)
    sender.close(timeout_seconds=10)

    class TakesTwo(FakeStore):
        def send(self, records: list[Record]) -> int:
            if len(self.taken) >= 2:
                raise ConnectionError("away again")
            return super().send(records)

    assert TrackingSender(TakesTwo(), tmp_path).drain() == 4
    assert len((tmp_path / SPOOL_FILE).read_text().splitlines()) == 4
