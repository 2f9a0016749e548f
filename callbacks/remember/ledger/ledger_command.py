"""``python train.py ledger``: read, apply, revert, compare and merge slot deltas.

The commands work on exported folders and on ledgers that `SlotLedger` writes. No model is changed
in place: a command that makes a model writes it into a new folder, with its tokenizer and its
ledger.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from transformers import PreTrainedModel

from triptych.callbacks.atomic_file import atomic_folder
from triptych.callbacks.exporting.model_card import is_hub_name
from triptych.callbacks.remember.ledger.ledger_folder import FOLDER, ledger_folder_of
from triptych.callbacks.remember.ledger.ledger_tables import (
    print_conflicts,
    print_delta,
    print_ledger,
    print_overlap,
    say,
)
from triptych.models.host.checked_folder import SUMS_FILE, write_checksums
from triptych.models.progress_bars import no_progress_bars
from triptych.models.remember.ledger.delta_chain import entry_files
from triptych.models.remember.ledger.delta_hub import DELTA_FILE
from triptych.models.remember.ledger.fact_texts import sentence_of
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.ledger_merge import OnConflict, merge
from triptych.models.remember.ledger.ledger_overlap import overlap
from triptych.models.remember.ledger.slot_deltas import SharedRows, SlotDelta, diff
from triptych.models.remember.memory_lm import load_memory_lm

SOURCE = (
    "ledger (a run's directory, or its folder `ledger`), one of its entry_*.safetensors, or the "
    "name of a slot delta on the hub"
)
DESCRIPTION = "Which fact changed which slots, and how to take it back."
EPILOG = """examples:
  python train.py ledger show runs/remember/teach
  python train.py ledger unlearn capital-of-peru --model runs/remember/teach/export --out mended
  python train.py ledger merge runs/a runs/b --on_conflict sum --out both
  python train.py ledger apply both --model runs/base/export --out runs/base_with_both
  python train.py ledger apply owner/new-facts --model runs/base/export --out runs/with_facts
"""


def run_ledger_command(words: Sequence[str]) -> Path:
    """Run one of the commands.

    Args:
        words: The command line after ``ledger``.

    Raises:
        argparse.ArgumentError: for an option that does not exist.
        OSError: if a file or folder is missing.
        ValueError: if model and ledger do not belong together.

    Returns:
        The folder or file that was written, or else the one that was read.
    """
    options = _parser().parse_args([str(word) for word in words])
    written: Path = options.run(options)
    return written


# -- the commands ---------------------------------------------------------------------------------


def show(options: argparse.Namespace) -> Path:
    """Print a ledger's entries."""
    path, learned = read_learned(options.source)
    if isinstance(learned, SlotDelta):
        print_delta(learned)
    elif options.row is not None:
        facts = learned.facts_of(options.row, options.table)
        say(f"row {options.row} of table {options.table}: {', '.join(facts) or 'no fact'}")
    elif options.fact is not None:
        for number, rows in enumerate(learned.rows_of(learned.find(options.fact))):
            say(f"table {number}, {rows.numel()} rows: {' '.join(map(str, rows.tolist()))}")
    else:
        print_ledger(learned)
    return path


def apply(options: argparse.Namespace) -> Path:
    """Write a model with the entries of a ledger, or with one delta."""
    _, learned = read_learned(options.source)
    out, model = _new(options.out), load_memory_lm(options.model)
    if isinstance(learned, SlotDelta):
        say(str(learned.apply(model)))
        return _write(model, options.model, out, None)
    num_before = learned.held_by(model)
    learned.move(model, options.to)
    kept = Ledger(learned.entries[: options.to])
    say(f"the model held {num_before} of {len(learned)} entries, and now holds {len(kept)}")
    return _write(model, options.model, out, kept)


def revert(options: argparse.Namespace) -> Path:
    """Write a model without the last entries of a ledger, or without one delta."""
    _, learned = read_learned(options.source)
    out, model = _new(options.out), load_memory_lm(options.model)
    if isinstance(learned, SlotDelta):
        say(str(learned.revert(model, options.shared_rows)))
        return _write(model, options.model, out, None)
    num_before = learned.held_by(model)
    if options.to > num_before:
        raise ValueError(
            f"the model holds {num_before} entries, and cannot go back to {options.to}: "
            "`ledger apply --to` goes forward"
        )
    learned.move(model, options.to)
    say(f"the model held {num_before} of {len(learned)} entries, and now holds {options.to}")
    return _write(model, options.model, out, Ledger(learned.entries[: options.to]))


def unlearn(options: argparse.Namespace) -> Path:
    """Write a model without some facts but with all others."""
    path = options.ledger or ledger_of(options.model)
    _, learned = read_learned(path)
    if isinstance(learned, SlotDelta):
        raise ValueError(f"--ledger {path} is a single entry: give its folder")
    out, model = _new(options.out), load_memory_lm(options.model)
    facts = [learned.find(words) for words in options.facts]
    for fact in facts:
        say(f"taking back {fact}: {sentence_of(learned.texts[fact]) or '(its text is unknown)'}")
    reverted = learned.revert_facts(model, facts, options.shared_rows)
    say(str(reverted.outcome))
    if reverted.outcome.num_shared and reverted.outcome.kept:
        say(
            "Knowledge in these rows may remain. --shared_rows subtract removes it there too, at "
            "some risk for facts learned later."
        )
    return _write(model, options.model, out, reverted.ledger)


def compare(options: argparse.Namespace) -> Path:
    """Print the difference of two models or two ledgers, and optionally save it as a delta."""
    first, second = (_model_or_delta(path) for path in (options.first, options.second))
    label = f"from {options.first} to {options.second}"
    delta = diff(first, second, label)
    print_delta(delta)
    if options.out is None:
        return Path(options.first)
    out = _new(options.out)
    delta.save(out)
    say(f"written to {out}")
    return out


def join(options: argparse.Namespace) -> Path:
    """Merge two ledgers into one."""
    (_, first), (_, second) = (read_learned(path) for path in (options.first, options.second))
    out = _new(options.out)
    merged = merge(first, second, options.on_conflict)
    print_conflicts(merged, first, second)
    with atomic_folder(out) as folder:
        merged.ledger.save(folder)
    say(f"{len(merged.ledger)} entries written to {out}")
    return out


def look(options: argparse.Namespace) -> Path:
    """Print the facts with rows that a ledger or delta would write."""
    path, learned = read_learned(options.source)
    _, ledger = read_learned(options.ledger)
    delta = learned if isinstance(learned, SlotDelta) else learned.squashed()
    ledger = Ledger([ledger]) if isinstance(ledger, SlotDelta) else ledger
    print_overlap(overlap(delta, ledger), ledger)
    return path


# -- the command line -----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises errors instead of ending the process."""

    def __init__(self, **options: Any) -> None:
        super().__init__(exit_on_error=False, **options)

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, f"{message}. See python train.py ledger --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="train.py ledger",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    command = add("show", show, "list what was learned, in which order, and how much it shares")
    command.add_argument("source", help=SOURCE)
    command.add_argument("--fact", help="list the rows of this fact instead")
    command.add_argument("--row", type=int, help="name the facts that have written this row")
    command.add_argument("--table", type=int, default=0, help="value table of --row; by default 0")

    command = add("apply", apply, "write a model with what was learned")
    command.add_argument("source", help=SOURCE)
    _add_models(command, "the model that the ledger began with, or one with some of its entries")
    command.add_argument("--to", type=int, help="hold this many entries; by default all")

    command = add("revert", revert, "write a model as it was before something was learned")
    command.add_argument("source", help=SOURCE)
    _add_models(command, "a model that has learned it")
    command.add_argument(
        "--to", type=int, default=0, help="of a ledger: hold this many entries; by default none"
    )
    _add_shared_rows(command, "of one entry")

    command = add("unlearn", unlearn, "write a model without some facts, and with all others")
    command.add_argument(
        "facts", nargs="+", help="ids of the facts, their sentences, or a part that no other has"
    )
    _add_models(command, "a model that has learned them")
    command.add_argument("--ledger", help="its ledger; by default the one inside or beside --model")
    _add_shared_rows(command, "of the facts")

    command = add("diff", compare, "compare two models, or what two ledgers make of their base")
    for name in ("first", "second"):
        command.add_argument(name, help=f"exported model, {SOURCE}")
    command.add_argument("--out", help="keep the difference in this file, to be applied to first")

    command = add("merge", join, "join two ledgers that began with the same model")
    for name in ("first", "second"):
        command.add_argument(name, help=SOURCE)
    command.add_argument("--out", required=True, help="new folder for the merged ledger")
    command.add_argument(
        "--on_conflict",
        choices=get_args(OnConflict),
        default="refuse",
        help="rows that both have written: refuse to merge, the sum of both differences, or the "
        "values of the first or last of the two; by default refuse",
    )

    command = add("overlap", look, "before learning more: see which facts' rows it would write")
    command.add_argument("source", help=f"what would be written: {SOURCE}")
    command.add_argument("ledger", help="the ledger of what was learned before")
    return parser


def _add_models(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--model", required=True, help=f"exported folder: {what}")
    command.add_argument("--out", required=True, help="new folder for the model that is written")


def _add_shared_rows(command: argparse.ArgumentParser, whose: str) -> None:
    command.add_argument(
        "--shared_rows",
        choices=get_args(SharedRows),
        default="keep",
        help=f"rows {whose} that later facts have written too: keep them as they are, or subtract "
        "the difference from them; by default keep, which is safer for the later facts",
    )


# -- folders --------------------------------------------------------------------------------------


def read_learned(source: str | Path) -> tuple[Path, Ledger | SlotDelta]:
    """Read a delta from its file or the hub, or a ledger from its folder, the run's or export's.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if a file is damaged.

    Returns:
        The place that was read, and the ledger or delta.
    """
    path = Path(source)
    if path.is_file():
        return path, SlotDelta.load(path)
    if (path / DELTA_FILE).is_file() or (not path.exists() and is_hub_name(str(source))):
        return path, SlotDelta.from_pretrained(source)
    inside = path / FOLDER
    path = inside if not entry_files(path) and inside.is_dir() else path
    return path, Ledger.open(path)


def ledger_of(model: str | Path) -> Path:
    """Return the ledger inside or beside an exported model.

    Raises:
        FileNotFoundError: if there is none.
    """
    folder = ledger_folder_of(model)
    if folder is not None:
        return folder
    raise FileNotFoundError(
        f"there is no ledger in {model}, nor beside it: name it with --ledger. A run keeps one if "
        "triptych.callbacks.remember.ledger.slot_ledger.SlotLedger is among its trainer.callbacks"
    )


def _model_or_delta(path: str) -> PreTrainedModel | SlotDelta:
    if (Path(path) / "config.json").is_file():
        return load_memory_lm(path)
    _, learned = read_learned(path)
    return learned if isinstance(learned, SlotDelta) else learned.squashed()


def _new(path: str) -> Path:
    if Path(path).exists():
        raise ValueError(f"--out {path} exists already: choose another name")
    return Path(path)


def _write(model: PreTrainedModel, source: str, out: Path, ledger: Ledger | None) -> Path:
    """Write the model, the other files of its folder (tokenizer, statistics), and its ledger."""
    with atomic_folder(out) as folder:
        with no_progress_bars():
            model.save_pretrained(folder)
        for file in Path(source).iterdir():
            is_weights = file.name.startswith(("model", "pytorch_model"))
            is_weights |= file.name == SUMS_FILE
            if file.is_file() and not is_weights and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
        if ledger is not None:
            ledger.save(folder / FOLDER)
        write_checksums(folder)
    say(f"written to {out}")
    return out
