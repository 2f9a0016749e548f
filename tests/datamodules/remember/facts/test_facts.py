"""Facts as data: reading, training documents, validation questions."""

import json
import pickle
import re
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.embedded.tables import embedded_facts
from triptych.datamodules.remember.facts.fact_documents import FactDocuments, encode_rendering
from triptych.datamodules.remember.facts.fact_rows import content_id
from triptych.datamodules.remember.facts.fact_templates import Fact, FactTemplates, Rendering
from triptych.datamodules.remember.facts.facts import (
    Facts,
    FactsConfig,
    FactsPart,
    choose_facts,
    read_facts,
)
from triptych.datamodules.sources.records import RecordSource

TEMPLATES = FactTemplates.from_file()
FACTS = read_facts(RecordSource(), TEMPLATES)
SPECIAL = ["<bos>", "<eos>", "<pad>"]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of bytes, so that tests decode letter by letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, bos_token=bos, eos_token=eos, pad_token=pad
    )


@pytest.fixture
def row_format(tokenizer, tmp_path):
    return RowFormat(tokenizer, context_length=256, seed=0, cache_dir=tmp_path)


def documents(tokenizer, facts=FACTS, **settings):
    settings = {"context_length": 256, "seed": 0, **settings}
    return FactDocuments(facts, TEMPLATES, tokenizer, **settings)


def text_of(tokenizer, document):
    return tokenizer.decode(document.ids[1:-1])


def labelled(tokenizer, document):
    return tokenizer.decode(document.labels[document.labels != -100])


# --- reading --------------------------------------------------------------------------------------


def test_embedded_facts_are_read():
    assert len(FACTS) == len(embedded_facts()) >= 900
    assert len({fact.relation for fact in FACTS}) >= 8
    assert len({fact.id for fact in FACTS}) == len(FACTS)
    bolivia = next(fact for fact in FACTS if fact.id == "capital/Bolivia")
    assert bolivia == Fact(
        "capital/Bolivia",
        "What is the capital of Bolivia?",
        ("Sucre", "La Paz"),
        None,
        "capital",
        "Bolivia",
    )


def test_rows_of_a_file_are_read(tmp_path):
    rows = [
        {"id": "a", "question": "Who founded Twin Galaxies?", "answers": ["W. Day"],
         "relation": "P112", "license": "MIT"},
        {"question": "who sang it", "answers": ["Cher", "Cher ", "Cherilyn Sarkisian"],
         "statement": "It was sung by Cher."},
    ]  # fmt: skip
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_facts(RecordSource(str(path)), TEMPLATES)
    assert first == Fact("a", rows[0]["question"], ("W. Day",), None, "P112", "Twin Galaxies")
    assert second.id == content_id("who sang it", "Cher", "Cherilyn Sarkisian")
    assert second.answers == ("Cher", "Cherilyn Sarkisian")
    assert second.statement == "It was sung by Cher."


def test_trivia_qa_rows_keep_their_aliases(tmp_path):
    row = {
        "question": "Which American-born Sinclair won the Nobel Prize for Literature in 1930?",
        "question_id": "tc_1",
        "answer": {
            "aliases": ["(Harry) Sinclair Lewis", "Sinclair Lewis", "Harry Sinclair Lewis"],
            "value": "Sinclair Lewis",
            "type": "WikipediaEntity",
        },
    }
    path = tmp_path / "trivia_qa.jsonl"
    path.write_text(json.dumps(row))
    columns = {"id": "question_id", "first_answer": "answer.value", "answers": "answer.aliases"}
    (fact,) = read_facts(RecordSource(str(path), columns=columns), TEMPLATES)
    assert fact.id == "tc_1"
    assert fact.answers == ("Sinclair Lewis", "(Harry) Sinclair Lewis", "Harry Sinclair Lewis")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"question": "Who?", "answers": []}, "answers"),
        ({"question": "Who?", "answers": ["  "]}, "answers"),
        ({"question": "Who?", "answers": 7}, "answers"),
        ({"question": "Who?", "answers": ["a", 7]}, "answers"),
        ({"question": "Who?"}, "answers"),
        ({"question": " ", "answers": ["a"]}, "question"),
        ({"question": None, "answers": ["a"]}, "question"),
        ({"question": "Who?", "answers": ["Ann"], "statement": "It was Bob."}, "statement"),
    ],
)
def test_malformed_row_is_named(tmp_path, row, field):
    good = {"question": "Who?", "answers": ["Ann"]}
    path = tmp_path / "facts.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=rf"facts\.jsonl, line 2: field '{field}'"):
        read_facts(RecordSource(str(path)), TEMPLATES)
    with pytest.warns(UserWarning, match="skipped 1 malformed of 2 rows"):
        facts = read_facts(RecordSource(str(path), on_bad_row="skip"), TEMPLATES)
    assert len(facts) == 1


def test_real_facts_are_read(real_data):
    path = real_data / "qa" / "facts.jsonl.gz"
    facts = read_facts(RecordSource(str(path)), TEMPLATES)
    assert len(facts) == 21_113
    worded = [fact for fact in facts if TEMPLATES.question_texts(fact, "held_out")]
    assert len(worded) == 10_998
    config = FactsConfig(source=RecordSource(str(path)), relations=["P19", "director"])
    chosen = choose_facts(facts, config, TEMPLATES)
    assert Counter(fact.relation for fact in chosen) == {"P19": 375, "director": 118}


# --- choosing -------------------------------------------------------------------------------------


def test_subset_is_drawn_by_its_seed():
    def subset(**settings):
        return choose_facts(FACTS, FactsConfig(num_facts=100, **settings), TEMPLATES)

    assert subset() == subset()
    assert len(subset()) == 100
    assert subset() != subset(subset_seed=1)
    places = [FACTS.index(fact) for fact in subset()]
    assert places == sorted(places)


def test_relations_are_chosen_by_either_name():
    by_name = choose_facts(FACTS, FactsConfig(relations=["capital"]), TEMPLATES)
    assert {fact.relation for fact in by_name} == {"capital"}
    renamed = [Fact("1", "?", ("x",), relation="P36", subject="y")]
    assert choose_facts(renamed, FactsConfig(relations=["capital"]), TEMPLATES) == renamed
    assert choose_facts(renamed, FactsConfig(relations=["P36"]), TEMPLATES) == renamed


def test_impossible_choices_are_refused():
    with pytest.raises(ValueError, match=r"relations \['mayor'\] do not occur.*capital"):
        choose_facts(FACTS, FactsConfig(relations=["mayor"]), TEMPLATES)
    with pytest.raises(ValueError, match="num_facts is 2000, but 'embedded' has 1510"):
        choose_facts(FACTS, FactsConfig(num_facts=2000), TEMPLATES)


# --- documents ------------------------------------------------------------------------------------


def test_question_document(tokenizer):
    rendering = Rendering("Question: Where? Answer:", " Paris")
    document = encode_rendering(tokenizer, rendering, "answer")
    assert tokenizer.decode(document.ids) == "<bos>Question: Where? Answer: Paris<eos>"
    assert labelled(tokenizer, document) == " Paris<eos>"
    assert encode_rendering(tokenizer, rendering, "all").labels.tolist() == [
        -100,
        *document.ids[1:].tolist(),
    ]


def test_statement_document(tokenizer):
    rendering = Rendering("They pay with the", " euro", " there.")
    document = encode_rendering(tokenizer, rendering, "answer")
    assert text_of(tokenizer, document) == rendering.text
    assert labelled(tokenizer, document) == " euro<eos>"
    (start, *_, end, eos) = (document.labels != -100).nonzero()[0]
    assert tokenizer.decode(document.ids[:start]) == "<bos>They pay with the"
    assert tokenizer.decode(document.ids[end + 1 : eos]) == " there."


def test_labels_cover_exactly_the_answer(tokenizer):
    source = documents(tokenizer)
    for epoch in range(3):
        for index, fact in enumerate(source.facts):
            document = source.document(index, epoch)
            assert labelled(tokenizer, document) == f" {fact.answers[0]}<eos>"
            assert document.labels[0] == -100


def test_documents_depend_on_seed_epoch_and_index_alone(tokenizer):
    facts = FACTS[::50]
    first, second = documents(tokenizer, facts), documents(tokenizer, facts)
    asked_backwards = [second.document(i, 5) for i in reversed(range(len(facts)))][::-1]
    for index, document in enumerate(asked_backwards):
        assert (first.document(index, 5).ids == document.ids).all()

    def epoch_texts(source, epoch):
        return [text_of(tokenizer, source.document(i, epoch)) for i in range(len(source))]

    assert epoch_texts(first, 0) != epoch_texts(first, 1)
    assert epoch_texts(first, 0) != epoch_texts(documents(tokenizer, facts, seed=1), 0)


def test_documents_travel_to_workers(tokenizer):
    source = documents(tokenizer, FACTS[:20])
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.document(3, 1).ids == source.document(3, 1).ids).all()


def test_held_out_questions_are_never_trained_on(tokenizer):
    held_out = {
        question for fact in FACTS for question in TEMPLATES.question_texts(fact, "held_out")
    }
    facts = [fact for fact in FACTS if is_in_sample(fact.id)]
    source = documents(tokenizer, facts, statement_share=0.2)
    seen = set()
    for epoch in range(40):
        for index in range(len(facts)):
            text = text_of(tokenizer, source.document(index, epoch))
            asked = re.fullmatch("Question: (.*) Answer: .*", text)
            if asked:
                assert asked[1] not in held_out
            seen.add(text)
    # Enough epochs to draw nearly every wording.
    assert len(seen) > 0.8 * sum(len(source.wordings(index)) for index in range(len(facts)))


def is_in_sample(fact_id):
    return sum(fact_id.encode()) % 12 == 0


def test_every_wording_there_is_leaves_the_held_out_ones_out(tokenizer):
    source = documents(tokenizer)
    for index, fact in enumerate(FACTS):
        trained = {rendering.text for rendering in source.wordings(index)}
        for held_out in TEMPLATES.questions(fact, "held_out"):
            assert held_out.text not in trained


@pytest.mark.parametrize(("share", "statements"), [(0.0, 0), (1.0, 1510), (0.25, None)])
def test_statement_share(tokenizer, share, statements):
    source = documents(tokenizer, statement_share=share)
    texts = [text_of(tokenizer, source.document(i, 0)) for i in range(len(source))]
    found = sum(not text.startswith("Question: ") for text in texts)
    if statements is None:
        assert found / len(texts) == pytest.approx(share, abs=0.05)
    else:
        assert found == statements


def test_share_out_of_range_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"statement_share is 1\.5"):
        documents(tokenizer, statement_share=1.5)


def test_fact_longer_than_the_context_is_named(tokenizer):
    facts = [*FACTS[:2], Fact("long one", "why " * 40, ("because",))]
    with pytest.raises(ValueError, match=r"fact 'long one' has 1\d\d tokens.*context_length is 99"):
        documents(tokenizer, facts, context_length=99)


# --- the datamodule -------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    config = FactsConfig(num_facts=200, validation_facts=37)
    tokenizer = TokenizerConfig(vocab_size=600)
    return Facts(
        config, tokenizer=tokenizer, batch_size=4, eval_batch_size=16, cache_dir=str(tmp_path)
    )


def test_training_batches(data):
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape == (4, 256)
    assert data.source_names == ["facts"]
    facts = {fact.answers[0] for fact in data.parts[0].facts}
    for row in range(4):
        for segment in range(1, int(batch["segment_ids"][row].max()) + 1):
            labels = batch["labels"][row][batch["segment_ids"][row] == segment]
            assert labels[0] == -100
            answer = data.tokenizer.decode(labels[labels != -100])
            assert answer.removesuffix(data.tokenizer.eos_token).strip() in facts


def test_question_batches(data):
    (loader,) = data.val_dataloader()
    batches = list(loader)
    assert [len(batch["questions"]) for batch in batches] == [16, 16, 5]
    trained = {fact.id: fact for fact in data.parts[0].facts}
    held_out = {
        question: fact
        for fact in trained.values()
        for question in TEMPLATES.question_texts(fact, "held_out")
    }
    decode = data.tokenizer.decode
    pad = data.tokenizer.pad_token_id
    for batch in batches:
        assert batch["name"] == "facts"
        assert batch["prompt_ids"].dtype == batch["prompt_mask"].dtype == torch.int64
        for row, question in enumerate(batch["questions"]):
            fact = held_out[question]
            assert batch["answers"][row] == list(fact.answers)
            assert batch["relations"][row] == fact.relation
            mask = batch["prompt_mask"][row].bool()
            assert mask[int((~mask).sum()) :].all()  # padding on the left only
            assert (batch["prompt_ids"][row][~mask] == pad).all()
            prompt = decode(batch["prompt_ids"][row][mask])
            assert prompt == f"{data.tokenizer.bos_token}Question: {question} Answer:"
            labels = batch["labels"][row]
            answer = decode(labels[labels != -100])
            assert answer == f" {fact.answers[0]}{data.tokenizer.eos_token}"
            tokens = batch["input_ids"][row][batch["segment_ids"][row] > 0]
            assert decode(tokens) == prompt + answer


def test_which_questions_are_asked_does_not_depend_on_the_training_seed(tmp_path):
    asked = [
        FactsPart(FactsConfig(validation_facts=20, subset_seed=seed)).validation_questions()
        for seed in (0, 0, 1)
    ]
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


def test_own_questions_and_further_sources(row_format, tmp_path):
    path = tmp_path / "others.jsonl"
    path.write_text(json.dumps({"question": "who else", "answers": ["Nobody", "No one"]}))
    config = FactsConfig(
        relations=["author"],
        validation_questions="own_question",
        validation_facts=None,
        validation_sources={"others": RecordSource(str(path))},
    )
    own, others = FactsPart(config).evaluations(row_format)
    assert (own.name, own.num_rows, others.name, others.num_rows) == ("facts", 149, "others", 1)
    assert own.collate([0])["questions"] == ["Who is the author of Pride and Prejudice?"]
    batch = others.collate([0])
    assert batch["questions"] == ["who else"]
    assert batch["answers"] == [["Nobody", "No one"]]
    assert batch["relations"] == [None]


def test_facts_without_held_out_wordings_need_another_setting(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps({"question": "who", "answers": ["me"]}))
    part = FactsPart(FactsConfig(source=RecordSource(str(path))))
    with pytest.raises(ValueError, match=r"no fact .* held_out question.*own_question"):
        part.validation_questions()


def test_a_validation_source_with_the_name_of_the_facts_is_refused():
    with pytest.raises(ValueError, match="choose another name"):
        FactsPart(FactsConfig(validation_sources={"facts": RecordSource()}))


def test_missing_files_are_named():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FactsPart(FactsConfig(source=RecordSource("nowhere.jsonl")))


def test_a_file_that_trains_is_not_asked_as_a_further_source(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "who", "answers": ["me"]}))
    source = RecordSource(str(path))
    with pytest.raises(ValueError, match=r"questions\.jsonl is given for both"):
        FactsPart(FactsConfig(source=source, validation_sources={"nq": source}))
    FactsPart(FactsConfig(validation_sources={"nq": source}))


def test_fingerprint_follows_what_is_trained_on(tmp_path):
    def fingerprint(row, **settings):
        path = tmp_path / "facts.jsonl"
        path.write_text(json.dumps(row))
        return FactsPart(FactsConfig(source=RecordSource(str(path)), **settings)).fingerprint()

    row = {"question": "who", "answers": ["me"]}
    assert fingerprint(row) == fingerprint(row)
    assert fingerprint(row) != fingerprint(row | {"answers": ["you"]})
    assert fingerprint(row) != fingerprint(row, statement_share=0.5)
    assert fingerprint(row) == fingerprint(row, validation_facts=3)


def test_tokenizer_never_sees_held_out_questions():
    part = FactsPart(FactsConfig())
    texts = set(part.tokenizer_texts())
    held_out = {r.text for fact in part.facts for r in TEMPLATES.questions(fact, "held_out")}
    assert len(texts) == 2 * len(part.facts)
    assert not texts & held_out
