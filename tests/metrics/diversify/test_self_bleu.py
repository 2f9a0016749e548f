"""Self-BLEU against nltk, hand-computed values and the package `diversity`."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from torchmetrics.functional.text import sacre_bleu_score

from tests.metrics.diversify.sample_texts import SAMPLES, TEXTS, package_module, real_prompts
from triptych.metrics.diversify.self_bleu import SelfBLEU, self_bleu_scores


def value(metric: SelfBLEU, texts: list[str]) -> float:
    metric.update([texts])
    return metric.compute()["self_bleu"].item()


def nltk_scores(word_lists: list[list[str]]) -> list[float]:
    smooth = SmoothingFunction(epsilon=0.1).method1
    return [
        sentence_bleu(word_lists[:i] + word_lists[i + 1 :], words, smoothing_function=smooth)
        for i, words in enumerate(word_lists)
    ]


def test_by_hand():
    # Words: 2 of 3, the second "a" is clipped to 1; pairs: "a b" of 2; lengths 3 and 2, no penalty.
    first = math.sqrt(2 / 3 * 1 / 2)
    # Words 2/2, pairs 1/1, penalty exp(1 - 3/2).
    second = math.exp(-0.5)
    found = self_bleu_scores([["a", "b", "a"], ["a", "b"]], max_size=2, smoothing=0)
    assert found == pytest.approx([first, second])


def test_what_is_not_shared():
    assert self_bleu_scores([["a", "b"], ["c", "d"], []]) == [0, 0, 0]  # no word: not smoothed
    # One word of two, no pair: sqrt(1/2 * .1/1); without smoothing 0.
    assert self_bleu_scores([["a", "b"], ["a", "c"]], 2) == pytest.approx([math.sqrt(0.05)] * 2)
    assert self_bleu_scores([["a", "b"], ["a", "c"]], 2, smoothing=0) == [0, 0]
    assert math.isnan(value(SelfBLEU(), ["alone"]))


WORDS = st.lists(st.sampled_from("abcd"), max_size=8)


@settings(max_examples=150, deadline=None)
@given(word_lists=st.lists(WORDS, min_size=2, max_size=6))
def test_equals_nltk(word_lists: list[list[str]]):
    assert self_bleu_scores(word_lists) == pytest.approx(nltk_scores(word_lists), abs=1e-12)


def test_equals_nltk_on_texts():
    expected = [nltk_scores([text.split() for text in texts]) for texts in SAMPLES]
    metric = SelfBLEU()
    metric.update(SAMPLES)
    found = metric.compute()
    means = [sum(scores) / len(scores) for scores in expected]
    assert found["self_bleu"].item() == pytest.approx(sum(means) / len(means), abs=1e-12)
    overall = nltk_scores([text.split() for text in TEXTS])
    assert found["overall_self_bleu"].item() == pytest.approx(sum(overall) / 36, abs=1e-12)


class CorpusBLEU:
    """What `evaluate.load("bleu")` gives; its script is on the hub, so another BLEU stands in."""

    def compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return {"bleu": sacre_bleu_score(predictions, references, tokenize="13a").item()}


@pytest.fixture(scope="module")
def homogenization_score():
    with pytest.MonkeyPatch.context() as patch:
        for name, content in {
            "evaluate": {"load": lambda name: CorpusBLEU()},
            "rouge_score": {"rouge_scorer": SimpleNamespace()},
        }.items():
            module = ModuleType(name)
            module.__dict__.update(content)
            patch.setitem(sys.modules, name, module)
        return package_module("diversity", "homogenization").homogenization_score


@pytest.mark.parametrize("number", range(6))
def test_equals_the_package(homogenization_score, number: int):
    texts = SAMPLES[number]
    expected = homogenization_score(texts, measure="bleu", verbose=False)
    assert value(SelfBLEU(compat="diversity"), texts) == expected


def test_equals_the_package_on_all_texts(homogenization_score):
    metric = SelfBLEU(compat="diversity")
    metric.update(SAMPLES)
    expected = homogenization_score(TEXTS, measure="bleu", verbose=False)
    assert metric.compute()["overall_self_bleu"].item() == expected


def test_equals_the_package_on_real_prompts(homogenization_score, real_data):
    prompts = [prompt[:300] for prompt in real_prompts(real_data, 24)]
    expected = homogenization_score(prompts, measure="bleu", verbose=False)
    assert value(SelfBLEU(compat="diversity"), prompts) == expected


def test_package_calls_the_most_diverse_texts_equal():
    # Nothing shared: all corpus scores are 0, and the package returns 1.
    assert value(SelfBLEU(compat="diversity"), ["a b c d", "e f g h"]) == 1.0
    # By hand: "a b c d e" is each one's reference; each is predicted perfectly.
    assert value(SelfBLEU(compat="diversity"), ["a b c d e"] * 3) == 0.5  # divided by 2 others
    assert math.isnan(value(SelfBLEU(compat="diversity"), ["a", ""]))


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="at least 1"):
        SelfBLEU(max_size=0)
    with pytest.raises(ValueError, match="with max_size 4"):
        SelfBLEU(compat="diversity", max_size=3)


def test_no_texts_score_nan():
    assert all(torch.isnan(value) for value in SelfBLEU().compute().values())
