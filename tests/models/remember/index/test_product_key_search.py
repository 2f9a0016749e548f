"""Exact top-k over a product of half keys, against all slots and against autograd."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triptych.models.remember.index import product_key_search, row_topk
from triptych.models.remember.index.product_key_search import candidate_ranks, product_key_topk


@pytest.fixture(autouse=True, params=[1, 10**9], ids=["sorted", "torch"])
def _both_ways_to_rank(request, monkeypatch):
    monkeypatch.setattr(row_topk, "_LEAST_ELEMENTS", request.param)


def draw(
    num_queries: int,
    num_heads: int,
    half_dim: int,
    num_keys: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(num_queries, num_heads, 2, half_dim, generator=generator, dtype=dtype)
    keys = torch.randn(num_heads, 2, num_keys, half_dim, generator=generator, dtype=dtype)
    return query, keys


def all_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Compute dot products of full queries with the full key [K1_i; K2_j] of every slot."""
    num_heads, _, num_keys, half_dim = keys.shape
    first = keys[:, 0].unsqueeze(2).expand(-1, -1, num_keys, -1)
    second = keys[:, 1].unsqueeze(1).expand(-1, num_keys, -1, -1)
    full = torch.cat([first, second], -1).reshape(num_heads, num_keys**2, 2 * half_dim)
    return torch.einsum("bhd,hsd->bhs", query.flatten(2), full)


def test_by_hand():
    # Rows score 1, 3, 2 and columns 10, 0, 6: slot (i, j) = 3 i + j.
    # 13 at (1, 0), 12 at (2, 0), 11 at (0, 0); (1, 2) has 9.
    query = torch.tensor([[[[1.0], [2.0]]]])
    keys = torch.tensor([[[[1.0], [3.0], [2.0]], [[5.0], [0.0], [3.0]]]])
    ids, scores = product_key_topk(query, keys, 3)
    assert ids.tolist() == [[[3, 6, 0]]]
    assert scores.tolist() == [[[13.0, 12.0, 11.0]]]


def test_gradient_by_hand():
    # The winners are (1, 0) and (0, 0): row 1 and row 0 once each, column 0 twice.
    query = torch.tensor([[[[1.0], [2.0]]]], requires_grad=True)
    keys = torch.tensor([[[[1.0], [3.0]], [[5.0], [0.0]]]], requires_grad=True)
    _, scores = product_key_topk(query, keys, 2)
    (scores * torch.tensor([10.0, 100.0])).sum().backward()
    assert query.grad.flatten().tolist() == [3 * 10 + 1 * 100, 5 * 110]
    assert keys.grad.flatten().tolist() == [100.0, 10.0, 220.0, 0.0]


@settings(deadline=None, max_examples=40)
@given(
    num_queries=st.integers(1, 5),
    num_heads=st.integers(1, 3),
    half_dim=st.integers(1, 6),
    num_keys=st.integers(1, 24),
    share_kept=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_equals_all_slots(num_queries, num_heads, half_dim, num_keys, share_kept, seed):
    query, keys = draw(num_queries, num_heads, half_dim, num_keys, seed=seed)
    num_kept = max(1, round(share_kept * num_keys))
    ids, scores = product_key_topk(query, keys, num_kept)
    expected = all_scores(query, keys).topk(num_kept, dim=-1)
    torch.testing.assert_close(scores, expected.values)
    assert torch.equal(ids, expected.indices)


@pytest.mark.parametrize(
    ("num_keys", "num_kept"), [(32, 32), (64, 8), (300, 32)], ids=["k=N", "k<N", "wide"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_all_pairs_of_the_same_half_scores_to_the_bit(num_keys, num_kept, dtype):
    query, keys = draw(6, 2, 16, num_keys, dtype)
    ids, scores = product_key_topk(query, keys, num_kept)
    halves = torch.bmm(query.flatten(1, 2).transpose(0, 1), keys.flatten(0, 1).transpose(1, 2))
    first, second = halves.unflatten(0, (2, 2)).transpose(0, 1)[..., None, :].unbind(0)
    pairs = (first.transpose(-1, -2) + second).flatten(-2).transpose(0, 1)
    expected = pairs.topk(num_kept, dim=-1).values
    assert torch.equal(scores, expected)
    assert torch.equal(pairs.gather(-1, ids), expected)
    assert (ids.sort(-1).values.diff(dim=-1) > 0).all()
    if dtype == torch.float32:
        chosen, best = ids.sort(-1).values, pairs.topk(num_kept, dim=-1).indices.sort(-1).values
        assert torch.equal(chosen, best)


def test_close_to_full_keys_in_double_precision():
    query, keys = draw(16, 2, 64, 128, torch.float32)
    ids, scores = product_key_topk(query, keys, 32)
    exact = all_scores(query.double(), keys.double())
    torch.testing.assert_close(scores.double(), exact.topk(32).values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exact.gather(-1, ids), scores.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_kept", "num_pairs"), [(1, 1), (2, 3), (4, 8), (8, 20), (32, 119)])
def test_number_of_candidates(num_kept, num_pairs):
    # sum over i of floor(k / i)
    assert len(candidate_ranks(num_kept)[0]) == num_pairs


def test_compiled_search_is_the_same_without_a_warning():
    """A large search on a CPU leaves the compiled code for NumPy's threads."""
    torch.set_num_threads(2)
    query, keys = (part.requires_grad_() for part in draw(600, 2, 8, 256, torch.float32))
    torch.compiler.reset()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = torch.compile(product_key_topk, backend="eager")(query, keys, 8)
    assert not [one for one in warned if "Dynamo" in str(one.message)]
    expected = product_key_topk(query, keys, 8)
    for compiled, eager in zip(found, expected, strict=True):
        assert torch.equal(compiled, eager)
    ours, theirs = (
        torch.autograd.grad(scores.square().sum(), (query, keys)) for _, scores in (found, expected)
    )
    for compiled, eager in zip(ours, theirs, strict=True):
        assert torch.equal(compiled, eager)


def test_more_kept_than_half_keys_is_refused():
    query, keys = draw(1, 1, 2, 4)
    with pytest.raises(ValueError, match=r"top_k=5 .* 4 half keys.*Lower top_k or raise num_keys"):
        product_key_topk(query, keys, 5)


def test_gradient_equals_dense_autograd():
    query, keys = (part.requires_grad_() for part in draw(7, 2, 5, 12))
    ids, scores = product_key_topk(query, keys, 6)
    weights = torch.randn_like(scores)
    ours = torch.autograd.grad((scores * weights).sum(), (query, keys))
    dense = all_scores(query, keys).gather(-1, ids)
    theirs = torch.autograd.grad((dense * weights).sum(), (query, keys))
    torch.testing.assert_close(ours, theirs)


def test_gradcheck():
    query, keys = (part.requires_grad_() for part in draw(3, 2, 3, 6))
    assert torch.autograd.gradcheck(lambda q, k: product_key_topk(q, k, 4)[1], (query, keys))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradients_asked_for(wanted):
    query, keys = draw(3, 2, 3, 6)
    query.requires_grad_(wanted[0])
    keys.requires_grad_(wanted[1])
    product_key_topk(query, keys, 4)[1].sum().backward()
    assert (query.grad is not None, keys.grad is not None) == wanted


@pytest.mark.parametrize("queries_a_chunk", [1, 3, 7, 8])
def test_chunks_change_nothing(monkeypatch, queries_a_chunk):
    query, keys = (part.requires_grad_() for part in draw(7, 2, 5, 12))
    expected_ids, expected = product_key_topk(query, keys, 6)
    expected_grads = torch.autograd.grad(expected.square().sum(), (query, keys))
    budget = queries_a_chunk * 2 * 2 * 12
    monkeypatch.setattr(product_key_search, "_CHUNK_ELEMENTS_CPU", budget)
    ids, scores = product_key_topk(query, keys, 6)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(scores, expected)
    grads = torch.autograd.grad(scores.square().sum(), (query, keys))
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeats_to_the_bit(dtype):
    query, keys = (part.requires_grad_() for part in draw(33, 2, 8, 40, dtype))
    runs = []
    for _ in range(2):
        ids, scores = product_key_topk(query, keys, 8)
        runs.append((ids, scores, *torch.autograd.grad(scores.sum(), (query, keys))))
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


def test_no_queries():
    query, keys = draw(0, 2, 3, 6)
    query.requires_grad_()
    keys.requires_grad_()
    ids, scores = product_key_topk(query, keys, 4)
    assert ids.shape == scores.shape == (0, 2, 4)
    scores.sum().backward()
    assert not keys.grad.any()


def test_nan_queries_still_name_slots():
    query, keys = draw(2, 1, 3, 300, torch.float32)
    query[0] = torch.nan
    ids, scores = product_key_topk(query, keys, 4)
    assert scores[0].isnan().all()
    assert not scores[1].isnan().any()
    assert (ids.ge(0) & ids.lt(300**2)).all()
