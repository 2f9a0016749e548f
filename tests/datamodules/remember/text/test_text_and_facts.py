"""The mixture: shares, one tokenizer, both validations; every data config of text parses."""

import itertools

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from triptych import ROOT
from triptych.datamodules.batches.row_stream import DRAWN_ROWS, EpochStream, MixtureStream
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.datamodules.remember.text.text_and_facts import TextAndFacts
from triptych.datamodules.remember.text.text_corpus import TextConfig
from triptych.datamodules.sources.records import RecordSource

CONFIGS = ROOT / "configs" / "data"
SMALL = TokenizerConfig(vocab_size=400)


def make_mixture(**options):
    facts = FactsConfig(num_facts=50, validation_facts=20)
    return TextAndFacts(facts=facts, **{"tokenizer": SMALL, "batch_size": 8} | options)


def read(loader, num_batches):
    batches = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return list(itertools.islice(batches, num_batches))


def parse(*words):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    config = parser.parse_args(list(words))
    dumped = parser.dump(config)
    assert parser.dump(parser.parse_string(dumped)) == dumped
    return parser, config


def test_rows_are_drawn_by_share():
    mixture = make_mixture(facts_share=0.25)
    assert mixture.source_names == ["text", "facts"]
    sources = torch.cat([batch["source_ids"] for batch in read(mixture.train_dataloader(), 128)])
    assert 0.2 < (sources == 1).float().mean() < 0.3


def test_rows_are_of_the_source_they_name():
    mixture = make_mixture()
    batch = next(iter(mixture.train_dataloader()))
    for ids, source_id in zip(batch["input_ids"], batch["source_ids"], strict=True):
        is_question = "Question: " in mixture.tokenizer.decode(ids)
        assert is_question == (source_id == 1)


def test_both_validate():
    batches = {loader.name: next(iter(loader)) for loader in make_mixture().val_dataloader()}
    assert list(batches) == ["text", "facts"]
    assert batches["text"]["source_ids"].unique().tolist() == [0]
    assert batches["facts"]["source_ids"].unique().tolist() == [1]
    assert {"prompt_ids", "prompt_mask", "questions", "answers"} <= set(batches["facts"])


def test_the_tokenizer_knows_both():
    mixture = TextAndFacts(tokenizer=TokenizerConfig(vocab_size=800))
    for seen_in_facts, seen_in_text in [("Question", "ĠUnion"), ("ĠAnswer", "Ġadmitted")]:
        assert {seen_in_facts, seen_in_text} <= set(mixture.tokenizer.get_vocab())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_is_resumed_exactly(streaming):
    def make():
        text = TextConfig(streaming=streaming, shuffle_buffer=50)
        return make_mixture(text=text, rows_per_epoch=40).train_dataloader()

    uninterrupted = read(make(), 16)
    first = make()
    read(first, 7)
    second = make()
    second.load_state_dict(first.state_dict())
    for batch, expected in zip(read(second, 9), uninterrupted[7:], strict=True):
        assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_choices_go_on_past_a_block_of_draws(text_file):
    part = make_mixture().parts[1]
    row_format = make_mixture()._row_formats()[1]
    streams = [EpochStream(part.documents(row_format), seed, 256) for seed in (0, 1)]
    mixture = MixtureStream(streams, [0.5, 0.5], 0)
    rows = list(itertools.islice(mixture.read(), DRAWN_ROWS + 20))
    _, cursor = rows[DRAWN_ROWS + 4]
    entered = list(itertools.islice(mixture.read(cursor), 15))
    assert [(r.source_id, r.index, c) for r, c in entered] == [
        (r.source_id, r.index, c) for r, c in rows[DRAWN_ROWS + 5 :]
    ]


def test_an_epoch_passes_over_the_text_once():
    quarter, half = (make_mixture(facts_share=share, batch_size=1) for share in (0.25, 0.5))
    assert len(half.train_dataloader()) == pytest.approx(
        1.5 * len(quarter.train_dataloader()), rel=0.01
    )


@pytest.mark.parametrize("share", [-0.5, 1.5])
def test_a_share_outside_of_the_unit_interval_is_refused(share):
    with pytest.raises(ValueError, match="none below 0, adding up to 1"):
        make_mixture(facts_share=share).train_dataloader()


def test_another_mixture_is_refused_on_resuming():
    state = make_mixture(facts_share=0.25).state_dict()
    with pytest.raises(ValueError, match="other data"):
        make_mixture(facts_share=0.5).load_state_dict(state)


def test_a_context_too_short_for_a_fact_is_refused():
    with pytest.raises(ValueError, match=r"context_length is 8.*set context_length to at least"):
        next(iter(make_mixture(context_length=8).train_dataloader()))


def test_log_keys_do_not_collide(text_file):
    text = TextConfig(validation={"facts": RecordSource(text_file)})
    with pytest.raises(ValueError, match=r"named facts, facts.*rename one in text\.validation"):
        make_mixture(text=text).val_dataloader()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("text_*.yaml")), ids=lambda path: path.stem)
def test_every_data_file_parses(path):
    parse("--data", str(path))


def test_a_misspelt_setting_is_refused():
    path = str(CONFIGS / "text_and_facts.yaml")
    with pytest.raises(Exception, match="facts_shaer"):
        parse("--data", path, "--data.init_args.facts_shaer", "0.1")


def test_one_setting_points_to_the_real_data(real_data):
    path = str(CONFIGS / "text_and_facts_local.yaml")
    parser, config = parse("--data", path, "--data.init_args.data_dir", str(real_data))
    data = parser.instantiate(config).data
    assert data.source_names == ["text", "facts"]
    assert len(data.parts[1].facts) == 1024


def test_without_the_real_data_the_missing_file_is_named():
    parser, config = parse("--data", str(CONFIGS / "text_local.yaml"))
    with pytest.raises(Exception, match=r"data/pretrain/books_train\.jsonl\.gz"):
        parser.instantiate(config)
