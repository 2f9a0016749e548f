"""The peak of an experiment is that of a process which really ran it."""

import pytest
import torch

from triptych.benchmarks import experiment_memory

CPU = torch.device("cpu")


@pytest.mark.slow
def test_an_experiment_takes_more_than_its_libraries(tmp_path):
    out = tmp_path / "memory.json"
    report = experiment_memory.main(["configs/quickstart.yaml", "--quick", "--out", str(out)])
    (row,) = report.rows
    assert 200 * 2**20 < row["peak_bytes"] < 8 * 2**30  # torch and Lightning alone take 200 MiB
    assert out.is_file()


def test_a_failing_experiment_is_an_error(tmp_path):
    config = tmp_path / "broken.yaml"
    config.write_text("seed_everything: many\n")
    with pytest.raises(ValueError, match=r"(?s)broken\.yaml failed:.*seed_everything"):
        experiment_memory.peak_bytes(str(config), [], CPU)
