"""A user's mistake ends as one message on stderr, and an exit code that is not 0."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from triptych import cli
from triptych.callbacks.command_line.error_report import one_message_per_error

MISTAKES = pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("--model.init_args.betta=1", 2, "betta"),
        ("--data.init_args.file=nowhere.txt", 1, "error: data file nowhere.txt does not exist"),
    ],
    ids=["unknown key", "constructor"],
)


@MISTAKES
def test_a_mistake_ends_with_its_message_and_a_code(
    tiny, monkeypatch, capsys, option, code, message
):
    monkeypatch.setattr(sys, "argv", ["train.py", *tiny(option)])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with pytest.raises(SystemExit) as end:
        cli.run()
    assert end.value.code == code
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.slow
@MISTAKES
def test_the_process_does_so_too(tiny, option, code, message):
    command = [sys.executable, str(ROOT / "train.py"), *tiny(option)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_traceback_on_demand(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end, one_message_per_error():
        raise ValueError("k is too large")
    assert end.value.code == 1
    assert "error: k is too large" in capsys.readouterr().err

    monkeypatch.setenv("TRIPTYCH_DEBUG", "1")
    with pytest.raises(ValueError, match="k is too large"), one_message_per_error():
        raise ValueError("k is too large")


def test_bugs_keep_their_traceback():
    with pytest.raises(AssertionError), one_message_per_error():
        raise AssertionError
