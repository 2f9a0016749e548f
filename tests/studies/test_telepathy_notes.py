import json

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.conftest import ROOT
from tests.studies.conftest import redrawn
from triptych.datamodules.commune.noted_questions import NotedQuestions
from triptych.datamodules.sources.records import RecordSource
from triptych.models.commune.agent import Agent
from triptych.studies import telepathy
from triptych.studies.commune import telepathy_smollm2
from triptych.studies.commune.passed_caches import replies_with_passed_caches
from triptych.studies.commune.telepathy_notes import (
    HELD_OUT_WORDINGS,
    NAMES,
    PLACES,
    WORDINGS,
    notes_rows,
    write_notes,
)


def facts(rows):
    """Every fact that a note states."""
    words = [
        note.replace(".", " ").replace(",", " ").split() for row in rows for note in row["notes"]
    ]
    return {
        (next(w for w in note if w in NAMES), next(w for w in note if w in PLACES))
        for note in words
    }


@pytest.mark.parametrize("num_agents", [2, 3])
def test_held_out_rows_have_facts_and_wordings_of_their_own(num_agents):
    train = notes_rows("train", num_agents, 800)
    held_out = notes_rows("held_out", num_agents, 100)
    assert len({tuple(row["notes"]) for row in train}) == 800
    assert not facts(train) & facts(held_out)
    assert {name for name, _ in facts(train)} == {name for name, _ in facts(held_out)} == set(NAMES)
    assert {place for _, place in facts(train)} == {place for _, place in facts(held_out)}
    assert len(facts(train)) == 192
    assert len(NAMES) == 32
    assert len(PLACES) == 8
    assert not set(WORDINGS) & set(HELD_OUT_WORDINGS)
    assert facts(notes_rows("new_wordings", num_agents, 100)) <= facts(train)
    for row in held_out:
        for agent, question in enumerate(row["questions"]):
            name = question.removeprefix("Where is ").rstrip("?")
            assert name in row["notes"][(agent + 1) % num_agents]
            assert name not in row["notes"][agent]
            assert row["answers"][agent] in row["notes"][(agent + 1) % num_agents]


def numbers(**changed):
    found = {"single": 0.1, "shuffled": 0.12, "constant": 0.12, "thought": 0.6, "text_full": 0.6}
    return {"2 agents": [dict.fromkeys(telepathy_smollm2.CONDITIONS, 0.3) | found | changed]}


def test_bounds_are_those_of_the_claim():
    good = telepathy_smollm2.checks(numbers(), ["2 agents"])
    assert len(good) == 4
    assert all(check.held for check in good.values())
    for changed in ({"thought": 0.57}, {"shuffled": 0.16}, {"constant": 0.04}):
        verdicts = telepathy_smollm2.checks(numbers(**changed), ["2 agents"]).values()
        assert [check.held for check in verdicts].count(False) == 1
    assert {way.label for way in telepathy_smollm2.AXES} == {
        "2 agents, before prompt",
        "2 agents, after bos",
        "2 agents, before reply",
        "2 agents, 4 state tokens",
        "2 agents, 16 state tokens",
    }


def test_a_passed_cache_is_the_other_note_read_before_ones_own(smollm2, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,
        )
    )
    agent = Agent(model.eval(), tokenizer)
    source = RecordSource(str(write_notes(tmp_path, "train", 2, 6)))
    task = NotedQuestions(source, source, num_train=None, num_val=None, max_new_tokens=3)
    questions = task.questions("train")
    passed = replies_with_passed_caches(agent, task, questions)
    for number in (0, 1):
        joined = []
        for question in questions:
            evidence = [dict(entry) for entry in question.evidence]
            notes = [evidence[1 - number]["note"], evidence[number]["note"]]
            evidence[number]["note"] = "\n".join(notes)
            joined.append(type(question)(question.answers, evidence))
        ids, mask = agent.pad(task.encode(tokenizer, joined, number))
        assert passed.replies[number] == agent.decode(agent.generate(ids, mask, 3))
    assert len(set(passed.replies[0])) > 1
    # 2 layers, keys and values of 16 numbers, 4 bytes, for each token of each agent's cache
    assert round(passed.bytes_per_question * len(questions)) % (2 * 2 * 16 * 4) == 0
    assert passed.milliseconds_per_question > 0


def test_the_figure_is_drawn_from_the_results(tmp_path):
    found = numbers()["2 agents"][0]
    found |= {f"{name}, bytes": 40.0 for name in ("text_2", "text_full", "thought")}
    found |= {f"{name}, ms": 12.0 for name in ("text_2", "text_full", "thought", "KV passed")}
    found["KV passed"] = 0.6
    results = {
        "claimed": ["2 agents"],
        "arms": {
            label: {key: {"per_seed": [value, value]} for key, value in found.items()}
            for label in ("2 agents", "2 agents, before prompt")
        },
    }
    from triptych.studies.commune.telepathy_figure import draw_results

    draw_results(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_the_study_of_real_models_runs_through(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "study"
    results = telepathy.main(["--preset", "smollm2_smoke", "--workers", "1", "--out", str(out)])
    assert json.loads((out / "results.json").read_text()) == results
    two = results["arms"]["2 agents"]
    assert two["KV passed, bytes"]["mean"] > two["thought, bytes"]["mean"]
    assert two["thought, bytes"]["mean"] > two["latents, bytes"]["mean"] == 2 * 8 * 4
    assert {"thought, held out", "thought, new facts", "thought, new wordings"} <= two.keys()
    assert two["text_full"]["mean"] > two["single"]["mean"]
    assert results["axes"] == ["2 agents, before prompt", "2 agents, 2 state tokens"]
    assert redrawn("telepathy", out) == (out / "figure.png").read_bytes()
