"""The study of real facts: its facts by the product's own reader, its arithmetic by hand."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import ROOT
from tests.studies.conftest import redrawn
from triptych.datamodules.batches.packing import Document
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.datamodules.sources.records import RecordSource
from triptych.studies import arms, real_facts
from triptych.studies.remember.real_facts.days import BACK_BEFORE, ELSEWHERE, UNDONE
from triptych.studies.remember.real_facts.invented_facts import (
    RELATIONS,
    invented_facts,
    write_facts,
)
from triptych.studies.remember.real_facts.kept_questions import GENERAL, NEIGHBOURS
from triptych.studies.remember.real_facts.measures import MeasureRun, Plan
from triptych.studies.remember.real_facts.real_facts_arms import full, sparse, teaching
from triptych.studies.remember.real_facts.real_facts_numbers import (
    CHOICES_LOST,
    EARLY,
    HELD_OUT,
    LATE,
    NEIGHBOURS_SAME,
    RETAINED,
    ROWS,
    SECONDS,
    STEPS,
    TAUGHT,
    TEXT_RISE,
    by_position,
    kept_items,
    learned_at_equal_retention,
    numbers_of,
)
from triptych.studies.remember.real_facts.real_facts_numbers import (
    GENERAL as GENERAL_KEPT,
)
from triptych.studies.remember.real_facts.real_facts_numbers import (
    NEIGHBOURS as UNCHANGED,
)
from triptych.studies.remember.real_facts.shared_context_choices import score_endings

BEFORE = {
    "num_taught": 3,
    "taught": [[False]] * 3,
    "held_out": [[False]] * 3,
    "general": [True, True, False, True],
    "neighbours_right": [True, False],
    "neighbours": ["Paris.", "Rome."],
    "text_nats": 2.0,
    "choices": {"length_normalized_accuracy": 0.5},
}
AFTER = {
    **BEFORE,
    "taught": [[True, True], [True, False], [True, True]],
    "held_out": [[False, False], [True, False], [True, True]],
    "general": [True, False, True, True],
    "neighbours": ["Paris.", "Kelmor."],
    "neighbour_tokens": [1.0, 0.25],
    "text_nats": 2.01,
    "choices": {"length_normalized_accuracy": 0.48},
}


def test_facts_are_read_and_divided_as_they_were_made(tmp_path):
    facts = invented_facts(60, seed=1)
    path = write_facts(facts, tmp_path, "facts")
    config = FactsConfig(source=RecordSource(str(path)), form="chat")
    part = FactsPart(config)
    templates = part.templates.in_form(True, "statement")
    assert [fact.id for fact in part.facts] == [fact.id for fact in facts]
    for made, read in zip(facts, part.facts, strict=True):
        assert templates.question_texts(read, "training") == list(made.taught)
        assert templates.question_texts(read, "held_out") == list(made.held_out)
        assert templates.asked(read, read.question).reply == made.statement
        assert made.answers[0] in made.statement


def test_facts_are_of_six_relations_and_no_two_share_a_name():
    facts = invented_facts(1000, seed=3)
    assert invented_facts(60, seed=3) == facts[:60]
    assert invented_facts(60, seed=4) != facts[:60]
    assert len({fact.answers for fact in facts}) == 1000
    assert len({fact.question for fact in facts}) == 1000
    assert len(RELATIONS) == len({fact.id.split("-")[0] for fact in facts[:6]}) == 6
    for relation in RELATIONS:
        assert 4 <= len(set(relation.taught)) <= 6
        assert len(set(relation.held_out)) == 3
        assert not set(relation.taught) & set(relation.held_out)


def test_kept_questions_are_different_and_have_answers():
    for known in (GENERAL, NEIGHBOURS):
        assert len({entry.question for entry in known}) == len(known) >= 20
        assert all(entry.answers for entry in known)
    assert [entry.question.split()[0] for entry in Plan(num_kept=6).neighbours]
    assert len(Plan(num_kept=6).neighbours) == 6
    assert Plan(num_kept=None).neighbours == NEIGHBOURS
    assert Plan(num_facts=2).key != Plan(num_facts=2, fact_seed=1).key


def test_numbers_by_hand(tmp_path):
    (tmp_path / "training.json").write_text(
        json.dumps({"cpu_seconds": 30.0, "steps": [4, 5, 6], "rows_written": 7})
    )
    numbers = numbers_of(AFTER, BEFORE, tmp_path)
    assert numbers[TAUGHT] == pytest.approx(5 / 6)
    assert numbers[HELD_OUT] == pytest.approx(0.5)
    assert (numbers[EARLY], numbers[LATE]) == (0.0, 1.0)
    assert numbers[GENERAL_KEPT] == pytest.approx(2 / 3)  # that of three right ones
    assert numbers[UNCHANGED] == 0.625
    assert numbers[NEIGHBOURS_SAME] == 0.5
    assert numbers[RETAINED] == pytest.approx((2 / 3 + 0.625) / 2)
    assert numbers[TEXT_RISE] == pytest.approx(0.5)
    assert numbers[CHOICES_LOST] == pytest.approx(2.0)
    assert (numbers[STEPS], numbers[SECONDS], numbers[ROWS]) == (5.0, 10.0, 7.0)
    assert kept_items(AFTER, BEFORE) == [1.0, 0.0, 1.0, 1.0, 0.25]
    assert by_position(AFTER) == [[1.0, 0.0], [2.0, 0.5], [3.0, 1.0]]


def test_learning_at_equal_retention_by_hand():
    run = {HELD_OUT: 0.4, RETAINED: 0.8}
    assert learned_at_equal_retention(0.9, [run]) == pytest.approx(0.2)
    assert learned_at_equal_retention(0.7, [run]) == 0.4  # it never lost so much
    assert learned_at_equal_retention(1.0, [run]) == 0.0


def test_checks_and_tests_by_hand():
    own = {**numbers_of(AFTER, BEFORE), HELD_OUT: 0.7, RETAINED: 0.9}
    other = {**own, HELD_OUT: 0.3, RETAINED: 0.8}
    numbers = {
        real_facts.MAIN: [own],
        real_facts.FIRST: [own] * 3,
        real_facts.TF_ONLY: [other] * 3,
        "LoRA": [other] * 3,
    }
    better, worse = [[1.0, 1.0, 1.0, 0.0, 1.0, 1.0]] * 3, [[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]] * 3
    items = {real_facts.MAIN: better, real_facts.FIRST: better, real_facts.TF_ONLY: worse}
    checks = real_facts.checks_of(numbers, items)
    (advantage,) = (check for name, check in checks.items() if "LoRA" in name)
    assert advantage.value == pytest.approx(0.7 - 0.15)  # .3 at .8, none at 1
    assert checks[f"{real_facts.MAIN}: {HELD_OUT}, median"].held
    assert not checks[f"{real_facts.MAIN}: {GENERAL_KEPT}, median"].held
    assert checks["TF-IDF over TF only on retention, p"].held
    swapped = {**items, real_facts.FIRST: worse, real_facts.TF_ONLY: better}
    assert not real_facts.checks_of(numbers, swapped)["TF-IDF over TF only on retention, p"].held


def test_arms_have_the_settings_for_users(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    users = yaml.safe_load((ROOT / "configs/remember/finetune_smollm2.yaml").read_text())
    (settings, _) = users["trainer"]["callbacks+"]
    start, facts = {1: Path("memory")}, {1: Path("facts.jsonl")}

    def composed(way):
        arm = teaching(way, start, facts, False, tmp_path)
        assert arm.words(1)[-1] == "facts.jsonl"
        return yaml.safe_load(Path(arm.args[1]).read_text())

    ours = composed(sparse("sparse"))
    assert ours["trainer"]["callbacks+"][0] == settings
    tf_only = composed(sparse("TF only", ranking="tf"))
    assert tf_only["trainer"]["callbacks+"][0]["init_args"]["ranking"] == "tf"
    for key in ("steps_per_visit", "facts_per_batch", "context_length"):
        assert ours["data"]["init_args"][key] == users["data"]["init_args"][key]
    dense = composed(full("full", 1e-5))
    assert [entry["class_path"].rsplit(".", 1)[1] for entry in dense["trainer"]["callbacks+"]] == [
        "TrainingRecord"
    ]


def test_a_run_without_export_is_repeated_unless_it_was_measured(tmp_path):
    run, then = tmp_path / "seed1", MeasureRun(Plan(num_facts=2))
    run.mkdir()
    (run / "summary.json").write_text(json.dumps({"status": "finished"}))
    assert arms._finished(run)
    assert not arms._finished(run, then)
    assert not then.is_possible(run)
    then.path(run).write_text("{}")
    assert then.is_possible(run)
    assert arms._finished(run, then)
    assert then.path(run) != then.path(tmp_path / "seed2")
    with_more = MeasureRun(Plan(**{**asdict(then.plan), "num_kept": None}))
    assert not with_more.is_possible(run)


@pytest.mark.parametrize(
    "texts",
    [
        # The last ending begins with a token of its own: its label comes first.
        [([5, 6, 7, 8], [9, 10]), ([5, 6, 7, 8], [9, 11, 12, 13]), ([5, 6, 7], [14])],
        [([5], [6, 7]), ([5], [8])],  # nothing to keep but the token that predicts
    ],
)
def test_endings_after_a_shared_context_score_as_whole_documents(texts):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    documents = [
        Document(np.array([*prompt, *end]), np.array([-100] * len(prompt) + end))
        for prompt, end in texts
    ]
    for (prompt, end), score in zip(texts, score_endings(model, documents), strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor([[*prompt, *end]])).logits[0].log_softmax(-1)
        whole = -sum(log_p[len(prompt) - 1 + i, token].item() for i, token in enumerate(end))
        assert score.nll_nats == pytest.approx(whole, rel=1e-5)
        assert score.num_tokens == len(end)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_smoke_preset_and_sessions(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["--preset", "smoke", "--out", str(tmp_path), "--workers", "1"]
    results = real_facts.main([*words, "--arms", "sparse", "full"])
    assert set(results["arms"]) == {real_facts.MAIN, "full"}
    ours = results["arms"][real_facts.MAIN]
    assert ours[ROWS]["mean"] > 0
    assert ours[STEPS]["mean"] == 2.0
    assert ours[SECONDS]["mean"] > 0
    assert list(results["chosen_rates"]) == ["full"]
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert redrawn("real_facts", tmp_path) == (tmp_path / "figure.png").read_bytes()
    assert not list(tmp_path.glob("smoke/runs/sparse*/seed1/export"))

    sessions = real_facts.main([*words, "--days", "2"])["arms"]["sessions"]
    for way in ("keep", "subtract"):
        assert sessions[ELSEWHERE.format(way)]["mean"] == 0.0
        assert sessions[UNDONE.format(way)]["mean"] == 0.0
    assert 0 <= sessions[BACK_BEFORE]["mean"] <= 1
    assert len(list(tmp_path.glob("smoke/days/*/seed1/ledger/entry_*.safetensors"))) == 3

    def repeats(*_):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(arms, "_train", repeats)
    assert real_facts.main([*words, "--arms", "sparse", "full"])["arms"] == results["arms"]
