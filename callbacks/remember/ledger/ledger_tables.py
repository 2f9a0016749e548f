"""The output of the ledger command."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from triptych.models.remember.ledger.fact_texts import sentence_of
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.ledger_merge import Merged
from triptych.models.remember.ledger.ledger_overlap import Overlap, shared_with_later
from triptych.models.remember.ledger.slot_deltas import SlotDelta

WIDTH_OF_A_FILE = 500
MOST_ROWS_SHOWN = 20


def say(text: str) -> None:
    """Print a line."""
    _console().print(text, markup=False, highlight=False)


def print_ledger(ledger: Ledger) -> None:
    """Print a row for each entry, and the totals."""
    table = _table("entry", "session", "facts", "sentence", "step", "rows", "shared with later", "")
    shared = shared_with_later(ledger)
    for number, (entry, later) in enumerate(zip(ledger, shared, strict=True)):
        state = "taken out, but for these rows" if entry.reverted else ""
        rows = (f"{entry.step:,}", f"{entry.num_rows:,}", f"{later:,}")
        facts = ", ".join(entry.facts) or entry.label
        place = (f"{number:,}", f"{entry.session:,}")
        table.add_row(*place, facts, _sentences(entry), *rows, state)
    _console().print(table)
    if not len(ledger):
        say("no entries")
        return
    whole = ledger.squashed()
    say(
        f"{len(ledger):,} entries, {len(ledger.facts):,} facts, {whole.num_rows:,} different rows; "
        f"{ledger.num_sessions:,} sessions; "
        f"base {ledger.base.around[:8]}-{ledger.base.values[:8]}"
    )


def print_delta(delta: SlotDelta) -> None:
    """Print the number and the size of changes for each value table."""
    table = _table("table", "rows", "mean change", "largest change")
    for number, change in enumerate(delta.tables):
        norms_U = (change.new_UD.double() - change.old_UD.double()).norm(dim=1)
        mean, most = (float(f) for f in (norms_U.mean(), norms_U.max())) if len(change) else (0, 0)
        table.add_row(str(number), f"{len(change):,}", f"{mean:.4g}", f"{most:.4g}")
    say(_sentences(delta) or ", ".join(delta.facts) or delta.label)
    _console().print(table)
    say(
        f"{delta.num_rows:,} rows; changes are Euclidean lengths; "
        f"base {delta.base.around[:8]}-{delta.base.values[:8]}"
    )


def print_overlap(found: Overlap, ledger: Ledger) -> None:
    """Print the facts that share most rows, and the totals."""
    table = _table("entry", "facts", "shared rows")
    for number, count in list(found.rows_of_entry.items())[:MOST_ROWS_SHOWN]:
        facts = ", ".join(ledger.entries[number].facts)
        table.add_row(f"{number:,}", facts, f"{count:,}")
    _console().print(table)
    say(
        f"{found.num_shared:,} of {found.num_rows:,} rows ({found.share:.1%}) were written before, "
        f"by {len(found.rows_of_entry):,} entries"
    )


def print_conflicts(merged: Merged, first: Ledger | SlotDelta, second: Ledger | SlotDelta) -> None:
    """Print the facts of two ledgers that have written the same rows."""
    conflicts = merged.conflicts
    if conflicts.num_common:
        say(f"both begin with the same {conflicts.num_common:,} entries, which are held once")
    for own, name in conflicts.renamed.items():
        say(f"the second's {own} is another fact than the first's: it is now {name}")
    if not conflicts.num_rows:
        say("no row was written by both")
        return
    table = _table("ledger", "entry", "facts", "rows in conflict")
    sides = (("first", first, conflicts.of_first), ("second", second, conflicts.of_second))
    for name, ledger, rows_of_entry in sides:
        entries = (ledger,) if isinstance(ledger, SlotDelta) else ledger.entries
        for number, count in list(rows_of_entry.items())[:MOST_ROWS_SHOWN]:
            facts = ", ".join(entries[number].facts)
            table.add_row(name, f"{number:,}", facts, f"{count:,}")
    _console().print(table)
    say(f"{conflicts.num_rows:,} rows were written by both")
    if conflicts.facts_in_both:
        say(f"learned in both: {', '.join(conflicts.facts_in_both)}")


def _sentences(entry: SlotDelta) -> str:
    found = (sentence_of(entry.texts.get(fact)) for fact in entry.facts)
    return escape(" / ".join(text for text in found if text))


def _table(*columns: str) -> Table:
    table = Table()
    for name in columns:
        is_text = name in ("facts", "sentence", "ledger", "")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    return table


def _console() -> Console:
    console = Console()
    if not console.is_terminal:  # in a file, wrapped ids could not be searched for
        console = Console(width=WIDTH_OF_A_FILE)
    return console
