"""A short slice of each campaign, by the commands that run the whole."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from triptych.campaigns.book import CLEAN, FAULTY, Book, chance, chosen
from triptych.campaigns.kill_plans import KINDS, random_plan
from triptych.campaigns.shipped_runs import CONFIGS, NEEDS_MORE, RUNS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="campaigns fork processes")


def campaign(folder: Path, name: str, *words: object) -> dict:
    command = [sys.executable, "-m", f"campaigns.{name}", "--out", str(folder), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    results = json.loads((folder / "results.json").read_text())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return results


@pytest.mark.slow
def test_a_slice_of_the_damaged_artefacts(tmp_path):
    names = ["export", "older prior", "ledger entry", "checkpoint", "tracking record"]
    results = campaign(tmp_path, "fuzz_artifacts", "--cases", 30, "--seed", 22, "--only", *names)
    assert results["faulty"] == 0
    assert results["tried"] == 35


@pytest.mark.slow
def test_a_slice_of_the_malformed_records(tmp_path):
    words = ("--cases", 12, "--seed", 22, "--only", "facts", "replies")
    assert campaign(tmp_path, "fuzz_records", *words)["faulty"] == 0


@pytest.mark.slow
def test_a_slice_of_the_kills(tmp_path):
    words = ("--cases", 2, "--seed", 22, "--only", "one_or_two_base")
    results = campaign(tmp_path, "kill_resume", *words)
    assert (results["tried"], results["faulty"]) == (2, 0)


def test_every_shipped_experiment_is_killed_or_said_to_need_more():
    shipped = {
        path.relative_to(CONFIGS).with_suffix("").as_posix()
        for path in CONFIGS.rglob("*.yaml")
        if path.parent.name not in ("data", "hardware") and path.name != "base.yaml"
    }
    killed = {run.config for run in RUNS.values()}
    assert killed | NEEDS_MORE == shipped
    assert not killed & NEEDS_MORE


def test_a_book_goes_on_and_keeps_the_first_of_each_fault(tmp_path, capsys):
    book = Book(tmp_path, "python -m campaigns.x --seed 1")
    book.add("export", "0 a: cut short", CLEAN, "refused", "named")
    book.add("export", "1 a: flipped", FAULTY, "damage taken", "first")
    with (tmp_path / "cases.jsonl").open("a") as file:
        file.write('{"group": "half a li')  # of a campaign that was killed
    again = Book(tmp_path, book.command)
    assert again.has("1 a: flipped")
    assert not again.has("2 a: flipped")
    again.add("export", "2 a: flipped", FAULTY, "damage taken", "second")
    again.add("export", "3 a: junk", CLEAN, "taken", "the content is the same")
    assert again.close() == 2
    assert "| export | 4 | 2 | 2 | damage taken 2, refused 1, taken 1 |" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert [fault["detail"] for fault in results["first_faults"]] == ["first"]
    assert results["rightly_taken"] == {"export: a: junk": "the content is the same"}
    assert len(Book(tmp_path, book.command).cases) == 4


def test_cases_depend_on_their_seed_alone():
    assert chance(7, "a", 3).random() == chance(7, "a", 3).random() != chance(8, "a", 3).random()
    with pytest.raises(ValueError, match="there is no codecs in export, prior"):
        chosen(["export", "prior"], ["codecs"])
    assert chosen(["export", "prior"], []) == ["export", "prior"]


@pytest.mark.parametrize("kind", KINDS)
def test_plans_of_every_kind(kind):
    plans = [random_plan(kind, chance(1, kind, number), 10.0, 8) for number in range(20)]
    assert all(plan.number >= 1 and 0 <= plan.seconds <= 10 for plan in plans)
    assert {plan.after for plan in plans} == {True, False}


def test_a_plan_kills_in_the_hook_that_it_names():
    program = (
        "from triptych.campaigns.kill_plans import KillPlan\n"
        "from lightning.pytorch.trainer import call\n"
        "call._call_callback_hooks = lambda trainer, hook: print(hook, flush=True)\n"
        "KillPlan('in a validation', 2, 0.0, True).install()\n"
        "for hook in ['on_validation_batch_end', 'on_validation_end'] * 3:\n"
        "    call._call_callback_hooks(None, hook)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    hooks = done.stdout.split()
    assert hooks == ["on_validation_batch_end", "on_validation_end", "on_validation_batch_end"]
