"""What torchmetrics expects of every metric, beyond its value: see `ComposableMetric`."""

import pickle
import re
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from torchmetrics import Metric, MetricCollection

from tests.metrics.metric_variants import (
    keyword_batches,
    metric_classes,
    variants,
    vowel_counts,
)
from triptych.metrics.diversify.embedding_diversity import VendiScore
from triptych.metrics.diversify.molecules.internal_diversity import InternalDiversity
from triptych.metrics.diversify.molecules.oracle_calls import Yield
from triptych.metrics.diversify.molecules.validity import NovelMolecules, Uniqueness, Validity
from triptych.metrics.diversify.prompt_metric import PromptMetric
from triptych.metrics.setting_digest import setting_digest
from triptych.metrics.summed_metric import SummedMetric
from triptych.objectives.text_embedder import letter_counts

pytestmark = pytest.mark.usefixtures("small_network")
every_metric = pytest.mark.parametrize(
    "metric_class", metric_classes(), ids=lambda metric_class: metric_class.__name__
)


def updated(metric: Metric, batches: list[dict[str, Any]]) -> Metric:
    for batch in batches:
        metric.update(**batch)
    return metric


def assert_same(value: Any, expected: Any) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def integer_states(metric: Metric) -> dict[str, torch.Tensor]:
    states = {
        name: torch.cat(state) if isinstance(state, list) else state
        for name, state in metric.metric_state.items()
    }
    return {n: s for n, s in states.items() if not s.is_floating_point()}


@every_metric
def test_no_state_of_other_settings_is_taken_in(metric_class):
    for name, make in variants(metric_class).items():
        metric, other = variants(metric_class)[""](), make()
        for incoming in (other, other.metric_state):
            if name:
                with pytest.raises(ValueError, match="cannot take in"):
                    metric.merge_state(incoming)
            else:
                metric.merge_state(incoming)
    with pytest.raises(ValueError, match="one class"):
        metric.merge_state(Validity() if metric_class is not Validity else Uniqueness())


@every_metric
def test_a_string_is_not_a_list_of_strings(metric_class):
    batch = max(keyword_batches(metric_class), key=lambda b: sum(len(str(v)) for v in b.values()))
    for name, value in batch.items():
        if not isinstance(value, list) or not value:
            continue
        if isinstance(value[0], str):
            wrong = ["CCO"]
        elif isinstance(value[0], list) and isinstance(value[0][0], str):
            wrong = ["CCO", ["CCO", *value[1:]]]
        else:
            continue
        for text in wrong:
            metric, _ = metric_class.example()
            before = metric.compute()
            with pytest.raises(ValueError, match=f"CCO.*`{name}`: put it into a list"):
                metric.update(**(batch | {name: text}))
            metric.reset()
            assert_same(metric.compute(), before)


@every_metric
def test_no_conversion_of_dtypes_touches_integers(metric_class):
    batches = keyword_batches(metric_class)
    for convert in (torch.nn.Module.half, torch.nn.Module.bfloat16, Metric.float):
        metric = updated(metric_class.example()[0], batches)
        expected = updated(metric_class.example()[0], batches).compute()
        convert(metric)
        parent = torch.nn.ModuleList([metric]).to(torch.bfloat16)  # as Lightning's bf16-true does
        assert_same(parent[0].compute(), expected)
    metric = updated(metric_class.example()[0], batches[:1])
    before = integer_states(metric)
    metric.set_dtype(torch.float16)
    assert_same(integer_states(metric), before)
    updated(metric, batches[1:])
    whole = updated(metric_class.example()[0], batches)
    assert_same(integer_states(metric), integer_states(whole))
    if len(before) == len(metric.metric_state):
        assert_same(metric.compute(), whole.compute())
    metric.reset()
    assert all(
        part.dtype == torch.float16 or not part.is_floating_point()
        for state in metric.metric_state.values()
        for part in (state if isinstance(state, list) else [state])
    )
    with pytest.raises(ValueError, match="floating point"):
        metric.set_dtype(torch.int32)


@every_metric
def test_it_plots_its_value_and_several(metric_class):
    metric, batches = metric_class.example()[0], keyword_batches(metric_class)
    values = [metric(**batch) for batch in batches[:2]]
    try:
        figure, axes = metric.plot()
        assert axes.lines or axes.images
        assert figure is not None
        _, own = plt.subplots()
        assert metric.plot(values, ax=own) == (None, own)
        assert own.lines or own.images
    finally:
        plt.close("all")


def test_collections_plot():
    metrics = {"validity": Validity(), "yield": Yield(0.5), "diversity": InternalDiversity()}
    collection = MetricCollection(metrics)
    collection.update(smiles=["CCO", "CCN"], rewards=[0.9, 0.1])
    try:
        assert len(collection.plot()) == 3
        together = MetricCollection([VendiScore(embedder=letter_counts)])
        together.update([["a", "b"], ["a", "a"]])
        _, axes = together.plot(together=True)  # separately torchmetrics plots scalars alone
        assert len(axes.lines) == 2
    finally:
        plt.close("all")


@every_metric
def test_a_saved_state_returns_to_equal_settings_alone(metric_class):
    makers, batches = variants(metric_class), keyword_batches(metric_class)
    metric = updated(makers[""](), batches)
    metric.persistent(True)
    saved = pickle.loads(pickle.dumps(metric.state_dict()))
    fresh = makers[""]()
    fresh.load_state_dict(saved, strict=False)
    assert_same(fresh.compute(), metric.compute())
    for name, make in makers.items():
        if name:
            with pytest.raises(RuntimeError, match="of another class or of other settings"):
                make().load_state_dict(saved)


@every_metric
def test_row_states_wait_on_the_cpu(metric_class):
    make, batches = variants(metric_class)[""], keyword_batches(metric_class)
    metric = make()
    metric.compute_on_cpu = True
    assert_same(updated(metric, batches).compute(), updated(make(), batches).compute())
    moved = updated(make(), batches).to("cpu")
    assert_same(moved.compute(), metric.compute())


def test_the_message_says_which_setting_differs():
    with pytest.raises(ValueError, match=re.escape("threshold is 0.8 here and 0.5 there")):
        Yield(0.8).merge_state(Yield(0.5))
    with pytest.raises(ValueError, match="no settings_hash"):
        Yield(0.8).merge_state({"ids": []})
    Yield(1).merge_state(Yield(threshold=1.0, compute_on_cpu=True))  # the same settings


def test_a_string_is_refused_by_constructors():
    with pytest.raises(ValueError, match="NovelMolecules got the string 'CCO' as `reference`"):
        NovelMolecules("CCO")


class _Longest(PromptMetric):
    """As a user writes one: a setting that only the base class gets as an argument."""

    least = 0

    def __init__(self) -> None:
        super().__init__([f"above_{type(self).least}"])

    def measure(self, texts):
        return {self.names[0]: sum(len(text) > type(self).least for text in texts)}


def test_settings_of_base_classes_count():
    first = _Longest()
    try:
        _Longest.least = 3
        with pytest.raises(ValueError, match="names is"):
            first.merge_state(_Longest())
    finally:
        _Longest.least = 0


class _Counter(SummedMetric):
    def __init__(self, measure) -> None:
        super().__init__()
        self.add_sum("total", torch.float64)

    @classmethod
    def example(cls):
        return cls(None), [()]

    def update(self) -> None:
        self.total = self.total + 1

    def compute(self) -> torch.Tensor:
        return self.total


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (lambda: 1, lambda: 2),
        (partial(vowel_counts), partial(letter_counts)),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        ({"a": 1}, {"a": 2}),
        ([["a"], ["b", "c"]], [["a", "b"], ["c"]]),
        (float("inf"), 1e308),
        (iter([1]), iter([2])),
        (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)),
    ],
)
def test_other_values_have_other_digests(value, other):
    assert setting_digest(value) == setting_digest(value) != setting_digest(other)
    with pytest.raises(ValueError, match="measure is"):
        _Counter(value).merge_state(_Counter(other))


def test_digests_do_not_depend_on_the_object():
    assert setting_digest([1, ("a", None)]) == setting_digest((1.0, ["a", None]))
    assert setting_digest({"a": 1, "b": {2, 3}}) == setting_digest({"b": {3, 2}, "a": 1})
    assert setting_digest(torch.arange(3)) == setting_digest(torch.arange(3))
    copy = pickle.loads(pickle.dumps(Yield(0.5)))
    copy.merge_state(Yield(0.5))
    loop: list[Any] = []
    loop.append(loop)
    assert setting_digest(loop) == setting_digest(loop)
