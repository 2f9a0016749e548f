"""Studies of MARA's rivals on a chat model: words, numbers, verdicts, and runs on a tiny model."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.models.tiny_chat_model import tiny_chat_folder
from tests.studies.conftest import redrawn
from triptych.cli import main
from triptych.studies import creative_qa, pass_at_k
from triptych.studies.diversify import chat_runs, creative_chat


def test_validations_are_read_in_their_order(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text(
        "step,train/reward,val/a/reward,val/a/distinct\n0,,0.5,9\n1,0.4,,\n2,,0.75,8\n2,,,\n"
    )
    found = chat_runs.validations(tmp_path, "a", {"r": "reward", "d": "distinct"})
    assert found == [{"r": 0.5, "d": 9}, {"r": 0.75, "d": 8}]


def test_samples_are_those_of_the_last_step(tmp_path: Path):
    folder = tmp_path / "samples"
    folder.mkdir()
    for step in (2, 10):
        rows = [
            {"set": of_set, "prompt": prompt, "completion": f"{of_set} {prompt} {step}"}
            for of_set in ("a", "b")
            for prompt in ("x", "y", "z", "x")
        ]
        (folder / f"step_{step}.json").write_text(json.dumps(rows))
    found = chat_runs.last_samples(tmp_path, "b", num_prompts=2)
    assert found == {"x": ["b x 10", "b x 10"], "y": ["b y 10"]}


def creative(reward: float, distinct: float) -> dict[str, float]:
    return {creative_chat.REWARD: reward, creative_chat.DISTINCT: distinct}


@pytest.mark.parametrize(("reward", "distinct", "held"), [(0.6, 8.4, 2), (0.5, 9, 1), (0.7, 7, 1)])
def test_verdicts_on_open_prompts(reward: float, distinct: float, held: int):
    numbers = {
        chat_runs.RLOO: [creative(0.61, 7)] * 3,
        chat_runs.MARA: [creative(reward, distinct)],
    }
    assert sum(check.held for check in creative_chat.checks(numbers).values()) == held


def right(one: float, sixteen: float, distinct: float) -> dict[str, float]:
    numbers = (one, sixteen, distinct)
    names = (pass_at_k.PASS_1, pass_at_k.PASS_16, pass_at_k.DISTINCT)
    first = f"{pass_at_k.words_of(pass_at_k.SETS[0])}: "
    return {first + name: value for name, value in zip(names, numbers, strict=True)}


def test_verdicts_on_pass_at_k():
    start = right(0.2, 0.6, 3)
    good = {chat_runs.RLOO: [right(0.6, 0.65, 3)], chat_runs.MARA: [right(0.5, 0.8, 5)]}
    assert all(check.held for check in pass_at_k.checks(good, start).values())
    bad = good | {chat_runs.MARA: [right(0.22, 0.5, 3)]}
    assert not any(check.held for check in pass_at_k.checks(bad, start).values())


def test_steps_are_those_of_the_configuration():
    settings = yaml.safe_load((ROOT / creative_chat.CONFIG).read_text())
    assert settings["trainer"]["max_steps"] == creative_chat.STEPS == pass_at_k.STEPS["smollm2"]


def test_a_folder_without_the_prompts_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="wildchat_style"):
        creative_chat.prompt_words(str(tmp_path))


def test_words_of_every_rival_are_settings(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    task = (*pass_at_k.task_words(4), *creative_chat.prompt_words(None))
    losses = []
    for own in chat_runs.rival_words(0.9, 0.02, 0.05).values():
        words = (*chat_runs.run_words(creative_chat.CONFIG, "smollm2", 2), *task, *own)
        with pytest.raises(SystemExit) as end:
            main(["fit", *words, "--print_config"])
        assert end.value.code == 0
        model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
        loss = (model["loss"] or {"class_path": "Rloo"})["class_path"].rpartition(".")[2]
        losses.append((loss, model["mara"] is not None, model["entropy_bonus"] is not None))
    assert losses == [
        ("Rloo", False, False),
        ("Rloo", True, False),
        ("Rloo", False, True),
        ("DifferentialSmoothing", False, False),
        ("PassAtK", False, False),
        ("Unlikeliness", False, False),
    ]


def prompts_of_noveltybench(folder: Path) -> None:
    path = folder / creative_chat.PROMPTS_FILE
    path.parent.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {
            "conversation": [{"role": "user", "content": f"Name thing number {number}."}],
            "category": category,
        }
        for number, category in enumerate((*creative_chat.CATEGORIES * 4, "coding", None))
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_creative_qa_of_a_chat_model_runs_through(
    tmp_path: Path, smollm2: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(creative_chat, "STEPS", 2)
    monkeypatch.setattr(creative_chat, "ARMS", (chat_runs.RLOO, chat_runs.MARA))
    prompts_of_noveltybench(tmp_path / "data")
    model = tiny_chat_folder(tmp_path / "chat", smollm2, max_positions=192)
    out = tmp_path / "out"
    words = ["--preset", "smollm2", "--workers", "1", "--seeds", "1", "--tracking_uri", "null"]
    words += ["--data_dir", str(tmp_path / "data"), "--out", str(out), "--model", model]
    results = creative_qa.main(words)
    assert set(results["arms"]) == set(creative_chat.ARMS)
    samples = results["samples"][chat_runs.MARA]
    assert samples
    assert all(len(replies) == 10 for replies in samples.values())
    assert next(iter(samples)) in (out / "report.html").read_text()
    assert redrawn("creative_qa", out) == (out / "figure.png").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_pass_at_k_runs_through(tmp_path: Path, smollm2: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    arms = (chat_runs.RLOO, chat_runs.MARA)
    words = {
        name: own for name, own in chat_runs.rival_words(1.0, 0.02, 0.05).items() if name in arms
    }
    monkeypatch.setattr(pass_at_k, "rival_words", lambda *settings: words)
    model = tiny_chat_folder(tmp_path / "chat", smollm2, max_positions=192)
    results = pass_at_k.main(["--workers", "1", "--out", str(tmp_path / "out"), "--model", model])
    assert set(results["arms"]) == set(arms)
    assert results["start"].keys() == results["arms"][chat_runs.MARA].keys()
    assert redrawn("pass_at_k", tmp_path / "out") == (tmp_path / "out/figure.png").read_bytes()
