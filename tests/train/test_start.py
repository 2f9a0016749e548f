"""A terminal hears at once that the program has started; other readers of its output do not."""

import io
import os
import subprocess
import sys
import time

import pytest

import triptych.cli
from tests.conftest import ROOT
from triptych import start

COMMAND = [sys.executable, str(ROOT / "train.py"), "fit", "--help"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_line_before_the_imports():
    pty = pytest.importorskip("pty", reason="Windows has no such terminals")
    mine, theirs = pty.openpty()
    started = time.monotonic()
    process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    try:
        assert os.read(mine, 200).decode() == start.LOADING
        assert time.monotonic() - started < 2  # torch alone takes longer on a busy machine
    finally:
        process.kill()
        process.wait()
        os.close(mine)


def test_the_line_is_gone_when_the_program_is_loaded(monkeypatch):
    seen = []
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(triptych.cli, "run", lambda: seen.append(terminal.getvalue()))
    start.run()
    blank = " " * len(start.LOADING)
    assert seen == [f"{start.LOADING}\r{blank}\r"]
    for stream, rank in ((io.StringIO(), "0"), (Terminal(), "1")):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("LOCAL_RANK", rank)
        start.run()
        assert stream.getvalue() == ""


def test_an_interrupted_start_ends_without_a_trace(monkeypatch):
    with pytest.raises(SystemExit) as ended, start._loading_said():
        raise KeyboardInterrupt
    assert ended.value.code == 130


def test_the_start_itself_imports_nothing_heavy():
    code = "import sys, triptych.start; print({'torch', 'lightning'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
