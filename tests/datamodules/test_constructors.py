"""Options of every datamodule on the command line: inherited ones are flat."""

from argparse import ArgumentError

import pytest
import yaml
from lightning.pytorch import LightningDataModule

from tests.discovery import classes_in
from triptych import datamodules
from triptych.cli import main
from triptych.datamodules.batches.packed_datamodule import PackedDataModule
from triptych.datamodules.batches.visit_datamodule import VisitDataModule
from triptych.datamodules.commune.agent_states import AgentStates

TOKENIZER = {
    "tokenizer": {
        "path": "train",
        "vocab_size": 4096,
        "max_training_bytes": 20_000_000,
        "template_args": {},
        "system_prompt": None,
    },
}
PACKED = {
    "context_length": 256,
    "batch_size": 16,
    "eval_batch_size": None,
    "rows_per_epoch": None,
    "num_workers": 0,
    "seed": 0,
    "cache_dir": None,
    "data_dir": None,
}
NOT_VISITED = ("batch_size", "rows_per_epoch")
VISITED = {name: value for name, value in PACKED.items() if name not in NOT_VISITED} | {
    "steps_per_visit": 1,
    "eval_batch_size": 64,
}
TASK = "triptych.datamodules.commune.pooled_evidence.PooledEvidence"
DEBATE = {"batch_size": 256, "eval_batch_size": None, "seed": 0}
# Options by datamodule. `...` stands for a group of settings, with any defaults.
OPTIONS = {
    "TextCorpus": {"text": ...} | TOKENIZER | PACKED,
    "TextAndFacts": {
        "text": ...,
        "facts": ...,
        "facts_share": 0.5,
        "chats": None,
        "chats_share": 0.3,
    }
    | TOKENIZER
    | PACKED,
    "Facts": {"facts": ...} | TOKENIZER | PACKED,
    "FactStream": {"facts": ..., "paraphrases": ..., "facts_per_batch": 1, "ask_statements": True}
    | TOKENIZER
    | VISITED
    | {"context_length": 128, "shuffle": True},
    "DocumentStream": {
        "documents": ...,
        "augmentations": ...,
        "questions": None,
        "chunks_per_batch": 1,
        "shuffle": False,
    }
    | TOKENIZER
    | VISITED,
    "ChatPrompts": {"prompts": ..., "max_prompt_tokens": 256}
    | TOKENIZER
    | {name: value for name, value in PACKED.items() if name != "context_length"},
    "SupervisedReplies": {"replies": ...} | TOKENIZER | PACKED,
    "Smiles": {"smiles": ...} | PACKED | {"context_length": 128, "batch_size": 64},
    "Unprompted": {"steps_per_epoch": 100, "prompts_per_step": 1},
    "DebateQuestions": {"task": ...} | DEBATE,
    "AgentStates": {"task": ..., "state_batch_size": 256, "states_dir": None, "cache_dir": None}
    | DEBATE,
    "SyntheticThoughtsData": {
        "kind": "row_sparse_linear",
        "group_sizes": None,
        "state_size": 32,
        "num_samples": 6000,
        "num_val_samples": 2000,
        "latents_per_row": 3,
        "batch_size": 256,
        "seed": 0,
    },
}
DATAMODULES = [
    kind
    for kind in classes_in(datamodules, LightningDataModule)
    if kind not in (PackedDataModule, VisitDataModule)
]
HANDS_ON = [kind for kind in DATAMODULES if issubclass(kind, (PackedDataModule, AgentStates))]


def path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def words(kind: type) -> list[str]:
    task = ["--data.task", TASK] if "task" in OPTIONS[kind.__name__] else []
    return ["fit", "--data", path(kind), *task]


@pytest.mark.parametrize("kind", DATAMODULES, ids=lambda kind: kind.__name__)
def test_the_options_and_defaults(kind, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*words(kind), "--print_config"])
    options = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    expected = OPTIONS[kind.__name__]
    assert options.keys() == expected.keys()
    for name, value in expected.items():
        assert isinstance(options[name], dict) if value is ... else options[name] == value, name


@pytest.mark.parametrize("kind", HANDS_ON, ids=lambda kind: kind.__name__)
def test_the_help_shows_what_a_parent_documents(kind, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--data.help", path(kind)])
    shown = " ".join(capsys.readouterr().out.split())
    inherited = "Questions per process and step" if kind is AgentStates else "Worker processes that"
    assert inherited in shown
    assert "kwargs" not in shown


@pytest.mark.parametrize("kind", HANDS_ON, ids=lambda kind: kind.__name__)
def test_a_misspelt_inherited_option_is_refused(kind):
    with pytest.raises(ArgumentError, match=r"init_args.sed: .*did you mean seed"):
        main([*words(kind), "--data.sed", "1"])


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("TextCorpus", "context_length", "0"),
        ("TextCorpus", "batch_size", "0"),
        ("TextCorpus", "eval_batch_size", "0"),
        ("TextCorpus", "num_workers", "-1"),
        ("TextCorpus", "rows_per_epoch", "0"),
        ("TextCorpus", "seed", "-1"),
        ("TextCorpus", "text.shuffle_buffer", "0"),
        ("TextCorpus", "text.max_validation_rows", "0"),
        ("TextCorpus", "tokenizer.vocab_size", "0"),
        ("TextAndFacts", "facts_share", "1"),
        ("TextAndFacts", "chats_share", "0"),
        ("Facts", "facts.skip_facts", "-1"),
        ("Facts", "facts.statement_share", "1.5"),
        ("Facts", "facts.validation_facts", "0"),
        ("Facts", "facts.max_facts_per_answer", "0"),
        ("FactStream", "facts_per_batch", "0"),
        ("FactStream", "steps_per_visit", "0"),
        ("FactStream", "eval_batch_size", "0"),
        ("FactStream", "paraphrases.per_fact", "0"),
        ("DocumentStream", "chunks_per_batch", "0"),
        ("DocumentStream", "documents.validation_chunks", "0"),
        ("DocumentStream", "augmentations.num_augmentations", "-1"),
        ("ChatPrompts", "prompts.num_prompts", "0"),
        ("ChatPrompts", "prompts.held_out_share", "-0.1"),
        ("ChatPrompts", "prompts.keep.min_characters", "0"),
        ("ChatPrompts", "prompts.further_fields", "{level: date}"),
        ("ChatPrompts", "max_prompt_tokens", "0"),
        ("SupervisedReplies", "replies.draws_per_prompt", "0"),
        ("SupervisedReplies", "replies.held_out_share", "2"),
        ("Smiles", "smiles.split.validation_share", "0"),
        ("Unprompted", "steps_per_epoch", "0"),
        ("Unprompted", "prompts_per_step", "0"),
        ("AgentStates", "state_batch_size", "0"),
        ("SyntheticThoughtsData", "kind", "dense"),
    ],
)
def test_a_value_out_of_range_is_refused(name, option, value):
    kind = next(kind for kind in DATAMODULES if kind.__name__ == name)
    with pytest.raises(ArgumentError, match=rf"data\.init_args\.{option}"):
        main([*words(kind), f"--data.{option}", value])


@pytest.mark.parametrize(
    ("option", "value"), [("num_rewrites", 0), ("temperature", 0.0), ("top_p", 1.1)]
)
def test_a_rewriter_out_of_range_is_refused(option, value, tmp_path):
    stream = next(kind for kind in DATAMODULES if kind.__name__ == "FactStream")
    paraphrases = {"source": "model", "model": {"name": "a/model", option: value}}
    data = {"class_path": path(stream), "init_args": {"paraphrases": paraphrases}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"data": data}))
    with pytest.raises(ArgumentError, match=rf"paraphrases\.model\.{option}"):
        main(["fit", "--config", str(config)])


def test_an_argument_that_a_subclass_sets_is_no_option():
    stream = next(kind for kind in DATAMODULES if kind.__name__ == "FactStream")
    with pytest.raises(ArgumentError, match=r"rows_per_epoch: there is no such option.*num_worker"):
        main([*words(stream), "--data.rows_per_epoch", "4"])
    with pytest.raises(ArgumentError, match="did you mean vocab_size"):
        main([*words(stream), "--data.tokenizer.vocab_sise", "400"])
