"""The corpus NLL against hand-computed values."""

import math

import pytest
import torch

from triptych.metrics.language_modeling import TokenNLL


def test_ratios_by_hand():
    metric = TokenNLL()
    # Four tokens over ten bytes, each token one of two equally likely ones: ln 2 nats, 1 bit.
    metric.update(torch.full((2, 2), math.log(2), dtype=torch.float64), 4, 10)
    values = {name: value.item() for name, value in metric.compute().items()}
    expected = {"nll_nats_per_token": 0.6931471805599453, "bits_per_byte": 0.4, "perplexity": 2.0}
    assert values == pytest.approx(expected)


def test_tokens_weigh_the_same_in_batches_of_any_size():
    metric = TokenNLL()
    metric.update(6.0, num_tokens=2, num_bytes=3)
    metric.update(2.0, num_tokens=6, num_bytes=5)
    assert metric.compute()["nll_nats_per_token"].item() == 1.0  # and not (3 + 1/3) / 2
    assert metric.compute()["bits_per_byte"].item() == pytest.approx(1 / math.log(2))


def test_masks_and_counts_are_summed():
    metric = TokenNLL()
    keep_mask = torch.tensor([[True, False, True]])
    num_bytes = torch.tensor([[4, 0, 1]], dtype=torch.int32)
    metric.update(torch.tensor([[1.0, 0.0, 3.0]], dtype=torch.bfloat16), keep_mask, num_bytes)
    assert metric.compute()["nll_nats_per_token"].item() == 2.0
    assert metric.num_bytes.item() == 5


def test_small_additions_to_a_large_sum_are_kept():
    metric = TokenNLL()
    metric.update(2.0**24, num_tokens=1)
    for _ in range(4):
        metric.update(torch.tensor(1.0), num_tokens=0)  # lost in a float32 sum
    assert metric.nll_sum_nats.item() == 2**24 + 4


def test_nothing_is_nan_and_so_are_bits_without_bytes():
    metric = TokenNLL()
    assert all(value.isnan() for value in metric.compute().values())
    metric.update(3.0, num_tokens=2)
    values = metric.compute()
    assert values["bits_per_byte"].isnan()
    assert values["nll_nats_per_token"].item() == 1.5


def test_no_graph_is_kept_alive():
    metric = TokenNLL()
    nll = torch.tensor([1.0, 2.0], requires_grad=True)
    metric(nll * 2, 2)
    metric.update(nll * 2, 2)
    assert not metric.nll_sum_nats.requires_grad
