"""Recall against a reference that goes row by row and token by token over full logits."""

import math

import pytest
import torch
from torchmetrics.functional.text import squad

from tests.callbacks.remember.probes.conftest import FACTS, TinyLM, learn
from triptych.callbacks.remember.probes.closed_book import ClosedBook
from triptych.callbacks.remember.probes.fact_recall import FactRecall
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.datamodules.sources.records import RecordSource


@torch.no_grad()
def log_probabilities(lm: TinyLM, ids: list[int]) -> torch.Tensor:
    return (
        lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    )


def tokens(lm: TinyLM, text: str) -> list[int]:
    return lm.tokenizer.encode(text, add_special_tokens=False)


def start(lm: TinyLM, prompt: str) -> list[int]:
    return [lm.tokenizer.bos_token_id, *tokens(lm, prompt)]


def decode(lm: TinyLM, prompt: str, count: int) -> list[int]:
    """Greedy decoding, each token from a pass over everything before it; stops after EOS."""
    ids = start(lm, prompt)
    begin = len(ids)
    while len(ids) < begin + count and ids[-1] != lm.tokenizer.eos_token_id:
        ids.append(int(log_probabilities(lm, ids)[-1].argmax()))
    return ids[begin:]


def nll(lm: TinyLM, prompt: str, answer: list[int]) -> float:
    before = start(lm, prompt)
    rows = log_probabilities(lm, before + answer)
    return -sum(float(rows[len(before) - 1 + i, token]) for i, token in enumerate(answer))


def asked(probe, lm: TinyLM):
    """What the probe asks: prompt, and each accepted answer as a text to continue it with."""
    return [
        (fact.prompt, [c.text for c in fact.continuations], list(fact.answers))
        for fact in probe.ask(lm.setting())
    ]


def measured(probe, lm: TinyLM, **options) -> dict[str, float]:
    probe.prepare(lm.setting(**options))
    with torch.no_grad():
        return probe.measure(lm.model)


def probe(wording: str, scoring: str, **options) -> FactRecall:
    return FactRecall(FACTS, wording, scoring=scoring, max_new_tokens=12, **options)


def test_teacher_forced_questions(tiny_lm):
    recall = probe("held_out", "teacher_forced", tokens_per_batch=200)
    values = measured(recall, tiny_lm)
    eos = [tiny_lm.tokenizer.eos_token_id]
    right, nats, count = [], 0.0, 0
    for prompt, texts, _ in asked(recall, tiny_lm):
        accepted = [tokens(tiny_lm, text) + eos for text in texts]
        right.append(decode(tiny_lm, prompt, 20) in accepted)
        nats += nll(tiny_lm, prompt, accepted[0])
        count += len(accepted[0])
    assert len(right) == 18
    assert values["exact_match"] == pytest.approx(sum(right) / 18)
    assert 0.3 < values["exact_match"] < 0.7  # what it was taught, and not the rest
    assert values["answer_nll_nats_per_token"] == pytest.approx(nats / count)
    assert set(values) == {"exact_match", "answer_nll_nats_per_token"}


def test_generated_questions(tiny_lm):
    recall = probe("held_out", "generate", tokens_per_batch=200)
    values = measured(recall, tiny_lm)
    predictions, answers = [], []
    for number, (prompt, _, accepted) in enumerate(asked(recall, tiny_lm)):
        text = tiny_lm.tokenizer.decode(decode(tiny_lm, prompt, 12), skip_special_tokens=True)
        predictions.append({"prediction_text": text.split("\n")[0], "id": str(number)})
        spans = {"answer_start": [0] * len(accepted), "text": accepted}
        answers.append({"answers": spans, "id": str(number)})
    peer = squad(predictions, answers)
    assert values["exact_match"] == pytest.approx(float(peer["exact_match"]) / 100)
    assert values["f1"] == pytest.approx(float(peer["f1"]) / 100, abs=1e-6)
    assert 0.3 < values["exact_match"] <= values["f1"] < 0.9
    assert set(values) == {"exact_match", "f1"}


@pytest.mark.parametrize("wording", ["held_out", "training", "own_question", "statement"])
def test_teacher_forced_equals_generated(tiny_lm, wording):
    forced = measured(probe(wording, "teacher_forced"), tiny_lm)["exact_match"]
    generated = measured(probe(wording, "generate"), tiny_lm)["exact_match"]
    assert forced == generated
    if wording in ("held_out", "statement"):
        assert 0 < forced < 1


def test_statements_are_complete_with_their_answer(tiny_lm):
    """Whatever follows it: the model was taught a full stop, and then the end."""
    recall = probe("statement", "teacher_forced")
    values = measured(recall, tiny_lm)
    right = []
    for prompt, texts, _ in asked(recall, tiny_lm):
        accepted = [tokens(tiny_lm, text) for text in texts]
        written = decode(tiny_lm, prompt, 20)
        right.append(any(written[: len(answer)] == answer for answer in accepted))
    assert values["exact_match"] == pytest.approx(sum(right) / len(right))
    assert 0 < values["exact_match"] < 1


def test_any_accepted_answer_is_right_in_any_batch(tiny_lm, tmp_path):
    """The second alias is what the model says; in batches of one row they are scored apart."""
    prompt = "Question: Who leads? Answer:"
    lm = TinyLM(type(tiny_lm.model)(tiny_lm.model.config).double().eval(), tiny_lm.tokenizer)
    learn(lm.model, lm.tokenizer, [(prompt, " Ann")], steps=40)
    lm.model.eval()
    file = tmp_path / "q.jsonl"
    file.write_text(
        '{"question": "Who leads?", "answers": ["Bernadette", "Ann", "Chris"]}\n'
        '{"question": "Who leads?", "answers": ["Bernadette"]}\n'
    )
    source = RecordSource(str(file))
    for tokens_per_batch in (1, 1000):
        book = ClosedBook(source, tokens_per_batch=tokens_per_batch)
        values = measured(book, lm)
        assert values["exact_match"] == 0.5
        wrong = [*tokens(lm, " Bernadette"), lm.tokenizer.eos_token_id]
        expected = nll(lm, prompt, wrong) / len(wrong)
        assert values["answer_nll_nats_per_token"] == pytest.approx(expected)
    generated = measured(ClosedBook(source, scoring="generate", max_new_tokens=5), lm)
    assert generated == {"exact_match": 0.5, "f1": 0.5}


def test_an_answer_that_goes_on_is_not_right(tiny_lm, tmp_path):
    """EOS after the answer counts: "Ann" is not what a model says that says "Ann Lee"."""
    lm = TinyLM(type(tiny_lm.model)(tiny_lm.model.config).double().eval(), tiny_lm.tokenizer)
    learn(lm.model, lm.tokenizer, [("Question: Who leads? Answer:", " Ann", " Lee")], steps=40)
    lm.model.eval()
    for answer, expected in (("Ann", 0.0), ("Ann Lee", 1.0)):
        file = tmp_path / f"{answer}.jsonl"
        file.write_text(f'{{"question": "Who leads?", "answers": ["{answer}"]}}\n')
        for scoring in ("teacher_forced", "generate"):
            book = ClosedBook(RecordSource(str(file)), scoring=scoring)
            assert measured(book, lm)["exact_match"] == expected


def test_groups_of_visits(tiny_lm):
    data = FactStream(
        FACTS,
        tokenizer=TokenizerConfig(vocab_size=400),
        facts_per_batch=2,
        context_length=96,
        seed=3,
    )
    data.tokenizer = tiny_lm.tokenizer
    recall = FactRecall(None, "held_out", first_visits=3, visits_per_group=4)
    values = measured(recall, tiny_lm, datamodule=data)
    everything = recall.ask(tiny_lm.setting(datamodule=data))
    eos = [tiny_lm.tokenizer.eos_token_id]
    right = {visit: [] for visit in range(9)}
    for fact in everything:
        accepted = [tokens(tiny_lm, c.text) + eos for c in fact.continuations]
        right[fact.visit].append(decode(tiny_lm, fact.prompt, 20) in accepted)
    assert all(len(pair) == 2 for pair in right.values())

    def mean(visits):
        scores = [score for visit in visits for score in right[visit]]
        return pytest.approx(sum(scores) / len(scores))

    assert values["exact_match"] == mean(range(9))
    assert values["first_3_visits_exact_match"] == mean(range(3))
    assert values["visits_1_to_4_exact_match"] == mean(range(4))
    assert values["visits_5_to_8_exact_match"] == mean(range(4, 8))
    assert values["visits_9_to_9_exact_match"] == mean([8])
    assert len({values[name] for name in recall.groups}) > 1
    assert recall.groups == {
        "visits_1_to_4_exact_match": 4,
        "visits_5_to_8_exact_match": 8,
        "visits_9_to_9_exact_match": 9,
    }
    assert recall.shown == ("exact_match", "first_3_visits_exact_match")


def test_facts_that_the_stream_skips(tiny_lm):
    """Those of the order's beginning, which a pretraining with `num_facts` as many has taught."""

    def stream(**chosen) -> FactStream:
        data = FactStream(FactsConfig(relations=["author"], **chosen))
        data.tokenizer = tiny_lm.tokenizer
        return data

    skipped = FactRecall(of_stream="skipped", role="retained", seed=5)
    asked = skipped.ask(tiny_lm.setting(datamodule=stream(skip_facts=30, num_facts=10)))
    pretrained = FactsConfig(relations=["author"], num_facts=30)
    assert asked == FactRecall(pretrained, seed=5).ask(tiny_lm.setting())
    assert {fact.visit for fact in asked} == {None}
    taught = FactRecall(seed=5).ask(tiny_lm.setting(datamodule=stream(skip_facts=30, num_facts=10)))
    assert not {fact.prompt for fact in asked} & {fact.prompt for fact in taught}
    with pytest.raises(ValueError, match="skip_facts is 0, so there are no skipped facts"):
        skipped.ask(tiny_lm.setting(datamodule=stream(num_facts=10)))
    with pytest.raises(ValueError, match="no stream of facts"):
        skipped.ask(tiny_lm.setting(datamodule=None))


def test_a_trial_stops_after_the_first_batches(tiny_lm):
    recall = probe("held_out", "teacher_forced", tokens_per_batch=400)
    recall.prepare(tiny_lm.setting())
    calls = []
    handle = tiny_lm.model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        first = recall.measure(tiny_lm.model, limit_batches=1)
        assert len(calls) == 1
        whole = recall.measure(tiny_lm.model)
    handle.remove()
    assert len(calls) > 2
    assert math.isfinite(first["exact_match"])
    assert first["answer_nll_nats_per_token"] != whole["answer_nll_nats_per_token"]


def test_mistakes_are_explained(tiny_lm):
    with pytest.raises(ValueError, match=r"'Ask me\.' has no place for the question"):
        ClosedBook(prompt="Ask me.")
    with pytest.raises(ValueError, match="has first_visits, but the stream does not teach"):
        FactRecall(FactsConfig(), first_visits=3)
    with pytest.raises(ValueError, match="has visits_per_group, but the stream does not teach"):
        FactRecall(of_stream="skipped", visits_per_group=3)
    with pytest.raises(ValueError, match="rows are longer than the context of 128 tokens"):
        FactRecall(FACTS, scoring="generate", max_new_tokens=110).prepare(tiny_lm.setting())
