"""Small sources for tests of datamodules; caches are in a temporary folder."""

import gzip
import json

import pytest


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path_factory, monkeypatch):
    """Keep tokenizers and token files in one folder for the whole session."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("TRIPTYCH_CACHE", str(folder))
    monkeypatch.delenv("TRIPTYCH_DATA", raising=False)


@pytest.fixture
def write_jsonl(tmp_path):
    """Write rows as JSON lines (gzipped where the name says so) and return the path."""

    def write(name: str, rows: list) -> str:
        path = tmp_path / name
        text = "".join(json.dumps(row) + "\n" for row in rows)
        data = text.encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return str(path)

    return write


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> str:
    """Sixty texts of three to eighty words."""
    texts = [" ".join(f"w{(i * j) % 89}" for j in range(3 + i * 13 % 78)) for i in range(60)]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)
