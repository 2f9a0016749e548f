"""The probes' numbers equal those of the LM Evaluation Harness 0.4 on the same rows.

pip install lm-eval
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from triptych.callbacks.remember.probes.base import ProbeSetting
from triptych.callbacks.remember.probes.generation_task import GenerationTask
from triptych.callbacks.remember.probes.multiple_choice import MultipleChoice
from triptych.callbacks.remember.probes.text_perplexity import TextPerplexity
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.datamodules.embedded.tables import GENERAL_QUESTIONS
from triptych.datamodules.sources.records import RecordSource

WINDOW, ANSWER_TOKENS = 64, 8
CHOICES = [
    {"activity_label": "Roof shingle removal", "label": 3,
     "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
     "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.",
                 "is holding a rubik's cube.", "starts pulling up roofing on a roof."]},
    {"activity_label": "Food and Entertaining", "label": 1,
     "ctx_a": "[header] How to make tea [title] Boil the water. [step] Fill a kettle.",
     "ctx_b": "",
     "endings": ["[substeps] Paint it green.", "Put it on the stove and wait until it boils.",
                 "Throw it – café style – out of the window.", "Read it a story."]},
    {"activity_label": "Clean and jerk", "label": 0,
     "ctx_a": "A woman bends down and picks up a weight.", "ctx_b": "the woman",
     "endings": ["lifts it over her head.", "eats it with  a spoon.", "flies away.", "melts."]},
]  # fmt: skip
SUMS = [
    {"question": "Tom has 2 apples and buys 3 more. How many apples has he?",
     "answer": "Tom has 2 + 3 = <<2+3=5>>5 apples.\n#### 5"},
    {"question": "A box holds 10 eggs. How many eggs do 4 boxes hold?",
     "answer": "They hold 4 * 10 = <<4*10=40>>40 eggs.\n#### 40"},
]  # fmt: skip
PAGES = [
    " \n = Robert Boulter = \n \n Robert Boulter is an English film , television and theatre actor "
    ". He had a guest @-@ starring role on the television series The Bill in 2000 . \n In 2002 he "
    'appeared as " Scott " in the 1 @,@ 200 @.@ 5 seat theatre ( in London ) : it \'s old . \n',
    " \n = Tea = \n \n Tea is a drink ; it is hot . \n",
]


def rows_of(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def harness(smollm2: str, tmp_path: Path):
    """Evaluate a task of the harness on the rows of a file."""
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval import tasks as own_tasks
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.hellaswag.utils import process_docs
    from lm_eval.tasks.wikitext import preprocess_wikitext

    functions = {
        "utils.process_docs": process_docs,
        "preprocess_wikitext.wikitext_detokenizer": preprocess_wikitext.wikitext_detokenizer,
        "preprocess_wikitext.process_results": preprocess_wikitext.process_results,
    }

    class Loader(yaml.SafeLoader):
        """Reads the harness's own files, whose functions are named by a tag."""

    Loader.add_constructor("!function", lambda _, node: functions[node.value])
    folder = Path(own_tasks.__file__).parent
    model = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    language_model = HFLM(
        pretrained=model,
        tokenizer=AutoTokenizer.from_pretrained(smollm2),
        batch_size=4,
        device="cpu",
    )

    def evaluate(file: str, path: str, **changes: Any) -> dict[str, float]:
        task = yaml.load((folder / file).read_text(), Loader=Loader)
        for name in ("dataset_name", "training_split", "test_split", "fewshot_split", "tag"):
            task.pop(name, None)
        task |= {
            "task": "local",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": path}},
            "validation_split": "validation",
        } | changes
        if "generation_kwargs" in task:
            task["generation_kwargs"]["max_gen_toks"] = ANSWER_TOKENS
        found = simple_evaluate(language_model, tasks=[task], num_fewshot=0, bootstrap_iters=0)
        return found["results"]["local"]

    evaluate.model = model  # type: ignore[attr-defined]
    return evaluate


def measured(probe, smollm2: str, model) -> dict[str, float]:
    tokenizer = build_tokenizer(TokenizerConfig(path=smollm2), lambda: [], "", Path())
    row_format = RowFormat(tokenizer, 512, seed=0, cache_dir=Path())
    probe.prepare(ProbeSetting(row_format, Shard()))
    with torch.no_grad():
        return probe.measure(model)


def test_hellaswag(harness, smollm2, tmp_path):
    rows = [row | {"ctx": f"{row['ctx_a']} {row['ctx_b']}"} for row in CHOICES]
    path = rows_of(tmp_path / "rows.jsonl", rows)
    theirs = harness("hellaswag/hellaswag.yaml", path)
    ours = measured(MultipleChoice(RecordSource(path)), smollm2, harness.model)
    assert ours["accuracy"] == pytest.approx(theirs["acc,none"])
    assert ours["length_normalized_accuracy"] == pytest.approx(theirs["acc_norm,none"])


@pytest.mark.parametrize("task", ["nq_open", "triviaqa"])
def test_short_answers(harness, smollm2, tmp_path, task):
    rows = [json.loads(line) for line in GENERAL_QUESTIONS.read_text().splitlines()[:8]]
    for row in rows:
        row["question"] = row["question"].rstrip("?")
    # What the chat model says to such prompts: mostly it ends its turn at once.
    rows[0]["answers"].append("")
    rows[2]["answers"].append("The Italy is a country in Europe")
    path = rows_of(tmp_path / "rows.jsonl", rows)
    file = "nq_open/nq_open.yaml" if task == "nq_open" else "triviaqa/default.yaml"
    theirs = harness(file, path, doc_to_target="{{answers}}")
    probe = GenerationTask(task, RecordSource(path), max_new_tokens=ANSWER_TOKENS)
    ours = measured(probe, smollm2, harness.model)
    assert ours["exact_match"] == pytest.approx(theirs["exact_match,remove_whitespace"])
    assert 0 < ours["exact_match"] < 1


def test_gsm8k(harness, smollm2, tmp_path):
    path = rows_of(tmp_path / "rows.jsonl", SUMS)
    theirs = harness("gsm8k/gsm8k.yaml", path, num_fewshot=0)
    probe = GenerationTask("gsm8k", RecordSource(path), max_new_tokens=ANSWER_TOKENS)
    ours = measured(probe, smollm2, harness.model)
    assert ours["exact_match"] == pytest.approx(theirs["exact_match,flexible-extract"])
    assert ours["strict_exact_match"] == pytest.approx(theirs["exact_match,strict-match"])


def test_wikitext(harness, smollm2, tmp_path):
    path = rows_of(tmp_path / "rows.jsonl", [{"page": page, "text": page} for page in PAGES])
    harness.model.config.max_position_embeddings = WINDOW
    theirs = harness("wikitext/wikitext.yaml", path)
    probe = TextPerplexity(RecordSource(path), context_length=WINDOW, format="wikitext")
    ours = measured(probe, smollm2, harness.model)
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert ours[name] == pytest.approx(theirs[f"{name},none"], rel=1e-4)
