"""A stand-in for the Hugging Face hub on localhost, which speaks what huggingface_hub asks."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote


class Hub(BaseHTTPRequestHandler):
    """Keeps the files of commits: create, preupload, commit, download, as the hub answers them."""

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
        if "/resolve/" in self.path:
            return self._file(unquote(self.path.partition("/resolve/")[2].partition("/")[2]))
        return self._answer({"id": "me/facts", "sha": "1234", "siblings": [], "name": "me"})

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

    def _file(self, name: str) -> None:
        if name not in self.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data = self.files[name]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1234" * 10)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        return None

    def _answer(self, content: dict, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def running_hub() -> Iterator[tuple[type[Hub], str]]:
    """An empty hub, and its address."""

    class OfThisTest(Hub):
        requests: ClassVar[list[tuple[str, dict]]] = []
        files: ClassVar[dict[str, bytes]] = {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), OfThisTest)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield OfThisTest, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
