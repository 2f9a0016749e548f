"""Each experiment of `configs/` trains, validates, exports and resumes on the pretended GPU."""

import math

import pytest

from tests.configs.test_configs import EXPERIMENTS, relative
from tests.pretended_gpu.tiny_experiments import TinyExperiments
from tests.pretended_gpu.wait_counter import table

# Waits of a training step, tiny sizes, float32, without those of Lightning itself. Lower a number
# when it falls. `python -m tests.pretended_gpu.waits CONFIG` shows them at real sizes.
MOST_WAITS: dict[str, int] = {
    "commune/adapter": 21,
    "commune/agent_finetuning": 19,
    "commune/agents": 8,
    "commune/autoencoder": 2,
    "commune/masked_adapter": 21,
    "commune/masked_autoencoder": 12,
    "commune/math_qwen3": 96,
    "commune/math_qwen3_codec": 2,
    "commune/sum_modulo_adapter": 21,
    "commune/sum_modulo_agents": 8,
    "commune/sum_modulo_autoencoder": 12,
    "diversify/creative_qa": 8,
    "diversify/creative_qa_base": 2,
    "diversify/creative_qa_qwen3": 19,
    "diversify/maths_qwen2.5_1.5b": 10,
    "diversify/molecules": 14,
    "diversify/molecules_prior": 2,
    "diversify/molecules_staged": 20,
    "diversify/one_or_two": 8,
    "diversify/one_or_two_base": 2,
    "diversify/one_or_two_memory": 28,
    "diversify/one_or_two_memory_base": 4,
    "diversify/one_or_two_qwen2.5_3b": 8,
    "diversify/synth": 47,
    "diversify/synth_all_amide": 26,
    "diversify/zinc_prior": 2,
    "quickstart": 3,
    "remember/background_statistics": 3,
    "remember/finetune_base": 3,
    "remember/finetune_full": 5,
    "remember/finetune_lora": 5,
    "remember/finetune_sparse": 13,
    "remember/plain_base": 2,
    "remember/pretrain": 4,
    "remember/pretrain_1b": 116,
    "remember/retrofit": 4,
    "remember/retrofit_qwen3": 10,
}
NOT_HERE = {
    "remember/retrofit_smollm2": "a real model",
    "remember/finetune_smollm2": "a real model",
    "diversify/one_or_two_smollm2": "a real model",
    "diversify/creative_smollm2": "a real model",
    "remember/teach": "keeps no checkpoint to go on from; its steps are those of finetune_sparse",
    "remember/teach_memory": "keeps no checkpoint to go on from; it trains nothing",
}


def test_each_experiment_has_a_budget():
    names = {relative(path).removesuffix(".yaml") for path in EXPERIMENTS}
    assert MOST_WAITS.keys() == names - NOT_HERE.keys()


@pytest.fixture(scope="session")
def runs(gpu, tmp_path_factory):
    return TinyExperiments(gpu, tmp_path_factory.mktemp("tiny_experiments"))


@pytest.mark.parametrize("name", MOST_WAITS)
def test_experiment_runs_resumes_and_waits_no_more_often(name, runs):
    first = runs.run(name)
    assert (first.summary["status"], first.summary["steps"]) == ("finished", 2)
    assert first.summary["device"] == "pretended GPU"
    second = runs.resume(name)
    assert (second.summary["status"], second.summary["steps"]) == ("finished", 4)
    for run in (first, second):
        assert (run.path / "export").is_dir()
        losses = {k: v for k, v in run.summary["metrics"].items() if k.startswith("train/")}
        assert losses
        assert all(map(math.isfinite, losses.values())), losses
    # In this test, as another process of the suite would run the experiment again.
    ours = sum(number for wait, number in first.waits.items() if wait.is_ours)
    places = table(first.waits)
    assert ours <= MOST_WAITS[name], f"where the host waits in a step of {name}: {places}"
