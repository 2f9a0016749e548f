"""Judges of replies: rules by hand, and a tiny classifier fed pair by pair."""

import pickle
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from triptych.metrics.diversify.same_class_judges import (
    AnswerJudge,
    ClassifierJudge,
    EmbeddingJudge,
    short_texts_agree,
)
from triptych.objectives.text_embedder import letter_counts


@pytest.mark.parametrize(
    ("first", "other", "verdict"),
    [
        ("Blue", "blue", True),
        ("blue", "red", False),
        ("blue whale", "whale", True),  # 1 * 2 >= 2
        ("a b c", "a x", False),  # 1 * 2 < 3
        ("a b c d e", "e d c", True),  # 3 * 2 >= 5
        ("a b c d e", "a b", False),  # 2 * 2 < 5
        ("no no no no", "no no", False),  # one different word, length 4: repeats are not shared
        ("", "", True),
        ("", "x", False),
        ("a b c d e f", "a b c d e f", None),
        (" Blue \n", "BLUE", True),
        ("blue.", "blue", False),  # punctuation stays
    ],
)
def test_rule_for_short_replies(first: str, other: str, verdict: bool | None):
    assert short_texts_agree(first, other) is verdict
    assert short_texts_agree(other, first) is verdict


def test_answers_are_normalised_or_exact():
    others = ["the Nile", "Nile", "Niles"]
    assert AnswerJudge()("nile!", others) == [True, True, False]
    assert AnswerJudge(exact=True)("Nile", others) == [False, True, False]


def test_embeddings_are_compared_by_cosine():
    judge = EmbeddingJudge(threshold=0.7, embedder=letter_counts)
    assert judge("ab", ["a", "abc", "bbbbb", "xyz"]) == [True, True, True, False]
    # cos = 1/sqrt(2), 2/sqrt(6), 1/sqrt(2), 0
    assert EmbeddingJudge(0.75, letter_counts)("ab", ["a", "abc"]) == [False, True]
    assert judge("ab", []) == []
    with pytest.raises(ValueError, match="must be a cosine"):
        EmbeddingJudge(threshold=3)


SENTENCE = "the sea is a wide and salty place where old ships dream of cold stars"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]))
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


PAIRS = [
    ("the sea is a wide and salty place", "old ships dream of cold stars where the sea is"),
    ("ships", "where the old sea is cold and salty"),
    (" ".join(WORDS * 3), " ".join(WORDS[::-1] * 2)),
]


def test_batched_pairs_equal_single_ones(classifier: Path):
    judge = ClassifierJudge(str(classifier), max_tokens=20)
    model = BertForSequenceClassification.from_pretrained(classifier).eval()
    place = {word: 4 + number for number, word in enumerate(WORDS)}
    expected = []
    for pair in PAIRS:
        first, other = ([place[word] for word in text.split()][:20] for text in pair)
        ids = torch.tensor([[2, *first, 3, *other, 3]])
        types = torch.tensor([[0] * (len(first) + 2) + [1] * (len(other) + 1)])
        with torch.inference_mode():
            logits = model(input_ids=ids, token_type_ids=types).logits[0]
        expected.append((logits.exp() / logits.exp().sum())[1].item())
    assert judge.probabilities(PAIRS) == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 0.05  # the classifier tells them apart


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_rule_decides_short_pairs_and_the_classifier_the_others(classifier, batch_size: int):
    first = PAIRS[0][0]
    others = [PAIRS[0][1], PAIRS[1][1], PAIRS[2][1]]
    probability = ClassifierJudge(str(classifier)).probabilities([(first, o) for o in others])
    low, middle, _ = sorted(probability)
    threshold = (low + middle) / 2
    judge = ClassifierJudge(str(classifier), threshold=threshold, batch_size=batch_size)
    assert judge(first, others) == [p > threshold for p in probability]
    assert judge("the sea", ["the ships", "cold stars"]) == [True, False]
    assert pickle.loads(pickle.dumps(judge))(first, others) == judge(first, others)


def test_a_classifier_has_two_labels(tmp_path: Path, classifier: Path):
    config = BertConfig(
        vocab_size=5,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    judge = ClassifierJudge(str(tmp_path), tokenizer=str(classifier))
    with pytest.raises(ValueError, match="has 3 labels"):
        judge.probabilities(PAIRS)


def test_short_replies_are_judged_by_the_rule_and_long_ones_by_their_embeddings():
    long, anagram = "one two three four five six", "six five four three two one"
    judge = EmbeddingJudge(0.99, letter_counts, max_words=5)
    assert judge("blue whale", ["whale", "elbu", long]) == [True, False, False]
    assert judge(long, [anagram, "a"]) == [True, False]
    assert judge(long, []) == []
    assert EmbeddingJudge(0.99, letter_counts)("blue", ["elbu"]) == [True]
