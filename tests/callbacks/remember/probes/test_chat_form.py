"""A real chat model is taught and asked in its own chat template."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from triptych.callbacks.remember.probes.answer_nll import AnswerNLL
from triptych.callbacks.remember.probes.base import ProbeSetting
from triptych.callbacks.remember.probes.closed_book import ClosedBook
from triptych.callbacks.remember.probes.fact_recall import FactRecall
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.datamodules.sources.records import RecordSource

ROWS = [
    {"id": "fr", "question": "What is the capital of France?", "answers": ["Paris"],
     "statement": "The capital of France is Paris.", "rephrase": ["Name France's capital?"]},
    {"id": "qx", "question": "Who leads Brightwell Robotics?", "answers": ["Ingrid Solvang"]},
]  # fmt: skip


@pytest.fixture
def stream(smollm2: str, tmp_path: Path) -> FactStream:
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return FactStream(
        FactsConfig(RecordSource(str(path))),
        tokenizer=TokenizerConfig(path=smollm2),
        shuffle=False,
        cache_dir=str(tmp_path),
    )


def setting_of(stream: FactStream) -> ProbeSetting:
    (row_format,) = stream._row_formats()
    return ProbeSetting(row_format, Shard(), stream)


def test_facts_are_taught_and_asked_in_the_template(stream: FactStream):
    tokenizer = stream.tokenizer
    (row_format,) = stream._row_formats()
    documents = [tokenizer.decode(d.ids) for d in stream.part.visits(row_format).documents(0, 0)]
    assert documents[0] == "The capital of France is Paris.<|im_end|>"
    asked = [text for text in documents if "<|im_start|>user" in text]
    assert "What is the capital of France?" in asked[0]
    assert asked[0].endswith("assistant\nThe capital of France is Paris.<|im_end|>")
    assert not any("Name France's capital?" in text for text in documents)
    batches = [next(iter(loader)) for loader in stream.val_dataloader()]
    (batch,) = [batch for batch in batches if batch["name"] == "facts"]
    prompts = tokenizer.batch_decode(batch["prompt_ids"])
    assert "user\nName France's capital?<|im_end|>" in prompts[0]
    assert prompts[0].endswith("<|im_start|>assistant\n")
    assert batch["whole_reply"] is True
    assert stream.chat_template is None


def test_the_plain_form_can_be_chosen(stream: FactStream):
    stream.part._asked.config = FactsConfig(stream.part._asked.config.source, form="plain")
    (row_format,) = stream._row_formats()
    texts = stream.part._asked.documents(row_format).wordings(1)
    assert [rendering.text for rendering in texts] == [
        "Question: Who leads Brightwell Robotics? Answer: Ingrid Solvang"
    ]
    assert stream.chat_template is not None
    assert "bos_token" not in stream.chat_template


def test_whole_replies_of_a_chat_model_count(stream: FactStream, smollm2: str, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    setting, source = setting_of(stream), stream.part._asked.config.source
    with torch.no_grad():
        recall = FactRecall(wording="own_question", scoring="generate", max_new_tokens=12)
        recall.prepare(setting)
        values = recall.measure(model)
        assert recall.headline == "answer_in_reply"
        assert values["answer_in_reply"] == 0.5  # it knows France
        asked = ClosedBook(source).ask(setting)
        assert [fact.prompt for fact in asked] == [row["question"] for row in ROWS]
        assert all(fact.in_chat for fact in asked)
        path = tmp_path / "answered.jsonl"
        path.write_text(json.dumps({"question": "What is 2 + 2?", "answer": "2 + 2 is 4."}))
        chat, plain = (AnswerNLL(RecordSource(str(path)), form=f) for f in ("auto", "plain"))
        for probe in (chat, plain):
            probe.prepare(setting)
        in_chat = chat.measure(model)["nll_nats_per_token"]
        assert in_chat < plain.measure(model)["nll_nats_per_token"]
