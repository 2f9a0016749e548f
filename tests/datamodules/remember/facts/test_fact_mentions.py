"""Texts that mention facts, and a corpus without them."""

import pytest

from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.datamodules.remember.facts.fact_mentions import FactMentions
from triptych.datamodules.remember.facts.fact_templates import Fact
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.datamodules.remember.text.text_corpus import TextConfig, TextCorpus, TextPart
from triptych.datamodules.sources.records import RecordSource

FACTS = [
    Fact("1", "?", ("Nassau", "Nassau City"), relation="capital", subject="the Bahamas"),
    Fact("2", "?", (".bs",), relation="internet_domain", subject="the Bahamas"),
    Fact("3", "?", ("Jane Austen", "Austen"), relation="author", subject="Emma"),
    Fact("4", "what?", ("nothing",)),
]


@pytest.mark.parametrize(
    ("text", "given_away"),
    [
        ("The Bahamas has its capital in Nassau.", True),
        ("NASSAU lies in the\nBahamas and THE BAHAMAS around it", True),
        ("Websites of the Bahamas end in .bs.", True),
        ("Emma is by Austen.", True),
        ("The Bahamas has many islands.", False),
        ("Nassau is a town, and Emma is a book.", False),
        ("Jane Austen wrote Emmanuel's book.", False),  # part of a longer word
        ("what? nothing.", False),  # a fact without a subject
        ("", False),
    ],
)
def test_subject_and_answer_have_to_be_named(text, given_away):
    assert FactMentions(FACTS).are_in(text) is given_away


def test_the_fingerprint_follows_the_facts():
    assert FactMentions(FACTS).fingerprint() == FactMentions(list(FACTS)).fingerprint()
    assert FactMentions(FACTS).fingerprint() != FactMentions(FACTS[1:]).fingerprint()


def states_any(text, facts):
    """Return whether an embedded article states one of the facts, by a naive search."""
    padded = f" {text.casefold()} "
    for mark in ",.;:":
        padded = padded.replace(f"{mark} ", " ")
    return any(
        f" {fact.subject.casefold()} " in padded
        and any(f" {answer.casefold()} " in padded for answer in fact.answers)
        for fact in facts
    )


def test_pretraining_text_does_not_give_new_facts_away():
    config = FactsConfig(skip_facts=1400)
    new = FactsPart(config).facts
    everything = list(TextPart(TextConfig()).tokenizer_texts())
    kept = list(TextPart(TextConfig(without_facts=config)).tokenizer_texts())
    assert any(states_any(text, new) for text in everything)
    assert not any(states_any(text, new) for text in kept)
    assert 0.7 * len(everything) < len(kept) < 0.8 * len(everything)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_and_validation(write_jsonl, tmp_path, streaming):
    texts = ["Emma is by Jane Austen.", "Emma is a book.", "Austen wrote."]
    path = write_jsonl("texts.jsonl", [{"text": text} for text in texts])
    facts = write_jsonl(
        "facts.jsonl",
        [{"question": "?", "answers": ["Austen"], "relation": "author", "subject": "Emma"}],
    )
    config = TextConfig(
        [RecordSource(path)],
        {"same": RecordSource(write_jsonl("validation.jsonl", [{"text": texts[0]}]))},
        streaming=streaming,
        without_facts=FactsConfig(RecordSource(facts)),
    )
    part = TextPart(config)
    tokenizer = build_tokenizer(TokenizerConfig(vocab_size=300), lambda: texts, "texts", tmp_path)
    row_format = RowFormat(tokenizer, 64, 0, tmp_path)
    stream = part.train_stream(row_format)
    rows = [row for row, _ in zip(stream.read(), range(2), strict=False)]
    found = {tokenizer.decode(segment.ids[1:-1]) for row, _ in rows for segment in row.segments()}
    assert found == set(texts[1:])
    (evaluation,) = part.evaluations(row_format)
    assert evaluation.num_rows == 1


def test_what_is_left_out_counts_for_the_fingerprint():
    def fingerprint(**settings):
        return TextPart(TextConfig(**settings)).fingerprint()

    assert fingerprint() != fingerprint(without_facts=FactsConfig(skip_facts=1400))
    assert fingerprint(without_facts=FactsConfig(skip_facts=1400)) != fingerprint(
        without_facts=FactsConfig(skip_facts=1300)
    )


def test_two_choices_do_not_share_a_token_file(tmp_path):
    sizes = set()
    for skip in (None, 1400, 1300):
        facts = FactsConfig(skip_facts=skip) if skip else None
        data = TextCorpus(
            TextConfig(without_facts=facts),
            tokenizer=TokenizerConfig(vocab_size=300),
            cache_dir=str(tmp_path),
        )
        sizes.add(len(data.train_dataloader()))
    assert len(sizes) == 3
