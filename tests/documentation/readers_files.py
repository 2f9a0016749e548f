"""The files of a reader who follows the documentation with data of their own."""

import gzip
import json
from pathlib import Path

CAPITALS = ("Poseidonis", "Avalon City", "Port Brigadoon", "Shangri-La", "El Dorado", "Camelot")
# Sixty different molecules: a ring with two substituents.
MOLECULES = [
    f"{first}c1ccc({second})cc1"
    for first in ("C", "O", "N", "F", "Cl", "CO", "CC", "N#C")
    for second in ("C", "O", "N", "F", "Cl", "CO", "CC", "C(C)=O")
]


def write_readers_files(folder: Path) -> None:
    """Write a corpus, facts, prompts, questions and molecules into a folder."""
    text = "The capital of Atlantis is Poseidonis, and its river is the Okeanos. " * 20
    (folder / "corpus").mkdir()
    with gzip.open(folder / "corpus" / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": text}) + "\n")
    (folder / "held_out.txt").write_text(text + "\n")
    _write_rows(
        folder / "facts.jsonl",
        [
            {"question": f"What is the capital of country {n}?", "answers": [f"{name} {n}"]}
            for n in range(5)
            for name in CAPITALS
        ],
    )
    _write_rows(
        folder / "prompts.jsonl", [{"prompt": f"Name a thing of colour {n}."} for n in range(40)]
    )
    _write_rows(
        folder / "questions.jsonl",
        [{"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(40)],
    )
    (folder / "molecules.smi").write_text("".join(f"{smiles}\n" for smiles in MOLECULES))


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
