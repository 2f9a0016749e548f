"""The benchmark of molecule metrics in small: its sides agree, and a false one would be told."""

import json

import numpy as np
import pytest
import torch

from triptych.benchmarks import molecule_metrics
from triptych.benchmarks.paired import PairedTimer
from triptych.benchmarks.report import Report
from triptych.metrics.diversify.molecules.circles import bit_vectors
from triptych.metrics.diversify.molecules.fingerprints import pack

CPU = torch.device("cpu")
BITS = (np.random.default_rng(0).random((60, 128)) < 0.1).astype(np.uint8)
BITS[:, 0] |= ~BITS.any(1)  # LeaderPicker never ends on an empty one


@pytest.mark.slow
def test_a_small_report_has_everything_and_its_sides_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(molecule_metrics, "DENSE_TILE", 25)
    report = Report("molecule_metrics", {"type": "cpu"}, more={"values": {}})
    with PairedTimer(CPU, 1, 1, 0.0) as timer:
        molecule_metrics.compare(report, timer, pack(BITS))
    report.write(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert len(stored["rows"]) == 3 + 3 + 2 + 1
    exact = [check for name, check in stored["checks"].items() if "speed-up" not in name]
    assert len(exact) == 5
    assert all(check["held"] for check in exact)
    assert 5 < stored["values"]["Circles: ours"] < 60


def test_the_dense_definition_by_hand():
    # Similarities 1/3, 0, 0 beside the diagonal; the third is empty: 1 with itself.
    bits = np.zeros((3, 64), np.uint8)
    bits[0, [0, 1]] = bits[1, [1, 2]] = 1
    assert molecule_metrics.dense_diversity(bits) == pytest.approx(16 / 27)
    assert molecule_metrics.bulk_diversity(bit_vectors(pack(bits))) == pytest.approx(16 / 27)


def test_sequences_that_differ():
    assert molecule_metrics._num_different([1, 2, 3], [1, 2, 3]) == 0
    assert molecule_metrics._num_different([1, 2, 3], [1, 4]) == 2


def test_memory_is_in_bytes():
    assert 5e7 < molecule_metrics._computing_both(pack(BITS).numpy(), 1) < 4e9
