"""Checks at the sizes of real models, randomly initialised."""

# Shapes: B rows, T positions

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.benchmarks.gpu_checks.check import Setting, largest_difference
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.diversify.sampling import sample_completions
from triptych.models.diversify.scoring import completion_log_prob
from triptych.objectives.batch_nll import batch_nll


def _model(setting: Setting, vocab_size: int, **sizes: Any) -> PreTrainedModel:
    if setting.quick:
        sizes |= {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}
        sizes |= {"num_kv_heads": None, "overrides": {}}
        vocab_size = 128
    with setting.device:
        return build_base_lm(BaseLMConfig(**sizes), vocab_size)


def language_model_step(setting: Setting) -> dict[str, Any]:
    """Train 1.2 billion parameters on packed rows of 512 tokens: tokens a second, peak memory."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 2048, "num_layers": 22, "num_heads": 16, "intermediate_size": 5632}
    model = _model(setting, 16_384, family="llama", tie_embeddings=False, **sizes)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    rows, length = setting.size(16, 2), setting.size(512, 16)
    batch = _packed(setting, rows, length)

    def step() -> None:
        with torch.autocast(setting.device.type, torch.bfloat16):
            nll = batch_nll(model, batch)
        (nll.sum_nats / nll.num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    took = setting.milliseconds(step, 3)
    return {"step_ms": took, "tokens_per_second": 1e3 * rows * length / took}


def _packed(setting: Setting, rows: int, length: int) -> dict[str, Any]:
    """Return rows of two documents each."""
    with setting.device:
        ids_BT = torch.randint(1, 100, (rows, length))
        segments_BT = torch.ones_like(ids_BT)
        segments_BT[:, length // 2 :] = 2
        positions_T = torch.arange(length) % (length // 2)
    return {
        "input_ids": ids_BT,
        "labels": ids_BT,
        "segment_ids": segments_BT,
        "position_ids": positions_T.expand(rows, length),
        "num_bytes": torch.ones_like(ids_BT),
    }


def policy_step(setting: Setting) -> dict[str, Any]:
    """Sample and score with the sizes of Qwen3-1.7B; milliseconds a token, peak memory."""
    torch.manual_seed(0)
    model = _model(
        setting,
        151_936,
        family="qwen3",
        hidden_size=2048,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        intermediate_size=6144,
        max_position_embeddings=1024,
        overrides={"head_dim": 128},
    ).eval()
    length, samples = setting.size(128, 8), 8
    prompts_GP = torch.randint(1, 100, (2, length), device=setting.device)
    mask_GP = torch.ones_like(prompts_GP, dtype=torch.bool)
    autocast = torch.autocast(setting.device.type, torch.bfloat16)

    def sample() -> Any:
        with autocast:
            return sample_completions(model, prompts_GP, mask_GP, samples, length, [], 0)

    took = setting.milliseconds(sample, 1)
    made = sample()
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with autocast:
        scored_BT = completion_log_prob(
            model,
            prompts_GP.repeat_interleave(samples, 0),
            mask_GP.repeat_interleave(samples, 0),
            made.token_ids_BT,
            made.token_mask_BT,
        )
    numbers = {"decoding_ms_a_token": took / length}
    if setting.device.type == "cuda":
        kept = torch.cuda.memory_allocated() - before
        numbers["kept_mib_a_token"] = kept / 2**20 / (2 * length + 2 * samples * length)
    scored_BT.sum().backward()
    return numbers


def process_groups(setting: Setting) -> dict[str, Any]:
    """Train a layer plainly, by DDP and by FSDP2 in a group of one process."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    backend = "nccl" if setting.device.type == "cuda" else "gloo"
    gradients: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            backend, init_method=f"file://{Path(folder) / 'meet'}", rank=0, world_size=1
        )
        try:
            for kind in ("plain", "ddp", "fsdp2"):
                torch.manual_seed(0)
                layers: Any = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)).to(setting.device)
                if kind == "ddp":
                    layers = DistributedDataParallel(layers)
                elif kind == "fsdp2":
                    mesh = dist.device_mesh.init_device_mesh(setting.device.type, (1,))
                    fully_shard(layers[0], mesh=mesh)
                    fully_shard(layers, mesh=mesh)
                layers(torch.ones(4, 64, device=setting.device)).sum().backward()
                first = next(layers.parameters()).grad
                gradients[kind] = first.full_tensor() if isinstance(first, DTensor) else first
        finally:
            dist.destroy_process_group()
    numbers = {
        kind: largest_difference(gradients[kind], gradients["plain"]) for kind in ("ddp", "fsdp2")
    }
    return numbers | {"held": max(numbers.values()) < 1e-6}
