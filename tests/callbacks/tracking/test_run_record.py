"""The record that the run's thread writes while the mirror's thread reads it."""

import threading
from pathlib import Path

from triptych.callbacks.tracking.run_record import RunRecord, read_json


def test_what_is_written_beside_a_reader_is_kept(tmp_path: Path):
    record = RunRecord(tmp_path)
    record.begin("experiment", "run")
    stop = threading.Event()

    def mirror() -> None:
        while not stop.is_set():
            record.keep()

    readers = [threading.Thread(target=mirror, daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for step in range(200):
            record.add("tags", {f"tag{step}": "set"})
        record.end("FINISHED", 200)
    finally:
        stop.set()
    for reader in readers:
        reader.join()
    content = read_json(record.path)
    assert content["status"] == "FINISHED"
    assert len(content["tags"]) == 200


def test_record_of_an_untracked_run_keeps_its_key(tmp_path: Path):
    (tmp_path / "summary.json").write_text('{"status": "finished", "experiment": "mine"}')
    first = RunRecord(tmp_path).keep()
    assert first["status"] == "FINISHED"
    assert RunRecord(tmp_path).keep() == first
