"""The examples in docstrings of every module are run."""

import doctest
import importlib
from pathlib import Path

import pytest

from triptych import ROOT
from triptych.short_names import FOLDERS

FILES = sorted(
    path
    for folder in (*FOLDERS, "triptych")
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text()
)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "triptych" else ("triptych", *parts))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_examples(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name_of(path))
    except ModuleNotFoundError as error:
        if error.name != "triton":  # the extra `kernels`
            raise
        pytest.skip("triton is missing: install the extra kernels")
    ran = doctest.testmod(module, optionflags=FLAGS)
    assert ran.attempted
    assert not ran.failed
