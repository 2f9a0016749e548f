"""Upload to a stand-in for the hub on localhost, which speaks what huggingface_hub asks."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from tests.hub_stand_in import Hub, running_hub
from triptych.callbacks.exporting import hub_upload
from triptych.callbacks.exporting.hub_upload import check_repository_name, upload
from triptych.cli import main


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with running_hub() as (kept, address):
        monkeypatch.setattr(hub_upload, "HfApi", lambda: HfApi(endpoint=address, token="hf_test"))
        yield kept


def test_the_folder_is_uploaded_in_one_commit(hub, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\0weights")
    address = upload(tmp_path, "me/facts", private=True)
    assert address.endswith("/me/facts/commit/1234")
    assert hub.files == {"config.json": b"{}", "model.safetensors": b"\0weights"}
    ((_, created),) = hub.requests
    assert created["name"] == "facts"
    assert created["visibility"] == "private"


def test_a_run_uploads_its_export_when_it_has_ended(hub, tiny):
    run = main(tiny("--export.push_to_hub", "me/facts"))
    assert set(hub.files) == {path.name for path in (run / "export").iterdir()}
    assert hub.files["weights.pt"] == (run / "export" / "weights.pt").read_bytes()


def test_a_failed_upload_does_not_lose_the_run(hub, tiny):
    hub.refuses = True
    with pytest.warns(UserWarning, match=r"hf upload me/facts .*export \."):
        run = main(tiny("--export.push_to_hub", "me/facts"))
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert (run / "export" / "weights.pt").is_file()


def test_a_name_that_the_hub_would_refuse_stops_before_training():
    with pytest.raises(ValueError, match=r"export\.push_to_hub is 'a/b/c'"):
        check_repository_name("a/b/c")
