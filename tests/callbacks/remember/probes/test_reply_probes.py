"""EasyEdit's four numbers and retention in chat, on a real chat model before and after damage."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.callbacks.remember.probes.conftest import TinyLM
from triptych.callbacks.remember.forgetting.forgetting_evaluation import ForgettingEvaluation
from triptych.callbacks.remember.probes.base import ProbeSetting
from triptych.callbacks.remember.probes.chat_retention import ChatRetention
from triptych.callbacks.remember.probes.edit_quality import EditQuality
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.embedded.tables import EVERYDAY_PROMPTS, GENERAL_QUESTIONS
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.datamodules.sources.records import RecordSource

# In KnowEdit's and in the project's own fields.
ROWS = [
    {
        "prompt": "What is the capital of France?",
        "target_new": "Paris",
        "rephrase_prompt": "Which city is France's capital?",
        "locality": {"Relation_Specificity": [{"prompt": "What is the capital of Italy?",
                                               "ground_truth": [["Rome"]]}]},
        "portability": {"Reasoning": [{"prompt": "In which country is the capital of France?",
                                       "ground_truth": [["France"]]}]},
    },
    {
        "question": "Who leads Brightwell Robotics?",
        "answers": ["Ingrid Solvang"],
        "locality": [{"prompt": "Who wrote Hamlet?", "ground_truth": ["Shakespeare"]}],
    },
]  # fmt: skip
GENERAL = [
    {"question": "What is the capital of Japan?", "answers": ["Tokyo"]},
    {"question": "Who led Brightwell Robotics in 1850?", "answers": ["Ingrid Solvang"]},
]


def rows_of(path: Path, rows: list[dict]) -> RecordSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordSource(str(path))


def test_the_numbers_of_a_chat_model_before_and_after(smollm2: str, tmp_path: Path):
    stream = FactStream(
        FactsConfig(rows_of(tmp_path / "facts.jsonl", ROWS)),
        tokenizer=TokenizerConfig(path=smollm2),
        cache_dir=str(tmp_path),
    )
    (row_format,) = stream._row_formats()
    setting = ProbeSetting(row_format, Shard(), stream)
    edits = EditQuality(max_new_tokens=10)
    general = ChatRetention(rows_of(tmp_path / "general.jsonl", GENERAL), max_new_tokens=10)
    probes = {"edits": edits, "general": general}
    evaluation = ForgettingEvaluation(dict(probes))
    for probe in probes.values():
        probe.prepare(setting)
    asked = {question.prompt: question for question in edits.questions}
    assert asked["Which city is France's capital?"].kind == "generalization"
    assert all(question.chat for question in asked.values())
    model = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    with torch.no_grad():
        before = edits.measure(model)
        assert before["reliability"] == 0.5  # it knows France
        assert before["generalization"] > 0
        assert before["locality"] == 1
        assert set(before) == set(edits.shown)
        kept = general.measure(model)
        assert kept == {"retained_share": 1, "accuracy": 0.5, "unchanged_share": 1}
        state = evaluation.state_dict()

        for layer in model.model.layers[20:]:
            layer.mlp.down_proj.weight.zero_()
        resumed = ForgettingEvaluation(
            {"edits": EditQuality(max_new_tokens=10), "general": general}
        )
        for probe in resumed.probes.values():
            probe.prepare(setting)
        resumed.load_state_dict(state)
        after = resumed.probes["edits"].measure(model)
        assert after["reliability"] == 0
        assert after["locality"] == 0
        assert general.measure(model)["retained_share"] == 0


def test_a_plain_model_is_asked_in_its_own_form(tiny_lm: TinyLM, tmp_path: Path):
    rows = [{"question": "Who leads Brightwell?", "answers": ["Ingrid"],
             "held_out": ["Brightwell is led by whom?"],
             "locality": [{"prompt": "The capital of Peru:", "ground_truth": ["x"]}]}]  # fmt: skip
    probe = EditQuality(FactsConfig(rows_of(tmp_path / "facts.jsonl", rows)))
    probe.prepare(tiny_lm.setting())
    assert [question.prompt for question in probe.questions] == [
        "Question: Who leads Brightwell? Answer:",
        "Question: Brightwell is led by whom? Answer:",
        "The capital of Peru:",
    ]
    assert probe.shown == ("reliability", "generalization", "locality")


def test_without_a_stream_of_facts_it_says_what_to_set(tiny_lm: TinyLM):
    with pytest.raises(ValueError, match="no stream of facts"):
        EditQuality().prepare(tiny_lm.setting(datamodule=object()))


def test_general_questions_are_no_prompts_of_the_background():
    rows = [json.loads(line) for line in GENERAL_QUESTIONS.read_text().splitlines()]
    questions = {row["question"] for row in rows}
    assert len(questions) == len(rows) == 36
    assert not questions & set(EVERYDAY_PROMPTS.read_text().splitlines())
