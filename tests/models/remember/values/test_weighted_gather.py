"""The gather and its transposes against einsum in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.models.remember.values import weighted_gather as weighted_gather_module
from triptych.models.remember.values.weighted_gather import (
    dense_transposed_gather,
    transposed_gather,
    weight_gradient,
    weighted_gather,
)


@pytest.fixture(autouse=True, params=[0, 1 << 40], ids=["in order", "at random"], scope="module")
def _both_orders(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted_gather_module, "_CACHED_BYTES", request.param)
        yield


@settings(deadline=None, max_examples=40)
@given(
    num_bags=st.integers(1, 6),
    num_reads=st.integers(1, 9),
    num_slots=st.integers(1, 12),
    width=st.sampled_from([1, 3, 8, 37, 64]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_all_three_equal_einsum(num_bags, num_reads, num_slots, width, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_slots, width, generator=generator).to(dtype)
    ids = torch.randint(num_slots, (num_bags, num_reads), generator=generator)
    weights = torch.rand(num_bags, num_reads, generator=generator).to(dtype)
    grad = torch.randn(num_bags, width, generator=generator).to(dtype)
    wide = torch.float64
    tolerance = {
        torch.float64: {"rtol": 1e-12, "atol": 1e-12},
        torch.float32: {"rtol": 1e-5, "atol": 1e-5},
        torch.bfloat16: {"rtol": 2e-2, "atol": 1e-1},
    }[dtype]

    out = weighted_gather(values, ids, weights)
    assert out.dtype == dtype
    expected = torch.einsum("bk,bkd->bd", weights.to(wide), values[ids].to(wide))
    torch.testing.assert_close(out.to(wide), expected, **tolerance)

    dots = weight_gradient(grad, values, ids)
    expected = torch.einsum("bd,bkd->bk", grad.to(wide), values[ids].to(wide))
    torch.testing.assert_close(dots.to(wide), expected, **tolerance)

    bags = torch.arange(num_bags).repeat_interleave(num_reads)
    exact = torch.promote_types(dtype, torch.float32)
    rows, sums = transposed_gather(ids.flatten(), bags, weights.flatten(), grad.to(exact))
    assert rows.tolist() == sorted(set(ids.flatten().tolist()))
    every_row = torch.zeros(num_slots, width, dtype=wide)
    every_row.index_put_(
        (ids,), weights.to(wide).unsqueeze(-1) * grad.to(wide).unsqueeze(1), accumulate=True
    )
    torch.testing.assert_close(sums.to(wide), every_row[rows], rtol=1e-5, atol=1e-5)
    uses = (ids.flatten(), bags, weights.flatten(), grad.to(exact))
    dense = dense_transposed_gather(*uses, num_slots)
    torch.testing.assert_close(dense.to(wide), every_row, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways_to_the_weights_gradient_agree(monkeypatch, dtype):
    values, grad = torch.randn(2, 50, 37, dtype=dtype)
    ids = torch.randint(50, (50, 8))
    sampled = weight_gradient(grad, values, ids)
    monkeypatch.setattr(weighted_gather_module, "_SAMPLED_PRODUCT_DTYPES", ())
    torch.testing.assert_close(sampled, weight_gradient(grad, values, ids))


@pytest.mark.parametrize("num_slots", [8, 40, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_slot_read_more_often_than_there_are_bags(num_slots, dtype, monkeypatch):
    monkeypatch.setattr(weighted_gather_module, "_READS_A_SLOT", 0.0)
    values, grad = torch.randn(num_slots, 5, dtype=dtype), torch.randn(3, 5, dtype=dtype)
    ids = torch.full((3, 8), 2)
    ids[1, 3] = num_slots - 1
    expected = torch.einsum("bd,bkd->bk", grad, values[ids])
    torch.testing.assert_close(weight_gradient(grad, values, ids), expected)


def test_order_of_the_table_or_of_the_bags_gives_the_same_bits(monkeypatch):
    values, grad = torch.randn(50, 37), torch.randn(20, 37)
    ids = torch.randint(50, (20, 8))
    runs = []
    monkeypatch.setattr(weighted_gather_module, "_READS_A_SLOT", 0.0)
    for least in (0, 1 << 40):
        monkeypatch.setattr(weighted_gather_module, "_CACHED_BYTES", least)
        runs.append(weight_gradient(grad, values, ids))
    assert torch.equal(*runs)


def test_no_reads():
    none = torch.empty(0, dtype=torch.int64)
    rows, sums = transposed_gather(none, none, torch.empty(0), torch.randn(3, 5))
    assert rows.shape == (0,)
    assert sums.shape == (0, 5)
    dense = dense_transposed_gather(none, none, torch.empty(0), torch.randn(3, 5), 4)
    assert torch.equal(dense, torch.zeros(4, 5))
    assert weighted_gather(torch.randn(4, 5), none.view(0, 2), torch.empty(0, 2)).shape == (0, 5)


def test_rows_beyond_32_bits_keep_their_numbers():
    rows = torch.tensor([2**33 + 1, 5, 2**33 + 1])
    found, sums = transposed_gather(rows, torch.arange(3), torch.ones(3), torch.ones(3, 2))
    assert found.tolist() == [5, 2**33 + 1]
    assert sums.tolist() == [[1, 1], [2, 2]]


@pytest.mark.parametrize("bad", [-1, 5])
def test_a_slot_outside_the_table(bad):
    with pytest.raises((IndexError, RuntimeError)):
        weighted_gather(torch.ones(5, 2), torch.tensor([[0, bad]]), torch.ones(1, 2))
