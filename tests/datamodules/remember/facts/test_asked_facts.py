"""Facts to ask: from a source, from a choice of facts, from a stream by visit."""

import pytest

from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.prompted_documents import Continuation
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.asked_facts import ask_facts, ask_source, ask_taught_facts
from triptych.datamodules.remember.facts.fact_paraphrases import ParaphrasesConfig
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.fact_templates import FactTemplates
from triptych.datamodules.remember.facts.facts import Facts, FactsConfig
from triptych.datamodules.sources.records import RecordSource


def write_facts(write_jsonl, *rows):
    return RecordSource(write_jsonl("facts.jsonl", list(rows)))


ITALY = {"question": "What is the capital of Italy?", "answers": ["Rome", "Roma"]}


def test_a_source_is_asked_in_its_own_words(write_jsonl):
    source = write_facts(write_jsonl, ITALY | {"relation": "P36"})
    (asked,) = ask_source(source, "Q: {question} A:", None)
    prompt = "Q: What is the capital of Italy? A:"
    assert asked.answers == ("Rome", "Roma")
    assert asked.prompt == prompt
    assert asked.continuations == (
        Continuation(prompt, " Rome", ends=True),
        Continuation(prompt, " Roma", ends=True),
    )
    assert asked.visit is None


def test_braces_in_a_question_are_left_alone(write_jsonl):
    source = write_facts(write_jsonl, {"question": "What is {x}?", "answers": ["a set"]})
    assert ask_source(source, "{question}", None)[0].prompt == "What is {x}?"


def test_facts_are_asked_in_wordings_of_the_kind(write_jsonl):
    source = write_facts(write_jsonl, ITALY | {"relation": "P36"})
    relation = FactTemplates.from_file().relations["capital"]
    for kind, texts in (("held_out", relation.held_out), ("training", relation.questions)):
        (asked,) = ask_facts(FactsConfig(source=source), kind, 0, None)
        expected = {f"Question: {t.format(subject='Italy')} Answer:" for t in texts}
        assert asked.prompt in expected
        assert [c.text for c in asked.continuations] == [" Rome", " Roma"]
        assert all(c.ends for c in asked.continuations)
    (asked,) = ask_facts(FactsConfig(source=source), "own_question", 0, None)
    assert asked.prompt == "Question: What is the capital of Italy? Answer:"


def test_statements_stop_at_the_answer(write_jsonl):
    source = write_facts(
        write_jsonl, ITALY | {"statement": "Italy is ruled from (Roma) today.", "id": "x"}
    )
    (asked,) = ask_facts(FactsConfig(source=source), "statement", 0, None)
    prompt = "Italy is ruled from ("
    assert [(c.prompt, c.text, c.ends) for c in asked.continuations] == [
        (prompt, "Roma", False),
        (prompt, "Rome", False),
    ]


def test_a_statement_that_begins_with_its_answer_is_not_asked(write_jsonl):
    source = write_facts(
        write_jsonl,
        ITALY | {"statement": "Rome is where Italy is ruled from."},
        {"question": "Who?", "answers": ["Ann"], "statement": "It was Ann."},
    )
    asked = ask_facts(FactsConfig(source=source), "statement", 0, None)
    assert [fact.prompt for fact in asked] == ["It was"]


def test_no_wording_of_the_kind_is_an_error(write_jsonl):
    source = write_facts(write_jsonl, {"question": "Who?", "answers": ["Ann"]})
    for kind in ("held_out", "statement"):
        with pytest.raises(ValueError, match=f"facts.jsonl' has a wording of the kind {kind}"):
            ask_facts(FactsConfig(source=source), kind, 0, None)


def test_wordings_are_drawn_by_the_seed():
    config = FactsConfig(num_facts=40)
    prompts = [[f.prompt for f in ask_facts(config, "held_out", seed, None)] for seed in (0, 0, 1)]
    assert prompts[0] == prompts[1]
    assert prompts[0] != prompts[2]


def stream(**options) -> FactStream:
    options = {"facts": FactsConfig(num_facts=7), "seed": 5, **options}
    return FactStream(tokenizer=TokenizerConfig(vocab_size=300), **options)


def row_format(data) -> RowFormat:
    return RowFormat(data.tokenizer, 512, seed=0, cache_dir=data.cache_dir)


def test_taught_facts_know_their_visit():
    data = stream(facts_per_batch=2, steps_per_visit=3)
    asked = ask_taught_facts(data, "held_out", 0, row_format(data))
    assert [fact.answers for fact in asked] == [fact.answers for fact in data.facts]
    # As the loader visits them: its batches name the facts.
    visits = {}
    for batch in data.train_dataloader():
        for name in batch["fact_ids"]:
            visits.setdefault(name, int(batch["visit"]))
    assert [fact.visit for fact in asked] == [visits[fact.id] for fact in data.facts]
    assert sorted(visits.values()) == [0, 0, 1, 1, 2, 2, 3]


def test_statements_of_a_stream_are_those_it_teaches():
    data = stream(paraphrases=ParaphrasesConfig(wordings="both", per_fact=4), context_length=96)
    asked = ask_taught_facts(data, "statement", 0, row_format(data))
    assert asked
    taught = {
        data.tokenizer.decode(row[row != data.tokenizer.pad_token_id], skip_special_tokens=True)
        for batch in data.train_dataloader()
        for row in batch["input_ids"]
    }
    for fact in asked:
        text = fact.prompt + fact.continuations[0].text
        assert any(sentence.startswith(text) for sentence in taught)
        assert not fact.prompt.startswith("Question:")


def test_other_data_teach_no_stream():
    data = Facts(FactsConfig(num_facts=7), tokenizer=TokenizerConfig(vocab_size=300))
    with pytest.raises(
        ValueError, match=r"\(Facts\) are no stream of facts.*set the probe's `facts`"
    ):
        ask_taught_facts(data, "held_out", 0, row_format(data))
