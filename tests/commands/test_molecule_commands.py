"""From one prior: a search, a second search, fine-tuning, sample and score, by the command line."""

import csv
import json
import sqlite3
from argparse import ArgumentError
from pathlib import Path

import pytest
import yaml

from tests.lit_modules.diversify.molecules.tiny_priors import write_molecules
from triptych import ROOT
from triptych.cli import main
from triptych.commands.score import reward_settings
from triptych.commands.training_molecules import molecules_of_file, training_molecules
from triptych.models.diversify.molecules.molecule import canonical_smiles

PRIOR = "configs/diversify/molecules_prior.yaml"
SEARCH = ROOT / "configs" / "diversify" / "molecules.yaml"
QUIET = ["--tracking.uri", "null", "--trainer.enable_progress_bar", "false"]


def fit(config: object, run: Path, *words: object) -> Path:
    return main(["fit", "--config", str(config), "--run_dir", str(run), *QUIET, *map(str, words)])


def search(start: Path, run: Path, *words: object) -> Path:
    own = ["--model.init_args.init_from", start / "export", "--trainer.max_steps", 2]
    own += ["--model.init_args.mara.threshold", 0.1, "--model.init_args.num_samples", 12]
    return fit(SEARCH, run, *own, *words)


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> Path:
    """A small prior on chains of atoms, nearly all of whose samples are molecules."""
    folder = tmp_path_factory.mktemp("prior")
    words = ["--data.init_args.smiles.source.path", write_molecules(folder)]
    words += ["--data.init_args.smiles.split.validation_share", 0.2, "--trainer.max_steps", 25]
    words += ["--model.init_args.rnn.hidden_size", 32, "--trainer.val_check_interval", 25]
    words += ["--model.init_args.num_samples", 20, "--data.init_args.batch_size", 8]
    return fit(PRIOR, folder / "run", *words)


@pytest.fixture(scope="module")
def first(prior, tmp_path_factory) -> Path:
    return search(prior, tmp_path_factory.mktemp("first") / "run")


def ledger_of(run: Path) -> dict[str, float]:
    connection = sqlite3.connect(run / "oracle.sqlite")
    try:
        return dict(connection.execute("SELECT smiles, score FROM calls"))
    finally:
        connection.close()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_search_and_fine_tuning_start_from_the_export_of_a_search(prior, first, tmp_path):
    names = {path.name for path in (first / "export").iterdir()}
    assert {"model.safetensors", "smiles_rnn.json", "tokenizer.json"} <= names
    second = search(first, tmp_path / "second")
    assert json.loads((second / "summary.json").read_text())["status"] == "finished"
    path = tmp_path / "own.smi"
    path.write_text("CCO\nCCN\nOCC\nCCOC\nCCNC\nCP\nCC.O\n")
    words = ["--data.init_args.smiles.source.path", path, "--trainer.max_steps", 2]
    words += ["--data.init_args.smiles.unknown_tokens", "leave_out"]
    words += ["--data.init_args.batch_size", 1]
    words += ["--data.init_args.smiles.split.validation_share", 0.3]
    words += ["--model.init_args.rnn", "null", "--model.init_args.init_from", second / "export"]
    words += ["--trainer.val_check_interval", 2, "--model.init_args.num_samples", 5]
    tuned = fit(PRIOR, tmp_path / "tuned", *words)
    left_out = json.loads((tuned / "summary.json").read_text())["left_out"]
    assert left_out == {"several parts": 1, "repeats": 1, "unknown tokens": 1}
    # The training molecules are found from a search back to its prior.
    assert training_molecules(second / "export") == training_molecules(prior / "export")
    assert training_molecules(tuned / "export") <= {"CCO", "CCN", "CCOC", "CCNC"}


def test_sample_writes_molecules_and_says_what_they_are(prior, first, tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    words = ["--samples", "60", "--seed", "3", "--temperature", "0.5"]
    main(["sample", str(first), "--output", str(rows), *words])
    written = table(rows)
    valid = [row["smiles"] for row in written if row["smiles"]]
    known = training_molecules(prior / "export")
    assert len(written) == 60
    assert valid
    for row in written:
        assert row["smiles"] in ("", canonical_smiles(row["sample"]))
        assert row["novel"] == ("" if not row["smiles"] else str(int(row["smiles"] not in known)))
    said = capsys.readouterr().err
    assert f"({len(valid)} of 60)" in said
    novel = len(set(valid) - known)
    assert f"({novel} of {len(set(valid))})" in said
    # The same samples as .smi, each once, and molecules that a file names are not novel.
    reference = tmp_path / "known.smi"
    reference.write_text("".join(f"{text} name\n" for text in valid))
    out = tmp_path / "made.smi"
    words += ["--unique", "--reference", str(reference)]
    main(["sample", str(first / "export"), "--output", str(out), *words])
    assert out.read_text().split() == list(dict.fromkeys(valid))
    assert f"(0 of {len(set(valid))})" in capsys.readouterr().err
    with pytest.raises(ValueError, match="exists already"):
        main(["sample", str(first), "--output", str(out)])
    with pytest.raises(ValueError, match=r"written as \.smi or \.csv"):
        main(["sample", str(first), "--output", str(tmp_path / "made.txt")])
    with pytest.raises(ArgumentError, match=r"--temperature is 0\.0"):
        main(["sample", str(first), "--output", str(out), "--temperature", "0"])


def test_training_molecules_that_are_gone_are_told(first, tmp_path, capsys):
    folder = tmp_path / "export"
    folder.mkdir()
    assert training_molecules(folder) is None
    assert "there is no" in capsys.readouterr().err
    settings = yaml.safe_load((first / "export" / "config.yaml").read_text())
    settings["model"]["init_args"]["init_from"] = str(tmp_path / "gone")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert training_molecules(folder) is None
    assert "gone" in capsys.readouterr().err


def test_score_gives_the_scores_of_the_search(first, tmp_path, capsys):
    ledger = ledger_of(first)
    path, out = tmp_path / "molecules.csv", tmp_path / "scores.csv"
    path.write_text("structure,id\n" + "".join(f"{text},x\n" for text in ledger) + "C1CC,bad\n")
    words = ["score", str(path), "--column", "structure", "--output", str(out)]
    main([*words, "--config", str(SEARCH)])
    rows = table(out)
    assert [row["smiles"] for row in rows] == [*ledger, "C1CC"]
    assert rows[-1]["error"] == "no molecule"
    assert rows[-1]["score"] == ""
    for row in rows[:-1]:
        assert float(row["score"]) == pytest.approx(ledger[row["canonical"]], abs=1e-5)
        assert float(row["drug_likeness"]) > 0
    assert f"{len(ledger)} scored, 1 no molecules, 0 failed" in capsys.readouterr().err
    # By the run's own configuration and ledger, which then has no new call.
    words += ["--overwrite", "--ledger", str(first / "oracle.sqlite"), "--config", str(first)]
    main(words)
    assert table(out) == rows
    assert ledger_of(first) == ledger
    with pytest.raises(ValueError, match="exists already"):
        main(["score", str(path), "--config", str(SEARCH), "--output", str(out)])


def test_score_takes_an_objective_alone_and_reports_failures(tmp_path, capsys):
    (tmp_path / "own_scores.py").write_text(
        "def f(molecule):\n"
        "    if molecule.GetNumAtoms() == 2:\n        raise RuntimeError('no such pose')\n"
        "    return molecule.GetNumAtoms() / 10\n"
    )
    component = "triptych.objectives.rewards.molecules.python_component.PythonComponent"
    settings = {
        "components": [{"class_path": component, "init_args": {"function": "own_scores:f"}}]
    }
    config = tmp_path / "objective.yaml"
    config.write_text(yaml.safe_dump({"objective": settings}))
    path, out = tmp_path / "m.smi", tmp_path / "scores.csv"
    path.write_text("CCO ethanol\nCC ethane\nC\n")
    main(["score", str(path), "--config", str(config), "--output", str(out)])
    rows = table(out)
    assert [row["score"] for row in rows] == ["0.3", rows[1]["score"], "0.1"]
    assert "no such pose" in rows[1]["error"]
    assert "2 scored, 0 no molecules, 1 failed" in capsys.readouterr().err


def test_what_cannot_be_scored_says_what_to_do(tmp_path):
    config = tmp_path / "other.yaml"
    config.write_text("model: {init_args: {reward: {class_path: x}}}")
    with pytest.raises(ValueError, match="has no objective"):
        reward_settings(config)
    with pytest.raises(ValueError, match=r"--stage 3: .* has 0 stages"):
        reward_settings(SEARCH, 3)
    empty = tmp_path / "empty.smi"
    empty.write_text("")
    with pytest.raises(ValueError, match="has no rows"):
        molecules_of_file(empty, "smiles")
    words = ["score", str(empty), "--config", str(config)]
    with pytest.raises(ValueError, match=r"written as \.csv"):
        main([*words, "--output", "scores.txt"])
