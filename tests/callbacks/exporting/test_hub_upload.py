"""Upload to a stand-in for the hub on localhost, which speaks what huggingface_hub asks."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from triptych.callbacks.exporting import hub_upload
from triptych.callbacks.exporting.hub_upload import check_repository_name, upload
from triptych.cli import main


class Hub(BaseHTTPRequestHandler):
    """Keeps the files of commits: create, preupload and commit, as the hub answers them."""

    requests: ClassVar[list[tuple[str, dict]]]
    files: ClassVar[dict[str, bytes]]
    refuses = False

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunked()
        if self.refuses:
            return self._answer({"error": "out of order"}, 500)
        if self.path == "/api/repos/create":
            self.requests.append((self.path, json.loads(body)))
            return self._answer({"url": f"{self._address}/me/facts", "name": "me/facts"})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
            ]
            return self._answer({"files": files})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.files[entry["value"]["path"]] = content
            url = f"{self._address}/me/facts/commit/1234"
            return self._answer({"commitUrl": url, "commitOid": "1234", "success": True})
        return self._answer({"valid": True})  # validate-yaml

    def do_GET(self) -> None:
        self._answer({"id": "me/facts", "sha": "1234", "siblings": [], "name": "me"})

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    @property
    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _chunked(self) -> bytes:
        parts = []
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if not size:
                break
        return b"".join(parts)

    def _answer(self, content: dict, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class OfThisTest(Hub):
        requests: ClassVar[list[tuple[str, dict]]] = []
        files: ClassVar[dict[str, bytes]] = {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), OfThisTest)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_upload, "HfApi", lambda: HfApi(endpoint=address, token="hf_test"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield OfThisTest
    server.shutdown()
    thread.join()
    server.server_close()


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
