"""Whole runs with a ledger, and `train.py ledger` on what they leave behind."""

import json
import os
import shutil
import signal
import sys
import time
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from tests.conftest import ROOT
from tests.lit_modules.remember.tiny_export import export_tiny_model, finetuning
from tests.train_process import TrainProcess, run_train_on_two, start_train
from triptych.cli import main
from triptych.cli import run as run_command_line
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.slot_deltas import SlotDelta
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_lm import load_memory_lm

SPARSE = {
    "class_path": "triptych.callbacks.remember.sparse_memory_finetuning.SparseMemoryFinetuning",
    "init_args": {"num_slots": 4, "ranking": "tf", "optimizer": "adamw", "learning_rate": 0.1},
}
LEDGER = {"class_path": "triptych.callbacks.remember.ledger.slot_ledger.SlotLedger"}


def write_config(folder: Path, export: Path, name: str, num_facts: int = 6, seed: int = 0) -> Path:
    """An experiment that teaches some facts by slots and keeps a ledger."""
    config = finetuning(export)
    config["data"]["init_args"]["facts"] |= {"num_facts": num_facts, "subset_seed": seed}
    config["trainer"]["callbacks+"] = [LEDGER, SPARSE]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and two runs that taught it facts: six, and four others."""
    folder = tmp_path_factory.mktemp("made")
    base = export_tiny_model(folder / "base" / "export")
    for name, settings in (("a", {"num_facts": 6}), ("b", {"num_facts": 4, "seed": 5})):
        config = write_config(folder, base, name, **settings)
        main(["fit", "--config", str(config), "--run_dir", str(folder / name)])
    return folder


def command(*words: Any) -> Path:
    return main(["ledger", *map(str, words)])


def values(export: Path) -> torch.Tensor:
    (table,) = value_tables(load_memory_lm(export))
    return table.weight.detach()


def same(a: Path, b: Path) -> bool:
    """Whether two exported models are the same to the bit."""
    one, other = (load_memory_lm(path).state_dict() for path in (a, b))
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_exported_model_is_the_base_with_the_ledger(made, tmp_path, capsys):
    ledger = Ledger.open(made / "a" / "ledger")
    assert len(ledger) == len(ledger.facts) == 6
    assert [entry.step for entry in ledger] == [4, 8, 12, 16, 20, 24]
    assert ledger.held_by(load_memory_lm(made / "a" / "export")) == 6
    assert ledger.held_by(load_memory_lm(made / "base" / "export")) == 0
    assert (
        "ledger/overlap_share" in json.loads((made / "a" / "summary.json").read_text())["metrics"]
    )

    out = command("apply", made / "a", "--model", made / "base" / "export", "--out", tmp_path / "o")
    assert out == tmp_path / "o"
    assert same(out, made / "a" / "export")
    assert not same(out, made / "base" / "export")
    assert "held 0 of 6 entries, and now holds 6" in capsys.readouterr().out
    back = command("revert", out / "ledger", "--model", out, "--out", tmp_path / "back")
    assert same(back, made / "base" / "export")
    assert not (back / "ledger").exists()

    half = command("revert", made / "a", "--model", out, "--to", 3, "--out", tmp_path / "half")
    assert Ledger.open(half / "ledger").facts == ledger.facts[:3]
    words = ("apply", made / "a", "--model", half, "--to", 4, "--out", tmp_path / "four")
    assert Ledger.open(made / "a" / "ledger").held_by(load_memory_lm(command(*words))) == 4
    with pytest.raises(ValueError, match=r"holds 3 entries, and cannot go back to 4.*apply --to"):
        command("revert", made / "a", "--model", half, "--to", 4, "--out", tmp_path / "no")


def partly_shared(ledger: Ledger) -> tuple[int, torch.Tensor]:
    """An entry some of whose rows are written later, and which of its rows these are."""
    for number, entry in enumerate(ledger):
        later = [other.tables[0].rows_U for other in ledger.entries[number + 1 :]]
        is_shared_U = torch.isin(entry.tables[0].rows_U, torch.cat([*later, torch.tensor([-1])]))
        if is_shared_U.any() and not is_shared_U.all():
            return number, is_shared_U
    raise AssertionError("each entry shares all of its rows or none")


@pytest.mark.parametrize("shared_rows", ["keep", "subtract"])
def test_unlearning_one_of_six_facts(made, tmp_path, shared_rows, capsys):
    ledger, export = Ledger.open(made / "a" / "ledger"), made / "a" / "export"
    number, is_shared = partly_shared(ledger)
    own, (fact,) = ledger.entries[number].tables[0], ledger.entries[number].facts
    words = ("unlearn", fact, "--model", export, "--shared_rows", shared_rows)
    out = command(*words, "--out", tmp_path / "out")
    printed = capsys.readouterr().out

    expected = values(export).clone()
    expected[own.rows_U[~is_shared]] = own.old_UD[~is_shared]
    if shared_rows == "subtract":
        difference = (own.new_UD - own.old_UD)[is_shared]
        expected[own.rows_U[is_shared]] -= difference
    assert torch.equal(values(out), expected)
    assert f"{int((~is_shared).sum())} rows set to the bit" in printed
    assert ("in these rows may remain" in printed) == (shared_rows == "keep")

    # What is written is a whole model: its tokenizer, and books that go on from here.
    assert AutoTokenizer.from_pretrained(out)("x") == AutoTokenizer.from_pretrained(export)("x")
    left = Ledger.open(out / "ledger")
    assert left.facts == [other for other in ledger.facts if other != fact]
    rest = command("unlearn", *left.facts, "--model", out, "--out", tmp_path / "rest")
    assert same(rest, made / "base" / "export")


def test_one_entry_is_applied_and_reverted_by_its_file(made, tmp_path, capsys):
    first = made / "a" / "ledger" / "entry_000000.safetensors"
    base = made / "base" / "export"
    out = command("apply", first, "--model", base, "--out", tmp_path / "one")
    assert not same(out, base)
    assert same(command("revert", first, "--model", out, "--out", tmp_path / "none"), base)
    capsys.readouterr()
    command("revert", first, "--model", made / "a" / "export", "--out", tmp_path / "others")
    assert "rows that others wrote since left as they are" in capsys.readouterr().out


def test_difference_of_two_models_is_a_delta(made, tmp_path, capsys):
    base, export = made / "base" / "export", made / "a" / "export"
    file = command("diff", base, export, "--out", tmp_path / "learned.safetensors")
    ledger = Ledger.open(made / "a" / "ledger")
    assert SlotDelta.load(file).num_rows == ledger.squashed().num_rows
    assert f"{ledger.squashed().num_rows:,} rows" in capsys.readouterr().out
    assert same(command("apply", file, "--model", base, "--out", tmp_path / "o"), export)
    file = command("diff", made / "a", made / "b", "--out", tmp_path / "a_to_b.safetensors")
    there = command("apply", file, "--model", export, "--out", tmp_path / "b")
    assert same(there, made / "b" / "export")
    assert command("diff", made / "a", made / "a") == made / "a"
    assert "0 rows" in capsys.readouterr().out


def test_merging_reports_conflicts(made, tmp_path, capsys):
    a, b = (Ledger.open(made / name / "ledger") for name in "ab")
    rows = [ledger.squashed().tables[0].rows_U for ledger in (a, b)]
    num_shared = int(torch.isin(*rows).sum())
    assert num_shared > 0
    with pytest.raises(ValueError, match=f"both ledgers wrote {num_shared} of the same"):
        command("merge", made / "a", made / "b", "--out", tmp_path / "both")
    assert not (tmp_path / "both").exists()
    words = ("merge", made / "a", made / "b", "--on_conflict", "sum", "--out", tmp_path / "both")
    both = command(*words)
    printed = capsys.readouterr().out
    assert f"{num_shared} rows were written by both" in printed
    assert a.facts[0] in printed

    base = made / "base" / "export"
    out = command("apply", both, "--model", base, "--out", tmp_path / "model")
    start = values(base)
    expected = values(made / "b" / "export") + (values(made / "a" / "export") - start)
    torch.testing.assert_close(values(out), expected)
    facts = Ledger.open(both).facts
    assert facts == [*a.facts, *(fact for fact in b.facts if fact not in a.facts)]
    words = ("unlearn", *facts, "--model", out, "--out", tmp_path / "bare")
    assert same(command(*words), base)


def test_show_and_overlap(made, capsys):
    ledger = Ledger.open(made / "a" / "ledger")
    assert command("show", made / "a") == made / "a" / "ledger"
    printed = capsys.readouterr().out
    assert all(fact in printed for fact in ledger.facts)
    assert "6 entries, 6 facts" in printed

    fact = ledger.facts[1]
    rows = ledger.rows_of(fact)[0].tolist()
    command("show", made / "a" / "ledger", "--fact", fact)
    assert f"table 0, {len(rows)} rows: {' '.join(map(str, rows))}" in capsys.readouterr().out
    command("show", made / "a", "--row", rows[0])
    assert ", ".join(ledger.facts_of(rows[0])) in capsys.readouterr().out
    command("show", made / "a" / "ledger" / "entry_000001.safetensors")
    assert f"{len(rows)} rows; changes" in capsys.readouterr().out

    command("overlap", made / "b" / "ledger" / "entry_000000.safetensors", made / "a")
    b = Ledger.open(made / "b" / "ledger").entries[0]
    num_shared = int(torch.isin(b.tables[0].rows_U, ledger.squashed().tables[0].rows_U).sum())
    assert f"{num_shared} of {b.num_rows} rows" in capsys.readouterr().out


def test_what_does_not_belong_together_is_refused(made, tmp_path):
    other = export_tiny_model(tmp_path / "other", seed=1)
    for words in (
        ("apply", made / "a", "--model", other),
        ("unlearn", Ledger.open(made / "a" / "ledger").facts[0], "--model", other),
    ):
        more = ("--ledger", made / "a") if words[0] == "unlearn" else ()
        with pytest.raises(ValueError, match=r"made on another base.*Give the model"):
            command(*words, *more, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match="the ledger has no fact nobody"):
        command("unlearn", "nobody", "--model", made / "a" / "export", "--out", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no ledger in .*other, nor beside it.*--ledger"):
        command("unlearn", "nobody", "--model", other, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match="exists already"):
        command("apply", made / "a", "--model", made / "base" / "export", "--out", made / "b")
    for words in (("merge", made / "a"), ("shov", made / "a"), ("show", made / "a", "--rows", "2")):
        with pytest.raises(ArgumentError):
            command(*words)

    broken = tmp_path / "broken"
    shutil.copytree(made / "a" / "ledger", broken)
    file = broken / "entry_000004.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"entry_000004.safetensors is cut short or damaged"):
        command("show", broken)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["show", "nowhere"], 1, "error: there is no ledger"),
        (["merge", "a"], 2, "error: the following arguments are required: second, --out"),
        (["--help"], 0, ""),
    ],
)
def test_it_ends_with_one_message_and_a_code(monkeypatch, workdir, capsys, words, code, message):
    monkeypatch.setattr(sys, "argv", ["train.py", "ledger", *words])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with pytest.raises(SystemExit) as end:
        run_command_line()
    assert end.value.code == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert code or "unlearn" in shown.out


@pytest.mark.slow
def test_a_run_killed_and_resumed_has_the_ledger_of_one_that_was_not(made, tmp_path):
    config = yaml.safe_load(write_config(tmp_path, made / "base" / "export", "long").read_text())
    config["data"]["init_args"]["steps_per_visit"] = 12
    config["checkpoint"] = {"every_n_train_steps": 7}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(config))

    def start(name: str, *words: str) -> TrainProcess:
        return start_train(tmp_path, "fit", "--config", "long.yaml", "--run_dir", name, *words)

    def files(name: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted((tmp_path / name / "ledger").iterdir())}

    assert start("whole").wait() == 0
    killed, deadline = start("killed"), time.monotonic() + 240
    second = tmp_path / "killed" / "ledger" / "entry_000001.safetensors"
    while not second.exists():
        assert killed.process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.process.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    left = files("killed")
    assert len([name for name in left if name.startswith("entry_")]) < 6
    whole = files("whole")
    assert all(left[name] == whole[name] for name in left if name.startswith("entry_"))
    shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    assert start("killed", "--ckpt_path", "killed/checkpoints/last.ckpt").wait() == 0
    assert start("new", "--ckpt_path", "copy/checkpoints/last.ckpt").wait() == 0
    assert files("new") == files("killed") == whole
    assert same(tmp_path / "killed" / "export", tmp_path / "whole" / "export")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_keep_one_ledger(made, tmp_path):
    path = write_config(tmp_path, made / "base" / "export", "two")
    config = yaml.safe_load(path.read_text())
    del config["trainer"]["devices"]
    path.write_text(yaml.safe_dump(config))
    overlay = ROOT / "configs" / "hardware" / "ddp2_cpu.yaml"
    words = ("fit", "--config", path, "--config", overlay, "--run_dir", "two")
    run_train_on_two(tmp_path, *words)
    one, two = Ledger.open(made / "a" / "ledger"), Ledger.open(tmp_path / "two" / "ledger")
    assert two.held_by(load_memory_lm(tmp_path / "two" / "export")) == 6
    assert [entry.facts for entry in two] == [entry.facts for entry in one]
    assert two.base == one.base
    for own, other in zip(one, two, strict=True):
        assert own.tables[0].rows_U.tolist() == other.tables[0].rows_U.tolist()
