"""predict with agents: the answers are those of the validation of the run that exported them."""

import json
import shutil
import sys
import warnings
from argparse import ArgumentError
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from tests.conftest import run_in
from tests.lit_modules.remember.tiny_export import export_tiny_model
from triptych.cli import main

AGENTS = "triptych.datamodules.commune.agent_states.AgentStates"
COMMUNE = "triptych.lit_modules.commune"
NUMBERS = [(3, 4), (5, 9), (7, 1), (2, 2), (8, 6), (1, 1)]
# One agent's words are others' than the next one's: each gets a model of its own.
BASE = {"family": "llama", "hidden_size": 16, "num_layers": 2, "num_heads": 2}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    rows = [
        {"id": f"q{a}", "question": f"What is {a} + {b}?", "answer": f"#### {a + b}"}
        for a, b in NUMBERS
    ]
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", rows)


def attentive(folder: Path) -> str:
    """Enlarge a model's weights, so that its reply depends on what it has read."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        if ".layers." in name and parameter.ndim == 2:
            parameter.data *= 20
    model.save_pretrained(folder)
    return str(folder)


def _sections(task: dict, model: str, **arguments: object) -> dict[str, dict]:
    data = {"task": task, "batch_size": 4, "eval_batch_size": 6}
    return {
        "data": {"class_path": AGENTS, "init_args": data},
        "model": {"class_path": f"{COMMUNE}.{model}", "init_args": arguments},
        "trainer": {"max_steps": 1, "val_check_interval": 1, "num_sanity_val_steps": 0},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory, questions) -> dict[str, Path]:
    """A codec and an adapter that ran for one step, on agents that reply at length."""
    folder = tmp_path_factory.mktemp("runs")
    models = [attentive(export_tiny_model(folder / f"model{i}", False, seed=i)) for i in range(2)]
    source = {"path": str(questions)}
    task = {
        "class_path": "triptych.datamodules.commune.reasoning.Reasoning",
        "init_args": {"source": source, "val_source": source, "num_train": None, "num_val": None}
        | {"max_new_tokens": 6, "instruction": "Say #### and a number."},
    }
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("TRIPTYCH_CACHE", str(folder / "cache"))
        warnings.simplefilter("ignore")  # after a step nothing is settled
        agents = {"bases": [{"pretrained": name} for name in models], "num_agents": 2}
        sizes = {"num_latents": 4, "encoder_hidden": [8], "decoder_hidden": [8]}
        sections = _sections(task, "thought_autoencoder.ThoughtAutoencoder", codec=sizes)
        sections["model"]["init_args"]["agents"] = agents
        codec = run_in(folder, name="codec", **sections)
        sections = _sections(
            task,
            "thought_adapter.ThoughtAdapter",
            init_from=str(codec / "export"),
            adapter={"routing": {"mode": "all"}, "initial_gate": 3.0},
            rounds=3,
            text_between_rounds=True,
            probe_samples=0,
        )
        adapter = run_in(folder, name="adapter", **sections)
    return {"codec": codec, "adapter": adapter}


@pytest.fixture
def export(runs, tmp_path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(runs["adapter"] / "export", tmp_path / "export"))


def test_the_replies_are_those_of_validation(runs, questions, tmp_path, capsys):
    export, out = runs["adapter"] / "export", tmp_path / "out.jsonl"
    words = ["predict", str(export), "--input", str(questions), "--output", str(out)]
    assert main(words) == out
    rows = lines(out)
    (table,) = (runs["adapter"] / "samples").glob("*.json")
    validated = json.loads(table.read_text())
    validated = validated.get("rows", validated) if isinstance(validated, dict) else validated
    told = [row["with thoughts"] for row in validated]
    assert [agent["reply"] for row in rows for agent in row["agents"]] == told
    assert len(set(told)) > 6
    assert told != [row["alone"] for row in validated]
    assert [row["id"] for row in rows] == [f"q{a}" for a, _ in NUMBERS]
    assert [row["question"] for row in rows] == [f"What is {a} + {b}?" for a, b in NUMBERS]
    assert [row["agents"][1]["expected"] for row in rows] == [str(a + b) for a, b in NUMBERS]
    metrics = json.loads((runs["adapter"] / "summary.json").read_text())["metrics"]
    found = [row["consensus"] is not None for row in rows]
    assert sum(found) / len(found) == pytest.approx(metrics["val/thought/consensus"])
    found = [row["accuracy"] for row in rows]
    assert sum(found) / len(found) == pytest.approx(metrics["val/thought/accuracy"])
    assert "Accuracy of 6 rows" in capsys.readouterr().err
    whole = out.read_text()
    out.write_text("".join(whole.splitlines(keepends=True)[:2]))
    main([*words, "--resume", "--batch_size", "2"])
    assert lines(out)[:4] == rows[:4]


def test_questions_without_answers_are_answered(export, tmp_path):
    (tmp_path / "asked.txt").write_text("What is 1 + 2?\nWhat is 2 + 3?\n")
    out = tmp_path / "out.jsonl"
    words = ["--input", str(tmp_path / "asked.txt"), "--output", str(out)]
    main(["predict", str(export), *words, "--max_new_tokens", "3"])
    first, second = lines(out)
    assert (first["question"], second["question"]) == ("What is 1 + 2?", "What is 2 + 3?")
    assert first.keys() == {"question", "agents", "consensus", "majority"}
    assert [agent.keys() for agent in first["agents"]] == [{"name", "answer", "reply"}] * 2


def test_what_agents_cannot_do_says_what_to_do(runs, export, questions, tmp_path):
    asked = ["--input", str(questions), "--output", str(tmp_path / "out.jsonl")]
    adapter = str(runs["adapter"] / "export")
    with pytest.raises(ValueError, match=r"no adapter .* train one \(configs/commune/adapter"):
        main(["predict", str(runs["codec"] / "export"), *asked])
    for more, message in (
        (["--temperature", "1"], "--temperature fits a language model"),
        (["--samples", "2"], "--samples and --input exclude each other"),
    ):
        with pytest.raises(ArgumentError, match=message):
            main(["predict", adapter, *asked, *more])
    with pytest.raises(ArgumentError, match="--input is missing: Reasoning reads a file"):
        main(["predict", adapter, "--samples", "2", "--output", str(tmp_path / "out.jsonl")])
    write_rows(tmp_path / "bad.jsonl", [{"question": "What?", "answer": "much"}])
    with pytest.raises(ValueError, match="no number is found in 'answer'"):
        main(["predict", adapter, "--input", str(tmp_path / "bad.jsonl"), *asked[2:]])
    with pytest.raises(ValueError, match=r"predict .*export --input questions\.jsonl"):
        main(["chat", adapter])
    settings = yaml.safe_load((export / "config.yaml").read_text())
    settings["data"]["init_args"]["task"]["init_args"]["answer_kind"] = "word"
    (export / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(
        ValueError, match=r"(?s)the task in .*config\.yaml cannot be built.*answer_kind"
    ):
        main(["predict", str(export), *asked])
    (export / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"export has no config\.yaml"):
        main(["predict", str(export), *asked])


FOREIGN = """
from pathlib import Path
from triptych.datamodules.commune.reasoning import Reasoning
Path({mark!r}).write_text("imported")
class Shouted(Reasoning):
    def read_answer(self, reply):
        return reply.upper() or None
"""


def test_an_export_runs_no_code_of_others_unasked(export, questions, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "datamodules").mkdir()  # a user's own folder of this name comes first
    code = FOREIGN.format(mark=str(mark))
    (tmp_path / "code" / "shouting_task.py").write_text(code)
    (tmp_path / "code" / "datamodules" / "reasoning.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "code")
    settings = yaml.safe_load((export / "config.yaml").read_text())
    asked = ["--input", str(questions), "--output", str(tmp_path / "out.jsonl"), "--overwrite"]

    def predict(class_path: str, **more: object) -> None:
        task = settings["data"]["init_args"]["task"]
        task["class_path"] = class_path
        task["init_args"] |= more
        (export / "config.yaml").write_text(yaml.safe_dump(settings))
        main(["predict", str(export), *asked])

    refused = r"the class {}.* is not part of Triptych.*TRIPTYCH_TRUSTED_MODULES="
    with pytest.raises(ValueError, match=refused.format("shouting_task")):
        predict("shouting_task.Shouted")
    predict("datamodules.reasoning.Reasoning")  # the short name of ours
    with pytest.raises(ValueError, match="cannot be built"):
        predict("triptych.datamodules.commune.agent_states.AgentStates")  # no task
    reward = "triptych.objectives.rewards.python_function.PythonFunction"
    with pytest.raises(ValueError, match=refused.format(reward)):
        predict("triptych.datamodules.commune.reasoning.Reasoning", inner={"class_path": reward})
    assert not mark.exists()
    del settings["data"]["init_args"]["task"]["init_args"]["inner"]
    monkeypatch.setenv("TRIPTYCH_TRUSTED_MODULES", "shouting_task")
    predict("shouting_task.Shouted")
    rows = lines(tmp_path / "out.jsonl")
    assert rows[0]["agents"][0]["answer"] == rows[0]["agents"][0]["reply"].upper()
    assert mark.exists()
    sys.modules.pop("shouting_task")


def test_fresh_questions_are_debated_by_text(tmp_path, monkeypatch):
    task = {
        "class_path": "triptych.datamodules.commune.pooled_evidence.PooledEvidence",
        "init_args": {"num_agents": 2, "num_train": 32, "num_val": 4},
    }
    sections = _sections(
        task,
        "agent_pretraining.AgentPretraining",
        agents={"bases": [BASE], "num_agents": 2},
    )
    sections["data"]["class_path"] = "triptych.datamodules.commune.debate_questions.DebateQuestions"
    run = run_in(tmp_path, name="agents", **sections)
    export, out = str(run / "export"), tmp_path / "out.jsonl"
    main(["predict", export, "--samples", "7", "--output", str(out)])
    rows = lines(out)
    assert len(rows) == 7  # more than there were to validate
    assert {len(row["evidence"]) for row in rows} == {2}
    assert rows[0]["evidence"][0].keys() == {"digits", "nonce"}
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    main(["predict", export, "--samples", "7", "--output", str(out), "--overwrite"])
    assert lines(out) == rows
    main(["predict", export, "--samples", "7", "--output", str(out), "--overwrite", "--seed", "1"])
    assert [row["evidence"] for row in lines(out)] != [row["evidence"] for row in rows]
    with pytest.raises(ArgumentError, match="--samples is missing: PooledEvidence makes"):
        main(["predict", export, "--output", str(tmp_path / "other.jsonl")])
    write_rows(tmp_path / "rows.jsonl", [{"question": "What?"}])
    words = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "other.jsonl")]
    with pytest.raises(ValueError, match="makes its questions and reads no file: give --samples"):
        main(["predict", export, *words])


def test_an_export_in_its_run_needs_no_settings_of_its_own(runs, export, questions, tmp_path):
    (export / "config.yaml").unlink()
    shutil.copy(runs["adapter"] / "config.yaml", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    out = tmp_path / "out.jsonl"
    main(["predict", str(tmp_path), "--input", str(questions), "--output", str(out)])
    assert len(lines(out)) == len(NUMBERS)
