"""A stream of documents: chunks in order with augmentations, padded and never packed."""

import itertools

import pytest
import torch

from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.batches.visits import VisitCollate
from triptych.datamodules.embedded.articles import embedded_articles, embedded_documents
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.datamodules.remember.text.augmentations import AugmentationsConfig
from triptych.datamodules.remember.text.document_stream import DocumentsConfig, DocumentStream
from triptych.datamodules.sources.records import RecordSource

TALES = [
    {"id": "long", "title": "Cats", "text": " ".join(f"Cat {n} saw {n} mice." for n in range(12))},
    {"id": "short", "text": "A dog came. It went."},
    {"text": "No name has this."},
]


@pytest.fixture
def source(write_jsonl):
    return RecordSource(write_jsonl("tales.jsonl", TALES))


def stream(source=None, documents=None, **settings):
    settings = {"tokenizer": TokenizerConfig(vocab_size=300), "context_length": 64, **settings}
    if source is not None:
        documents = {"source": source, **(documents or {})}
    return DocumentStream(DocumentsConfig(**(documents or {})), **settings)


def read(data, count):
    loader = data.train_dataloader()
    epochs = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return list(itertools.islice(epochs, count))


def texts(data, batch):
    return data.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)


def test_chunks_come_in_order_each_with_its_augmentations(source):
    data = stream(source)
    num_chunks = len(data.train_dataloader())
    batches = read(data, num_chunks)
    ids = [id_ for batch in batches for id_ in batch["fact_ids"]]
    assert ids == ["long", *[f"long#{n}" for n in range(2, num_chunks - 1)], "short", "row 3"]
    assert num_chunks >= 4
    assert [batch["visit"].item() for batch in batches] == list(range(num_chunks))
    assert [batch["group"].unique().tolist() for batch in batches] == [
        [index] for index in range(num_chunks)
    ]
    chunks = [texts(data, batch)[0] for batch in batches]
    assert " ".join(chunks[:-2]) == TALES[0]["text"]
    assert chunks[-2:] == [TALES[1]["text"], TALES[2]["text"]]
    for batch in batches[:-2]:
        chunk, *augmented = texts(data, batch)
        assert chunk.endswith(".")
        assert 2 <= len(augmented) <= 8
        assert any("Cats: " in text for text in augmented)
        for text in augmented:
            assert sorted(text.rpartition(": ")[2].split()) == sorted(chunk.split())


def test_rows_are_padded_and_never_packed_and_all_is_learnt(source):
    data = stream(source)
    for batch in read(data, 8):
        mask = batch["segment_ids"] > 0
        assert batch["segment_ids"].max() == 1
        assert batch["input_ids"].shape[1] <= 64
        assert (batch["input_ids"] == data.tokenizer.bos_token_id).sum(dim=1).eq(1).all()
        assert (batch["labels"][:, 1:][mask[:, 1:]] == batch["input_ids"][:, 1:][mask[:, 1:]]).all()
        assert (batch["labels"][~mask] == -100).all()


def test_together_repeated_and_shuffled(source):
    data = stream(source, chunks_per_batch=2, steps_per_visit=3, shuffle=True, seed=4)
    alone = stream(source)
    per_pass = len(alone.train_dataloader())
    steps = len(data.train_dataloader())
    assert steps == -(-per_pass // 2) * 3
    batches = read(data, 2 * steps)
    for number in range(0, 2 * steps, 3):
        assert all(
            torch.equal(batches[number]["input_ids"], batch["input_ids"])
            for batch in batches[number : number + 3]
        )
    passes = [
        [id_ for batch in part[::3] for id_ in batch["fact_ids"]]
        for part in (batches[:steps], batches[steps:])
    ]
    assert passes[0] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1])
    assert len(passes[0]) == per_pass


@pytest.mark.parametrize("stopped_after", [1, 4, 11])
def test_resuming_is_exact(source, stopped_after):
    settings = {"steps_per_visit": 3, "shuffle": True}
    whole = read(stream(source, **settings), 24)
    first = stream(source, **settings).train_dataloader()
    for _ in itertools.islice(iter(first), stopped_after):
        pass
    second = stream(source, **settings).train_dataloader()
    second.load_state_dict(first.state_dict())
    epochs = itertools.chain.from_iterable(iter(second) for _ in itertools.count())
    for batch, expected in zip(epochs, whole[stopped_after:], strict=False):
        assert batch["fact_ids"] == expected["fact_ids"]
        for key in ("input_ids", "labels", "group", "visit"):
            assert torch.equal(batch[key], expected[key])


def test_processes_share_a_visit(source):
    data = stream(source)
    (row_format,) = data._row_formats()
    visits, planned = data.part.visits(row_format), data.part.train_stream(row_format).read()
    visit = next(planned)[0]
    whole = VisitCollate(visits, row_format, Shard())([visit])
    parts = [VisitCollate(visits, row_format, Shard(rank, 2))([visit]) for rank in range(2)]
    together = [text for part in parts for text in texts(data, part)]
    assert sorted(together) == sorted(texts(data, whole))


def test_another_stream_has_another_fingerprint(source, write_jsonl):
    other = RecordSource(write_jsonl("other.jsonl", TALES[:2]))
    fingerprints = [
        stream(source).part.fingerprint(),
        stream(other).part.fingerprint(),
        stream(source, shuffle=True).part.fingerprint(),
        stream(source, steps_per_visit=2).part.fingerprint(),
        stream(source, chunks_per_batch=2).part.fingerprint(),
        stream(source, augmentations=AugmentationsConfig(num_augmentations=3)).part.fingerprint(),
        stream(
            documents={"only_about_questions": True}, questions=FactsConfig(skip_facts=1400)
        ).part.fingerprint(),
        stream(
            documents={"only_about_questions": True}, questions=FactsConfig(skip_facts=1300)
        ).part.fingerprint(),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert stream(source, seed=1).part.fingerprint() == fingerprints[0]  # the datamodule's part
    assert stream(source).fingerprint() != stream(source, seed=1).fingerprint()


# --- validation -----------------------------------------------------------------------------------


def test_chunks_are_measured_and_facts_asked(source, write_jsonl):
    facts = RecordSource(
        write_jsonl("facts.jsonl", [{"question": "Who came?", "answers": ["A dog"]}])
    )
    data = stream(source, questions=FactsConfig(facts, validation_questions="own_question"))
    loaders = {loader.name: list(loader) for loader in data.val_dataloader()}
    assert list(loaders) == ["documents", "facts"]
    measured = [text for batch in loaders["documents"] for text in texts(data, batch)]
    assert measured == [texts(data, batch)[0] for batch in read(data, len(measured))]
    assert loaders["facts"][0]["questions"] == ["Who came?"]


def test_few_chunks_are_measured_the_same_whatever_the_seed(source):
    def measured(seed):
        data = stream(source, documents={"validation_chunks": 2}, seed=seed)
        return [text for batch in data.val_dataloader()[0] for text in texts(data, batch)]

    assert len(measured(0)) == 2
    assert measured(0) == measured(5)


def test_only_documents_about_new_facts():
    facts = FactsConfig(skip_facts=1400)
    data = stream(
        documents={"only_about_questions": True},
        questions=facts,
        context_length=128,
        tokenizer=TokenizerConfig(vocab_size=2048),
    )
    ids = {id_ for batch in read(data, len(data.train_dataloader())) for id_ in batch["fact_ids"]}
    new = data.part._asked.facts
    about = {fact.subject.removeprefix("the ") for fact in new}
    named = {id_.split("#")[0].split("/")[1] for id_ in ids}
    assert len(ids) < 200
    # Every new fact's own article states it, and few others happen to name it.
    assert about <= named
    assert len(named - about) < 40


def test_embedded_documents_are_one_article_an_entity():
    documents = embedded_documents()
    assert len({row["id"] for row in documents}) == len(documents) == 512
    train = {(row["title"], row["text"]) for row in embedded_articles("train")}
    assert {(row["title"], row["text"]) for row in documents} <= train
    assert "countries/Bahamas" in {row["id"] for row in documents}


# --- augmentations from rows ----------------------------------------------------------------------


def test_rows_bring_their_augmentations(write_jsonl):
    rows = [{"id": "a", "text": "One.", "augmentations": ["Uno.", "Eins."]}, {"text": "Two."}]
    data = stream(
        RecordSource(write_jsonl("t.jsonl", rows)), augmentations=AugmentationsConfig("rows")
    )
    assert [texts(data, batch) for batch in read(data, 2)] == [["One.", "Uno.", "Eins."], ["Two."]]


def test_augmentations_of_a_document_in_several_chunks_are_refused(write_jsonl):
    rows = [{"id": "a", "text": "One. " * 60, "augmentations": ["Uno."]}]
    data = stream(
        RecordSource(write_jsonl("t.jsonl", rows)), augmentations=AugmentationsConfig("rows")
    )
    with pytest.raises(ValueError, match=r"document 'a' is cut into \d+ chunks.*one chunk a row"):
        data.train_dataloader()


def test_an_augmentation_longer_than_the_context_is_refused(write_jsonl):
    rows = [{"id": "a", "text": "One.", "augmentations": ["Uno, due, tre, " * 20]}]
    data = stream(
        RecordSource(write_jsonl("t.jsonl", rows)), augmentations=AugmentationsConfig("rows")
    )
    with pytest.raises(ValueError, match=r"augmentation of document 'a' is longer.*'Uno, due"):
        data.train_dataloader()


# --- user errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"id": "a"}, "field 'text' is missing"),
        ({"text": "  "}, "field 'text' is empty"),
        ({"text": 3}, "field 'text' must be str"),
        ({"text": "a", "augmentations": [3]}, "field 'augmentations' must be list"),
    ],
)
def test_a_malformed_row_is_named(write_jsonl, row, complaint):
    source = RecordSource(write_jsonl("t.jsonl", [{"text": "Good."}, row]))
    with pytest.raises(ValueError, match=rf"t\.jsonl, line 2: {complaint}"):
        stream(source).train_dataloader()


def test_documents_about_questions_need_questions():
    with pytest.raises(ValueError, match=r"only_about_questions is true, but data\.questions"):
        stream(documents={"only_about_questions": True})


def test_ids_have_to_differ(write_jsonl):
    source = RecordSource(write_jsonl("t.jsonl", [{"id": "a", "text": "x"}] * 2))
    with pytest.raises(ValueError, match=r"several documents with the id 'a'"):
        stream(source).train_dataloader()


def test_a_context_without_room_is_refused(write_jsonl):
    source = RecordSource(write_jsonl("t.jsonl", [{"id": "a", "title": "T" * 80, "text": "x"}]))
    with pytest.raises(ValueError, match=r"context_length is 16, too short .* document 'a'"):
        stream(source, context_length=16).train_dataloader()


def test_documents_about_nothing_asked_are_refused(source):
    data = stream(source, {"only_about_questions": True}, questions=FactsConfig(skip_facts=1509))
    with pytest.raises(ValueError, match=r"no document in .*tales\.jsonl.* names the subject"):
        data.train_dataloader()


def test_a_file_is_not_taught_twice(write_jsonl):
    path = write_jsonl("books.jsonl", [{"text": "x"}])
    with pytest.raises(ValueError, match=r"books\.jsonl is given twice"):
        stream(RecordSource([path, path]))
