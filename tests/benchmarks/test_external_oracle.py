"""The benchmark of a program as an oracle in small: both sides give the same scores."""

import json

import pytest

from triptych.benchmarks import external_oracle


def test_a_small_report_and_its_sides_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(external_oracle, "WAIT_S", 0.001)
    words = ["--quick", "--num-calls", "130", "--out", str(tmp_path / "report.json")]
    external_oracle.main(words)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in stored["rows"]] == ["a program", "a Python function"]
    assert all(row["calls_per_s"] > 0 for row in stored["rows"])
    assert stored["checks"]["scores that differ"] == {"value": 0, "bound": 0, "held": True}
    assert len(set(external_oracle.chains(500))) == 500
    with pytest.raises(ValueError, match="--num-calls is 0"):
        external_oracle.main(["--num-calls", "0"])
