"""``python train.py unlearn "sentence or id" --model EXPORT --out NEW``: take facts back."""

from collections.abc import Sequence
from pathlib import Path

from triptych.callbacks.remember.ledger.ledger_command import (
    ledger_of,
    read_learned,
    run_ledger_command,
)
from triptych.commands.fact_questions import ask_facts, of_ledger
from triptych.commands.find_export import find_export
from triptych.commands.options import EXPORT, CommandParser
from triptych.models.remember.ledger.ledger import Ledger

EPILOG = """examples:
  python train.py unlearn "Brightwell Robotics is led by Ingrid Solvang." --model taught --out new
  python train.py unlearn hq-brightwell --model taught --out new --shared_rows keep

`python train.py ledger show EXPORT` lists the facts."""


def run_unlearn_command(words: Sequence[str]) -> Path:
    """Write a model without some facts and with all others; see `ledger unlearn`.

    The facts are asked before and after, and both replies are printed.

    Args:
        words: The command line after ``unlearn``.

    Raises:
        argparse.ArgumentError: for an option that does not exist.
        OSError: if the export or its ledger is missing.
        ValueError: if the ledger has no such fact, or words fit several.

    Returns:
        The new model's folder.
    """
    parser = CommandParser(
        "unlearn", description="Take facts back that a model was taught.", epilog=EPILOG
    )
    parser.add_argument("facts", nargs="+", metavar="FACT", help="sentence, question or id")
    parser.add_argument("--model", required=True, help=EXPORT)
    parser.add_argument("--out", required=True, help="new folder for the model")
    parser.add_argument("--ledger", help="its ledger; by default the one in its folder")
    parser.add_argument(
        "--shared_rows",
        choices=("keep", "subtract"),
        default="subtract",
        help="rows that later facts have written too: subtract the fact's difference from them (by "
        "default), or keep them, after which the fact may still be answered",
    )
    parser.add_argument(
        "--device", help="where to ask: cpu, cuda, ...; by default the best there is"
    )
    options = parser.read(words)
    folder = find_export(options.model)
    _, ledger = read_learned(options.ledger or ledger_of(folder))
    asked = []
    if isinstance(ledger, Ledger):  # the command below refuses anything else
        asked = of_ledger(ledger.texts, [ledger.find(words) for words in options.facts])
    passed = ["--model", str(folder), "--out", options.out]
    passed += ["--shared_rows", options.shared_rows]
    if options.ledger is not None:
        passed += ["--ledger", options.ledger]
    if Path(options.out).exists():
        raise ValueError(f"--out {options.out} exists already: choose another name")
    before = ask_facts(asked, folder, options.device)
    out = run_ledger_command(["unlearn", *options.facts, *passed])
    after = ask_facts(asked, out, options.device)
    for fact, old, new in zip(asked, before, after, strict=True):
        print(f"asked again: {fact.own}")
        print(f"  before: {old.text} ({'answered' if old.own else 'not answered'})")
        print(f"  now:    {new.text} ({'still answered' if new.own else 'not answered'})")
    return out
