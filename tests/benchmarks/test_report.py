"""Reports: ratios against ours, checks, JSON."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console

from triptych.benchmarks.paired import Timing
from triptych.benchmarks.report import (
    Report,
    at_least,
    at_most,
    describe_device,
    prepare_device,
    run_main,
)


def make_report() -> Report:
    report = Report("question", {"type": "cpu"}, more={"parts": [1]})
    report.add([Timing("ours", 8, [1.0, 1.0], 100), Timing("peer", 8, [3.0, 5.0], 250)])
    report.checks["speed"] = at_least(report.ratios["peer@8"], 1.5)
    return report


def test_json(tmp_path):
    report = make_report()
    report.write(tmp_path / "folder" / "report.json")
    stored = json.loads((tmp_path / "folder" / "report.json").read_text())
    assert stored["question"] == "question"
    assert [row["name"] for row in stored["rows"]] == ["ours", "peer"]
    assert stored["ratios"] == {"peer@8": 4.0}
    assert stored["memory_ratios"] == {"peer@8": 2.5}
    assert stored["checks"] == {"speed": {"value": 4.0, "bound": 1.5, "held": True}}
    assert stored["held"] is True
    assert stored["parts"] == [1]


def test_a_file_is_written_only_where_one_is_wanted(tmp_path):
    out = StringIO()
    console = Console(file=out, width=200)
    report = make_report()
    assert report.finish(None, console) is report
    assert out.getvalue() == ""
    report.finish(tmp_path / "report.json", console)
    assert out.getvalue() == f"written to {tmp_path / 'report.json'}\n"
    assert json.loads((tmp_path / "report.json").read_text())["question"] == "question"


def test_one_broken_promise_is_enough():
    report = make_report()
    report.checks["other"] = at_least(1.0, 2.0)
    assert report.to_dict()["held"] is False


def test_printing_shows_names_ratios_and_verdicts():
    report = make_report()
    report.checks["other"] = at_least(1.0, 2.0)
    report.checks["memory"] = at_most(1.1, 1.2)
    report.checks["state"] = at_most(3.0, 2.0)
    out = StringIO()
    report.print(Console(file=out, width=160))
    for words in (
        "ours",
        "peer",
        "4.00x",
        "speed: 4, at least 1.5: held",
        "other: 1, at least 2: not held",
        "memory: 1.1, at most 1.2: held",
        "state: 3, at most 2: not held",
    ):
        assert words in out.getvalue()


def test_device():
    description = describe_device(torch.device("cpu"))
    assert description["type"] == "cpu"
    assert description["threads"] == torch.get_num_threads()
    assert description["name"]


def test_options_that_cannot_work():
    with pytest.raises(ValueError, match="--threads must be at least 1, got 0"):
        prepare_device("cpu", 0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device cuda: torch finds no GPU here"):
            prepare_device("cuda", None)


def test_a_mistake_in_the_options_is_told_in_a_line():
    def main() -> Report:
        raise ValueError("--threads must be at least 1, got 0")

    with pytest.raises(SystemExit, match="error: --threads must be at least 1, got 0"):
        run_main(main)
