"""Every metric of the package, and copies of it that differ in one setting each."""

import inspect
import itertools
import typing
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torchmetrics import Metric

from tests.discovery import classes_in
from triptych import metrics
from triptych.metrics.diversify.distinct_answers import TaggedAnswer
from triptych.metrics.diversify.mode_coverage import equal_answer
from triptych.metrics.diversify.molecules import chemnet_distance
from triptych.metrics.diversify.same_class_judges import AnswerJudge
from triptych.objectives.text_embedder import letter_counts

OPTIONS = {*inspect.signature(Metric.__init__).parameters, "kwargs"}


def vowel_counts(texts: Sequence[str]) -> torch.Tensor:
    """Embed texts by their vowels."""
    return letter_counts(texts)[:, [0, 4, 8, 14, 20]] + 1


def upper(text: str) -> str:
    return text.upper()


# Values for settings whose type does not say what else they can be; the first that works counts.
OTHERS: dict[str, list[Any]] = {
    "embedder": [vowel_counts],
    "judge": [AnswerJudge(exact=True)],
    "read_answer": [TaggedAnswer("answer")],
    "read_solution": [upper],
    "find_mode": [equal_answer],
    "words": ["13a"],
    "compat": ["tdc", "diversity", "rlfh-gen-div", "vendi-score", "partitions.jsonl"],
    "names": [["length", "reward"]],
    "modes": [["1", "2"]],
    "reference": [["CCN", "CCO", "c1ccccc1C"]],
    "rank_among": [None],
    "true_groups": [[0, 0, 1]],
    "recovered_groups": [[1, 0, 1]],
    "vocabulary_size": [50],
}
# Another number of latents needs other data, so such metrics never stand side by side.
FIXED_BY_DATA = {"num_true", "num_recovered"}


def metric_classes() -> list[type[Metric]]:
    """Every metric of the package."""
    return classes_in(metrics, Metric)


class SmallNetwork:
    """Stands for ChemNet where its values do not matter: activations from letter counts."""

    def get_predictions(self, smiles: Sequence[str]) -> np.ndarray:
        weights = np.random.default_rng(0).normal(size=(26, chemnet_distance.WIDTH))
        return letter_counts(smiles).numpy() @ weights


def take_small_network() -> Any:
    """Return a patch, so that the contract of `ChemNetDistance` needs no extra and no second."""
    network = mock.Mock(return_value=SmallNetwork())
    return mock.patch.multiple(chemnet_distance, _network=network, WIDTH=8)


def example_settings(metric_class: type[Metric]) -> dict[str, Any]:
    """The constructor arguments of a metric's example, with defaults."""
    init, found = metric_class.__init__, {}

    def spy(self: Metric, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(init).bind(self, *args, **kwargs)
        bound.apply_defaults()
        found.update(list(bound.arguments.items())[1:])
        init(self, *args, **kwargs)

    with mock.patch.object(metric_class, "__init__", spy):
        metric_class.example()
    return {name: value for name, value in found.items() if name not in OPTIONS}


def defaults(metric_class: type[Metric]) -> dict[str, Any]:
    """The defaults of a constructor."""
    parameters = inspect.signature(metric_class.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def other_values(name: str, value: Any, hint: Any) -> list[Any]:
    """What a setting might be instead."""
    others = list(OTHERS.get(name, []))
    others += [word for word in typing.get_args(hint) if isinstance(word, str)]
    if isinstance(value, bool):
        others += [not value]
    elif isinstance(value, int | float):
        others += [value + 1, 2 * value, value + 64, value / 2, value + 0.25]
    elif value is None:
        others += [1, 128, 0.5, True]
    elif isinstance(value, str):
        others += [None]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        others += [value[:-1], value[1:]]
    return [other for other in others if repr(other) != repr(value)]


def variants(metric_class: type[Metric]) -> dict[str, Callable[[], Metric]]:
    """Makers of the example and of copies with one other setting each, by what differs.

    Raises:
        AssertionError: If a setting has no other value; add one to `OTHERS`.
    """
    settings = example_settings(metric_class)
    hints = typing.get_type_hints(inspect.unwrap(metric_class.__init__))
    batches = keyword_batches(metric_class)
    makers: dict[str, Callable[[], Metric]] = {"": lambda: metric_class(**settings)}
    for name, value in settings.items():
        if name in FIXED_BY_DATA:
            continue
        plain = settings | defaults(metric_class) | {name: value}
        others = other_values(name, value, hints.get(name))
        for around, other in itertools.product((settings, plain), others):
            changed = around | {name: other}
            try:
                metric = metric_class(**changed)
                for batch in batches:
                    metric.update(**batch)
                metric.compute()
            except (ValueError, TypeError, RuntimeError, AssertionError, IndexError):
                continue
            makers[name] = lambda changed=changed: metric_class(**changed)
            break
        else:
            raise AssertionError(
                f"{metric_class.__name__} takes no other {name} than {value!r}: add one to OTHERS"
            )
    return makers


def keyword_batches(metric_class: type[Metric]) -> list[dict[str, Any]]:
    """The batches of a metric's example, by argument."""
    metric, batches = metric_class.example()
    signature = inspect.signature(type(metric).update)
    return [dict(list(signature.bind(metric, *b).arguments.items())[1:]) for b in batches]


def first_batches(batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Batches after which states are alike: nothing in it, invalid strings, all rows equal."""

    def invalid(value: Any) -> Any:
        if isinstance(value, str):
            return "C1CC"
        return [invalid(item) for item in value] if isinstance(value, list) else value

    def equal(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim:
            return value[:1].expand_as(value).clone()
        if isinstance(value, list):
            return [equal(value[0])] * len(value)
        return {key: equal(v) for key, v in value.items()} if isinstance(value, dict) else value

    def empty(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: empty(v) for key, v in value.items()}
        if isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim):
            return value[:0]
        return value * 0

    kinds = {"empty": empty, "invalid": invalid, "equal": equal}
    return {kind: {n: make(v) for n, v in batch.items()} for kind, make in kinds.items()}
