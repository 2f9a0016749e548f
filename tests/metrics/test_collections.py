"""In a `MetricCollection` with its default compute groups every metric equals itself alone."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchmetrics import Metric, MetricCollection

from tests.metrics.metric_variants import (
    first_batches,
    keyword_batches,
    metric_classes,
    variants,
)

pytestmark = pytest.mark.usefixtures("small_network")
Makers = dict[str, Callable[[], Metric]]
LEAST_PAIRS = 300


def state_names(metric: Metric) -> set[str]:
    return set(metric.metric_state) - {"settings_hash"}


def neighbours(metric_class: type[Metric], makers: dict[type[Metric], Makers]) -> Makers:
    """The example, copies with other settings, and all metrics of equal states that can join."""
    batches = keyword_batches(metric_class)
    names = state_names(makers[metric_class][""]())
    found = {}
    for other, its_makers in makers.items():
        for setting, make in its_makers.items():
            joins = other is metric_class or state_names(make()) == names
            if joins and all(can_see(make, batch) for batch in batches):
                found[f"{other.__name__}:{setting}"] = make
    return found


def values(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {name: metric.compute() for name, metric in metrics.items()}


def alone(makers: Makers, batches: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = {name: make() for name, make in makers.items()}
    for metric, batch in itertools.product(metrics.values(), batches):
        metric.update(**metric._filter_kwargs(**batch))
    return values(metrics)


def can_see(make: Callable[[], Metric], batch: dict[str, Any]) -> bool:
    """Whether a metric takes a batch: others have other arguments, some refuse an empty text."""
    metric = make()
    try:
        metric.update(**metric._filter_kwargs(**batch))
    except (TypeError, ValueError, IndexError):
        return False
    return True


def assert_same(value: Any, expected: Any, told: str) -> None:
    torch.testing.assert_close(
        value, expected, rtol=1e-9, atol=1e-12, equal_nan=True, msg=lambda text: f"{told}: {text}"
    )


def test_every_metric_beside_every_other_equals_itself_alone():
    makers = {metric_class: variants(metric_class) for metric_class in metric_classes()}
    pairs, wrong = set(), set()
    for metric_class in makers:
        batches = keyword_batches(metric_class)
        beside = neighbours(metric_class, makers)
        for kind, first in first_batches(batches[0]).items():
            seen = {name: make for name, make in beside.items() if can_see(make, first)}
            if not seen:
                continue
            pairs |= {(kind, *pair) for pair in itertools.combinations(sorted(seen), 2)}
            collection = MetricCollection({name: make() for name, make in seen.items()})
            for batch in (first, *batches):
                collection.update(**batch)
            expected = alone(seen, [first, *batches])
            for name, metric in collection.items(keep_base=True, copy_state=False):
                try:
                    assert_same(metric.compute(), expected[name], name)
                except (AssertionError, RuntimeError):  # rows of another width cannot be read
                    wrong.add((kind, name))
    print(f"{len(makers)} metrics, {len(pairs)} pairs")
    assert not wrong, f"{len(wrong)} of them share the state of another: {sorted(wrong)[:20]}"
    assert len(makers) >= 30
    assert len(pairs) >= LEAST_PAIRS


def make_states(make: Callable[[], Metric], batch: dict[str, Any]) -> list[list[torch.Tensor]]:
    metric = make()
    metric.update(**batch)
    states = metric.metric_state.values()
    return [state if isinstance(state, list) else [state] for state in states]


@pytest.mark.parametrize("metric_class", metric_classes(), ids=lambda cls: cls.__name__)
def test_equal_metrics_share_their_updates_and_stay_right(metric_class):
    make, batches = variants(metric_class)[""], keyword_batches(metric_class)
    collection = MetricCollection({"a": make(), "b": make()})
    collection.update(**batches[0])
    states = [part for state in make_states(make, batches[0]) for part in state]
    if not any(part.isnan().any() for part in states):  # nan equals nothing, itself included
        assert list(collection.compute_groups.values()) == [["a", "b"]]
    collection.forward(**batches[1])  # torchmetrics calls each metric here, whatever they share
    for batch in batches[1:]:
        collection.update(**batch)
    expected = alone({"a": make, "b": make}, [batches[0], batches[1], *batches[1:]])
    found = values(dict(collection.items(keep_base=True, copy_state=False)))
    assert_same(found, expected, metric_class.__name__)
    collection.reset()
    collection.update(**batches[0])
    found = values(dict(collection.items(keep_base=True, copy_state=False)))
    assert_same(found, alone({"a": make, "b": make}, batches[:1]), "after a reset")
