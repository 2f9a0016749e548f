"""Scores of given keys against einsum, with both gradients."""

import pytest
import torch

from triptych.models.remember.index.key_scores import key_scores


def inputs(dtype=torch.float64):
    query = torch.randn(5, 3, 8, dtype=dtype, requires_grad=True)
    keys = torch.randn(3, 11, 8, dtype=dtype, requires_grad=True)
    return query, keys, torch.randint(11, (5, 3, 4))


def reference(query, keys, ids):
    every = torch.einsum("bhd,hsd->bhs", query, keys)
    return every.gather(2, ids)


def test_by_hand():
    keys = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    query = torch.tensor([[[1.0, 10.0], [0.5, 0.0]]])
    ids = torch.tensor([[[1, 0], [0, 0]]])
    assert key_scores(query, keys, ids).tolist() == [[[43.0, 21.0], [2.5, 2.5]]]


def test_values_and_gradients_equal_einsum():
    query, keys, ids = inputs()
    scores, expected = key_scores(query, keys, ids), reference(query, keys, ids)
    torch.testing.assert_close(scores, expected)
    factor = torch.randn_like(scores)
    torch.testing.assert_close(
        torch.autograd.grad((scores * factor).sum(), (query, keys)),
        torch.autograd.grad((expected * factor).sum(), (query, keys)),
    )


def test_only_the_gradient_that_is_needed():
    query, keys, ids = inputs()
    key_scores(query, keys.detach(), ids).sum().backward()
    assert query.grad is not None
    assert keys.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype):
    query, keys, ids = inputs(dtype)
    scores = key_scores(query, keys, ids)
    assert scores.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    expected = reference(query.double(), keys.double(), ids)
    torch.testing.assert_close(scores.double(), expected, rtol=tolerance, atol=tolerance)
    scores.float().sum().backward()
    assert query.grad.dtype == keys.grad.dtype == dtype


def test_no_queries():
    _, keys, _ = inputs()
    empty = torch.zeros(0, 3, 8, dtype=torch.float64)
    assert key_scores(empty, keys, torch.zeros(0, 3, 4, dtype=torch.int64)).shape == (0, 3, 4)
