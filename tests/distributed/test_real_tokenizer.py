"""Two gloo processes train adapters on a real chat tokenizer as one process does."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.test_policy_optimization import logged, run
from tests.lit_modules.diversify.test_real_tokenizer import QUESTIONS, sections
from tests.models.tiny_chat_model import TEXT_END, tiny_chat_folder

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_two_processes_train_adapters_as_one_does(workdir: Path, smollm2: str):
    end = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tiny_chat_folder(workdir / "base", smollm2, end, eos_token_id=[TEXT_END, 5])
    rows = [{"prompt": f"{question} {'Really. ' * n}"} for n, question in enumerate(QUESTIONS * 2)]
    (workdir / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    runs = []
    for name, batch_size, hardware in (("one", 4, "cpu.yaml"), ("two", 2, "ddp2_cpu.yaml")):
        settings = sections(str(workdir / "base"), str(workdir / "prompts.jsonl"))
        settings["model"]["class_path"] = "tests.distributed.test_policy_optimization.SamplesForTwo"
        settings["model"]["init_args"] |= {
            "reward": {"class_path": "tests.distributed.test_policy_optimization.SharesEs"},
            "learning_rate": 1e-2,
        }
        settings["data"]["init_args"] |= {"batch_size": batch_size, "rows_per_epoch": 100}
        settings["trainer"] = {"max_steps": 4, "log_every_n_steps": 1, "limit_val_batches": 0}
        settings |= {"tracking": {"uri": None}, "checkpoint": {}}
        runs.append(run(workdir, name, settings, hardware))
    one, two = map(logged, runs)
    assert set(one) == set(two) >= {"train/reward", "train/kl_nats"}
    assert one["train/kl_nats"][-1] > 1e-6  # it has learned
    for key, values in one.items():
        assert two[key] == pytest.approx(values, rel=1e-3, abs=1e-6), key
    ours, theirs = (load_file(folder / "export" / "adapter_model.safetensors") for folder in runs)
    assert any(tensor.abs().max() > 1e-3 for name, tensor in ours.items() if "lora_B" in name)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-4)
