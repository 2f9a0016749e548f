"""Multiple choice, answers and texts against references that score one row at a time."""

import math

import numpy as np
import pytest
import torch

from tests.callbacks.remember.probes.conftest import TinyLM
from triptych.callbacks.remember.probes.answer_nll import AnswerNLL
from triptych.callbacks.remember.probes.base import Probe
from triptych.callbacks.remember.probes.closed_book import ClosedBook
from triptych.callbacks.remember.probes.multiple_choice import MultipleChoice
from triptych.callbacks.remember.probes.text_perplexity import TextPerplexity
from triptych.datamodules.batches import prompted_documents, token_file
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.embedded.articles import embedded_articles
from triptych.datamodules.sources.records import RecordSource


@torch.no_grad()
def nats(lm: TinyLM, ids: list[int], first: int) -> list[float]:
    """Negative log-likelihood of tokens `first` on, from the whole array of logits."""
    logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().numpy()
    rows = []
    for place in range(first, len(ids)):
        row = logits[place - 1]
        shifted = row - row.max()
        rows.append(float(np.log(np.exp(shifted).sum()) - shifted[ids[place]]))
    return rows


def tokens(lm: TinyLM, text: str) -> list[int]:
    return lm.tokenizer.encode(text, add_special_tokens=False)


def continued(lm: TinyLM, prompt: str, text: str) -> list[float]:
    before = [lm.tokenizer.bos_token_id, *tokens(lm, prompt)]
    return nats(lm, before + tokens(lm, text), len(before))


def measured(probe: Probe, lm: TinyLM, shard: Shard | None = None) -> dict[str, float]:
    probe.prepare(lm.setting(shard))
    with torch.no_grad():
        return probe.measure(lm.model)


@pytest.fixture
def write(tmp_path, write_jsonl):
    return lambda *rows: RecordSource(write_jsonl("rows.jsonl", list(rows)))


CHOICES = [
    {"ctx": context, "endings": endings, "label": label}
    for context, endings, label in [
        ("The capital of Peru is", ["Lima.", "a very long way from here.", "Rome"], 0),
        ("A man sits.", ["He stands up and goes.", "No."], 0),
        ("Sie sagt:", ["Grüße aus Köln", "Ja", "Nein und nochmals nein", "é"], 2),
        ("One two three", ["four five", "x", "the sea of the sea"], 1),
    ]
]


@pytest.mark.parametrize("tokens_per_batch", [1, 90, 8192])
def test_multiple_choice(tiny_lm, write, tokens_per_batch):
    probe = MultipleChoice(write(*CHOICES), tokens_per_batch=tokens_per_batch)
    values = measured(probe, tiny_lm)
    right, per_byte, total, count = [], [], 0.0, 0
    for row in CHOICES:
        scores = [continued(tiny_lm, row["ctx"], " " + ending) for ending in row["endings"]]
        sums = np.array([sum(score) for score in scores])
        sizes = np.array([len(ending.encode()) for ending in row["endings"]])
        right.append(int(sums.argmin()) == row["label"])
        per_byte.append(int((sums / sizes).argmin()) == row["label"])
        total += sums[row["label"]]
        count += len(scores[row["label"]])
    assert values == {
        "accuracy": pytest.approx(np.mean(right)),
        "length_normalized_accuracy": pytest.approx(np.mean(per_byte)),
        "right_nll_nats_per_token": pytest.approx(total / count),
    }
    assert right != per_byte  # so that the two rules are told apart


def test_answer_nll(tiny_lm, write):
    rows = [
        {"question": "How many?", "answer": "There are 3 and 4.\n#### 7"},
        {"question": "Who is it that comes?", "answer": "Zoë"},
    ]
    probe = AnswerNLL(write(*rows), prompt="Q: {question} A: ", tokens_per_batch=1)
    values = measured(probe, tiny_lm)
    scores, num_bytes = [], 0
    for row in rows:
        scores += continued(tiny_lm, f"Q: {row['question']} A:", " " + row["answer"])
        num_bytes += len((" " + row["answer"]).encode())
    assert values == {
        "nll_nats_per_token": pytest.approx(np.mean(scores)),
        "bits_per_byte": pytest.approx(sum(scores) / math.log(2) / num_bytes),
    }


@pytest.mark.parametrize("context_length", [16, 500])
def test_text_perplexity(tiny_lm, write, context_length):
    texts = [
        "The sea is blue. " * 9,
        "Ähnlich wie zuvor.",
        embedded_articles("validation")[0]["text"],
    ]
    rows = [{"text": text} for text in texts]
    probe = TextPerplexity(
        write(*rows, {"text": " "}), context_length, num_windows=None, tokens_per_batch=100
    )
    values = measured(probe, tiny_lm)
    scores = []
    length = min(context_length, 128)  # what the model reads
    for text in texts:
        ids = [
            tiny_lm.tokenizer.bos_token_id,
            *tokens(tiny_lm, text),
            tiny_lm.tokenizer.eos_token_id,
        ]
        start = 0
        while start + 1 < len(ids):  # each window begins with the last token of the one before
            window = ids[start : start + length]
            scores += nats(tiny_lm, window, 1)
            start += len(window) - 1
    num_bytes = sum(len(text.encode()) for text in texts)
    assert values == {
        "nll_nats_per_token": pytest.approx(np.mean(scores)),
        "bits_per_byte": pytest.approx(sum(scores) / math.log(2) / num_bytes),
        "perplexity": pytest.approx(math.exp(np.mean(scores))),
    }


EMBEDDED = RecordSource()
PROBES = {
    "closed_book": lambda **o: ClosedBook(EMBEDDED, **o),
    "generated": lambda **o: ClosedBook(EMBEDDED, scoring="generate", max_new_tokens=3, **o),
    "multiple_choice": lambda **o: MultipleChoice(EMBEDDED, **o),
    "answer_nll": lambda **o: AnswerNLL(EMBEDDED, **o),
    "text": lambda **o: TextPerplexity(EMBEDDED, 32, **o),
}
every_probe = pytest.mark.parametrize("name", PROBES)


@every_probe
def test_nothing_is_read_or_tokenised_twice(tiny_lm, monkeypatch, name):
    probe = PROBES[name](num_rows=6)
    first = measured(probe, tiny_lm)

    def forbidden(*_):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(prompted_documents, "encode_parts", forbidden)
    monkeypatch.setattr(token_file, "encode_texts", forbidden)
    with torch.no_grad():
        assert probe.measure(tiny_lm.model) == first


@every_probe
def test_rows_are_capped_by_a_fixed_seed(tiny_lm, name):
    once, again, other = (PROBES[name](num_rows=5, seed=seed) for seed in (1, 1, 2))
    values = [measured(probe, tiny_lm) for probe in (once, again, other)]
    assert values[0] == values[1]
    if name != "generated":  # which is 0 either way
        assert values[0] != values[2]
    if name != "text":
        assert once.num_rows_used == 5


def test_windows_are_capped_too(tiny_lm):
    probe = TextPerplexity(EMBEDDED, 16, num_windows=7)
    measured(probe, tiny_lm)
    assert probe.num_rows_used == 7


def test_window_holds_a_prediction():
    with pytest.raises(ValueError, match="context_length is 1"):
        TextPerplexity(context_length=1)


def test_long_rows(tiny_lm, write):
    long = {"question": "why " * 200, "answer": "yes"}
    rows = write({"question": "Why?", "answer": "no"}, long)
    with pytest.raises(ValueError, match=r"1 of 2 rows .* context of 128 tokens"):
        measured(AnswerNLL(rows), tiny_lm)
    skip = AnswerNLL(rows, on_long_row="skip")
    alone = measured(skip, tiny_lm)["nll_nats_per_token"]
    assert alone == pytest.approx(np.mean(continued(tiny_lm, "Question: Why? Answer:", " no")))
    assert (skip.num_rows_used, skip.num_rows_left_out) == (1, 1)
    cut = AnswerNLL(rows, on_long_row="cut")
    assert measured(cut, tiny_lm)["nll_nats_per_token"] != pytest.approx(alone)
    assert (cut.num_rows_used, cut.num_rows_left_out) == (2, 0)


@every_probe
def test_missing_files(tiny_lm, name):
    absent = {
        "closed_book": ClosedBook,
        "generated": ClosedBook,
        "multiple_choice": MultipleChoice,
        "answer_nll": AnswerNLL,
        "text": TextPerplexity,
    }[name](RecordSource("absent.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        absent.prepare(tiny_lm.setting())


def test_paths_start_at_the_data_folder(tiny_lm, tmp_path, write_jsonl):
    write_jsonl("there/g.jsonl", [{"question": "Why?", "answer": "no"}])
    probe = AnswerNLL(RecordSource("there/g.jsonl"), data_dir=str(tmp_path))
    assert math.isfinite(measured(probe, tiny_lm)["nll_nats_per_token"])


DEFAULTS = {ClosedBook: "exact_match", MultipleChoice: "accuracy", AnswerNLL: "nll_nats_per_token"}


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_the_standard_test_sets_are_the_defaults(tiny_lm, real_data, kind):
    options = {} if kind is ClosedBook else {"on_long_row": "cut"}
    probe = kind(num_rows=8, data_dir=str(real_data), **options)
    values = measured(probe, tiny_lm)
    assert probe.headline == DEFAULTS[kind]
    assert math.isfinite(values[probe.headline])
    assert probe.num_rows_used + probe.num_rows_left_out == 8
