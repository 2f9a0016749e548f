"""A user's mistake ends as one message on stderr, and an exit code that is not 0."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.train_process import start_train
from triptych.callbacks.command_line.error_report import one_message_per_error


def test_unknown_key_ends_with_its_name_and_code_2(tiny):
    command = [sys.executable, str(ROOT / "train.py"), *tiny("--model.init_args.betta", "1")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "betta" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_constructor_error_ends_with_its_message_and_code_1(tiny, workdir):
    ended = start_train(workdir, *tiny("--data.init_args.file", "nowhere.txt"))
    assert ended.wait() == 1
    assert "error: data file nowhere.txt does not exist" in ended.stderr()
    assert "Traceback" not in ended.stderr()


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
