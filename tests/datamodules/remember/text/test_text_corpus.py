"""Text from sources to batches: nothing lost or repeated, resumable."""

import itertools
import pickle
import warnings
from pathlib import Path

import pytest
import torch

from triptych.datamodules.batches.evaluation_loader import Evaluation, EvaluationLoader
from triptych.datamodules.batches.packed_datamodule import locate
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.token_file import TokenFile, tokenised
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.text.text_corpus import TextConfig, TextCorpus
from triptych.datamodules.sources.records import RecordSource

SMALL = TokenizerConfig(vocab_size=300)
BATCH_KEYS = ["input_ids", "labels", "position_ids", "segment_ids", "num_bytes", "source_ids"]


def make_corpus(train, validation=None, *, streaming=False, tokenizer=SMALL, **options):
    """Make a small corpus of one or several training files."""
    sources = [RecordSource(path) for path in ([train] if isinstance(train, str) else train)]
    validation = {"text": RecordSource()} if validation is None else validation
    text = TextConfig(sources, validation, streaming, shuffle_buffer=16, max_validation_rows=5)
    settings = {"context_length": 24, "batch_size": 4, "rows_per_epoch": 20} | options
    return TextCorpus(text, tokenizer=tokenizer, **settings)


def read(loader, num_batches):
    batches = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return list(itertools.islice(batches, num_batches))


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key])
        for a, b in zip(first, second, strict=True)
        for key in BATCH_KEYS
    )


def predicted_texts(corpus, batches):
    """Rebuild documents from the predicted tokens of an epoch, in any order."""
    pieces = []
    for batch in batches:
        for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
            for segment in range(1, int(segments.max()) + 1):
                pieces.append(corpus.tokenizer.decode(ids[segments == segment][1:]))
    return pieces


def test_the_embedded_default_needs_nothing():
    corpus = TextCorpus(tokenizer=SMALL, batch_size=2)
    assert corpus.vocab_size == len(corpus.tokenizer) == 300
    assert corpus.source_names == ["text"]
    batch = next(iter(corpus.train_dataloader()))
    assert list(batch) == BATCH_KEYS
    assert batch["input_ids"].shape == (2, 256)
    (validation,) = corpus.val_dataloader()
    assert next(iter(validation))["name"] == "text"


@pytest.mark.parametrize("streaming", [False, True])
def test_an_epoch_holds_every_text_once(text_file, streaming):
    corpus = make_corpus(text_file, streaming=streaming, context_length=400, batch_size=1)
    texts = sorted(corpus.parts[0].tokenizer_texts())
    rows = read(corpus.train_dataloader(), 400)
    read_texts = [text.removesuffix("<|eos|>") for text in predicted_texts(corpus, rows)]
    assert len(texts) == 60
    assert sorted(read_texts[:60]) == sorted(read_texts[60:120]) == texts
    assert read_texts[:60] != read_texts[60:120]  # shuffled anew


def test_bytes_add_up_to_the_text(text_file):
    corpus = make_corpus(text_file, rows_per_epoch=None, batch_size=1, context_length=16)
    batches = list(corpus.train_dataloader())
    counted = sum(int(batch["num_bytes"][batch["labels"] != -100].sum()) for batch in batches)
    assert counted == sum(len(text.encode()) for text in corpus.parts[0].tokenizer_texts())


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("stopped_after", [0, 3, 5, 11])
def test_resuming_gives_the_remaining_batches(text_file, streaming, stopped_after):
    uninterrupted = read(make_corpus(text_file, streaming=streaming).train_dataloader(), 20)
    first = make_corpus(text_file, streaming=streaming).train_dataloader()
    read(first, stopped_after)
    second = make_corpus(text_file, streaming=streaming, num_workers=2).train_dataloader()
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert same(read(second, 20 - stopped_after), uninterrupted[stopped_after:])


def test_seeds_give_other_orders(text_file):
    first, second = (make_corpus(text_file, seed=seed).train_dataloader() for seed in (0, 1))
    assert not same(read(first, 3), read(second, 3))


def test_streams_travel_to_spawned_workers(text_file):
    for streaming in (False, True):
        stream = make_corpus(text_file, streaming=streaming).train_dataloader()._stream
        row, _ = next(pickle.loads(pickle.dumps(stream)).read())
        expected, _ = next(stream.read())
        assert [s.ids.tolist() for s in row.segments()] == [
            s.ids.tolist() for s in expected.segments()
        ]


def test_tokenised_text_is_kept_as_a_small_memory_map(text_file, tmp_path):
    tokenizer = make_corpus(text_file).tokenizer

    def open_file(texts):
        return tokenised(texts, tokenizer, name="text", fingerprint="a", cache_dir=tmp_path)

    first = open_file(["one two", " \n", "three"])
    assert len(first) == 2
    assert first.document(0, epoch=0).ids.dtype == "uint16"
    again = open_file(iter(()))  # not read again
    assert again.lengths(0).tolist() == first.lengths(0).tolist()
    assert isinstance(again, TokenFile)
    assert len(pickle.dumps(again)) < 500


def test_several_validation_sources_are_named_and_kept_short(text_file, write_jsonl):
    other = write_jsonl("other.jsonl", [{"text": "some other words " * 40}])
    validation = {"text": RecordSource(), "other": RecordSource(other)}
    corpus = make_corpus(text_file, validation, eval_batch_size=2)
    loaders = {loader.name: list(loader) for loader in corpus.val_dataloader()}
    assert list(loaders) == ["text", "other"]
    assert sum(len(batch["labels"]) for batch in loaders["text"]) == 5
    assert {batch["name"] for batch in loaders["other"]} == {"other"}
    again = [list(loader) for loader in corpus.val_dataloader()]
    assert same(again[0], loaders["text"])


@pytest.mark.parametrize("num_rows", [1, 4, 5, 6, 11])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_meets_every_row_once_on_any_number_of_processes(num_rows, world_size):
    def collate(indices):
        return {
            "labels": torch.tensor([[index, index] for index in indices]),
            "answers": [[str(index)] for index in indices],
        }

    evaluation = Evaluation("facts", num_rows, collate)
    shards = [EvaluationLoader(evaluation, 2, Shard(r, world_size)) for r in range(world_size)]
    assert len({len(shard) for shard in shards}) == 1
    batches = [list(shard) for shard in shards]
    assert all(len(shard) == len(shards[0]) for shard in batches)
    labels = torch.cat([b["labels"][:, 0] for b in itertools.chain(*batches)])
    answers = [answer for b in itertools.chain(*batches) for answer in b["answers"] if answer]
    assert sorted(labels[labels != -100].tolist()) == list(range(num_rows))
    assert sorted(int(answer) for (answer,) in answers) == list(range(num_rows))
    if world_size > 1:
        assert all(len(b["labels"]) == 2 for b in itertools.chain(*batches))


def test_the_checkpoint_goes_on_with_its_own_data_only(text_file, write_jsonl):
    state = make_corpus(text_file).state_dict()
    make_corpus(text_file).load_state_dict(state)
    make_corpus(text_file, batch_size=8, num_workers=1).load_state_dict(state)
    for change in ({"context_length": 32}, {"seed": 1}, {"streaming": True}):
        with pytest.raises(ValueError, match=r"other data.*config\.yaml"):
            make_corpus(text_file, **change).load_state_dict(state)


def test_the_checkpoint_goes_on_with_its_own_tokenizer_only(text_file, write_jsonl, tmp_path):
    corpus = make_corpus(text_file)
    other = write_jsonl("other.jsonl", [{"text": "quite different words"}])
    with pytest.raises(ValueError, match=r"another tokenizer.*'train', .*config\.yaml"):
        make_corpus(other).load_state_dict(corpus.state_dict())
    corpus.tokenizer.save_pretrained(str(tmp_path))  # as a run exports it
    exported = make_corpus(other, tokenizer=TokenizerConfig(path=str(tmp_path)))
    with pytest.raises(ValueError, match="other data"):
        exported.load_state_dict(corpus.state_dict())


def test_the_fingerprint_is_of_contents(text_file, tmp_path):
    moved = tmp_path / "moved.jsonl"
    with open(text_file) as source:
        moved.write_text(source.read())
    assert make_corpus(text_file).fingerprint() == make_corpus(str(moved)).fingerprint()
    with moved.open("a") as more:
        more.write('{"text": "more"}\n')
    assert make_corpus(text_file).fingerprint() != make_corpus(str(moved)).fingerprint()


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_corpus_is_refused(write_jsonl, streaming):
    blank = write_jsonl("blank.jsonl", [{"text": " \n"}, {"text": ""}])
    corpus = make_corpus(blank, streaming=streaming)
    corpus.tokenizer = make_corpus("embedded").tokenizer
    with pytest.raises(ValueError, match=r"no text in .*at least one row"):
        next(iter(corpus.train_dataloader()))


def test_a_missing_file_is_refused_before_anything_is_built():
    with pytest.raises(FileNotFoundError, match=r"no file at 'data/nowhere\.jsonl'.*data_dir"):
        make_corpus("nowhere.jsonl")


def test_a_malformed_row_is_named(write_jsonl):
    path = write_jsonl("bad.jsonl", [{"text": "a"}, {"text": 3}])
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: field 'text' must be str"):
        make_corpus(path).vocab_size  # noqa: B018


def test_a_row_of_one_token_is_refused():
    with pytest.raises(ValueError, match=r"context_length is 1, but a row needs at least 2"):
        next(iter(make_corpus("embedded", context_length=1).train_dataloader()))


def test_a_stream_needs_an_epoch_length(text_file):
    with pytest.raises(ValueError, match=r"set data\.rows_per_epoch"):
        make_corpus(text_file, streaming=True, rows_per_epoch=None).train_dataloader()


def test_text_that_trains_may_not_validate(text_file):
    with pytest.raises(ValueError, match=r"texts\.jsonl is given for both training and valid"):
        make_corpus(text_file, {"text": RecordSource(text_file)})
    with pytest.raises(ValueError, match=r"texts\.jsonl is given twice"):
        make_corpus([text_file, text_file])


def test_any_file_may_train_under_any_name(write_jsonl):
    names = ["books_valid.jsonl.gz", "small_slice.jsonl", "books_train.jsonl"]
    *train, validation = [write_jsonl(name, [{"text": "a"}]) for name in names]
    make_corpus(train, {"books": RecordSource(validation)})


def test_paths_start_here_or_at_the_data_folder(tmp_path, monkeypatch, write_jsonl):
    write_jsonl("corpus/a.jsonl", [{"text": "a"}])
    write_jsonl("here.jsonl", [{"text": "a"}])
    monkeypatch.chdir(tmp_path)

    def located(path, data_dir=None):
        return locate(RecordSource(path), data_dir).path

    assert located("a.jsonl", "corpus") == ["corpus/a.jsonl"]
    assert located("a.jsonl") == ["data/a.jsonl"]
    monkeypatch.setenv("TRIPTYCH_DATA", "corpus")
    assert located(["a.jsonl", "*.jsonl"]) == ["corpus/a.jsonl", "*.jsonl"]
    assert located("a.jsonl", "other") == ["other/a.jsonl"]
    assert located("corpus/*.jsonl") == ["corpus/*.jsonl"]
    assert located("**/a.jsonl", "other") == ["**/a.jsonl"]
    assert located("none/*.jsonl") == ["corpus/none/*.jsonl"]
    assert located("here.jsonl") == ["here.jsonl"]
    assert located(str(tmp_path / "x.csv")) == [str(tmp_path / "x.csv")]
    assert RecordSource(located("corp*/*.jsonl")).files() == [Path("corpus/a.jsonl")]
    assert located("embedded") == "embedded"
    assert located("allenai/c4") == "allenai/c4"


def test_real_text_is_read(real_data):
    text = TextConfig(
        [RecordSource("pretrain/stories_train.jsonl.gz", limit=40)],
        {
            "text": RecordSource("pretrain/books_valid.jsonl.gz", limit=5),
            "wikitext2": RecordSource("pretrain/wikitext2_valid.txt.gz", limit=1),
        },
    )
    corpus = TextCorpus(
        text, data_dir=str(real_data), tokenizer=TokenizerConfig(vocab_size=600), batch_size=2
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = next(iter(corpus.train_dataloader()))
        names = [loader.name for loader in corpus.val_dataloader()]
    assert batch["num_bytes"].sum() > 600
    assert names == ["text", "wikitext2"]
