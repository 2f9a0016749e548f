"""The data configs of the streams: OLD facts, NEW facts, and overrides."""

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from triptych import ROOT
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.datamodules.sources.records import RecordSource

CONFIGS = ROOT / "configs" / "data"
TINY = ("--data.init_args.tokenizer.vocab_size", "300")


def build(name, *options):
    """Return the datamodule of a data config with overrides from a command line."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    config = parser.parse_args(["--data", str(CONFIGS / f"{name}.yaml"), *TINY, *options])
    dumped = parser.dump(config, skip_unset=False)
    assert parser.dump(parser.parse_string(dumped), skip_unset=False) == dumped
    return parser.instantiate(config).data


def pretraining_settings(name):
    """Return the settings of a pretraining without the NEW facts, from a config's comment."""
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    settings = [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]
    return yaml.safe_load("\n".join(line for line in settings if line[:4] in ("text", "fact")))


def named(facts):
    return {(fact.relation, fact.subject) for fact in facts}


def test_the_embedded_pretraining_leaves_the_new_facts_out():
    settings = pretraining_settings("fact_stream_embedded")
    assert settings["text"] == {"without_facts": {"skip_facts": 1400}}
    old = FactsPart(FactsConfig(**settings["facts"])).facts
    new = build("fact_stream_embedded").facts
    assert (len(old), len(new)) == (1400, 110)
    assert not {fact.id for fact in old} & {fact.id for fact in new}
    assert not named(old) & named(new)
    left_out = FactsPart(FactsConfig(**settings["text"]["without_facts"])).facts
    assert left_out == new


def test_the_real_pretraining_leaves_the_new_facts_out(real_data):
    new = build("fact_stream_local", "--data.init_args.data_dir", str(real_data)).facts
    raw = yaml.safe_load((CONFIGS / "fact_stream_local.yaml").read_text())
    chosen = raw["init_args"]["facts"]
    pretraining = yaml.safe_load((CONFIGS / "text_and_facts_local.yaml").read_text())
    taught = pretraining["init_args"]["facts"]
    config = FactsConfig(RecordSource(taught["source"]["path"]), num_facts=taught["num_facts"])
    old = FactsPart(config, str(real_data)).facts
    assert (len(old), len(new)) == (1024, 140)
    assert {fact.relation for fact in new} == set(chosen["later_relations"])
    assert {fact.answers[0] for fact in new} <= {fact.answers[0] for fact in old}
    assert not {fact.id for fact in old} & {fact.id for fact in new}
    assert not named(old) & named(new)


def test_the_documents_are_about_the_facts_of_the_stream():
    facts = build("fact_stream_embedded").facts
    documents = build("document_stream_embedded")
    assert documents.part._asked.facts == facts
    loaders = documents.val_dataloader()
    assert [loader.name for loader in loaders] == ["documents", "facts"]


def test_real_documents_are_read(real_data):
    limits = ("--data.init_args.documents.source.limit", "2")
    data = build("document_stream_local", "--data.init_args.data_dir", str(real_data), *limits)
    batch = next(iter(data.train_dataloader()))
    assert batch["fact_ids"][0].startswith("rustbook/")
    assert batch["input_ids"].shape[0] > 2
    assert batch["input_ids"].shape[1] <= 256


def test_paraphrases_of_a_file_or_model_take_one_option(write_jsonl):
    path = write_jsonl("my.jsonl", [{"id": "x", "paraphrases": ["a"]}])
    option = f"--data.init_args.paraphrases={{source: file, file: {{path: {path}}}}}"
    assert build("fact_stream_embedded", option).part._paraphrases.config.file.path == path
    option = "--data.init_args.paraphrases={source: model, model: {name: google/flan-t5-base}}"
    model = build("fact_stream_embedded", option).part._paraphrases.config.model
    assert (model.name, model.num_rewrites) == ("google/flan-t5-base", 8)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("fact_stream_embedded", "facts.skip_facts", 1500),
        ("document_stream_embedded", "questions.skip_facts", 1500),
    ],
)
def test_single_settings_are_options(name, option, value):
    data = build(name, f"--data.init_args.{option}", str(value))
    facts = data.facts if name.startswith("fact") else data.part._asked.facts
    assert len(facts) == 1510 - value


def test_a_text_without_facts_is_one_option():
    options = ("--data.init_args.text.without_facts.skip_facts", "1400")
    data = build("text_and_facts", *options, "--data.init_args.facts.num_facts", "1400")
    assert len(data.parts[1].facts) == 1400
    assert len(data.parts[0]._left_out.facts) == 110
