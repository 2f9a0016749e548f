"""A tiny exported model with the tokenizer of the embedded facts, and runs that start from it."""

from pathlib import Path
from typing import Any

import torch

from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.facts import Facts, FactsConfig
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm


def export_tiny_model(folder: Path, memory: bool = True, seed: int = 0) -> Path:
    """Write a folder as `ExportModel` does; the weights are as they were drawn."""
    torch.manual_seed(seed)
    data = Facts(FactsConfig(num_facts=40), tokenizer=TokenizerConfig(vocab_size=400))
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=128)
    slots = MemoryConfig(layers=[1], num_keys=8, num_heads=2, top_k=4, placement="beside")
    model = build_memory_lm(base, slots if memory else None, data.vocab_size)
    for name, parameter in model.named_parameters():
        if name.endswith("memory_gate"):
            torch.nn.init.constant_(parameter, 0.5)  # as after training: the memory is in use
    model.save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    return folder


def finetuning(export: Path, **model: Any) -> dict[str, dict]:
    """Sections of a configuration: six facts, four steps each, then three of them asked."""
    return {
        "data": {
            "class_path": "triptych.datamodules.remember.facts.fact_stream.FactStream",
            "init_args": {
                "facts": {"num_facts": 6, "validation_facts": 3},
                "context_length": 96,
                "steps_per_visit": 4,
            },
        },
        "model": {
            "class_path": "triptych.lit_modules.remember.continual_finetuning.ContinualFinetuning",
            "init_args": {
                "init_from": str(export),
                "learning_rate": 0.02,
                "max_new_tokens": 3,
                **model,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "gradient_clip_val": None,
        },
        "tracking": {"uri": None},
    }
