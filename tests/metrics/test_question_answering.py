"""Answer scores against hand-computed values, the official script's steps, and torchmetrics."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from triptych.metrics.question_answering import (
    ExactMatch,
    TokenF1,
    exact_match,
    normalize_answer,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The Eiffel Tower", "eiffel tower"),
        ("  a\tman,\n an  apple; the THE sea ", "man apple sea"),
        ("the U.S.A.", "usa"),  # punctuation leaves no gap
        ("rock-and-roll", "rockandroll"),
        ("An-An", "anan"),  # articles go after punctuation, as whole words
        ("theatre, Anna & Ada", "theatre anna ada"),
        ("$1,000.50", "100050"),
        ("Éire – “Áth Cliath”", "éire – “áth cliath”"),  # ASCII punctuation only
        ("vis–a–vis", "vis– –vis"),  # an article leaves one
        ("The, a!", ""),
        ("", ""),
    ],
)
def test_normalization_by_hand(text: str, normalized: str):
    assert normalize_answer(text) == normalized
    assert normalize_answer(normalized) == normalized


@pytest.mark.parametrize(
    ("prediction", "answers", "is_exact", "f1"),
    [
        ("Paris", ["paris."], True, 1.0),
        ("the city of Paris", ["Paris"], False, 0.5),  # 1 of 3 words, 1 of 1
        ("Rhine", ["Nile", "Nile River"], False, 0.0),
        ("River Nile", ["Nile", "Nile River"], False, 1.0),  # order does not count
        ("Ludwig Beethoven", ["Beethoven", "Ludwig van Beethoven"], False, 0.8),  # 2/2, 2/3
        ("New York New York", ["New York"], False, 2 / 3),  # a bag counts repeats: 2/4, 2/2
        ("York York", ["New York New York"], False, 2 / 3),  # 2/2, 2/4
        ("", ["Paris"], False, 0.0),
        ("the", ["Paris"], False, 0.0),
        ("", [""], True, 1.0),
        ("...", ["The"], True, 1.0),
        ("Paris", [""], False, 0.0),
        ("", ["The", "Paris"], False, 0.0),  # an alias of articles alone is dropped
        ("A", ["A", "vitamin A"], False, 0.0),
    ],
)
def test_scores_by_hand(prediction: str, answers: list[str], is_exact: bool, f1: float):
    assert exact_match(prediction, answers) is is_exact
    assert token_f1(prediction, answers) == pytest.approx(f1)


WORDS = st.sampled_from(["paris", "Nile", "nile,", "New", "York!", "the", "A", "an.", "-", "U.S."])
TEXTS = st.lists(WORDS, max_size=5).map(" ".join)


def official_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Exact match and F1, following the SQuAD 2.0 evaluation script step by step."""

    def normalize(text: str) -> str:
        kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept, flags=re.UNICODE).split())

    def f1(gold_text: str) -> float:
        gold, predicted = normalize(gold_text).split(), normalize(prediction).split()
        num_same = sum((Counter(gold) & Counter(predicted)).values())
        if len(gold) == 0 or len(predicted) == 0:
            return int(gold == predicted)
        if num_same == 0:
            return 0
        precision, recall = num_same / len(predicted), num_same / len(gold)
        return 2 * precision * recall / (precision + recall)

    gold_answers = [answer for answer in answers if normalize(answer)] or [""]
    exact = max(int(normalize(gold) == normalize(prediction)) for gold in gold_answers)
    return exact, max(f1(gold) for gold in gold_answers)


@settings(max_examples=200, deadline=None)
@given(prediction=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=4))
def test_scores_equal_the_official_script(prediction: str, answers: list[str]):
    exact, f1 = official_scores(prediction, answers)
    assert exact_match(prediction, answers) == exact
    assert token_f1(prediction, answers) == pytest.approx(f1)


@settings(max_examples=25, deadline=None)
@given(
    questions=st.lists(
        st.tuples(TEXTS, st.lists(TEXTS.map(lambda text: f"Oslo {text}"), min_size=1, max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_metrics_equal_torchmetrics_where_no_answer_is_empty(
    questions: list[tuple[str, list[str]]],
):
    ours = {"exact_match": ExactMatch(), "f1": TokenF1()}
    for metric in ours.values():
        metric.update(*zip(*questions, strict=True))
    peer = squad(
        [{"prediction_text": text, "id": str(i)} for i, (text, _) in enumerate(questions)],
        [
            {"answers": {"answer_start": [0] * len(texts), "text": texts}, "id": str(i)}
            for i, (_, texts) in enumerate(questions)
        ],
    )
    for name, metric in ours.items():
        assert metric.compute().item() == pytest.approx(peer[name].item() / 100, abs=1e-6)


def test_metrics_average_over_questions_and_not_over_batches():
    exact, f1 = ExactMatch(), TokenF1()
    for metric in (exact, f1):
        metric.update(["Paris", "Nile", "city of Paris"], [["Paris"], ["the Nile"], ["Paris"]])
        metric.update(["Rhine"], [["Nile"]])
    assert exact.compute().item() == 0.5
    assert f1.compute().item() == pytest.approx(2.5 / 4)


@pytest.mark.parametrize("metric", [ExactMatch(), TokenF1()], ids=["exact_match", "token_f1"])
def test_no_questions_score_nan(metric: ExactMatch | TokenF1):
    assert metric.compute().isnan()
    metric.update([], [])
    assert metric.compute().isnan()


@pytest.mark.parametrize("score", [exact_match, token_f1])
def test_mistakes_are_explained(score):
    with pytest.raises(ValueError, match="put it into a list"):
        score("Paris", "Paris")
    with pytest.raises(ValueError, match="at least one accepted answer"):
        score("Paris", [])


def test_predictions_and_questions_must_agree_and_nothing_is_counted():
    metric = ExactMatch()
    with pytest.raises(ValueError, match="2 predictions for 1 questions"):
        metric.update(["Paris", "Nile"], [["Paris"]])
    with pytest.raises(ValueError, match="put it into a list"):
        metric.update(["Paris", "Nile"], [["Paris"], "Nile"])
    assert metric.compute().isnan()
