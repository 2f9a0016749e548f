"""The benchmark of a policy step's memory measures what it says."""

import json

import pytest

from triptych.benchmarks import policy_memory
from triptych.benchmarks.policy_memory import ONE_PASS, Variant, measure

SMALL = {"num_prompts": 2, "num_samples": 3, "prompt_tokens": 4, "new_tokens": 6}


def test_a_variant_saves_less_and_has_the_same_gradient(tmp_path):
    import torch

    found, usages = [], []
    for number, settings in enumerate(({}, {"micro_batch_tokens": 20}, {"checkpointing": True})):
        file = tmp_path / f"{number}.pt"
        usages.append(measure(Variant(**SMALL, **settings), file))
        found.append(torch.load(file))
    whole, *less = usages
    assert all(usage.saved_bytes < 0.6 * whole.saved_bytes for usage in less)
    assert {usage.weights_bytes for usage in usages} == {whole.weights_bytes}
    assert all(policy_memory.largest_difference(one, found[0]) < 1e-6 for one in found[1:])
    assert policy_memory.largest_difference(found[0], found[0]) == 0


@pytest.mark.slow
def test_the_report_has_all_variants_and_checks(tmp_path):
    out = tmp_path / "memory.json"
    policy_memory.main(["--quick", "--threads", "1", "--tokens", "300", "--out", str(out)])
    report = json.loads(out.read_text())
    names = [row["name"] for row in report["rows"]]
    assert names[0] == ONE_PASS
    assert names[1:] == [
        "300 tokens at a time",
        "checkpointing",
        "300 tokens at a time, checkpointing",
    ]
    peaks = [row["peak_bytes"] for row in report["rows"]]
    assert min(peaks[1:]) < peaks[0]
    assert all(check["held"] for name, check in report["checks"].items() if "gradient" in name)
