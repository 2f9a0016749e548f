"""The product-key index: lookup, search and score agree; qk-norm from its formula."""

import pytest
import torch

from triptych.models.remember.index.product_keys import ProductKeyIndex
from triptych.models.remember.memory_config import MemoryConfig


def make_index(qk_norm: bool = False, **sizes: int) -> ProductKeyIndex:
    settings = {"num_keys": 10, "num_heads": 3, "query_dim": 8} | sizes
    index = ProductKeyIndex(**settings, qk_norm=qk_norm).double()
    if index.query_gain is not None:
        torch.nn.init.uniform_(index.query_gain, 0.5, 2.0)
    return index


@pytest.mark.parametrize("qk_norm", [False, True])
def test_lookup_search_and_score_agree(qk_norm):
    index = make_index(qk_norm)
    query = torch.randn(6, 3, 8, dtype=torch.float64, requires_grad=True)
    ids, scores = index.lookup(query, 5)
    assert torch.equal(index.search(query, 5), ids)
    rescored = index.score(query, ids)
    torch.testing.assert_close(scores, rescored)
    leaves = (query, *index.parameters())
    weights = torch.randn_like(scores)
    torch.testing.assert_close(
        torch.autograd.grad((scores * weights).sum(), leaves),
        torch.autograd.grad((rescored * weights).sum(), leaves),
    )


@pytest.mark.parametrize("qk_norm", [False, True])
def test_finds_the_best_of_all_slots(qk_norm):
    index = make_index(qk_norm)
    query = torch.randn(6, 3, 8, dtype=torch.float64)
    every_slot = torch.arange(100).expand(6, 3, 100)
    expected = index.score(query, every_slot).topk(5, dim=-1)
    ids, scores = index.lookup(query, 5)
    assert torch.equal(ids, expected.indices)
    torch.testing.assert_close(scores, expected.values)


def test_qk_norm_is_a_layer_norm_of_each_half():
    index = make_index(qk_norm=True, num_heads=1, num_keys=4)
    query = torch.randn(2, 1, 8, dtype=torch.float64)

    def normalise(halves: torch.Tensor) -> torch.Tensor:
        centred = halves - halves.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    halves = normalise(query.view(2, 2, 4)) * index.query_gain.detach() / 4**0.5
    keys = normalise(index.keys.detach()[0])
    first, second = (halves[:, half] @ keys[half].T for half in (0, 1))
    expected = (first.unsqueeze(2) + second.unsqueeze(1)).flatten(1)
    scores = index.score(query, torch.arange(16).expand(2, 1, 16))
    torch.testing.assert_close(scores[:, 0].detach(), expected)


def test_qk_norm_bounds_scores_whatever_the_size_of_queries():
    index = ProductKeyIndex(num_keys=16, num_heads=2, query_dim=8, qk_norm=True)
    _, scores = index.lookup(torch.randn(5, 2, 8) * 1e4, 4)
    # Two halves of width 4: each at most 4 / sqrt(4).
    assert scores.abs().max() <= 4.0001


def test_slots_and_initialisation():
    index = ProductKeyIndex(num_keys=64, num_heads=2, query_dim=16)
    assert (index.num_slots, index.exact) == (4096, True)
    assert index.keys.shape == (2, 2, 64, 8)
    # U(-1/4, 1/4) for D = 16.
    assert 0.24 < index.keys.abs().max().item() <= 0.25


def test_from_config():
    memory = MemoryConfig(num_keys=32, num_heads=2, top_k=8, qk_norm=True).resolved(24, 4)
    index = ProductKeyIndex.from_config(memory)
    assert (index.num_keys, index.num_heads, index.query_dim) == (32, 2, 12)
    assert index.query_gain is not None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"query_dim": 7}, "query_dim=7 must be even"),
        ({"num_keys": 0}, "sizes must be positive, got num_keys=0"),
        ({"num_heads": 0}, "sizes must be positive"),
    ],
)
def test_sizes_that_cannot_work(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_index(**sizes)


def test_more_kept_than_half_keys_is_refused():
    with pytest.raises(ValueError, match="top_k=11 is larger than the 10 half keys"):
        make_index().lookup(torch.zeros(1, 3, 8, dtype=torch.float64), 11)
