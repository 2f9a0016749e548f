"""What every metric must do. All of them are found in the package: a new one is tested unasked.

A metric takes part by its `example()`: a fresh metric and two or more batches for its `update`.
"""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing
from torchmetrics import Metric, MetricCollection

from tests.metrics.metric_variants import metric_classes, take_small_network
from triptych.metrics.diversify.molecules.internal_diversity import InternalDiversity
from triptych.metrics.diversify.molecules.oracle_calls import Yield
from triptych.metrics.diversify.molecules.validity import Uniqueness

pytestmark = pytest.mark.usefixtures("small_network")
METRICS = metric_classes()
every_metric = pytest.mark.parametrize("metric_class", METRICS, ids=lambda cls: cls.__name__)


def updated(metric: Metric, batches: list[tuple[Any, ...]]) -> Metric:
    for batch in batches:
        metric.update(*batch)
    return metric


def assert_same(value: Any, expected: Any) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_metrics_are_found():
    assert {cls.__name__ for cls in METRICS} >= {
        *("ExactMatch", "TokenF1", "SlotUsage", "TokenNLL"),
        *("DistinctNgrams", "ExpectationAdjustedDistinct", "NgramDiversity", "SelfBLEU"),
        *("EmbeddingDistance", "VendiScore", "NoveltyBench", "ModeCoverage"),
    }


@every_metric
def test_it_gives_an_example_that_moves_it(metric_class: type[Metric]):
    assert hasattr(metric_class, "example"), (
        f"{metric_class.__name__} needs a classmethod example() -> (metric, batches)"
    )
    metric, batches = metric_class.example()
    assert type(metric) is metric_class
    assert len(batches) >= 2
    with pytest.raises(AssertionError):
        assert_same(updated(metric, batches).compute(), metric_class.example()[0].compute())


@every_metric
def test_empty_compute_neither_raises_nor_warns(metric_class: type[Metric]):
    metric_class.example()[0].compute()  # the suite turns warnings into errors


@every_metric
def test_reset_forgets_everything(metric_class: type[Metric]):
    metric, batches = metric_class.example()
    empty = metric.compute()
    updated(metric, batches).compute()
    metric.reset()
    assert_same(metric.compute(), empty)
    fresh, _ = metric_class.example()
    assert_same(updated(metric, batches).compute(), updated(fresh, batches).compute())


@every_metric
@pytest.mark.parametrize("copy", [pickle.dumps, Metric.clone], ids=["pickle", "clone"])
def test_a_copy_is_equal_and_independent(metric_class: type[Metric], copy: Any):
    metric, (first, *rest) = metric_class.example()
    metric.update(*first)
    before = metric.compute()
    duplicate = copy(metric)
    if isinstance(duplicate, bytes):
        duplicate = pickle.loads(duplicate)
    assert_same(duplicate.compute(), before)
    assert_same(duplicate.metric_state, metric.metric_state)
    updated(duplicate, rest)
    assert_same(metric.compute(), before)
    assert_same(duplicate.compute(), updated(metric, rest).compute())


def dtypes(metric: Metric) -> dict[str, set[torch.dtype]]:
    """What each state is made of; a list state must hold a tensor even before the first batch."""
    states = metric.metric_state.items()
    return {
        name: {part.dtype for part in (state if isinstance(state, list) else [state])}
        for name, state in states
    }


@every_metric
def test_states_keep_their_dtype(metric_class: type[Metric]):
    # A rank that has seen no batch gathers with one that has: their dtypes must agree.
    metric, batches = metric_class.example()
    before = dtypes(metric)
    assert all(len(found) == 1 for found in before.values())
    updated(metric, batches)
    assert dtypes(metric) == before
    metric.reset()
    assert dtypes(metric) == before
    summed = {name: dtype for name, dtype in before.items() if name not in lists_of(metric)}
    assert set().union(*summed.values()) <= {torch.int64, torch.float64}


def lists_of(metric: Metric) -> set[str]:
    return {name for name, state in metric.metric_state.items() if isinstance(state, list)}


@every_metric
def test_rows_have_one_dimension_on_every_rank(metric_class: type[Metric]):
    # Gathering pads unequal lengths, but not unequal numbers of dimensions.
    metric, batches = metric_class.example()
    updated(metric, batches)
    for name in lists_of(metric):
        assert {part.ndim for part in metric.metric_state[name]} == {1}


@every_metric
def test_two_halves_merged_equal_the_whole(metric_class: type[Metric]):
    whole, batches = metric_class.example()
    updated(whole, batches)
    for split in range(len(batches) + 1):
        left = updated(metric_class.example()[0], batches[:split])
        right = updated(metric_class.example()[0], batches[split:])
        left.compute()  # a value remembered from before the merge must not come back
        left.merge_state(right)
        assert_same(left.compute(), whole.compute())


@every_metric
def test_forward_returns_the_batch_and_keeps_the_total(metric_class: type[Metric]):
    metric, batches = metric_class.example()
    for batch in batches:
        assert_same(metric(*batch), updated(metric_class.example()[0], [batch]).compute())
    assert_same(metric.compute(), updated(metric_class.example()[0], batches).compute())


SEARCH = [  # no hit at first
    {"smiles": ["C1CC", "CCO"], "rewards": [0.1, 0.2]},
    {"smiles": ["CCC", "CCCl", "CCF"], "rewards": [0.6, 0.7, 0.9]},
    {"smiles": ["CCI", "CCBr", "CCI"], "rewards": [0.55, 0.95, 0.55]},
]


def metrics_of_a_search() -> dict[str, Metric]:
    return {
        "yield_5": Yield(0.5),
        "yield_8": Yield(0.8),
        "uniqueness": Uniqueness(),
        "radius_2": InternalDiversity(),
        "radius_3": InternalDiversity(radius=3),
    }


def compute_on_a_rank(rank: int, folder: Path) -> None:
    """Compute every metric on one of two processes, with the batches shared out in two ways."""
    torch.set_num_threads(1)
    take_small_network().start()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    values = {}
    for metric_class in METRICS:
        metric, batches = metric_class.example()
        alternating = updated(metric, batches[rank::2])
        rank_0_only = updated(metric_class.example()[0], batches if rank == 0 else [])
        name = f"{metric_class.__module__}.{metric_class.__name__}"
        values[name] = {
            "alternating": alternating.compute(),
            "rank_0_only": rank_0_only.compute(),
            "local_state": alternating.metric_state,  # must be this rank's own again
        }
        if hasattr(metric, "most_read"):
            values[name]["most_read"] = alternating.most_read(3)
    collection = MetricCollection(metrics_of_a_search())
    for batch in SEARCH[:1] if rank == 0 else SEARCH[1:]:
        collection.update(**batch)
    values["collection"] = collection.compute()
    torch.save(values, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_equal_one(tmp_path: Path):
    multiprocessing.spawn(compute_on_a_rank, args=(tmp_path,), nprocs=2)
    for rank in range(2):
        values = torch.load(tmp_path / f"rank{rank}.pt")
        for metric_class in METRICS:
            metric, batches = metric_class.example()
            expected = updated(metric, batches).compute()
            found = values[f"{metric_class.__module__}.{metric_class.__name__}"]
            assert_same(found["alternating"], expected)
            assert_same(found["rank_0_only"], expected)
            local = updated(metric_class.example()[0], batches[rank::2])
            assert_same(found["local_state"], local.metric_state)
            if "most_read" in found:
                assert_same(found["most_read"], metric.most_read(3))
        alone = metrics_of_a_search()
        for metric in alone.values():
            for batch in SEARCH:
                metric.update(**metric._filter_kwargs(**batch))
        expected = {name: metric.compute() for name, metric in alone.items()}
        assert (expected["yield_5"], expected["yield_8"]) == (5, 2)
        assert_same(values["collection"], expected)
