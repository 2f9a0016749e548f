"""What a study writes: intervals, tests and checks, against constants worked out by hand."""

import json

import pytest

from triptych.studies.results import at_least, at_most, mean_interval, paired_test, write_results


def test_interval_is_students():
    entry = mean_interval([1.0, 2.0, 3.0])
    # The standard error is 1 / sqrt(3); t of 2 degrees of freedom at 97.5% is 4.302653.
    assert entry["mean"] == 2.0
    assert entry["interval"] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5])
    assert mean_interval([5.0])["interval"] is None


def test_paired_test_by_hand():
    # Differences 1, 2, 3: t = 2 / (1 / sqrt(3)).
    outcome = paired_test("a - b", [2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert outcome["statistic"] == pytest.approx(2 * 3**0.5)
    assert outcome["p"] == pytest.approx(0.0742, abs=1e-4)
    assert paired_test("same", [1.0, 2.0], [0.0, 1.0])["p"] is None  # no spread, no test


def test_bounds_are_part_of_what_is_allowed():
    assert at_most(1.0, 1.0).held
    assert not at_most(1.01, 1.0).held
    assert at_least(1.0, 1.0).held
    assert not at_least(0.99, 1.0).held


def test_a_check_that_does_not_hold_is_a_result(tmp_path, capsys):
    results = write_results(
        tmp_path,
        "water is dry",
        "smoke",
        {"tap": {"dryness": mean_interval([0.1, 0.2])}},
        [paired_test("tap - sea", [0.1, 0.2], [0.3, 0.1])],
        {"dry enough": at_least(0.15, 0.5), "not too hot": at_most(0.15, 0.5)},
        device="cpu",
        steps=3,
    )
    assert results["held"] is False
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (results["device"], results["steps"]) == ("cpu", 3)
    shown = capsys.readouterr().out
    assert "dry enough: 0.15 against 0.5: not held" in shown
    assert "0.15 ±0.64" in shown  # 12.706 standard errors of .05


def test_many_arms_stand_below_one_another(tmp_path, capsys):
    numbers = {"learned": mean_interval([0.5]), "points lost": mean_interval([40.0])}
    arms = {f"arm number {number}": numbers for number in range(15)} | {
        "half": {"learned": numbers["learned"]}
    }
    write_results(tmp_path, "a claim", "smoke", arms, [], {}, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    (shown,) = (line for line in lines if "arm number 14" in line)
    assert "0.5" in shown
    assert "40" in shown
    assert "learned" in next(line for line in lines if "points lost" in line)


def test_samples_are_in_the_report(tmp_path):
    samples = {"tap": {"Name a drink.": ["milk", "tea"]}, "sea": {"Name a drink.": ["salt"]}}
    arms = {"tap": {"dryness": mean_interval([0.1])}}
    write_results(tmp_path, "x", "smoke", arms, [], {}, device="cpu", samples=samples)
    page = (tmp_path / "report.html").read_text()
    assert page.index("Name a drink.") < page.index("milk / tea") < page.index("salt")
