"""Top-k of rows against `torch.topk`: equal values to the bit, in the returned columns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triptych.models.remember.index import row_topk as row_topk_module
from triptych.models.remember.index.row_topk import row_topk


@pytest.fixture(autouse=True, scope="module")
def _sorting_even_small_rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_topk_module, "_LEAST_ELEMENTS", 1)
        yield


def check(scores: Tensor, num_kept: int) -> None:
    best, columns = row_topk(scores, num_kept)
    expected = scores.topk(num_kept, dim=-1).values
    assert best.dtype == scores.dtype
    assert columns.dtype == torch.int64
    torch.testing.assert_close(best, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(scores.gather(1, columns), expected, rtol=0, atol=0, equal_nan=True)
    assert (columns.sort(dim=-1).values.diff(dim=-1) > 0).all(), "a column was found twice"


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 1500),
    num_kept=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    few_values=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_torch(rows, columns, num_kept, dtype, few_values, seed):
    scores = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if few_values:  # many ties
        scores = scores.round()
    check(scores.to(dtype), min(num_kept, columns))


@pytest.mark.parametrize("columns", [7, 600, 1025])
def test_extreme_values(columns):
    scores = torch.randn(4, columns)
    scores[0, ::2] = -torch.inf
    scores[1] = -torch.inf
    scores[2, 5] = torch.inf
    scores[2, 6] = -0.0
    scores[3, 1:4] = torch.tensor([1e-45, -1e-45, 3e38])
    check(scores, 7)
    scores[3, 4] = torch.nan
    check(scores[3:], 3)
    assert torch.isnan(row_topk(scores[3:], 3)[0][0, 0])


def test_the_first_of_equal_columns_wins():
    assert row_topk(torch.zeros(1, 9), 4)[1].tolist() == [[0, 1, 2, 3]]


def test_rows_in_any_memory_layout():
    check(torch.randn(600, 5).t(), 3)
    check(torch.randn(5, 40)[:, 3:30], 27)
    assert row_topk(torch.empty(0, 8), 3)[1].shape == (0, 3)


def test_threads_sort_the_same(monkeypatch):
    scores = torch.randn(37, 300)
    expected = row_topk(scores, 8)
    monkeypatch.setattr(row_topk_module, "_BLOCK_ELEMENTS", 600)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    best, columns = row_topk(scores, 8)
    assert torch.equal(best, expected[0])
    assert torch.equal(columns, expected[1])
