"""Judges that decide whether two replies to a prompt are the same to a reader.

A judge is any picklable callable `(first, others) -> list of bool`. It compares one reply, the
first of its class, with several others at once, so that a model can judge them in batches.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from triptych.metrics.question_answering import normalize_answer
from triptych.objectives.text_embedder import Embedder, TextEmbedder

Judge = Callable[[str, Sequence[str]], Sequence[bool]]


def short_texts_agree(first: str, other: str, max_words: int = 5) -> bool | None:
    """Apply NoveltyBench's rule for short replies: the same if they share half of their words.

    Words are split at white space, in lower case. The number of *different* shared words is
    compared with the word count of the longer reply, including repeats. Two empty replies are the
    same.

    Args:
        first: A reply.
        other: Another.
        max_words: The rule applies if neither reply has more words.

    Returns:
        The decision; None if a reply is longer.

    >>> short_texts_agree("Blue", "blue whale"), short_texts_agree("a b c d e f", "a")
    (True, None)
    """
    words, other_words = first.lower().split(), other.lower().split()
    longest = max(len(words), len(other_words))
    if longest > max_words:
        return None
    return 2 * len(set(words) & set(other_words)) >= longest


class AnswerJudge:
    """Judges replies as the same if they are equal, after SQuAD's normalisation by default.

    Args:
        exact: Compare replies without normalisation.
    """

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact

    def __call__(self, first: str, others: Sequence[str]) -> list[bool]:
        """Compare one reply with others."""
        if self.exact:
            return [first == other for other in others]
        return [normalize_answer(first) == normalize_answer(other) for other in others]


class EmbeddingJudge:
    """Judges replies as the same if the cosine of their embeddings reaches a threshold.

    Args:
        threshold: Smallest cosine of equal replies; ours, tune it for your embedder.
        embedder: A callable, or the name or path of a sentence-transformers model; None for the
            packaged all-MiniLM-L6-v2 (see `TextEmbedder`).
        max_words: NoveltyBench's rule for short replies (`short_texts_agree`) decides up to this
            length; 0: never.
    """

    def __init__(
        self,
        threshold: float = 0.8,
        embedder: Embedder | str | None = None,
        max_words: int = 0,
    ) -> None:
        if not -1 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} must be a cosine, in [-1, 1].")
        self.threshold = threshold
        self.embedder = embedder if callable(embedder) else TextEmbedder(embedder)
        self.max_words = max_words

    def __call__(self, first: str, others: Sequence[str]) -> list[bool]:
        """Compare one reply with others."""
        if self.max_words > 0:
            by_rule = [short_texts_agree(first, other, self.max_words) for other in others]
            undecided = iter(
                self._agree(
                    [first, *(o for o, v in zip(others, by_rule, strict=True) if v is None)]
                )
            )
            return [next(undecided) if verdict is None else verdict for verdict in by_rule]
        return self._agree([first, *others])

    def _agree(self, texts: Sequence[str]) -> list[bool]:
        """Compare the first text with the others by their embeddings."""
        if len(texts) == 1:
            return []
        embeddings_ND = torch.as_tensor(self.embedder(list(texts)), dtype=torch.float64)
        unit_ND = torch.nn.functional.normalize(embeddings_ND, dim=-1)
        return (unit_ND[1:] @ unit_ND[0] >= self.threshold).tolist()


class ClassifierJudge:
    """NoveltyBench's judge: the rule for short replies, a pair classifier for the others.

    The input is [CLS] first [SEP] other [SEP], with at most `max_tokens` tokens of each and token
    types 0 and 1. Replies are the same if the probability of label 1 exceeds the threshold.
    Deviation: pairs are classified in padded batches, in NoveltyBench one by one.

    The benchmark's model is "yimingzhang/deberta-v3-large-generation-similarity" with the tokenizer
    of "microsoft/deberta-v3-large". The model is loaded at the first pair of long replies.

    Source: NoveltyBench, 2504.05228, and its code.

    Args:
        model: Name or path of a sequence classifier with two labels.
        tokenizer: Name or path of its tokenizer; by default that of the model.
        threshold: Threshold of the probability of label 1.
        max_tokens: Maximum number of tokens of each reply.
        max_words: The rule for short replies applies up to this length; 0 leaves all pairs except
            two empty replies to the classifier.
        batch_size: Pairs classified at once.
        device: Device of the classifier.
    """

    def __init__(
        self,
        model: str,
        tokenizer: str | None = None,
        threshold: float = 0.102,
        max_tokens: int = 128,
        max_words: int = 5,
        batch_size: int = 32,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer or model
        self.threshold = threshold
        self.max_tokens = max_tokens
        self.max_words = max_words
        self.batch_size = batch_size
        self.device = device

    def __call__(self, first: str, others: Sequence[str]) -> list[bool]:
        """Compare one reply with others."""
        verdicts = [short_texts_agree(first, other, self.max_words) for other in others]
        undecided = [place for place, verdict in enumerate(verdicts) if verdict is None]
        for start in range(0, len(undecided), self.batch_size):
            places = undecided[start : start + self.batch_size]
            found = self.probabilities([(first, others[place]) for place in places])
            for place, probability in zip(places, found, strict=True):
                verdicts[place] = probability > self.threshold
        return [bool(verdict) for verdict in verdicts]

    @torch.inference_mode()
    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Compute the probability that the replies of each pair are the same, in one batch."""
        tokenizer, model = _load_classifier(self.tokenizer, self.model, self.device)
        encoded = [[self._tokens(tokenizer, text) for text in pair] for pair in pairs]
        rows = [
            [tokenizer.cls_token_id, *first, tokenizer.sep_token_id, *other, tokenizer.sep_token_id]
            for first, other in encoded
        ]
        width = max(map(len, rows))
        token_ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.int64)
        token_types = torch.zeros_like(token_ids)
        mask = torch.zeros_like(token_ids)
        for number, (row, (first, _)) in enumerate(zip(rows, encoded, strict=True)):
            token_ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
            token_types[number, len(first) + 2 : len(row)] = 1
            mask[number, : len(row)] = 1
        logits = model(
            input_ids=token_ids.to(self.device),
            token_type_ids=token_types.to(self.device),
            attention_mask=mask.to(self.device),
        ).logits
        found: list[float] = logits.float().softmax(-1)[:, 1].tolist()
        return found

    def _tokens(self, tokenizer: Any, text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(
            text, add_special_tokens=False, truncation=True, max_length=self.max_tokens
        )
        return ids


@cache
def _load_classifier(tokenizer: str, model: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    classifier = AutoModelForSequenceClassification.from_pretrained(model, trust_remote_code=False)
    classifier = classifier.to(device).eval()
    if classifier.config.num_labels != 2:
        raise ValueError(
            f"{model} has {classifier.config.num_labels} labels: give a classifier of pairs with "
            "two, 0 for different and 1 for the same."
        )
    return AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False), classifier
