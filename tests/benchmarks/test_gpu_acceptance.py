"""The acceptance script runs; what needs a GPU says so."""

import json
from pathlib import Path

import pytest

from triptych.benchmarks import gpu_acceptance

NEEDS_CUDA = {8, 13}
#: Check 3 runs whole programs, which other tests do.
NUMBERS = [number for number in range(1, 14) if number != 3]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    out = tmp_path_factory.mktemp("acceptance") / "results.json"
    words = ["--device", "cpu", "--quick", "--threads", "1", "--out", str(out), "--only"]
    gpu_acceptance.main([*words, *map(str, NUMBERS)])
    content = json.loads(out.read_text())
    return {int(name.split(".")[0]): row for name, row in content.items() if name[0].isdigit()}


@pytest.mark.parametrize("number", NUMBERS)
def test_check_holds_or_needs_a_gpu(results: dict[int, dict], number: int):
    result = results[number]
    assert result["held"] is (None if number in NEEDS_CUDA else True), result


def test_a_failing_check_costs_only_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fail(_: object) -> dict:
        raise RuntimeError("the device fell off")

    checks = (("broken", fail), *gpu_acceptance.CHECKS[:1])
    monkeypatch.setattr(gpu_acceptance, "CHECKS", checks)
    report = gpu_acceptance.main(["--device", "cpu", "--quick", "--threads", "1"])
    broken, other = report.more.values()
    assert broken["held"] is False
    assert "fell off" in broken["error"]
    assert other["held"] is True
