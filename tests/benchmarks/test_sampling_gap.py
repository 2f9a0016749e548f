"""The benchmark of sampled against scored log-probabilities, on a saved model."""

import json

from tests.models.diversify.tiny_policies import tiny_tokenizer
from triptych.benchmarks import sampling_gap
from triptych.models.base_lm import BaseLMConfig, build_base_lm


def test_a_saved_model_is_measured_in_each_precision(tmp_path, capsys):
    model = build_base_lm(BaseLMConfig(hidden_size=64, num_layers=4), len(tiny_tokenizer()))
    model.save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = "a"
    tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "gap.json"
    options = ["--quick", "--device", "cpu", "--threads", "1", "--out", str(out)]
    report = sampling_gap.main(["--model", str(tmp_path / "model"), *options])
    stored = json.loads(out.read_text())
    assert stored["precisions"] == report.more["precisions"]
    assert list(stored["precisions"]) == ["32-true", "16-mixed", "bf16-mixed", "bf16-true"]
    assert report.checks["mean in float32"].held
    exact, rounded = stored["precisions"]["32-true"], stored["precisions"]["bf16-mixed"]
    assert exact["weighted_share"] == 0
    assert exact["mean_nats_per_token"] < 1e-5 < 1e-4 < rounded["mean_nats_per_token"]
    assert "bf16-true" in capsys.readouterr().out
