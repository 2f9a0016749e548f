"""Diversity metrics, their judges and embedders by `class_path`."""

import math

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from triptych.metrics.diversify.mode_coverage import equal_answer
from triptych.metrics.diversify.prompt_metric import PromptMetric
from triptych.metrics.diversify.same_class_judges import ClassifierJudge
from triptych.metrics.text_embedder import TextEmbedder

CONFIG = """
metrics:
- class_path: triptych.metrics.diversify.novelty.NoveltyBench
  init_args:
    num_samples: 10
    judge:
      class_path: triptych.metrics.diversify.same_class_judges.ClassifierJudge
      init_args: {model: a/model}
- class_path: triptych.metrics.diversify.embedding_diversity.VendiScore
  init_args:
    order: .inf
    embedder: {class_path: triptych.metrics.text_embedder.TextEmbedder, init_args: {batch_size: 8}}
- class_path: triptych.metrics.diversify.embedding_diversity.EmbeddingDistance
  init_args: {embedder: a/model}
- class_path: triptych.metrics.diversify.text_diversity.ExpectationAdjustedDistinct
  init_args: {vocabulary_size: {1: 10, 2: 100}, sizes: [1, 2]}
- class_path: triptych.metrics.diversify.mode_coverage.ModeCoverage
  init_args:
    modes: ["1", ["2", two]]
    find_mode: triptych.metrics.diversify.mode_coverage.equal_answer
"""


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--metrics", type=list[PromptMetric])
    return parser


@pytest.mark.parametrize(
    "other",
    [
        "triptych.metrics.diversify.molecules.circles.Circles",  # takes a flat list of texts
        "triptych.metrics.diversify.distinct_answers.DistinctAnswers",  # needs the right answers
        "torchmetrics.MeanMetric",
    ],
)
def test_a_metric_with_another_update_is_refused(parser, other):
    with pytest.raises(ArgumentError, match=f"{other}.*PromptMetric"):
        parser.parse_object({"metrics": [{"class_path": other}]})


def test_metrics_are_built_from_yaml(parser):
    novelty, vendi, distance, ead, coverage = parser.instantiate(
        parser.parse_string(CONFIG)
    ).metrics
    assert isinstance(novelty.judge, ClassifierJudge)
    assert novelty.judge.model == "a/model"
    assert vendi.order == math.inf
    assert isinstance(vendi.embedder, TextEmbedder)
    assert vendi.embedder.batch_size == 8
    assert distance.embedder.model == "a/model"  # not loaded yet
    assert ead.num_possible == {1: 10, 2: 100}
    assert coverage.modes == [["1"], ["2", "two"]]
    assert coverage.find_mode is equal_answer
