"""A language model sharded over two processes against the same one, whole."""

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tests.distributed.two_processes import on_two_processes
from triptych.lit_modules.optimization import build_adamw, clip_apart
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm
from triptych.models.sharding import (
    gathered_state_dict,
    is_sharded,
    shard_language_model,
    with_gathered_weights,
)
from triptych.objectives.batch_nll import batch_nll

pytestmark = pytest.mark.distributed

MEMORY = {"num_keys": 8, "num_heads": 2, "top_k": 4}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "dense": ({"tie_embeddings": False}, None),
    "tied": ({"family": "gpt2"}, None),
    "one table of two layers": ({}, MEMORY | {"layers": [0, 1], "qk_norm": True}),
    "a table each, gated": (
        {"family": "qwen3"},
        MEMORY | {"layers": [0, 2], "share_values": False, "value_dim": 10},
    ),
    "beside, with scalar gates": (
        {},
        MEMORY | {"layers": [1], "placement": "beside", "relevance_gate": True},
    ),
}
PEAK = 0.05  # of the norm of gradients, so that both groups are clipped


def built(kind: str, seed: int = 0, **more: Any):
    torch.manual_seed(seed)
    sizes, memory = KINDS[kind]
    base = BaseLMConfig(
        **{"hidden_size": 16, "num_layers": 3, "num_heads": 2, "max_position_embeddings": 16}
        | sizes
    )
    model = build_memory_lm(base, memory and MemoryConfig(**memory | more), vocab_size=19).train()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:  # a closed gate would hide the memory's gradients
            assert "gate" in name
            parameter.data.fill_(0.7)
    return model


def batch(*rows: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 19, (4, 12), generator=torch.Generator().manual_seed(1))[list(rows)]
    positions = torch.arange(12).expand_as(ids)
    return {
        "input_ids": ids,
        "labels": ids,
        "position_ids": positions,
        "segment_ids": torch.ones_like(ids),
    }


def train(model, rows: list[list[int]], num_steps: int = 2) -> dict[str, Any]:
    """Some clipped steps of two micro-batches; each counts half."""
    optimizer = build_adamw(model, 1e-2, 3e-2, 0.1, 0.1, (0.9, 0.95))
    found: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(num_steps):
        for micro in rows:
            nll = batch_nll(model, batch(*micro))
            loss = nll.sum_nats / nll.num_tokens / len(rows)
            loss.backward()
            found["losses"].append(loss.detach())
        if step == 0:
            found["gradients"] = gradients(model)
        found["norms"].append(torch.stack(clip_apart(model, PEAK)))
        if step == 0:
            found["clipped"] = gradients(model)
        optimizer.step()
        optimizer.zero_grad()
    return found | {"state": {n: t.clone() for n, t in gathered_state_dict(model).items()}}


def gradients(model) -> dict[str, torch.Tensor]:
    return {
        name: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).clone()
        for name, p in model.named_parameters()
    }


def train_sharded() -> dict[str, Any]:
    """Every kind, on this process's rows; both processes start from different weights."""
    rank = torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for kind in KINDS:
        model = built(kind, seed=rank)
        shard_language_model(model, mesh)
        assert is_sharded(model)
        found[kind] = train(model, [[rank], [2 + rank]])
        if rank == 0:
            model.generation_config.pad_token_id = 0
        prompt = torch.tensor([[1, 2, 3 + rank]])
        found[kind]["generated"] = model.generate(
            prompt, max_new_tokens=2 + 3 * rank, do_sample=False
        )
        hidden = with_gathered_weights(
            model, lambda m, ids: m.base_model(ids).last_hidden_state.detach(), model, prompt
        )
        found[kind]["hidden"] = hidden
    return found


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return on_two_processes(tmp_path_factory.mktemp("two"), train_sharded)


@pytest.mark.parametrize("kind", KINDS)
def test_two_sharded_processes_equal_one(sharded, kind):
    model = built(kind)
    one = train(model, [[0, 1], [2, 3]])
    first, second = (found[kind] for found in sharded)
    losses = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    near = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(torch.stack(losses), torch.stack(one["losses"]), **near)
    for found in (first, second):
        torch.testing.assert_close(found["gradients"], one["gradients"], **near)
        torch.testing.assert_close(torch.stack(found["norms"]), torch.stack(one["norms"]), **near)
        torch.testing.assert_close(found["clipped"], one["clipped"], **near)
        assert set(found["state"]) == set(one["state"])
        torch.testing.assert_close(found["state"], one["state"], rtol=1e-4, atol=1e-4)
    assert float(one["norms"][0].max()) > PEAK  # clipping had something to do


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_processes_generate_texts_of_different_length(sharded, kind):
    model = built(kind).eval()
    for rank, found in enumerate(sharded):
        model.load_state_dict(found[kind]["state"])
        prompt = torch.tensor([[1, 2, 3 + rank]])
        expected = model.generate(prompt, max_new_tokens=2 + 3 * rank, do_sample=False)
        assert found[kind]["generated"].tolist() == expected.tolist()
        with torch.no_grad():
            hidden = model.base_model(prompt).last_hidden_state
        torch.testing.assert_close(found[kind]["hidden"], hidden, rtol=1e-4, atol=1e-5)
