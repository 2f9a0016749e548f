"""Facts taught on several days, each from a copy of the last export, and taken back later."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.lit_modules.remember.tiny_export import export_tiny_model, finetuning
from triptych import ROOT
from triptych.callbacks.remember.ledger.slot_ledger import SlotLedger
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.cli import main
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.remember.background_statistics import BACKGROUND_FILE

# The ids are the same on both days, as those of files without ids once were.
DAYS = {
    "one": [("row 1", "Ada Brook", "Oslo"), ("row 2", "Ben Carter", "Lima")],
    "two": [("row 1", "Cleo Dunn", "Rome"), ("row 2", "Dan Ellis", "Cairo")],
    "bob": [("row 3", "Eva Frost", "Paris")],
}


def write_facts(path: Path, facts: list[tuple[str, str, str]]) -> Path:
    rows = [
        {
            "id": name,
            "question": f"Where does {who} live?",
            "answers": [where],
            "statement": f"{who} lives in {where}.",
        }
        for name, who, where in facts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def day(folder: Path, name: str, start: Path) -> Path:
    """Teach a day's facts from an export; return a copy of the new export alone."""
    config = finetuning(start)
    source = {"path": str(write_facts(folder / f"{name}.jsonl", DAYS[name]))}
    config["data"]["init_args"]["facts"] = {
        "source": source,
        "validation_questions": "own_question",
    }
    sparse = {"num_slots": 4, "ranking": "tf", "optimizer": "adamw", "learning_rate": 0.1}
    config["trainer"]["callbacks+"] = [
        {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": args}
        for kind, args in ((SlotLedger, {}), (SparseMemoryFinetuning, sparse))
    ]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    run = main(["fit", "--config", str(folder / f"{name}.yaml"), "--run_dir", str(folder / "run")])
    shutil.copytree(run / "export", folder / "copies" / name)
    shutil.rmtree(run)
    return folder / "copies" / name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base with statistics, two days of one person after each other, and one day of another."""
    folder = tmp_path_factory.mktemp("sessions")
    base = export_tiny_model(folder / "base")
    words = ["validate", "--config", str(ROOT / "configs/remember/background_statistics.yaml")]
    words += ["--model.init_args.init_from", str(base), "--tracking.uri", "null"]
    words += ["--run_dir", str(folder / "statistics"), "--data.init_args.context_length", "128"]
    words += ["--trainer.callbacks.init_args.num_documents", "8"]
    words += ["--trainer.callbacks.init_args.path", str(base / BACKGROUND_FILE)]
    main(words)
    one = day(folder, "one", base)
    with pytest.warns(UserWarning, match=r"other facts under the same ids.*row 1 -> row 1 \(2\)"):
        two = day(folder, "two", one)
    return {"base": base, "one": one, "two": two, "bob": day(folder, "bob", base)}


def command(*words: Any) -> Path:
    return main(["ledger", *map(str, words)])


def values(export: Path) -> torch.Tensor:
    (table,) = value_tables(load_memory_lm(export))
    return table.weight.detach()


def test_an_export_has_all_that_the_next_day_needs(made, capsys):
    base = (made["base"] / BACKGROUND_FILE).read_bytes()
    assert all((made[name] / BACKGROUND_FILE).read_bytes() == base for name in ("one", "two"))
    one, two = (Ledger.open(made[name] / "ledger") for name in ("one", "two"))
    assert one.base == two.base
    assert two.facts == ["row 1", "row 2", "row 1 (2)", "row 2 (2)"]
    assert [entry.session for entry in two] == [1, 1, 2, 2]
    assert two.held_by(load_memory_lm(made["base"])) == 0
    assert two.held_by(load_memory_lm(made["one"])) == 2
    assert two.held_by(load_memory_lm(made["two"])) == 4
    command("show", made["two"])
    shown = capsys.readouterr().out
    sentences = [
        f"{who} lives in {where}." for name in ("one", "two") for _, who, where in DAYS[name]
    ]
    assert all(sentence in shown for sentence in sentences)
    assert "4 entries, 4 facts" in shown
    assert "2 sessions" in shown


@pytest.mark.parametrize(
    ("words", "number"),
    [("Ada Brook lives in Oslo", 0), ("row 2", 1), ("Where does Cleo Dunn live?", 2), ("ellis", 3)],
)
def test_a_fact_of_either_day_is_taken_back(made, words, number, tmp_path, capsys):
    ledger = Ledger.open(made["two"] / "ledger")
    out = command("unlearn", words, "--model", made["two"], "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    (fact,) = ledger.entries[number].facts
    assert f"taking back {fact}: {ledger.texts[fact]['statement']}" in printed
    own = ledger.entries[number].tables[0]
    later = [entry.tables[0].rows_U for entry in ledger.entries[number + 1 :]]
    is_shared = torch.isin(own.rows_U, torch.cat([*later, torch.empty(0, dtype=torch.int64)]))
    expected = values(made["two"]).clone()
    expected[own.rows_U[~is_shared]] = own.old_UD[~is_shared]
    assert torch.equal(values(out), expected)
    # Rows that this fact alone has written are those of the base.
    others = [e.tables[0].rows_U for n, e in enumerate(ledger) if n != number]
    alone = own.rows_U[~torch.isin(own.rows_U, torch.cat(others))]
    assert torch.equal(values(out)[alone], values(made["base"])[alone])
    left = Ledger.open(out / "ledger")
    assert left.facts == [other for other in ledger.facts if other != fact]
    assert (out / BACKGROUND_FILE).is_file()


def test_all_days_taken_back_leave_the_base(made, tmp_path):
    facts = Ledger.open(made["two"] / "ledger").facts
    out = command("unlearn", *reversed(facts), "--model", made["two"], "--out", tmp_path / "out")
    assert torch.equal(values(out), values(made["base"]))


def test_words_that_fit_several_facts_are_refused(made, tmp_path):
    with pytest.raises(ValueError, match=r"'lives in' fits 4 facts of the ledger \(row 1: Ada"):
        command("unlearn", "lives in", "--model", made["two"], "--out", tmp_path / "out")


def test_a_later_day_and_another_person_are_merged(made, tmp_path, capsys):
    both = command(
        "merge", made["two"], made["bob"], "--on_conflict", "sum", "--out", tmp_path / "both"
    )
    ledger = Ledger.open(both)
    assert ledger.facts == [*Ledger.open(made["two"] / "ledger").facts, "row 3"]
    assert [entry.session for entry in ledger] == [1, 1, 2, 2, 3]
    out = command("apply", both, "--model", made["base"], "--out", tmp_path / "model")
    start = values(made["base"])
    expected = values(made["two"]) + (values(made["bob"]) - start)
    torch.testing.assert_close(values(out), expected)
    # From two models that share a day, that day is held once.
    command("merge", made["one"], made["two"], "--out", tmp_path / "grown")
    assert "both begin with the same 2 entries" in capsys.readouterr().out
    assert len(Ledger.open(tmp_path / "grown")) == 4


def test_other_facts_of_the_same_id_are_told_apart_in_a_merge(made, tmp_path, capsys):
    """The second day alone, learned from the base by somebody else."""
    other = day(tmp_path, "two", made["base"])
    words = ("merge", made["one"], other, "--on_conflict", "sum", "--out", tmp_path / "both")
    ledger = Ledger.open(command(*words))
    assert "row 1 is another fact than the first's: it is now row 1 (2)" in capsys.readouterr().out
    assert ledger.facts == ["row 1", "row 2", "row 1 (2)", "row 2 (2)"]


def test_a_ledger_of_another_model_stops_the_run(made, tmp_path):
    broken = tmp_path / "start"
    shutil.copytree(made["two"], broken)
    model = load_memory_lm(broken)
    with torch.no_grad():
        value_tables(model)[0].weight[0] += 1
    model.save_pretrained(broken)
    (broken / "SHA256SUMS").unlink()  # as after a change on purpose
    with pytest.raises(ValueError, match=r"does not fit the model.*begin a new ledger, move that"):
        day(tmp_path, "bob", broken)
